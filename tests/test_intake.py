"""The Intake drivers and catalogs, over a real cube."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import distributed
import fsspec
import intake
import numpy as np
import pytest
import xarray as xr
from intake.catalog.local import EntrypointEntry

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.ingest import ingest
from bigearth_cube.nomenclature import GROUPS
from tests.sources import MemorySource
from tests.test_ingest import write_list


@pytest.fixture
def catalog(cube_url: str) -> Any:
    return intake.open_catalog(f"{cube_url}/intake.yaml")


def test_a_cube_carries_a_catalog_of_its_sources(catalog: Any) -> None:
    assert sorted(catalog) == ["cube", "items", "reference", "s1", "s2"]


def test_the_cube_source_is_the_tree(catalog: Any, cube: Cube) -> None:
    for tree in (catalog.cube.to_datatree(), catalog.cube.to_dask(), catalog.cube.read()):
        assert isinstance(tree, xr.DataTree)
        assert tree.identical(cube.tree)


def test_the_items_source_is_the_table(catalog: Any, cube: Cube) -> None:
    assert catalog["items"].read().equals(cube.items)


@pytest.mark.parametrize("path", GROUPS)
def test_a_group_source_is_lazy_and_has_the_pixels(catalog: Any, cube: Cube, path: str) -> None:
    sensor, res = path.split("/")
    dataset = catalog[sensor](res=res).to_dask()
    name = GROUPS[path].array
    assert dataset.identical(cube.tree[path].to_dataset())
    assert dataset[name].chunks is not None
    first = dataset[name].isel(patch=0).to_numpy()
    assert first.shape == GROUPS[path].patch_shape
    assert np.isfinite(first).all()


def test_sources_are_read_at_the_release_asked_for(catalog: Any, cube: Cube) -> None:
    assert catalog["items"](release=cube.release.name).cube.release == cube.release
    with pytest.raises(NotFoundError):
        catalog["items"](release="r99").read()


def test_discover_says_which_cube_and_release(catalog: Any, cube: Cube) -> None:
    about = catalog.cube.discover()["metadata"]
    assert (about["cube"], about["release"]) == (cube.id, cube.release.name)


def test_an_unknown_group_is_refused_with_the_choices(catalog: Any) -> None:
    with pytest.raises(InvalidInputError, match="'s2/r30m'; choose sensor and res from: s2/r10m"):
        catalog.s2(res="r30m")


def test_a_group_the_cube_lacks_is_refused_with_those_it_has(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    source = MemorySource(8, archive="v1", with_views=False, unlabeled=frozenset(range(8)))
    ingest(source, str(tmp_path), client=dask_client)
    catalog = intake.open_catalog(str(tmp_path / "intake.yaml"))
    with pytest.raises(InvalidInputError, match="has no reference/r10m; it has: s2/r10m"):
        catalog.reference.to_dask()


def test_a_group_of_a_cube_without_pixels_is_refused_in_words(tmp_path: Path) -> None:
    lists = write_list(tmp_path / "metadata.parquet", MemorySource(8))
    ingest(lists, str(tmp_path / "cube"), metadata_only=True)
    source = intake.open_catalog(str(tmp_path / "cube" / "intake.yaml")).s2
    with pytest.raises(InvalidInputError, match="has no s2/r10m: it was made from lists alone"):
        source.to_dask()


def test_options_reach_the_sources_of_a_cube_on_s3(
    cube_url: str, bucket: str, s3_options: dict[str, str], cube: Cube
) -> None:
    filesystem = fsspec.filesystem("s3", **s3_options)
    filesystem.put(cube_url, f"{bucket}/mine", recursive=True)
    catalog = intake.open_catalog(f"{bucket}/mine/intake.yaml", storage_options=s3_options)
    table = catalog["items"](storage_options=s3_options).read()
    assert table.equals(cube.items)
    whole = EntryPoint("bigearthnet", "bigearth_cube.intake:bigearthnet", "intake.catalogs").load()
    again = whole(url=f"{bucket}/mine", storage_options=s3_options)
    assert again["items"].read().equals(cube.items)
    assert again.s1.to_dask().sizes["patch"] == len(table)


# --- the installed entry


@pytest.fixture
def entry() -> EntrypointEntry:
    """What ``intake.cat`` makes of our line in the package's entry points."""
    return EntrypointEntry(
        EntryPoint("bigearthnet", "bigearth_cube.intake:bigearthnet", "intake.catalogs")
    )


def test_the_entry_reads_the_cube_it_is_given(entry: Any, cube_url: str, cube: Cube) -> None:
    assert entry(url=cube_url)["items"].read().equals(cube.items)
    assert entry(url=cube_url).s2(res="r20m").to_dask().sizes["y"] == 60


def test_the_entry_reads_the_cube_the_environment_names(
    entry: Any, cube_url: str, cube: Cube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEC_CUBE", cube_url)
    assert entry()["items"].read().equals(cube.items)


def test_the_entry_without_a_cube_says_how_to_name_one(
    entry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BEC_CUBE", raising=False)
    with pytest.raises(InvalidInputError, match="BEC_CUBE to its URL, or pass url="):
        entry().cube.read()


def test_a_catalog_moves_with_its_cube(cube_url: str, tmp_path: Path, cube: Cube) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(cube_url, moved)
    assert intake.open_catalog(str(moved / "intake.yaml"))["items"].read().equals(cube.items)


def test_a_cube_on_s3_opens_with_few_requests(
    cube_url: str, bucket: str, s3_options: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    filesystem = fsspec.filesystem("s3", **s3_options)
    filesystem.put(cube_url, f"{bucket}/mine", recursive=True)

    def requests_of(work: Callable[[], Any]) -> list[str]:
        with caplog.at_level(logging.INFO, logger="werkzeug"):
            caplog.clear()
            work()
            return [record.getMessage() for record in caplog.records if record.name == "werkzeug"]

    def through_intake() -> xr.DataTree:
        catalog = intake.open_catalog(f"{bucket}/mine/intake.yaml", storage_options=s3_options)
        tree: xr.DataTree = catalog.cube(storage_options=s3_options).to_dask()
        return tree

    assert len(requests_of(lambda: open_cube(f"{bucket}/mine", s3_options))) == 1
    assert 3 <= len(requests_of(through_intake)) <= 12
