"""The columns of an items table, made ready for questions: boxes, shapes, times, sets.

Where a footprint lies is asked of its bounds first, which are plain numbers; only footprints
that bounds cannot settle are built and looked at closely.
"""

from __future__ import annotations

import bisect
import functools
import json
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError

When = str | datetime | Sequence[str | datetime | None]
Box = tuple[float, float, float, float]
Mask = NDArray[np.bool_]
Places = NDArray[np.int32]
"""Rows of the table, counted from 0: not to be taken for ``bec:row``."""

# 64 rows are a block of 8 x 8 patches: 20 million rows have 312,500 bounds to look at.
_ZONE: Final = 64
_MOST_CODED: Final = 4096
_SAMPLE: Final = 65_536
_FEW_IDS: Final = 1000
MERCATOR_ZOOM: Final = 22
"""Whose tiles are 6 m wide in Austria: each holds the center of one patch at most."""

_HIDDEN: Final = frozenset(
    (
        "type",
        "stac_version",
        "stac_extensions",
        "bbox",
        "links",
        "assets",
        "proj:bbox",
        "instruments",
    )
)
_EDGES: Final = ("xmin", "ymin", "xmax", "ymax")
# The footprint is the first argument, the shape the second; the shape is the prepared one.
_RELATIONS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "intersects": lambda footprint, shape: shapely.intersects(shape, footprint),
    "within": lambda footprint, shape: shapely.contains(shape, footprint),
    "contains": lambda footprint, shape: shapely.within(shape, footprint),
    "crosses": shapely.crosses,
    "equals": shapely.equals,
    "overlaps": shapely.overlaps,
    "touches": shapely.touches,
}
RELATIONS: Final = (*_RELATIONS, "disjoint")
_TIME: Final = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[Tt ](\d\d):(\d\d):(\d\d)(?:[.,](\d+))?([Zz]|[+-]\d\d:\d\d)?)?)?)?"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ALWAYS: Final = (-(2**63), 2**63 - 1)


