"""Search over the 549,488 pairs of v2, from the official lists: pages, counts, selections.

Needs the lists in the folder named by BEC_SAMPLES.

The table of 20 million holds the same items again and again: a box finds 36 of each.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bigearth_cube import stac
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.ingest import ingest
from bigearth_cube.item_index import ItemIndex
from bigearth_cube.pages import page
from bigearth_cube.search import Question
from bigearth_cube.tally import tally

BOX = (16.0, 48.0, 16.6, 48.4)
SUMMER = {"op": "=", "args": [{"property": "bec:season"}, "summer"]}
PASTURES = {"op": "a_contains", "args": [{"property": "bec:labels"}, ["Pastures"]]}
BOTH = {"op": "and", "args": [SUMMER, PASTURES]}
WHEN = "2017-06-01T00:00:00Z/2018-05-31T00:00:00Z"
QUERIES: dict[str, dict[str, Any]] = {
    "bbox": {"bbox": BOX},
    "bbox, time, season": {"bbox": BOX, "datetime": WHEN, "filter": SUMMER},
    "bbox, time, season, label": {"bbox": BOX, "datetime": WHEN, "filter": BOTH},
    "attributes": {"filter": BOTH},
}
SMALL_BOX = (16.0, 48.0, 16.1, 48.07)
N_LARGE = 20_000_000


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    folder = os.environ.get("BEC_SAMPLES")
    if not folder:
        pytest.skip("BEC_SAMPLES names no folder with the official lists")
    url = str(tmp_path_factory.mktemp("search") / "cube")
    lists = sorted(str(path) for path in Path(folder, "metadata").glob("metadata*.parquet"))
    ingest(lists, url, metadata_only=True)
    return open_cube(url)


def note_memory(benchmark: Any) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    benchmark.extra_info["peak_mb_so_far"] = round(peak)


@pytest.mark.parametrize("name", QUERIES)
def test_page_of_10(benchmark: Any, cube: Cube, name: str) -> None:
    benchmark.group = f"page of 10 as items, {name}"

    def ask() -> Any:
        found = page(cube.index, Question.of(**QUERIES[name]), limit=10)
        return stac.items(cube.items.take(found.places), cube_url=cube.url)

    assert len(benchmark.pedantic(ask, rounds=200, warmup_rounds=5)) == 10
    note_memory(benchmark)


@pytest.mark.parametrize("sortby", ["-datetime", "id", "bec:country,-datetime"])
def test_sorted_page_of_everything(benchmark: Any, cube: Cube, sortby: str) -> None:
    benchmark.group = "page of 10 of 549,488 in order"
    everything = Question.of()
    benchmark.pedantic(
        lambda: page(cube.index, everything, sortby=sortby), rounds=20, warmup_rounds=1
    )


@pytest.mark.parametrize("by", ["bec:labels", "bec:country", "month", "cell"])
def test_count_everything(benchmark: Any, cube: Cube, by: str) -> None:
    benchmark.group = "count 549,488"
    benchmark.pedantic(lambda: tally(cube.index, None, by, zoom=8), rounds=20, warmup_rounds=1)


def test_selection_of_100_000_rows(benchmark: Any, cube: Cube) -> None:
    benchmark.group = "selection"
    query = "\"bec:country\" = 'Finland' AND \"bec:split\" = 'train'"

    def select() -> Any:
        return cube.search(filter=query)

    assert len(benchmark.pedantic(select, rounds=20, warmup_rounds=1)) > 100_000


def test_digest_of_100_000_rows(benchmark: Any, cube: Cube) -> None:
    benchmark.group = "selection"
    query = "\"bec:country\" = 'Finland' AND \"bec:split\" = 'train'"
    benchmark.pedantic(lambda: cube.search(filter=query).digest, rounds=20, warmup_rounds=1)


def test_1000_items(benchmark: Any, cube: Cube) -> None:
    benchmark.group = "items"
    part = cube.items.slice(100_000, 1000)
    benchmark.pedantic(lambda: stac.items(part, cube_url=cube.url), rounds=20, warmup_rounds=1)


def test_first_answer_of_a_cube(benchmark: Any, cube: Cube) -> None:
    benchmark.group = "from the URL to an answer"
    benchmark.pedantic(lambda: open_cube(cube.url).search(bbox=BOX), rounds=3)
    note_memory(benchmark)


def test_open_as_a_tree(benchmark: Any, cube: Cube) -> None:
    benchmark.group = "from the URL to an answer"
    benchmark.pedantic(lambda: open_cube(cube.url).tree, rounds=7, warmup_rounds=1)


@pytest.fixture(scope="module")
def large(cube: Cube) -> ItemIndex:
    """An index of 20 million items: those of the cube again and again, rows counted on."""
    names = ["bbox", "geometry", "datetime", "bec:row", "bec:labels", "bec:season", "collection"]
    # Constant columns aside, and without a second table of the same beside it.
    table = cube.items.select(names).combine_chunks()
    cube.__dict__.pop("items")
    cube.__dict__.pop("index", None)
    parts = []
    for start in range(0, N_LARGE, len(table)):
        part = table.slice(0, N_LARGE - start)
        rows = pa.array(np.arange(start, start + len(part)))
        parts.append(part.set_column(part.column_names.index("bec:row"), "bec:row", rows))
    return ItemIndex(pa.concat_tables(parts))


@pytest.mark.parametrize("name", ["bbox", "bbox, time, season, label"])
def test_small_box_in_20_million(benchmark: Any, large: ItemIndex, name: str) -> None:
    benchmark.group = "20 million items"
    query = {**QUERIES[name], "bbox": SMALL_BOX}
    found = benchmark.pedantic(
        lambda: page(large, Question.of(**query)), rounds=20, warmup_rounds=1
    )
    benchmark.extra_info["matched"] = found.matched
    note_memory(benchmark)
