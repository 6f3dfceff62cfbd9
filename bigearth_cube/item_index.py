"""The columns of an items table, made ready for questions: boxes, shapes, times, sets.

Where a footprint lies is asked of its bounds first, which are plain numbers; only footprints
that bounds cannot settle are built and looked at closely.
"""

from __future__ import annotations

import functools
import json
import math
import re
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
    table.

    Parameters
    ----------
    table
        Items, as ``stac.items_table`` makes them; columns nobody asks for may be missing.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._columns: dict[str, pa.Array] = {}
        self._sets: dict[str, tuple[list[str], NDArray[np.uint64], NDArray[np.bool_]]] = {}

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def queryables(self) -> tuple[str, ...]:
        """Names that a filter may use, sorted."""
        return tuple(sorted(set(self.table.column_names) - _HIDDEN))

    def column(self, name: str) -> pa.Array:
        """One column as one Arrow array."""
        if name not in self._columns:
            self._columns[name] = one_array(self.table[name])
        return self._columns[name]

    @functools.cached_property
    def rows(self) -> NDArray[np.int64]:
        """Index along the patch axis, in the order of the table."""
        rows: NDArray[np.int64] = self.column("bec:row").to_numpy()
        return rows

    @functools.cached_property
    def bounds(self) -> tuple[NDArray[np.float64], ...]:
        """West, south, east and north of each footprint, degrees."""
        boxes = self.column("bbox")
        return tuple(boxes.field(edge).to_numpy() for edge in _EDGES)

    def sets(self, name: str) -> tuple[list[str], NDArray[np.uint64], NDArray[np.bool_]]:
        """Turn a column of lists into bit sets: the names, one bit each; the sets; which are known."""
        if name not in self._sets:
            lists = self.column(name)
            known: NDArray[np.bool_] = lists.is_valid().to_numpy(zero_copy_only=False)
            values = pc.list_flatten(lists).dictionary_encode()
            assert len(values.dictionary) <= 64, f"{name} has more than 64 names"
            bits = np.left_shift(np.uint64(1), values.indices.to_numpy().astype(np.uint64))
            members = np.zeros(len(lists), np.uint64)
            np.bitwise_or.at(members, pc.list_parent_indices(lists).to_numpy(), bits)
            self._sets[name] = (values.dictionary.to_pylist(), members, known)
        return self._sets[name]

    def in_box(self, box: Box, among: Mask) -> Mask:
        """Footprints that share a point with the box; only those on its rim are built."""
        west, south, east, north = box
        xmin, ymin, xmax, ymax = self.bounds
        near = among & (xmin <= east) & (xmax >= west) & (ymin <= north) & (ymax >= south)
        inside = near & (xmin >= west) & (xmax <= east) & (ymin >= south) & (ymax <= north)
        return inside | self._related("intersects", shapely.box(*box), near & ~inside)

    def in_relation(self, relation: str, shape: shapely.Geometry, among: Mask) -> Mask:
        """Footprints in one of the ``RELATIONS`` to a shape, footprint first."""
        if relation == "disjoint":
            return among & ~self.in_relation("intersects", shape, among)
        west, south, east, north = shapely.bounds(shape).tolist()
        xmin, ymin, xmax, ymax = self.bounds
        near = among & (xmin <= east) & (xmax >= west) & (ymin <= north) & (ymax >= south)
        return self._related(relation, shape, near)

    def _related(self, relation: str, shape: shapely.Geometry, among: Mask) -> Mask:
        candidates = np.flatnonzero(among)
        found = np.zeros(len(self), bool)
        if len(candidates):
            wkb = self.column("geometry").take(pa.array(candidates))
            footprints = shapely.from_wkb(wkb.to_numpy(zero_copy_only=False))
            shapely.prepare(shape)
            found[candidates] = _RELATIONS[relation](footprints, shape)
        return found


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Join the chunks of a column."""
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