class ItemIndex:
    """The columns of an items table, each made ready when a question first needs it.

    Keep one beside a table to ask many questions; ``search`` makes one where it is given a
    table. Text of few values is kept as codes, label sets as bits, and each run of 64 rows has
    its bounds: rows lie in blocks on the ground, so a small box looks at few runs.

    Parameters
    ----------
    table
        Items, as ``stac.items_table`` makes them; columns nobody asks for may be missing.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._made: dict[tuple[str, str], Any] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @functools.cached_property
    def queryables(self) -> tuple[str, ...]:
        """Names that a filter may use, sorted."""
        return tuple(sorted(set(self.table.column_names) - _HIDDEN))

    def _once(self, what: str, name: str, make: Callable[[str], Any]) -> Any:
        """Make a form of a column once, whichever thread asks first."""
        key = (what, name)
        if key not in self._made:
            with self._lock:
                if key not in self._made:
                    self._made[key] = make(name)
        return self._made[key]

    def column(self, name: str) -> pa.Array:
        """One column as one Arrow array."""
        return self._once("column", name, lambda name: one_array(self.table[name]))

    @functools.cached_property
    def rows(self) -> NDArray[np.int64]:
        """Index along the patch axis, in the order of the table."""
        rows: NDArray[np.int64] = self.column("bec:row").to_numpy()
        return rows

    @functools.cached_property
    def everything(self) -> Places:
        """All places, increasing."""
        return np.arange(len(self), dtype=np.int32)

    @functools.cached_property
    def bounds(self) -> tuple[NDArray[np.float64], ...]:
        """West, south, east and north of each footprint, degrees."""
        boxes = self.column("bbox")
        return tuple(boxes.field(edge).to_numpy() for edge in _EDGES)

    def values(self, name: str) -> tuple[NDArray[Any], Mask | None]:
        """Numbers, booleans or times (microseconds) of a column, and which are unknown."""
        return self._once("values", name, self._values)  # type: ignore[no-any-return]

    def _values(self, name: str) -> tuple[NDArray[Any], Mask | None]:
        column = self.column(name)
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        unknown = _unknown(column)
        if unknown is not None:
            column = pc.fill_null(column, False if pa.types.is_boolean(column.type) else 0)
        return column.to_numpy(zero_copy_only=False), unknown

    def codes(self, name: str) -> tuple[pa.Array, NDArray[Any]] | None:
        """Values of a text column, sorted, and the place of each row's among them.

        An unknown value has the place after the last. None where there are too many values to
        be worth it.
        """
        return self._once("codes", name, self._codes)  # type: ignore[no-any-return]

    def _codes(self, name: str) -> tuple[pa.Array, NDArray[Any]] | None:
        column = self.table[name]
        if pc.count_distinct(column.slice(0, _SAMPLE)).as_py() > _MOST_CODED:
            return None
        coded = one_array(column.dictionary_encode())
        names = coded.dictionary
        if len(names) > _MOST_CODED:
            return None
        order = pc.array_sort_indices(names).to_numpy()
        place_of = np.empty(len(names) + 1, np.uint16)
        place_of[order] = np.arange(len(names))
        place_of[-1] = len(names)
        indices = pc.fill_null(coded.indices, len(names)).to_numpy()
        small = np.uint8 if len(names) < 256 else np.uint16
        return names.take(pa.array(order)), place_of.astype(small)[indices]

    def sets(self, name: str) -> tuple[list[str], NDArray[Any], Mask | None]:
        """Turn a column of lists into bit sets: names, one bit each; sets; which are unknown."""
        return self._once("sets", name, self._sets)  # type: ignore[no-any-return]

    def _sets(self, name: str) -> tuple[list[str], NDArray[Any], Mask | None]:
        names: list[str] = []
        parts = []
        for lists in self.table[name].chunks:  # joined, the names of a large table fill gigabytes
            values = pc.list_flatten(lists).dictionary_encode()
            known = values.dictionary.to_pylist()
            names += [value for value in known if value not in names]
            assert len(names) <= 64, f"{name} has more than 64 names"
            bits = np.array([1 << names.index(value) for value in known], np.uint64)
            members = np.zeros(len(lists), np.uint64)
            at = pc.list_parent_indices(lists).to_numpy()
            np.bitwise_or.at(members, at, bits[values.indices.to_numpy()])
            parts.append(members if len(names) > 32 else members.astype(np.uint32))
        kind = np.uint32 if len(names) <= 32 else np.uint64
        found = np.concatenate(
            [part.astype(kind, copy=False) for part in [*parts, np.zeros(0, kind)]]
        )
        return names, found, _unknown(self.table[name])

    def ranks(self, name: str) -> tuple[NDArray[Any], Mask | None]:
        """Numbers that sort as the values of a column do, and which values are unknown.

        Raises
        ------
        InvalidInputError
            If its values have no order.
        """
        return self._once("ranks", name, self._ranks)  # type: ignore[no-any-return]

    def _ranks(self, name: str) -> tuple[NDArray[Any], Mask | None]:
        if not pa.types.is_string(self.column(name).type):
            return self.values(name)
        coded = self.codes(name)
        if coded is not None:
            unknown = coded[1] == len(coded[0])
            return coded[1], unknown if unknown.any() else None
        return self._text_order(name)[0], _unknown(self.column(name))

    def _text_order(self, name: str) -> tuple[NDArray[np.int32], Places]:
        """Rank of each text, and the places in their order; unknown ones last."""
        return self._once("text order", name, self._make_text_order)  # type: ignore[no-any-return]

    def _make_text_order(self, name: str) -> tuple[NDArray[np.int32], Places]:
        column = self.column(name)
        order = pc.array_sort_indices(column).to_numpy().astype(np.int32)
        ranks = np.empty(len(column), np.int32)
        in_order = column.take(pa.array(order))
        # Equal values share a rank, or keys after this one would never count.
        differs = pc.fill_null(pc.not_equal(in_order[1:], in_order[:-1]), True)
        steps = np.cumsum(differs.to_numpy(zero_copy_only=False))
        ranks[order] = np.concatenate([[0] * min(len(column), 1), steps])
        return ranks, order

    @property
    def sortables(self) -> tuple[str, ...]:
        """Names that an answer may be sorted by, sorted."""
        types = {name: self.table.schema.field(name).type for name in self.queryables}
        return tuple(
            name
            for name, kind in types.items()
            if not (pa.types.is_list(kind) or pa.types.is_binary(kind))
        )

    def rank_of(self, name: str, value: Any, rank: float) -> float:
        """Say where a value of another table would stand among the ``ranks`` of a column.

        Between two of them, if no item has it. ``rank`` is what it is where it is a number, which
        is its own rank everywhere.
        """
        if not isinstance(value, str):
            return rank
        coded = self.codes(name)
        if coded is not None:
            names = coded[0].to_pylist()
            at = bisect.bisect_left(names, value)
            return at if at < len(names) and names[at] == value else at - 0.5
        ranks, order = self._text_order(name)
        column = self.column(name)
        at = bisect.bisect_left(
            order, value, key=lambda place: column[place].as_py(), hi=len(order) - column.null_count
        )
        if at == len(order) - column.null_count:
            return math.inf if not at else float(ranks[order[at - 1]]) + 0.5
        there = float(ranks[order[at]])
        return there if column[order[at]].as_py() == value else there - 0.5

    def place_of_row(self, row: int) -> int | None:
        """Place of the item with this ``bec:row``; None where there is none."""
        order = self._row_order
        rows = self.rows if order is None else self.rows[order]
        at = int(np.searchsorted(rows, row))
        if at == len(rows) or rows[at] != row:
            return None
        return at if order is None else int(order[at])

    @functools.cached_property
    def _row_order(self) -> NDArray[np.intp] | None:
        """Places by increasing row; None where the table is so ordered, as cubes write it."""
        ordered = bool((np.diff(self.rows) > 0).all())
        return None if ordered else np.argsort(self.rows, kind="stable")

    @functools.cached_property
    def collection(self) -> str:
        """Id of the collection its items are of; empty where the table does not say."""
        if not len(self) or "collection" not in self.table.column_names:
            return ""
        return str(self.table["collection"][0].as_py())

    def places_of(self, ids: Sequence[str]) -> Places:
        """Places of the patches named, increasing; names that are not there have none."""
        column = self.column("id")
        if len(ids) > _FEW_IDS:
            there = pc.is_in(column, pa.array(ids, pa.string()))
            return np.flatnonzero(there.to_numpy(zero_copy_only=False)).astype(np.int32)
        _, order = self._text_order("id")
        found = []
        for name in set(ids):
            at = bisect.bisect_left(order, name, key=lambda place: column[place].as_py())
            if at < len(order) and column[order[at]].as_py() == name:
                found.append(order[at])
        return np.sort(np.array(found, np.int32))

    @functools.cached_property
    def months(self) -> NDArray[np.int32]:
        """Month of each item, counted from January 1970."""
        when = self.values("datetime")[0].view("datetime64[us]")
        return when.astype("datetime64[M]").astype(np.int32)

    @functools.cached_property
    def mercator(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Column and row of the web map tile at ``MERCATOR_ZOOM`` that holds each center."""
        west, south, east, north = self.bounds
        n_tiles = 1 << MERCATOR_ZOOM
        sine = np.sin(np.radians((south + north) / 2))
        x = ((west + east) / 720 + 0.5) * n_tiles
        y = (0.5 - np.log((1 + sine) / (1 - sine)) / (4 * math.pi)) * n_tiles
        column, row = (axis.clip(0, n_tiles - 1).astype(np.uint32) for axis in (x, y))
        return column, row

    @functools.cached_property
    def _zones(self) -> tuple[NDArray[Any], ...]:
        """Of each run of rows: west, south, east, north, and first and last time."""
        starts = np.arange(0, len(self), _ZONE)
        xmin, ymin, xmax, ymax = self.bounds
        when, unknown = self.values("datetime")
        assert unknown is None, "an item without a time"
        ways = zip(
            (xmin, ymin, xmax, ymax, when, when),
            (np.minimum, np.minimum, np.maximum, np.maximum, np.minimum, np.maximum),
            strict=True,
        )
        return tuple(way.reduceat(values, starts) for values, way in ways)

    def near(self, boxes: Sequence[Box], interval: tuple[int, int] | None) -> Places | None:
        """Places worth a look, increasing: those in runs that meet a box and the interval.

        None stands for all, where so many are that a list of them would cost more than it saves.
        """
        if not len(self):
            return None
        *bounds, first, last = self._zones
        meets = _meets(boxes, bounds) if boxes else np.ones(len(first), bool)
        if interval is not None:
            meets &= (first <= interval[1]) & (last >= interval[0])
        zones = np.flatnonzero(meets)
        if len(zones) > len(first) // 4:
            return None
        if not boxes:
            places = (zones[:, None] * _ZONE + np.arange(_ZONE)).ravel().astype(np.int32)
            return places[: np.searchsorted(places, len(self))]
        # Whole runs are copied ten times as fast as single rows from all over a large table.
        run, row = np.nonzero(_meets(boxes, [_runs(edge, zones) for edge in self.bounds]))
        return (zones[run] * _ZONE + row).astype(np.int32)

    def in_box(self, box: Box, at: Places | None) -> Mask:
        """Which footprints share a point with the box; only those on its rim are built."""
        west, south, east, north = box
        xmin, ymin, xmax, ymax = (taken(edge, at) for edge in self.bounds)
        near = (xmin <= east) & (xmax >= west) & (ymin <= north) & (ymax >= south)
        inside = near & (xmin >= west) & (xmax <= east) & (ymin >= south) & (ymax <= north)
        return inside | self._related("intersects", shapely.box(*box), near & ~inside, at)

    def in_relation(self, relation: str, shape: shapely.Geometry, at: Places | None) -> Mask:
        """Which footprints are in one of the ``RELATIONS`` to a shape, footprint first."""
        if relation == "disjoint":
            return ~self.in_relation("intersects", shape, at)
        west, south, east, north = shapely.bounds(shape).tolist()
        xmin, ymin, xmax, ymax = (taken(edge, at) for edge in self.bounds)
        near = (xmin <= east) & (xmax >= west) & (ymin <= north) & (ymax >= south)
        return self._related(relation, shape, near, at)

    def _related(
        self, relation: str, shape: shapely.Geometry, among: Mask, at: Places | None
    ) -> Mask:
        found = np.zeros(len(among), bool)
        candidates = np.flatnonzero(among)
        if len(candidates):
            places = candidates if at is None else at[candidates]
            footprints = shapely.from_wkb(_gathered(self.table["geometry"], places))
            shapely.prepare(shape)
            found[candidates] = _RELATIONS[relation](footprints, shape)
        return found


