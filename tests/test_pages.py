"""Answers in pages, their order and fields, against plain Python over the items."""

from __future__ import annotations

import functools
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigearth_cube import stac
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.item_index import ItemIndex
from bigearth_cube.pages import Fields, Page, page
from bigearth_cube.search import Question, search
from tests.items import INDEX, ITEMS, ROWS, TABLE

EVERYTHING = Question.of()
SORTABLE = ["id", "bec:split", "bec:country", "datetime", "bec:row", "bec:snow", "eo:cloud_cover"]


def rows_of(found: Page, *indexes: ItemIndex) -> list[int]:
    return [
        int(indexes[i].rows[place])
        for i, place in zip(found.which.tolist(), found.places.tolist(), strict=True)
    ]


def value_of(item: dict[str, Any], name: str) -> Any:
    return item[name] if name == "id" else item["properties"].get(name)


def in_order(items: list[dict[str, Any]], keys: list[tuple[str, bool]]) -> list[dict[str, Any]]:
    """Sort by one key after the other, last key first; unknown values last either way."""

    def compare(name: str, descending: bool, a: Any, b: Any) -> int:
        x, y = value_of(a, name), value_of(b, name)
        if x is None or y is None:
            return (x is None) - (y is None)
        return (int(x > y) - int(x < y)) * (-1 if descending else 1)

    for name, descending in reversed(keys):
        items = sorted(
            items, key=functools.cmp_to_key(functools.partial(compare, name, descending))
        )
    return items


sort_keys = st.lists(
    st.tuples(st.sampled_from(SORTABLE), st.booleans()),
    max_size=3,
    unique_by=lambda key: key[0],
)


def as_text(keys: list[tuple[str, bool]]) -> str | None:
    return ",".join(f"{'-' if down else '+'}{name}" for name, down in keys) or None


def walk(
    indexes: list[ItemIndex], question: Question, sortby: Any, limit: int
) -> tuple[list[int], list[int]]:
    """Rows of all pages, forward; then back to the first from the last."""
    pages = [page(indexes, question, sortby=sortby, limit=limit)]
    while pages[-1].next is not None:
        pages.append(page(indexes, question, sortby=sortby, limit=limit, token=pages[-1].next))
        assert pages[-1].matched == pages[0].matched
    assert pages[0].previous is None
    there = [rows_of(p, *indexes) for p in pages]
    back = [pages[-1]]
    while back[-1].previous is not None:
        back.append(page(indexes, question, sortby=sortby, limit=limit, token=back[-1].previous))
    again = [rows_of(p, *indexes) for p in reversed(back)]
    return list(chain.from_iterable(there)), list(chain.from_iterable(again))


@given(sort_keys, st.integers(1, 150))
@settings(max_examples=40)
def test_pages_hold_every_item_once_and_in_order_there_and_back(
    keys: list[tuple[str, bool]], limit: int
) -> None:
    expected = [i["properties"]["bec:row"] for i in in_order(ITEMS, keys)]
    forward, back = walk([INDEX], EVERYTHING, as_text(keys), limit)
    assert forward == expected
    assert back == expected


HALVES = [ItemIndex(TABLE.slice(0, 230)), ItemIndex(TABLE.slice(230))]


@given(sort_keys, st.integers(1, 150))
@settings(max_examples=40)
def test_the_pages_of_two_cubes_are_one_answer(keys: list[tuple[str, bool]], limit: int) -> None:
    expected = [i["properties"]["bec:row"] for i in in_order(ITEMS, keys)]
    forward, back = walk(HALVES, EVERYTHING, as_text(keys), limit)
    assert forward == expected
    assert back == expected


def test_cubes_of_other_values_are_merged_by_value_and_not_by_rank() -> None:
    place = TABLE.column_names.index("bec:country")
    other = TABLE.set_column(place, "bec:country", pa.array(["Malta", "Austria"] * 200))
    other = other.set_column(
        other.column_names.index("bec:row"), "bec:row", pa.array(np.arange(400) + 5000)
    )
    mixed = [INDEX, ItemIndex(other)]
    everything = [*ITEMS, *stac.items(other, cube_url="memory://other")]
    for down in (False, True):
        keys = [("bec:country", down), ("id", not down)]
        expected = [i["properties"]["bec:row"] for i in in_order(everything, keys)]
        assert walk(mixed, EVERYTHING, as_text(keys), 90) == (expected, expected)


def test_a_page_counts_all_that_matches_and_holds_only_that() -> None:
    question = Question.of(filter="\"bec:country\" = 'Austria'")
    first = page(INDEX, question, limit=7)
    expected = search(INDEX, filter="\"bec:country\" = 'Austria'").tolist()
    assert first.matched == len(expected)
    assert sorted(walk([INDEX], question, "-datetime", 7)[0]) == expected


def test_an_answer_of_one_page_has_no_other() -> None:
    whole = page(INDEX, EVERYTHING, limit=len(ITEMS))
    assert (whole.next, whole.previous) == (None, None)
    none = page(INDEX, Question.of(ids=[]), sortby="-datetime")
    assert (len(none), none.matched, none.next, none.previous) == (0, 0, None, None)
    assert len(page([], EVERYTHING)) == 0


