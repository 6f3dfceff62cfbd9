"""Three routes to one selection: the cube, items that a client found, and the command on an API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pystac_client
import pytest

from bigearth_cube import stac
from bigearth_cube.cli import main
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError, NotFoundError, StorageError
from bigearth_cube.ingest import ingest
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.remote import search_api
from bigearth_cube.search import Selection
from tests.api import served
from tests.sources import MemorySource

QUERY = {
    "bbox": [10.0, 45.0, 13.1, 49.0],
    "datetime": "2017-06/2017-08",
    "filter": "a_overlaps(\"bec:labels\", ('Pastures', 'Mixed forest')) AND \"bec:snow\" = FALSE",
}


@pytest.fixture(scope="module")
def api(cube: Cube) -> Iterator[str]:
    with served({cube.id: cube}) as url:
        yield url


@pytest.fixture(scope="module")
def selection(cube: Cube) -> Selection:
    chosen = cube.search(**QUERY, split="train")
    assert 0 < len(chosen) < 600
    return chosen


def same(a: Selection, b: Selection) -> bool:
    return (
        a.digest == b.digest
        and a.rows.tolist() == b.rows.tolist()
        and a.ids.equals(b.ids)
        and (a.cube_id, a.release) == (b.cube_id, b.release)
    )


def test_what_a_client_found_is_what_the_cube_finds(
    cube: Cube, api: str, selection: Selection
) -> None:
    client = pystac_client.Client.open(api)
    found = client.search(
        collections=[cube.id],
        **{**QUERY, "filter": QUERY["filter"] + " AND \"bec:split\" = 'train'"},
    ).item_collection()
    dicts = found.to_dict()
    for items in (found, list(found), dicts, dicts["features"], reversed(dicts["features"] * 2)):
        assert same(Selection.from_items(items, cube), selection)
    table = cube.items.filter(pa.compute.is_in(cube.items["id"], selection.ids))
    assert same(Selection.from_items(table, cube), selection)


def test_items_that_do_not_say_their_row_are_known_by_name(
    cube: Cube, selection: Selection
) -> None:
    bare = [{"id": name} for name in selection.ids.to_pylist()]
    assert same(Selection.from_items(bare, cube), selection)
    assert len(Selection.from_items([], cube)) == 0


def test_the_command_on_an_api_saves_what_it_saves_on_the_cube(
    cube: Cube, api: str, selection: Selection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = ",".join(map(str, QUERY["bbox"]))
    asked = ["--bbox", box, "--datetime", str(QUERY["datetime"]), "--split", "train"]
    asked += ["--filter", str(QUERY["filter"])]
    printed = []
    for name, url in {"cube": cube.url, "api": api}.items():
        main(["search", url, *asked, "--out", str(tmp_path / f"{name}.parquet")])
        printed.append(capsys.readouterr().out.replace(f"{name}.parquet", ""))
        assert same(Selection.load(str(tmp_path / f"{name}.parquet")), selection)
    assert printed[0] == printed[1]


def test_a_selection_of_an_api_trains(cube: Cube, api: str, selection: Selection) -> None:
    with BatchLoader(cube, search_api(api, **QUERY, split="train"), batch_size=16) as loader:
        rows = sorted(row for batch in loader.epoch(0) for row in batch.rows.tolist())
    assert rows == selection.rows.tolist()


def test_a_selection_of_an_api_says_what_was_asked(api: str) -> None:
    assert search_api(api, split="test", bbox=None).query == {"split": "test"}


def test_items_of_another_cube_are_refused(cube: Cube, selection: Selection) -> None:
    item = stac.items(cube.items.slice(0, 1), cube_url=cube.url)[0]
    for change, message in (
        ({"collection": "another"}, "of collection 'another', this cube is"),
        ({"id": "S2A_nowhere"}, "1 of 1 patches are not in release 'r1' .* is 'S2A_nowhere'"),
        ({"properties": {"bec:row": 10_000}}, "says row 10000, release 'r1' .* has it in row"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            Selection.from_items([{**item, **change}], cube)


@pytest.mark.parametrize("items", [7, [7], [{"properties": {}}], {"type": "Feature"}, [{"id": 3}]])
def test_what_are_no_items_are_refused(cube: Cube, items: Any) -> None:
    with pytest.raises(InvalidInputError, match="expected STAC items"):
        Selection.from_items(items, cube)


# --- other releases and cubes


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, dask_client: Any) -> str:
    """URL of a cube with a second release: 40 patches, then 30 more."""
    url = str(tmp_path_factory.mktemp("grown"))
    for n in (40, 70):
        ingest(MemorySource(n, with_views=False), url, client=dask_client)
    return url


def test_a_selection_is_used_on_its_own_release_or_resolved_by_choice(grown: str) -> None:
    first, newest = open_cube(grown, release="r1"), open_cube(grown)
    chosen = first.search(split="train")
    with pytest.raises(InvalidInputError, match="release 'r1'"):
        BatchLoader(newest, chosen, batch_size=4)
    patches = chosen.resolve(newest)
    assert patches.ids.equals(chosen.ids)
    assert patches.release == "r2"
    assert patches == newest.search(ids=chosen.ids.to_pylist())
    asked = chosen.resolve(newest, by="query")
    assert asked == newest.search(split="train")
    assert len(asked) > len(patches)
    assert patches.resolve(first) == chosen


def test_a_selection_resolves_in_another_cube_at_the_rows_that_it_has_there(
    grown: str, cube: Cube
) -> None:
    chosen = open_cube(grown, release="r1").search(split="validation")
    there = chosen.resolve(cube)
    assert there.cube_id == cube.id
    assert cube.index.column("id").take(cube.index.places_of(there.ids.to_pylist())).to_pylist()
    assert sorted(there.ids.to_pylist()) == sorted(chosen.ids.to_pylist())
    assert there.rows_in(cube.index).tolist() == there.rows.tolist()


def test_a_selection_that_cannot_be_resolved_is_refused(grown: str) -> None:
    first, newest = open_cube(grown, release="r1"), open_cube(grown)
    with pytest.raises(
        InvalidInputError, match=r"30 of 70 patches are not in release 'r1'.*search\(ids"
    ):
        newest.search().resolve(first)
    with pytest.raises(InvalidInputError, match=r"does not say what question.*by='patches'"):
        Selection.from_items(first.items, first).resolve(newest, by="query")
    with pytest.raises(InvalidInputError, match="by is 'hope'; choose 'patches' or 'query'"):
        newest.search().resolve(first, by="hope")  # type: ignore[arg-type]


# --- APIs that are not as hoped


def test_an_api_of_several_collections_is_asked_for_one_by_name(cube: Cube, capsys: Any) -> None:
    with served({"a": cube, cube.id: cube}) as url:
        with pytest.raises(InvalidInputError, match=rf"2 collections; choose one of: a, {cube.id}"):
            search_api(url)
        with pytest.raises(NotFoundError, match="no collection 'b'"):
            search_api(url, collection="b")
        main(["search", url, "--collection", cube.id, "--limit", "0"])
        assert "600 patches" in capsys.readouterr().out


def test_an_api_that_cannot_filter_is_not_asked_to(cube: Cube) -> None:
    with served({cube.id: cube}, conforms=("/core", "/collections", "/item-search")) as url:
        assert len(search_api(url)) == 600  # and gives whole items
        with pytest.raises(InvalidInputError, match="cannot filter"):
            search_api(url, split="train")


def test_what_an_api_says_against_a_query_is_told(cube: Cube, api: str) -> None:
    with pytest.raises(InvalidInputError, match=r"refuses the query \(400\).*unknown property 'x'"):
        search_api(api, filter="x = 1")
    with (
        served({cube.id: cube}, broken=True) as url,
        pytest.raises(StorageError, match="no memory"),
    ):
        search_api(url)


def test_an_address_without_an_api_is_refused(api: str) -> None:
    with pytest.raises(NotFoundError, match="no STAC API at"):
        search_api(f"{api}/nowhere")
    with pytest.raises(StorageError, match="cannot be asked"):
        search_api("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{api}/nowhere"], "no STAC API at .*; nor is a cube there"),
        (["{cube}", "--collection", "x"], "is a cube; --collection is of a STAC API"),
    ],
)
def test_the_command_says_what_is_wrong_with_an_address(
    arguments: list[str], message: str, api: str, cube: Cube, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["search", *(a.format(api=api, cube=cube.url) for a in arguments)])
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err)