def _meets(boxes: Sequence[Box], bounds: Sequence[NDArray[Any]]) -> Mask:
    """Which bounds share a point with any of the boxes."""
    xmin, ymin, xmax, ymax = bounds
    met = (
        (xmin <= east) & (xmax >= west) & (ymin <= north) & (ymax >= south)
        for west, south, east, north in boxes
    )
    return functools.reduce(np.logical_or, met)


def _runs(values: NDArray[np.float64], zones: NDArray[np.intp]) -> NDArray[np.float64]:
    """Values of some runs of rows, shape (run, row); NaN behind the end of the table."""
    n_whole = len(values) // _ZONE
    whole = values[: n_whole * _ZONE].reshape(n_whole, _ZONE)
    found = whole[zones[zones < n_whole]]
    if len(found) == len(zones):
        return found
    rest = np.full((1, _ZONE), np.nan)
    rest[0, : len(values) % _ZONE] = values[n_whole * _ZONE :]
    return np.concatenate([found, rest])


def taken(values: NDArray[Any], at: Places | None) -> NDArray[Any]:
    """Values at some places; all where ``at`` is None."""
    return values if at is None else values[at]


def _unknown(column: pa.Array | pa.ChunkedArray) -> Mask | None:
    if not column.null_count:
        return None
    unknown: Mask = np.asarray(column.is_null())
    return unknown