def test_what_is_published_between_pages_neither_repeats_nor_hides_an_item() -> None:
    before = ItemIndex(TABLE.slice(0, 300))
    for sortby in (None, "-datetime", "bec:country,id"):
        first = page(before, EVERYTHING, sortby=sortby, limit=100)
        seen = rows_of(first, before)
        token = first.next
        while token is not None:
            later = page(INDEX, EVERYTHING, sortby=sortby, limit=100, token=token)
            seen += rows_of(later, INDEX)
            token = later.next
        assert len(set(seen)) == len(seen)
        assert set(seen) >= set(ROWS[:300].tolist())


def test_sort_is_understood_in_every_notation() -> None:
    expected = page(INDEX, EVERYTHING, sortby="-datetime,id").places.tolist()
    for sortby in (
        " -properties.datetime, id",
        ["-datetime", "+id"],
        [{"field": "properties.datetime", "direction": "desc"}, {"field": "id"}],
    ):
        assert page(INDEX, EVERYTHING, sortby=sortby).places.tolist() == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sortby", "message"),
    [
        ("bec:contry", "sortby has 'bec:contry'; choose from: bec:cloud_or_shadow, bec:country"),
        ("bec:labels", "sortby has 'bec:labels'; choose from"),
        ("geometry", "sortby has 'geometry'"),
        ("", "sortby has ''"),
        ([7], "expected e.g. '-datetime'"),
        ([{"field": "id", "direction": "up"}], "direction asc or desc"),
    ],
)
def test_an_order_that_does_not_exist_is_refused(sortby: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        page(INDEX, EVERYTHING, sortby=sortby)


def test_a_page_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="limit is 0; expected at least 1"):
        page(INDEX, EVERYTHING, limit=0)


def test_a_token_of_another_question_order_or_cube_is_refused() -> None:
    token = page(INDEX, EVERYTHING, limit=5).next
    for index, question, sortby in (
        (INDEX, Question.of(split="train"), None),
        (INDEX, EVERYTHING, "datetime"),
        ([INDEX, INDEX], EVERYTHING, None),
    ):
        with pytest.raises(InvalidInputError, match="of another question, order or set"):
            page(index, question, sortby=sortby, token=token)


@given(st.text(max_size=40) | st.binary(max_size=20).map(bytes.hex))
@settings(max_examples=30)
def test_a_token_of_ours_only_is_understood(token: str) -> None:
    with pytest.raises(InvalidInputError, match="token"):
        page(INDEX, EVERYTHING, token=token)


def test_a_token_of_an_item_that_is_gone_is_refused() -> None:
    token = page(INDEX, EVERYTHING, limit=350).next
    with pytest.raises(InvalidInputError, match="is no item any more"):
        page(ItemIndex(TABLE.slice(0, 100)), EVERYTHING, token=token)


# --- fields

ITEM = ITEMS[0]
VALID = {"id", "type", "stac_version", "geometry", "bbox", "links", "assets", "collection"}


@pytest.mark.parametrize(
    ("fields", "properties", "missing"),
    [
        ("", {"datetime"}, set()),
        ({}, {"datetime"}, set()),
        ({"include": None, "exclude": []}, {"datetime"}, set()),
        ("bec:row", {"datetime", "bec:row"}, set()),
        ("+id,properties.bec:row", {"datetime", "bec:row"}, set()),
        ({"include": ["properties"], "exclude": ["assets"]}, {*ITEM["properties"]}, {"assets"}),
        ("properties,-bec:row", {*ITEM["properties"]} - {"bec:row"}, set()),
        (["-geometry", "-datetime"], set(), {"geometry"}),
        ("no_such_thing,bec:none,-links.nothing,-assets.s9", {"datetime"}, set()),
    ],
)
def test_an_item_has_the_fields_asked_for(
    fields: Any, properties: set[str], missing: set[str]
) -> None:
    cut = Fields.of(fields).apply(ITEM)
    assert set(cut) == (VALID - missing) | {"properties"}
    assert set(cut["properties"]) == properties
    assert all(cut[name] == ITEM[name] for name in VALID - missing)


def test_a_part_of_an_asset_may_be_asked_for_or_left_out_and_the_item_stays_whole() -> None:
    before = repr(ITEM)
    cut = Fields.of("-assets.s2/r10m,-assets.s2/r20m.bands").apply(ITEM)
    assert "s2/r10m" not in cut["assets"]
    assert set(cut["assets"]["s2/r20m"]) == set(ITEM["assets"]["s2/r20m"]) - {"bands"}
    assert repr(ITEM) == before


@pytest.mark.parametrize("fields", [{"include": "id"}, {"exclude": [7]}, [7]])
def test_fields_that_are_no_names_are_refused(fields: Any) -> None:
    with pytest.raises(InvalidInputError, match="fields is"):
        Fields.of(fields)
