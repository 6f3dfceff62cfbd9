"""Count what a question finds: by label, country, season, split, month, or cell of the map.

Counting goes over codes and bits and makes no item, so all 549,488 pairs are counted by all of
these in some ten milliseconds, and a map of any part of Europe needs one count, not its items.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.item_index import MERCATOR_ZOOM, ItemIndex, Places, taken
from bigearth_cube.search import Question

MONTH: Final = "month"
CELL: Final = "cell"
# Names after the conventions of the STAC API's extension: "_count", "_frequency".
_BY_PROPERTY: Final = {
    "bec_labels_frequency": "bec:labels",
    "bec_labels_43_frequency": "bec:labels_43",
    "bec_country_frequency": "bec:country",
    "bec_season_frequency": "bec:season",
    "bec_split_frequency": "bec:split",
    "bec_snow_frequency": "bec:snow",
    "bec_cloud_or_shadow_frequency": "bec:cloud_or_shadow",
    "bec_tile_frequency": "bec:tile",
    "platform_frequency": "platform",
    "grid_code_frequency": "grid:code",
    "collection_frequency": "collection",
}
_OTHERS: Final = (
    "total_count",
    "datetime_min",
    "datetime_max",
    "datetime_frequency",
    "grid_geotile_frequency",
)
AGGREGATIONS: Final = (*_BY_PROPERTY, *_OTHERS)
_MOST_DENSE: Final = 1 << 22


def tally(
    index: ItemIndex, places: Places | None, by: str, *, zoom: int = 6
) -> dict[str | None, int]:
    """Count items by the values of a property, by month, or by cell.

    Parameters
    ----------
    index
        The items.
    places
        Those to count; all where it is None.
    by
        A property that is a text, a list of texts or a boolean; ``"month"`` (``"2018-03"``); or
        ``"cell"``: the tile of the web map (``"6/34/22"``, zoom/x/y) that holds the center.
    zoom
        Of the cells, 0 to 22.

    Returns
    -------
    dict
        Counts above 0, by value in its order. An item counts once for each member of a list;
        None counts the items of which the value is unknown.

    Raises
    ------
    InvalidInputError
        If there is nothing such to count by.
    """
    if by == CELL:
        columns = cells(index, places, zoom)
        return {
            f"{zoom}/{x}/{y}": n for x, y, n in zip(*(c.tolist() for c in columns), strict=True)
        }
    if by == MONTH:
        return _by_month(index, places)
    if by not in index.queryables:
        raise _nothing(by, index)
    kind = index.table.schema.field(by).type
    if pa.types.is_list(kind):
        names, members, unknown = index.sets(by)
        members = taken(members, places)
        counts = {
            name: int(np.count_nonzero(members & members.dtype.type(1 << bit)))
            for bit, name in enumerate(names)
        }
        ordered: dict[str | None, int] = {name: counts[name] for name in sorted(counts)}
        ordered[None] = 0 if unknown is None else int(np.count_nonzero(taken(unknown, places)))
    elif pa.types.is_boolean(kind):
        values, unknown = index.values(by)
        values = taken(values, places)
        lacking = np.zeros(len(values), bool) if unknown is None else taken(unknown, places)
        n_true, n_lacking = int(np.count_nonzero(values)), int(np.count_nonzero(lacking))
        ordered = {"false": len(values) - n_true - n_lacking, "true": n_true, None: n_lacking}
    else:
        coded = index.codes(by) if pa.types.is_string(kind) else None
        if coded is None:
            raise _nothing(by, index)
        values_and_unknown = [*coded[0].to_pylist(), None]
        found = np.bincount(taken(coded[1], places), minlength=len(values_and_unknown))
        ordered = dict(zip(values_and_unknown, found.tolist(), strict=True))
    return {value: n for value, n in ordered.items() if n}


def _nothing(by: str, index: ItemIndex) -> InvalidInputError:
    schema = index.table.schema
    choices = [
        name
        for name in index.queryables
        if pa.types.is_list(schema.field(name).type)
        or pa.types.is_boolean(schema.field(name).type)
        or (pa.types.is_string(schema.field(name).type) and index.codes(name) is not None)
    ]
    return InvalidInputError(
        f"cannot count by {by!r}; choose one of: {', '.join([*choices, MONTH, CELL])}"
    )


def _by_month(index: ItemIndex, places: Places | None) -> dict[str | None, int]:
    months = taken(index.months, places)
    if not len(months):
        return {}
    first = int(months.min())
    counts = np.bincount(months - first)
    return {
        str(np.datetime64(first + at, "M")): int(n) for at, n in enumerate(counts.tolist()) if n
    }


def cells(
    index: ItemIndex, places: Places | None, zoom: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Count items by the web map tile that holds the center of their footprint.

    Parameters
    ----------
    index, places
        As for ``tally``.
    zoom
        0 to 22; at 8 a cell is about 100 km wide in Austria, at 14 it is 1.6 km.

    Returns
    -------
    tuple of numpy.ndarray
        x, y and number of items of each tile that has any, by x and then y.

    Raises
    ------
    InvalidInputError
        If there is no such zoom.
    """
    if not 0 <= zoom <= MERCATOR_ZOOM:
        raise InvalidInputError(f"zoom is {zoom}; expected 0 to {MERCATOR_ZOOM}")
    x, y = (
        (taken(axis, places) >> (MERCATOR_ZOOM - zoom)).astype(np.int64) for axis in index.mercator
    )
    if not len(x):
        return x, y, x.copy()
    left, top = int(x.min()), int(y.min())
    height = int(y.max()) - top + 1
    flat = (x - left) * height + (y - top)
    if (int(x.max()) - left + 1) * height <= _MOST_DENSE:
        counts = np.bincount(flat)
        cell = np.flatnonzero(counts)
        n = counts[cell]
    else:
        cell, n = np.unique(flat, return_counts=True)
    return cell // height + left, cell % height + top, n.astype(np.int64)