def _gathered(column: pa.ChunkedArray, places: NDArray[Any]) -> NDArray[Any]:
    """Values at increasing places; chunks are not joined, which would copy all of a large column."""
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    cuts = np.searchsorted(places, ends)
    parts, first = [], 0
    for chunk, end, start in zip(column.chunks, cuts.tolist(), [0, *ends.tolist()], strict=False):
        if end > first:
            taken_here = chunk.take(pa.array(places[first:end] - start))
            parts.append(taken_here.to_numpy(zero_copy_only=False))
        first = end
    return np.concatenate(parts)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Join the chunks of a column; one alone is not copied."""
    if column.num_chunks == 1:
        return column.chunk(0)
    chunks = column.combine_chunks()
    return pa.concat_arrays(chunks.chunks) if isinstance(chunks, pa.ChunkedArray) else chunks


def parse_bbox(bbox: Sequence[float]) -> list[Box]:
    """Check a STAC bounding box; one that crosses the antimeridian becomes two.

    Raises
    ------
    InvalidInputError
        If it has not 4 or 6 finite numbers, or south is above north.

    Examples
    --------
    >>> parse_bbox([12, 48, 13, 49])
    [(12.0, 48.0, 13.0, 49.0)]
    """
    try:
        numbers = [float(value) for value in bbox]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (4, 6) or not all(map(math.isfinite, numbers)):
        raise InvalidInputError(
            f"bbox is {bbox!r}; expected 4 numbers (west, south, east, north) or 6 with heights"
        )
    half = len(numbers) // 2
    west, south, east, north = *numbers[:2], *numbers[half : half + 2]
    if south > north:
        raise InvalidInputError(
            f"bbox has south {south:g} above north {north:g}; "
            f"expected west, south, east, north in degrees"
        )
    if west > east:
        return [(west, south, 180.0, north), (-180.0, south, east, north)]
    return [(west, south, east, north)]


def parse_geometry(value: Any, place: str) -> shapely.Geometry:
    """Make a shape of a GeoJSON geometry or a CQL2 bbox; ``place`` is where it was found.

    Raises
    ------
    InvalidInputError
        If it is neither, empty, or crosses itself.

    Examples
    --------
    >>> parse_geometry({"bbox": [12, 48, 13, 49]}, "filter").area
    1.0
    """
    if isinstance(value, Mapping) and "bbox" in value:
        boxes = [shapely.box(*box) for box in parse_bbox(value["bbox"])]
        return boxes[0] if len(boxes) == 1 else shapely.union_all(boxes)
    try:
        shape = shapely.from_geojson(json.dumps(value))
    except (TypeError, shapely.errors.ShapelyError):
        shape = None
    if shape is None or shape.is_empty or not shape.is_valid:
        raise InvalidInputError(f"{place}: expected a valid GeoJSON geometry, found {value!r:.120}")
    return shape


def parse_datetime(when: When) -> tuple[int, int]:
    """First and last microsecond since 1970 of an instant or interval, both included.

    Raises
    ------
    InvalidInputError
        If it is not what STAC calls a datetime, ends before it starts, or is open on both ends.

    Examples
    --------
    >>> start, end = parse_datetime("2018-03/2018-05")
    >>> str(np.datetime64(start, "us")), str(np.datetime64(end, "us"))
    ('2018-03-01T00:00:00.000000', '2018-05-31T23:59:59.999999')
    """
    if isinstance(when, str):
        parts: list[str | datetime | None] = list(when.split("/"))
    else:
        parts = [when] if isinstance(when, datetime) else list(when)
    if len(parts) == 1:
        return period(parts[0], when)
    if len(parts) != 2 or all(part in (None, "", "..") for part in parts):
        raise InvalidInputError(
            f"datetime is {when!r}; expected an instant, start/end, start/.. or ../end"
        )
    first, last = (_ALWAYS if p in (None, "", "..") else period(p, when) for p in parts)
    if first[0] > last[1]:
        raise InvalidInputError(f"datetime {when!r} ends before it starts; swap the two")
    return first[0], last[1]


def period(part: str | datetime | None, whole: Any) -> tuple[int, int]:
    """Give the first and last microsecond of a year, month, day or instant.

    Raises
    ------
    InvalidInputError
        If it is none of these; the message quotes ``whole``.
    """
    text = part.isoformat() if isinstance(part, datetime) else part
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    problem = f"datetime {whole!r}: {part!r} is no date; expected e.g. 2018, 2018-03, 2018-03-31"
    problem += " or 2018-03-31T12:00:00Z"
    if match is None:
        raise InvalidInputError(problem)
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    try:
        start = datetime(int(year), int(month or 1), int(day or 1), tzinfo=UTC)
        if hour is None:
            return _micros(start), _micros(_next_start(start, month, day)) - 1
        # A leap second is taken for the second before it: clocks of archives have none.
        clock = {"hour": int(hour), "minute": int(minute), "second": min(int(second), 59)}
        if int(second) > 60:
            raise InvalidInputError(problem)
        micro = int((fraction or "0")[:6].ljust(6, "0"))
        instant = start.replace(**clock, microsecond=micro, tzinfo=_zone(zone))
        return _micros(instant), _micros(instant)
    except (ValueError, OverflowError):
        raise InvalidInputError(problem) from None


def _next_start(start: datetime, month: str | None, day: str | None) -> datetime:
    if day is not None:
        return start + timedelta(days=1)
    if month is not None:
        return (start + timedelta(days=31)).replace(day=1)
    return start.replace(year=start.year + 1)


def _zone(text: str | None) -> timezone:
    if text is None or text in "Zz":
        return UTC
    hours, minutes = int(text[1:3]), int(text[4:6])
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if text[0] == "-" else offset)


def _micros(when: datetime) -> int:
    return (when - _EPOCH) // timedelta(microseconds=1)
