"""Counts against plain Python over the items."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.item_index import ItemIndex
from bigearth_cube.search import Question
from bigearth_cube.tally import AGGREGATIONS, aggregate, cells, tally
from tests.items import INDEX, ITEMS, TABLE

PARTS = st.sets(st.integers(0, len(ITEMS) - 1)).map(sorted)


@given(PARTS)
@settings(max_examples=30)
@pytest.mark.parametrize("name", ["bec:country", "bec:season", "bec:split", "grid:code"])
def test_items_are_counted_by_a_text(name: str, part: list[int]) -> None:
    expected = Counter(ITEMS[i]["properties"].get(name) for i in part)
    assert tally(INDEX, np.array(part, np.int32), name) == expected


@given(PARTS)
@settings(max_examples=30)
def test_items_are_counted_once_for_each_label_and_apart_where_unknown(part: list[int]) -> None:
    expected: Counter[str | None] = Counter()
    for i in part:
        expected.update(ITEMS[i]["properties"].get("bec:labels", [None]))
    assert tally(INDEX, np.array(part, np.int32), "bec:labels") == expected


@given(PARTS)
@settings(max_examples=30)
def test_items_are_counted_by_a_flag_and_by_month(part: list[int]) -> None:
    places = np.array(part, np.int32)
    flags = {True: "true", False: "false", None: None}
    known = [ITEMS[i]["properties"] for i in part]
    assert tally(INDEX, places, "bec:snow") == Counter(flags[p.get("bec:snow")] for p in known)
    assert tally(INDEX, places, "month") == Counter(p["datetime"][:7] for p in known)


def cell_of(item: dict[str, Any], zoom: int) -> tuple[int, int]:
    """The web map tile of a center, by the formula that map servers state."""
    west, south, east, north = item["bbox"]
    lon, lat = (west + east) / 2, math.radians((south + north) / 2)
    x = int((lon + 180) / 360 * 2**zoom)
    y = int((1 - math.asinh(math.tan(lat)) / math.pi) / 2 * 2**zoom)
    return x, y


@pytest.mark.parametrize("zoom", [0, 3, 8, 13, 22])
def test_items_are_counted_by_the_map_tile_of_their_center(zoom: int) -> None:
    expected = Counter(cell_of(item, zoom) for item in ITEMS)
    x, y, n = cells(INDEX, None, zoom)
    assert dict(zip(zip(x.tolist(), y.tolist(), strict=True), n.tolist(), strict=True)) == expected
    named = {f"{zoom}/{x}/{y}": n for (x, y), n in expected.items()}
    assert tally(INDEX, None, "cell", zoom=zoom) == named


def test_nothing_is_counted_as_nothing() -> None:
    none = np.empty(0, np.int32)
    for by in ("bec:country", "bec:labels", "bec:snow", "month", "cell"):
        assert tally(INDEX, none, by) == {}
    found = {a["name"]: a for a in aggregate(INDEX, Question.of(ids=[]), AGGREGATIONS[5:])}
    assert found["total_count"]["value"] == 0
    assert found["datetime_min"]["value"] is None


@pytest.mark.parametrize("by", ["bec:row", "geometry", "nothing"])
def test_what_cannot_be_counted_by_is_refused_with_the_choices(by: str) -> None:
    with pytest.raises(InvalidInputError, match=r"choose one of: bec:cloud.*month, cell"):
        tally(INDEX, None, by)
    with pytest.raises(InvalidInputError, match="unknown aggregation 'x'; choose from: bec_labels"):
        aggregate(INDEX, Question.of(), ["x"])
    with pytest.raises(InvalidInputError, match="zoom is 23; expected 0 to 22"):
        cells(INDEX, None, 23)


HALVES = [ItemIndex(TABLE.slice(0, 230)), ItemIndex(TABLE.slice(230))]
IN_V2 = [name for name in AGGREGATIONS if name != "bec_labels_43_frequency"]


@pytest.mark.parametrize("name", IN_V2)
def test_two_cubes_are_counted_together(name: str) -> None:
    question = Question.of(bbox=(-10, 36, 20, 60))
    (whole,), (both,) = aggregate(INDEX, question, [name]), aggregate(HALVES, question, [name])
    for answer in (whole, both):
        answer["buckets"] = sorted(answer.get("buckets", ()), key=lambda b: str(b["key"]))
    assert whole == both


def test_an_aggregation_counts_every_item_in_a_bucket_or_as_overflow() -> None:
    (by_country,) = aggregate(INDEX, Question.of(), ["bec_country_frequency"])
    unknown = sum("bec:country" not in item["properties"] for item in ITEMS)
    assert by_country["overflow"] == unknown > 0
    assert sum(b["frequency"] for b in by_country["buckets"]) == len(ITEMS) - unknown
    (months,) = aggregate(INDEX, Question.of(), ["datetime_frequency"])
    assert months["buckets"][0]["key"] == "2017-06-01T00:00:00Z"
    (first,) = aggregate(INDEX, Question.of(), ["datetime_min"])
    assert first["value"] == min(item["properties"]["datetime"] for item in ITEMS)


def test_a_property_that_a_cube_lacks_is_unknown_of_all_its_items() -> None:
    (found,) = aggregate(INDEX, Question.of(), ["bec_labels_43_frequency"])
    assert (found["buckets"], found["overflow"]) == ([], len(ITEMS))