def aggregate(
    indexes: ItemIndex | Sequence[ItemIndex],
    question: Question,
    names: Sequence[str],
    *,
    zoom: int = 6,
) -> list[dict[str, Any]]:
    """Count the answer to a question in the form of the STAC API's aggregation extension.

    Parameters
    ----------
    indexes
        One cube's items, or those of several, counted together.
    question
        The conditions.
    names
        Of ``AGGREGATIONS``.
    zoom
        Of ``grid_geotile_frequency``.

    Returns
    -------
    list of dict
        One a name: ``value``, or ``buckets`` of ``key`` and ``frequency``, with as ``overflow``
        the number of items that are in none because the value is unknown of them.

    Raises
    ------
    InvalidInputError
        If a name is unknown or the filter cannot be understood.
    """
    for name in names:
        if name not in AGGREGATIONS:
            raise InvalidInputError(
                f"unknown aggregation {name!r}; choose from: {', '.join(AGGREGATIONS)}"
            )
    asked = [indexes] if isinstance(indexes, ItemIndex) else list(indexes)
    found = [(index, question.places(index)) for index in asked]
    return [_aggregation(name, found, zoom) for name in names]


def _aggregation(name: str, found: Sequence[tuple[ItemIndex, Places]], zoom: int) -> dict[str, Any]:
    if name == "total_count":
        n_items = sum(len(places) for _, places in found)
        return {"name": name, "data_type": "integer", "value": n_items}
    if name in ("datetime_min", "datetime_max"):
        edge = min if name == "datetime_min" else max
        times = [taken(index.values("datetime")[0], places) for index, places in found]
        edges = [int(of.min() if edge is min else of.max()) for of in times if len(of)]
        value = _timestamp(edge(edges)) if edges else None
        return {"name": name, "data_type": "datetime", "value": value}
    by = _BY_PROPERTY.get(name, MONTH if name == "datetime_frequency" else CELL)
    counts: dict[str | None, int] = {}
    for index, places in found:
        if by in (MONTH, CELL) or by in index.queryables:
            of_index = tally(index, places, by, zoom=zoom)
        else:
            of_index = {None: len(places)}
        for value, n in of_index.items():
            counts[value] = counts.get(value, 0) + n
    overflow = counts.pop(None, 0)
    ordered = counts if len(found) == 1 else dict(sorted(counts.items(), key=lambda e: str(e[0])))
    is_time = by == MONTH
    buckets = [
        {
            "key": f"{key}-01T00:00:00Z" if is_time else key,
            "data_type": "datetime" if is_time else "string",
            "frequency": n,
        }
        for key, n in ordered.items()
    ]
    kind = "frequency_distribution"
    return {"name": name, "data_type": kind, "overflow": overflow, "buckets": buckets}


def _timestamp(micros: int) -> str:
    when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    return when.isoformat().replace("+00:00", "Z")
