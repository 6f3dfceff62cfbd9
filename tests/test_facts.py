"""What is learned of published rows: the next release knows it, older ones read the old."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bigearth_cube.archive import PatchRecord
from bigearth_cube.cli import cli
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.ingest import forecast, ingest
from bigearth_cube.layout import GROUP_COLUMNS
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.nomenclature import COUNTRIES, NAMES_19, NAMES_43, SPLITS
from tests.sources import MemorySource, index_of, labels_of

N = 30
FIELDS = ("labels", "split", "country", "flagged_snow", "flagged_cloud_or_shadow")


@dataclass
class Told(MemorySource):
    """Says of each patch what it was told to say, by number."""

    said: dict[int, dict[str, Any]] = field(default_factory=dict)

    def records(self) -> Iterator[PatchRecord]:
        for record in super().records():
            yield replace(record, **self.said.get(index_of(record.id), {}))


UNKNOWN: dict[str, Any] = dict.fromkeys(FIELDS)


def write_list(path: Path, records: list[PatchRecord]) -> str:
    rows = [
        {
            "patch_id": r.id,
            "labels": None if r.labels is None else list(r.labels),
            "split": r.split,
            "country": r.country,
            "s1_name": r.s1_id,
            "contains_seasonal_snow": r.flagged_snow,
            "contains_cloud_or_shadow": r.flagged_cloud_or_shadow,
        }
        for r in records
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def sound(cube: Cube) -> bool:
    return not [fault for _, fault in cube.verify(cube.recorded_objects()) if fault]


def assert_knows(cube: Cube, source: Told) -> None:
    """Every reader of a cube gives what the records of a source say."""
    records = {record.id: record for record in source.records()}
    items = {item["id"]: item for item in cube.items.to_pylist()}
    tree = cube.tree.to_dataset(inherit=False).load()
    assert tree["id"].values.tolist() == cube.column("id")[cube.rows].tolist()
    known = [patch_id for patch_id in tree["id"].values if records[patch_id].labels is not None]
    assert sorted(cube.search(filter="\"bec:split\" = 'train'").rows.tolist()) == sorted(
        items[i]["bec:row"] for i, r in records.items() if i in items and r.split == "train"
    )
    assert cube.counts()["split"].get("unknown", {"total": {"all": 0}})["total"]["all"] == sum(
        records[i].split is None for i in items
    )
    for place, (patch_id, row) in enumerate(zip(tree["id"].values, cube.rows, strict=True)):
        record, item = records[patch_id], items[patch_id]
        for name in ("split", "country"):
            assert item[f"bec:{name}"] == getattr(record, name)
            assert (
                tree[name].values[place] == cube.column(name)[row] == (getattr(record, name) or "")
            )
        for name, column in (
            ("flagged_snow", "snow"),
            ("flagged_cloud_or_shadow", "cloud_or_shadow"),
        ):
            assert item[f"bec:{column}"] == getattr(record, name)
            assert tree[name].values[place] == cube.column(name)[row] == bool(getattr(record, name))
        has_labels = record.labels is not None
        assert tree["has_labels"].values[place] == cube.column("has_labels")[row] == has_labels
        assert (item["bec:labels"] is not None) == has_labels
        if has_labels:
            assert set(item["bec:labels"]) == set(record.labels or ())
        hot = [name in (record.labels or ()) for name in NAMES_19]
        assert (
            tree["label_19"].values[place].tolist() == cube.column("label_19")[row].tolist() == hot
        )
    rows = np.array([items[i]["bec:row"] for i in known], np.int64)
    if len(rows):
        hot_NC = np.array([[n in (records[i].labels or ()) for n in NAMES_19] for i in known])
        np.testing.assert_array_equal(cube.labels("label_19", rows), hot_NC)
    if len(known) < cube.n_patches:
        with pytest.raises(InvalidInputError, match="rows have no labels"):
            cube.labels("label_19")


values = st.fixed_dictionaries(
    {},
    optional={
        "labels": st.lists(st.sampled_from(NAMES_19), unique=True, max_size=3).map(tuple),
        "split": st.sampled_from(SPLITS),
        "country": st.sampled_from(COUNTRIES),
        "flagged_snow": st.booleans(),
        "flagged_cloud_or_shadow": st.booleans(),
    },
)


@settings(max_examples=4, phases=[Phase.generate])
@given(
    first=st.dictionaries(st.integers(0, 5), values, max_size=6),
    later=st.lists(st.dictionaries(st.integers(0, 7), values, max_size=6), max_size=2),
    unknown=st.frozensets(st.integers(0, 5)),
)
def test_each_release_knows_what_was_said_until_then(
    first: dict[int, dict[str, Any]],
    later: list[dict[int, dict[str, Any]]],
    unknown: frozenset[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("facts")
    url = str(folder / "cube")
    said = {
        index: (UNKNOWN if index in unknown else {}) | first.get(index, {}) for index in range(6)
    }
    source = Told(6, said=said)
    known = {"r1": source}
    list_of = lambda s: write_list(folder / "metadata.parquet", list(s.records()))
    ingest(list_of(source), url, metadata_only=True)
    for number, more in enumerate(later):
        before = said
        said = {i: said.get(i, {}) | more.get(i, {}) for i in range(8)}
        source = Told(8 if number else 6, said=said)
        old, new = ({r.id: r for r in Told(6, said=x).records()} for x in (before, said))
        if number:
            old = {r.id: r for r in known[max(known)].records()}
        n_changed = sum(_differ(record, new[i]) for i, record in old.items() if i in new)
        report = ingest(list_of(source), url, metadata_only=True)
        assert report.n_restated == n_changed
        assert (report.release is None) == (not n_changed and report.n_rows == len(old))
        if report.release is not None:
            known[report.release] = source
    for name, source in known.items():
        cube = open_cube(url, release=name)
        assert_knows(cube, source)
    assert sound(open_cube(url))


def _differ(old: PatchRecord, new: PatchRecord) -> bool:
    def plain(value: Any) -> Any:
        return frozenset(value) if isinstance(value, tuple) else value

    return any(plain(getattr(old, name)) != plain(getattr(new, name)) for name in FIELDS)


def test_lists_alone_tell_a_cube_with_pixels_what_it_lacked(tmp_path: Path) -> None:
    url = str(tmp_path / "cube")
    ingest(Told(N, with_views=False, said=dict.fromkeys(range(N), UNKNOWN)), url, workers=1)
    first = open_cube(url)
    pixels = {key: first.storage.read(key) for key, _ in first.storage.list() if "/s2/r" in key}
    lists = write_list(tmp_path / "metadata.parquet", list(MemorySource(N + 3).records()))
    told = forecast(lists, url)
    assert (told.release, told.patches) == ("r2", 0)
    before = {key: first.storage.read(key) for key, _ in first.storage.list()}
    done = CliRunner().invoke(cli, ["ingest", lists, url, "--json"])
    report = json.loads(done.stdout)
    assert done.exit_code == 0
    assert (report["release"], report["n_restated"], report["n_absent"]) == ("r2", N, 3)
    cube = open_cube(url)
    written = [
        key
        for key, _ in cube.storage.list()
        if "lock" not in key and before.get(key) != cube.storage.read(key)
    ]
    assert len(written) <= told.objects
    assert_knows(cube, Told(N))
    assert sound(cube)
    assert {cube.storage.read(key) == data for key, data in pixels.items() if "/c/" in key} == {
        True
    }
    assert set(cube.release.label_arrays) == {
        f"labels/r2/{name}"
        for name in ("label_19", "has_labels", "split", "country", "flagged_snow")
    }  # not flagged by clouds is what an unknown flag is stored as
    assert_knows(open_cube(url, release="r1"), Told(N, said=dict.fromkeys(range(N), UNKNOWN)))
    with BatchLoader(cube, cube.search(split="train"), batch_size=4, shuffle="none") as loader:
        for batch in loader.epoch(0):
            ids = cube.column("id")[batch.rows]
            for patch_id, labels in zip(ids, batch.labels, strict=True):
                assert [NAMES_19[i] for i in np.flatnonzero(labels)] == list(
                    labels_of(index_of(patch_id))
                )
    again = ingest(lists, url)
    assert (again.release, again.n_restated) == (None, 0)


def test_plain_xarray_finds_the_restated_columns_under_their_names(tmp_path: Path) -> None:
    url = str(tmp_path)
    ingest(Told(N, with_views=False, said={3: {"split": None, "labels": None}}), url, workers=1)
    ingest(Told(N, with_views=False), url, workers=1)
    ingest(Told(N + 5, with_views=False), url, workers=1)
    tree = xr.open_datatree(f"{url}/cube.zarr", engine="zarr", consolidated=True)
    cube = open_cube(url)
    row = cube.row_of(next(r.id for r in Told(N).records() if index_of(r.id) == 3))
    group = tree["labels/r2"]
    assert set(group.data_vars) == {"label_19", "has_labels", "split"}
    assert tree.sizes["patch"] == group.sizes["patch"] == cube.n_rows
    assert tree["split"].values[row] == ""
    assert group["split"].values[row] == cube.column("split")[row] != ""
    assert group["has_labels"].values.sum() == N


def test_views_new_rows_and_facts_may_come_in_one_run(tmp_path: Path) -> None:
    url = str(tmp_path)
    ingest(Told(N, with_views=False, said={4: UNKNOWN}), url, workers=1)
    report = ingest(Told(N + 9), url, workers=1)
    assert (report.release, report.n_restated) == ("r2", 1)
    assert report.accounts["s1"].ingested == N + 9
    cube = open_cube(url)
    assert_knows(cube, Told(N + 9))
    assert sound(cube)
    assert ingest(Told(N + 9), url, workers=1).release is None


def test_what_a_list_says_in_words_that_none_knows_is_left_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = str(tmp_path / "cube")
    ingest(Told(6, said={2: UNKNOWN}), url, workers=1)
    records = [replace(r, split="val") if index_of(r.id) == 2 else r for r in Told(6).records()]
    lists = write_list(tmp_path / "metadata.parquet", records)
    assert ingest(lists, url).n_restated == 1
    cube = open_cube(url)
    assert cube.items["bec:split"].null_count == 1
    assert cube.items["bec:labels"].null_count == 0
    assert "is not taken over: 'val'" in caplog.text


def test_lists_of_another_archive_or_without_a_cube_are_refused(tmp_path: Path) -> None:
    lists = write_list(tmp_path / "metadata.parquet", list(Told(6).records()))
    with pytest.raises(InvalidInputError, match="official lists but no patch"):
        ingest(lists, str(tmp_path / "none"))
    ingest(MemorySource(5, archive="v1", unlabeled=frozenset(range(5))), str(tmp_path / "v1"))
    with pytest.raises(InvalidInputError, match="holds archive v1, the source is v2"):
        ingest(lists, str(tmp_path / "v1"))


def test_the_43_classes_of_v1_are_restated_with_their_19(tmp_path: Path) -> None:
    url, name = str(tmp_path), NAMES_43[0]
    ingest(Told(4, archive="v1", said={key: {"labels": None} for key in range(4)}), url, workers=1)
    ingest(
        Told(4, archive="v1", said={key: {"labels": (name,)} for key in range(4)}), url, workers=1
    )
    cube = open_cube(url)
    assert cube.labels("label_43").sum(axis=0).tolist() == [4, *[0] * 42]
    assert cube.labels("label_19").sum(axis=0).tolist() == [4, *[0] * 18]
    assert cube.items["bec:labels_43"].to_pylist() == [[name]] * 4
    assert cube.items["bec:labels"].to_pylist() == [["Urban fabric"]] * 4


@pytest.mark.parametrize("release", ["r1", "r2", "r3"])
def test_a_tree_shows_the_views_of_its_release_and_none_that_came_later(
    release: str, tmp_path: Path
) -> None:
    url = str(tmp_path)
    ingest(MemorySource(20), url, workers=1)
    ingest(MemorySource(25, first=20, with_views=False), url, workers=1)
    seen = {name: open_cube(url, release=name).tree.load() for name in ("r1", "r2")}
    kept = open_cube(url)  # opened before, looked at after
    ingest(MemorySource(45), url, workers=1)
    ingest(MemorySource(3, first=60, with_views=False), url, workers=1)
    cube = open_cube(url, release=release)
    if release == "r3":
        tree = cube.tree
        assert tree["s1/r10m"]["present"].values.all()
        assert (tree["s1/r10m"]["id"].values != "").all()
        assert not np.isnan(tree["s1/r10m"]["backscatter"].values).any()
        return
    for group in ("s1/r10m", "reference/r10m", "s2/r60m"):
        xr.testing.assert_identical(
            cube.tree[group].to_dataset(), seen[release][group].to_dataset()
        )
        for name in GROUP_COLUMNS.get(group, {}):
            column = cube.column(f"{group}/{name}")[cube.rows]
            shown = cube.tree[group][name].values
            if shown.dtype.kind == "M":
                shown = shown.astype("datetime64[s]").astype(np.int64)
            np.testing.assert_array_equal(column, shown)
        if release == "r2":
            xr.testing.assert_identical(
                kept.tree[group].to_dataset(), seen[release][group].to_dataset()
            )
