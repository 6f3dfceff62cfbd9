"""Search against a linear scan over items."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely
import shapely.geometry
from hypothesis import given
from hypothesis import strategies as st
from pystac_client.item_search import ItemSearch

from bigearth_cube.cql import parse_filter
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.item_index import ItemIndex, parse_bbox, parse_datetime
from bigearth_cube.nomenclature import COUNTRIES, NAMES_19, SPLITS
from bigearth_cube.search import Question, search
from tests.items import INDEX, ITEMS, ROWS, SHAPES, TABLE, TIMES


def scan(keep: Callable[[int], bool]) -> list[int]:
    """Rows of the items for which ``keep`` says so, one after the other."""
    rows = [ITEMS[i]["properties"]["bec:row"] for i in range(len(ITEMS)) if keep(i)]
    return sorted(rows)


def found(**query: Any) -> list[int]:
    rows = search(INDEX, **query)
    assert rows.dtype == np.int64
    return list(rows.tolist())


# --- conditions against the scan


def test_no_condition_finds_every_row_in_order() -> None:
    assert found() == sorted(ROWS.tolist())


longitudes = st.floats(-10, 31)
latitudes = st.floats(36, 64)


@given(st.tuples(longitudes, longitudes), st.tuples(latitudes, latitudes))
def test_a_box_finds_the_footprints_that_meet_it(
    lon: tuple[float, float], lat: tuple[float, float]
) -> None:
    box = (min(lon), min(lat), max(lon), max(lat))
    shape = shapely.box(*box)
    assert found(bbox=box) == scan(lambda i: bool(shapely.intersects(shape, SHAPES[i])))


@given(st.integers(0, len(ITEMS) - 1), st.floats(-0.02, 0.02), st.floats(-0.02, 0.02))
def test_a_small_box_near_a_footprint_finds_exactly_those_it_touches(
    i: int, dx: float, dy: float
) -> None:
    x, y = SHAPES[i].centroid.coords[0]
    box = (x + dx, y + dy, x + dx + 0.005, y + dy + 0.005)
    shape = shapely.box(*box)
    assert found(bbox=box) == scan(lambda j: bool(shapely.intersects(shape, SHAPES[j])))


def test_a_box_at_a_corner_of_a_footprint_finds_it() -> None:
    x, y = shapely.get_coordinates(SHAPES[0])[0]
    assert int(ROWS[0]) in found(bbox=(x - 1, y - 1, x, y))


def test_a_box_with_heights_is_the_box_without() -> None:
    assert found(bbox=(12, 48, 0, 13, 49, 900)) == found(bbox=(12, 48, 13, 49))


def test_a_box_across_the_antimeridian_is_two_boxes() -> None:
    east = found(bbox=(20, -90, 180, 90))
    west = found(bbox=(-180, -90, -5, 90))
    assert found(bbox=(20, -90, -5, 90)) == sorted({*east, *west})
    assert min(len(east), len(west)) > 0


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((1, 2, 3), "expected 4 numbers"),
        ((1, 50, 3, 40), "south 50 above north 40"),
        ((1, math.nan, 3, 40), "expected 4 numbers"),
        ("1,2,3,4", "expected 4 numbers"),
        (7, "expected 4 numbers"),
    ],
)
def test_a_malformed_box_is_refused(box: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_bbox(box)


@given(st.integers(0, len(ITEMS) - 1), st.floats(0.001, 3), st.integers(3, 8))
def test_a_shape_finds_the_footprints_that_meet_it(i: int, radius: float, corners: int) -> None:
    shape = SHAPES[i].centroid.buffer(radius, quad_segs=corners)
    geojson = json.loads(shapely.to_geojson(shape))
    expected = scan(lambda j: bool(shapely.intersects(shape, SHAPES[j])))
    assert found(intersects=geojson) == expected
    json_filter = {"op": "s_intersects", "args": [{"property": "geometry"}, geojson]}
    assert found(filter=json_filter) == expected
    assert found(filter=f"S_INTERSECTS(geometry, {shape.wkt})") == expected


@pytest.mark.parametrize(
    ("function", "holds"),
    [
        ("s_within", shapely.within),
        ("s_contains", shapely.contains),
        ("s_disjoint", shapely.disjoint),
        ("s_touches", shapely.touches),
        ("s_overlaps", shapely.overlaps),
        ("s_crosses", shapely.crosses),
        ("s_equals", shapely.equals),
    ],
)
@pytest.mark.parametrize(
    "shape",
    [
        shapely.box(12.0, 48.0, 13.5, 48.6),
        SHAPES[0],
        SHAPES[0].centroid,
        shapely.LineString([SHAPES[0].centroid, SHAPES[1].centroid]),
    ],
    ids=["box", "footprint", "point", "line"],
)
def test_spatial_functions_mean_what_shapely_means(
    function: str, holds: Callable[[Any, Any], Any], shape: shapely.Geometry
) -> None:
    expected = scan(lambda i: bool(holds(SHAPES[i], shape)))
    assert found(filter=f"{function}(geometry, {shapely.to_wkt(shape, 17)})") == expected


moments = st.datetimes(datetime(2017, 5, 1), datetime(2018, 7, 1), timezones=st.just(UTC))


@given(st.tuples(moments, moments))
def test_an_interval_finds_what_was_acquired_in_it(pair: tuple[datetime, datetime]) -> None:
    start, end = sorted(pair)
    expected = scan(lambda i: start <= TIMES[i] <= end)
    text = f"{start.isoformat()}/{end.isoformat()}"
    assert found(datetime=(start, end)) == expected
    assert found(datetime=text) == expected
    assert found(datetime=f"{start.isoformat()}/..") == scan(lambda i: start <= TIMES[i])
    assert found(datetime=f"/{end.isoformat()}") == scan(lambda i: TIMES[i] <= end)


@pytest.mark.parametrize(
    "text", ["2018", "2018-02", "2017-12", "2017-06-13", "2017/2018", "2017-12/2018-02", "2018/.."]
)
def test_shorthand_means_what_pystac_client_means(text: str) -> None:
    theirs = ItemSearch("https://example.com", datetime=text).get_parameters()["datetime"]
    # They stop at the last whole second of a period; times of acquisition are whole seconds.
    start, end = parse_datetime(text)
    first, last = theirs.split("/")
    assert start == int(datetime.fromisoformat(first).timestamp()) * 10**6
    if last != "..":
        assert end // 10**6 == int(datetime.fromisoformat(last).timestamp())


def test_an_instant_is_the_same_in_any_notation() -> None:
    notations = [
        "2018-03-31T12:00:00Z",
        "2018-03-31t12:00:00z",
        "2018-03-31T12:00:00.000Z",
        "2018-03-31T14:00:00+02:00",
        "2018-03-31T12:00:00",
    ]
    assert len({parse_datetime(text) for text in notations}) == 1
    assert parse_datetime(datetime(2018, 3, 31, 12)) == parse_datetime(notations[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "../..",
        "/",
        "2018-13",
        "2018-02-30",
        "yesterday",
        "2018-03-01/2018-02-01",
        "2018/2019/2020",
        "2018-03-31T25:00:00Z",
        "0000",
        "2018-03-31T12:00:61Z",
        "9999-12-31T23:00:00-14:00/9999",
        "2018-03-01T00:00:00+99:99",
    ],
)
def test_a_malformed_datetime_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="datetime"):
        parse_datetime(text)


SORTED_BY_PLACE = ItemIndex(
    pa.concat_tables([TABLE] * 12).sort_by([("grid:code", "ascending"), ("datetime", "ascending")])
)


@given(
    st.integers(0, len(ITEMS) - 1),
    st.floats(0.001, 0.5),
    st.sampled_from([None, "2017-06/2017-08", "2018-05/.."]),
)
def test_runs_of_rows_that_cannot_answer_are_left_out_and_no_answer_with_them(
    i: int, size: float, when: str | None
) -> None:
    x, y = SHAPES[i].centroid.coords[0]
    box = (x, y, x + size, y + size)
    question = Question.of(bbox=box, datetime=when)
    expected = SORTED_BY_PLACE.in_box(box, None)
    if when is not None:
        expected &= np.isin(SORTED_BY_PLACE.rows, search(INDEX, datetime=when))
    assert question.places(SORTED_BY_PLACE).tolist() == np.flatnonzero(expected).tolist()


def test_no_row_is_looked_at_where_the_bounds_of_all_runs_are_elsewhere() -> None:
    elsewhere = SORTED_BY_PLACE.near([(170, 0, 171, 1)], None)
    later = SORTED_BY_PLACE.near([], parse_datetime("2019/.."))
    assert elsewhere is not None
    assert later is not None
    assert len(elsewhere) == len(later) == 0


def test_many_ids_find_what_few_find() -> None:
    few = [item["id"] for item in ITEMS[:40]]
    many = [*few, *(f"no patch {i}" for i in range(2000))]
    assert found(ids=many) == found(ids=few) == sorted(ROWS[:40].tolist())


def test_split_and_ids_narrow_the_answer() -> None:
    names = [ITEMS[i]["id"] for i in (3, 5, 8)]
    assert found(ids=[*names, "nobody"]) == sorted(int(ROWS[i]) for i in (3, 5, 8))
    assert found(ids=[]) == []
    for split in SPLITS:
        assert found(split=split) == scan(lambda i, s=split: _value(i, "bec:split") == s)  # type: ignore[misc]
    with pytest.raises(InvalidInputError, match="unknown split 'val'"):
        found(split="val")


def test_all_conditions_hold_together() -> None:
    query = {"bbox": (-10, 36, 20, 60), "datetime": "2017-06/2017-12", "split": "train"}
    each = [set(found(**{name: value})) for name, value in query.items()]
    assert found(**query) == sorted(set.intersection(*each))


def test_bbox_and_intersects_exclude_each_other() -> None:
    with pytest.raises(InvalidInputError, match="choose one"):
        found(bbox=(1, 2, 3, 4), intersects={"type": "Point", "coordinates": [1, 2]})


# --- CQL2 against the scan, with three-valued logic written out

Truth = bool | None


def _value(i: int, name: str) -> Any:
    return ITEMS[i]["properties"].get(name)


def _and(a: Truth, b: Truth) -> Truth:
    if a is False or b is False:
        return False
    return None if a is None or b is None else True


def _not(a: Truth) -> Truth:
    return None if a is None else not a


def _on_known(value: Any, test: Callable[[Any], bool]) -> Truth:
    return None if value is None else test(value)


def _quoted(values: list[str]) -> str:
    return "(" + ", ".join(f"'{value}'" for value in values) + ")"


Condition = tuple[str, Callable[[int], Truth]]

_ORDERINGS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: bool(a == b),
    "<>": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}
_SET_TESTS: dict[str, Callable[[set[str], set[str]], bool]] = {
    "a_contains": lambda ours, theirs: ours >= theirs,
    "a_containedBy": lambda ours, theirs: ours <= theirs,
    "a_equals": lambda ours, theirs: ours == theirs,
    "a_overlaps": lambda ours, theirs: bool(ours & theirs),
}
countries = st.sampled_from(COUNTRIES[:5])  # two more than there are
classes = st.sampled_from([*NAMES_19[:6], "Marine waters", "Pastures"])


@st.composite
def _comparisons(draw: st.DrawFn) -> Condition:
    op = draw(st.sampled_from(sorted(_ORDERINGS)))
    name = draw(st.sampled_from(["bec:country", "bec:row"]))
    value: Any = draw(countries if name == "bec:country" else st.integers(0, 1300))
    literal = f"'{value}'" if isinstance(value, str) else str(value)
    test = _ORDERINGS[op]
    return f'"{name}" {op} {literal}', lambda i: _on_known(
        _value(i, name), lambda v: test(v, value)
    )


@st.composite
def _memberships(draw: st.DrawFn) -> Condition:
    values = draw(st.lists(countries, min_size=1, max_size=3))
    text = f'"bec:country" IN {_quoted(values)}'
    return text, lambda i: _on_known(_value(i, "bec:country"), lambda v: v in values)


@st.composite
def _ranges(draw: st.DrawFn) -> Condition:
    low, high = draw(st.integers(0, 1300)), draw(st.integers(0, 1300))
    return f'"bec:row" BETWEEN {low} AND {high}', lambda i: low <= _value(i, "bec:row") <= high


@st.composite
def _set_conditions(draw: st.DrawFn) -> Condition:
    op = draw(st.sampled_from(sorted(_SET_TESTS)))
    wanted = draw(st.lists(classes, min_size=1, max_size=3, unique=True))
    test = _SET_TESTS[op]
    return (
        f'{op}("bec:labels", {_quoted(wanted)})',
        lambda i: _on_known(_value(i, "bec:labels"), lambda v: test(set(v), set(wanted))),
    )


def _nulls(name: str) -> Condition:
    return f'"{name}" IS NULL', lambda i: _value(i, name) is None


conditions = st.recursive(
    _comparisons()
    | _memberships()
    | _ranges()
    | _set_conditions()
    | st.sampled_from(["bec:split", "bec:labels", "bec:snow", "eo:cloud_cover"]).map(_nulls)
    | st.just(('"bec:snow" = TRUE', lambda i: _value(i, "bec:snow")))
    | st.just(('"bec:snow"', lambda i: _value(i, "bec:snow")))
    | st.just(("\"grid:code\" LIKE 'MGRS-33U%'", lambda i: "MGRS-33U" in _value(i, "grid:code"))),
    lambda inner: st.one_of(
        inner.map(lambda c: (f"NOT ({c[0]})", lambda i: _not(c[1](i)))),
        st.tuples(inner, inner).map(
            lambda p: (f"({p[0][0]}) AND ({p[1][0]})", lambda i: _and(p[0][1](i), p[1][1](i)))
        ),
        st.tuples(inner, inner).map(
            lambda p: (
                f"({p[0][0]}) OR ({p[1][0]})",
                lambda i: _not(_and(_not(p[0][1](i)), _not(p[1][1](i)))),
            )
        ),
    ),
    max_leaves=5,
)


@given(conditions)
def test_a_filter_finds_what_the_scan_finds_as_text_and_as_json(condition: Condition) -> None:
    text, holds = condition
    expected = scan(lambda i: holds(i) is True)
    assert found(filter=text) == expected
    as_json = parse_filter(text)
    assert found(filter=as_json) == expected
    assert found(filter=json.dumps(as_json)) == expected


@given(moments, st.sampled_from(sorted(_ORDERINGS)))
def test_times_compare_with_timestamps_and_with_text(when: datetime, op: str) -> None:
    when = when.replace(microsecond=0)
    expected = scan(lambda i: _ORDERINGS[op](TIMES[i], when))
    text = when.isoformat().replace("+00:00", "Z")
    assert found(filter=f"datetime {op} TIMESTAMP('{text}')") == expected
    assert found(filter={"op": op, "args": [{"property": "datetime"}, text]}) == expected


PERIODS = ["2017", "2018", "2018-02", "2017-12", *sorted({f"{when:%F}" for when in TIMES[:5]})]


@pytest.mark.parametrize("text", PERIODS)
def test_a_year_month_or_day_in_a_filter_is_the_whole_of_it(text: str) -> None:
    start, end = parse_datetime(text)
    micros = [int(when.timestamp()) * 10**6 for when in TIMES]
    within = found(datetime=text)
    expected = {
        "=": within,
        "<>": sorted({*found()} - {*within}),
        "<": scan(lambda i: micros[i] < start),
        "<=": scan(lambda i: micros[i] <= end),
        ">": scan(lambda i: micros[i] > end),
        ">=": scan(lambda i: micros[i] >= start),
    }
    mirrored = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
    literals = [f"'{text}'", f"DATE('{text}')"] if len(text) == 10 else [f"'{text}'"]
    for literal in literals:
        for op, rows in expected.items():
            assert found(filter=f"datetime {op} {literal}") == rows
            assert found(filter=f"{literal} {mirrored.get(op, op)} datetime") == rows
        assert found(filter=f"datetime IN ({literal})") == within
        assert found(filter=f"datetime IN ({literal}, '1999')") == within
        assert found(filter=f"datetime BETWEEN {literal} AND {literal}") == within
    assert found(filter=f"datetime BETWEEN '2017-06' AND '{text}'") == scan(
        lambda i: micros[i] <= end
    )


def test_a_number_in_a_list_is_compared_as_it_is_written() -> None:
    row = int(ROWS[0])
    assert found(filter=f'"bec:row" IN ({row}, {row}.5)') == [row]
    assert found(filter=f'"bec:row" IN ({row}.5)') == []


def test_an_empty_list_holds_nothing() -> None:
    for name in ("bec:row", "id", "datetime"):
        assert found(filter={"op": "in", "args": [{"property": name}, []]}) == []


def test_names_need_no_quotes_and_operators_no_capitals() -> None:
    quoted = found(
        filter="\"bec:country\" = 'Austria' AND A_CONTAINS(\"bec:labels\", ('Pastures'))"
    )
    bare = found(filter="bec:country = 'Austria' and a_contains(bec:labels, 'Pastures')")
    assert quoted == bare != []
    assert found(filter="'Austria' = bec:country and a_contains(bec:labels, 'Pastures')") == bare


def test_a_constant_condition_holds_for_all_or_none() -> None:
    assert found(filter="TRUE") == found()
    assert found(filter="1 = 2") == []


def test_closed_vocabularies_may_still_be_asked_freely() -> None:
    known = scan(lambda i: _value(i, "bec:split") is not None)
    assert found(filter="bec:split = bec:split") == known
    assert found(filter="bec:split = bec:country") == []
    assert found(filter="bec:split > 'a'") == known
    assert found(filter="bec:season LIKE 'sumer%'") == []
    assert found(filter="id = 'no such patch'") == []


def test_a_value_that_only_this_cube_has_may_be_asked() -> None:
    place = TABLE.column_names.index("bec:country")
    others = pa.array(["Malta", None] * (len(ITEMS) // 2))
    table = TABLE.set_column(place, "bec:country", others)
    assert len(search(table, filter="bec:country = 'Malta'")) == len(ITEMS) // 2


def test_cloud_cover_may_be_asked_and_is_unknown_for_all() -> None:
    assert found(filter='"eo:cloud_cover" <= 10') == []
    assert found(filter='"eo:cloud_cover" IS NULL') == found()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\"bec:seson\" = 'summer'", r"unknown property 'bec:seson'; choose one of: bec:cloud"),
        ("\"links\" = 'x'", "unknown property 'links'"),
        ("bec:season = ", "line 1, column 14: expected"),
        ("bec:season = 'summer'\nAND )", r"line 2, column 5: expected .*found \)"),
        ("", "line 1, column 1"),
        ("\"bec:row\" = 'one'", "at bec:row = 'one': bec:row is a number, 'one' a text"),
        ('"bec:snow" > 1', "bec:snow is a boolean, 1 a number"),
        ("bec:labels = 'Pastures'", "bec:labels is a list; ask it with a_contains"),
        ("geometry = 'here'", "geometry is a geometry; ask it with s_intersects"),
        ("a_contains(bec:season, 'summer')", "takes a property that is a list"),
        ("a_contains(bec:labels, (1, 2))", "takes texts"),
        ("s_intersects(bec:row, POINT(1 2))", "takes the property geometry"),
        ("bec:row + 1", r"operator '\+' is not supported; choose one of: <"),
        ("bec:row", "is no condition by itself"),
        ("bec:season = 'sumer'", "bec:season is never 'sumer'; choose one of: summer, autumn, "),
        ("'tset' <> bec:split", "at 'tset' <> bec:split: bec:split is never 'tset'.*: test, train"),
        ("bec:country in ('Austria', 'Atlantis')", "never 'Atlantis'; choose one of: .*Serbia"),
        ("a_contains(bec:labels, 'Pasture')", "never 'Pasture'; choose one of: Pastures, "),
        ("a_overlaps(bec:labels, ('Pastures', 'Bogs'))", "bec:labels is never 'Bogs'"),
        ("casei(bec:season) = 'summer'", "expected a property"),
        ("datetime > 'yesterday'", "'yesterday' is no date"),
        ("bec:row like '1%'", "LIKE compares text"),
        ('"bec:row" in (1, "bec:row")', "IN takes values"),
        ("id = TIMESTAMP('2018-01-01T00:00:00Z')", "id is a text, '2018-01-01T00:00:00Z' a time"),
        ("TIMESTAMP('2018-01-01T00:00:00Z') = id", "'2018-01-01T00:00:00Z' is a time, id a text"),
        ("id = datetime", "id is a text, datetime a time"),
        ("id in ('a', DATE('2018-01-01'))", "'a' is no date"),
        ("datetime between '2018' and bec:season", "datetime is a time, bec:season a text"),
        ("datetime = 2018", "datetime is a time, 2018 a number"),
        ("s_intersects(geometry, POLYGON((0 0, 1 1, 1 0, 0 1, 0 0)))", "valid GeoJSON"),
        ("(" * 3000 + "1 = 1" + ")" * 3000, "3000 levels deep"),
        (" and ".join(["1 = 1"] * 20_000), "39999 operators"),
        ("not " * 20_000 + "1 = 1", "20001 operators"),
        ("1 = " + "-(" * 3000 + "1" + ")" * 3000, "levels deep"),
        ("1 = " + "+".join("1" * 20_000), "operators"),
        ("a" + "=1" * 20_000, "20000 operators"),
        ("1=1" + "and 1=1" * 20_000, "40001 operators"),
        ("id" + " like 'a'" * 20_000, "20000 operators"),
        ("id" + " is null" * 20_000, "20000 operators"),
        ("id" + " between 1" * 20_000, "20000 operators"),
        (" or ".join(["id like '%a%'"] * 11), "11 of them patterns or shapes; at most 500 and 10"),
        ("id = '\ud800'", "filter is no CQL2 text"),
        ("bec:row < 0 and bec:seson = 'summer'", "unknown property 'bec:seson'"),
    ],
    ids=lambda value: value[:40],
)
def test_a_bad_filter_is_refused_with_the_place_and_the_choices(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        found(filter=text)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"op": "=", "args": [{"property": "bec:row"}]},
        {"op": "and", "args": []},
        {"op": "=", "args": [{"property": "bec:row"}, None]},
        {"op": "in", "args": [{"property": "bec:row"}, 3]},
        {"op": "s_intersects", "args": [{"property": "geometry"}, {"type": "Point"}]},
        {"op": "shrug", "args": []},
        {"op": "=", "args": [{"property": "datetime"}, {"timestamp": "now"}]},
        {"op": "=", "args": [{"property": ["a"]}, 1]},
        {"op": ["="], "args": [1, 1]},
        {"op": "not", "args": [7]},
        "{not json",
        {"op": "=", "args": [{"property": "bec:row"}, datetime(2018, 1, 1)]},
    ],
    ids=str,
)
def test_bad_json_is_refused(document: Any) -> None:
    with pytest.raises(InvalidInputError):
        found(filter=document)


def test_deep_json_is_refused() -> None:
    document: dict[str, Any] = {"op": "=", "args": [1, 1]}
    for _ in range(5000):
        document = {"op": "not", "args": [document]}
    with pytest.raises(InvalidInputError):
        found(filter=document)


def test_json_of_many_conditions_is_refused() -> None:
    is_like = {"op": "like", "args": [{"property": "id"}, "%a%"]}
    with pytest.raises(InvalidInputError, match="301 operators, 300 of them patterns or shapes"):
        found(filter={"op": "or", "args": [is_like] * 300})
    is_row = {"op": "=", "args": [{"property": "bec:row"}, 1]}
    with pytest.raises(InvalidInputError, match="601 operators"):
        found(filter={"op": "or", "args": [is_row] * 600})
    assert found(filter={"op": "in", "args": [{"property": "bec:row"}, list(range(10**5))]})


@given(st.lists(st.sampled_from([*PERIODS, "2017-07-16T10:11:12Z"]), max_size=6))
def test_a_time_is_in_a_list_when_one_of_its_periods_holds_it(periods: list[str]) -> None:
    spans = [parse_datetime(period) for period in periods]
    micros = [int(when.timestamp()) * 10**6 for when in TIMES]
    expected = scan(lambda i: any(first <= micros[i] <= last for first, last in spans))
    assert found(filter={"op": "in", "args": [{"property": "datetime"}, periods]}) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("s_within(geometry, {})", "s_contains({}, geometry)"),
        ("s_contains(geometry, {})", "s_within({}, geometry)"),
        ("s_intersects(geometry, {})", "s_intersects({}, geometry)"),
        ("s_equals(geometry, {})", "s_equals({}, geometry)"),
    ],
)
def test_a_shape_may_come_first(one: str, other: str) -> None:
    shapes = [SHAPES[3].centroid, SHAPES[3].buffer(0.2), SHAPES[3]]
    answers = [found(filter=one.format(shape.wkt)) for shape in shapes]
    assert answers == [found(filter=other.format(shape.wkt)) for shape in shapes]
    assert any(answers)


def test_labels_may_come_first() -> None:
    some = "('Pastures', 'Arable land')"
    for one, other in (
        (f"a_contains(bec:labels, {some})", f"a_containedBy({some}, bec:labels)"),
        (f"a_containedBy(bec:labels, {some})", f"a_contains({some}, bec:labels)"),
        (f"a_overlaps(bec:labels, {some})", f"a_overlaps({some}, bec:labels)"),
    ):
        assert found(filter=one) == found(filter=other) != []


def test_numbers_with_exponents_are_no_operators() -> None:
    assert found(filter=f"bec:row in ({', '.join(['1e-5'] * 600)})") == []


def test_a_shape_of_many_corners_is_no_long_filter() -> None:
    circle = shapely.Point(-8.1, 39.2).buffer(1, quad_segs=500)
    assert found(filter=f"s_intersects(geometry, {circle.wkt})") == scan(
        lambda i: bool(shapely.intersects(circle, SHAPES[i]))
    )
