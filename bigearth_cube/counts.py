"""Count patches by split, season, country, flag and class, in published order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bigearth_cube.nomenclature import COUNTRIES, NAMES_19, SEASONS, SPLITS

Table = dict[str, dict[str, dict[str, int]]]
"""Row, then column, then ``"all"`` patches and those that are ``"unflagged"``."""
Counts = dict[str, Table]
"""Tables by what their rows are: ``split``, ``season``, ``country``, ``flag``, ``label``."""

TOTAL: Final = "total"
UNKNOWN: Final = "unknown"
_FLAGS: Final = {"snow": "bec:snow", "cloud or shadow": "bec:cloud_or_shadow"}


def count_patches(items: pa.Table) -> Counts:
    """Count the patches of an items table, whole and without those that are flagged.

    Seasons, flags and classes are counted by split, countries by season; a patch counts in each
    of its classes, and in none where it has none. Rows and columns that hold no patch are left
    out; ``"unknown"`` counts patches of which no source says.

    Parameters
    ----------
    items
        As ``stac.items_table`` makes it.

    Returns
    -------
    dict
        ``counts[table][row][column]`` is ``{"all": n, "unflagged": n}``; the last column of each
        row is ``"total"``, and the only one of table ``split``.

    Examples
    --------
    >>> names = ("split", "season", "country", "snow", "cloud_or_shadow", "labels")
    >>> values = ("train", "summer", "Austria", True, False, ["Pastures"])
    >>> items = pa.table({f"bec:{n}": [v] for n, v in zip(names, values, strict=True)})
    >>> count_patches(items)["label"]
    {'Pastures': {'train': {'all': 1, 'unflagged': 0}, 'total': {'all': 1, 'unflagged': 0}}}
    """
    split, season, country = (
        _axis(items[f"bec:{name}"], names)
        for name, names in (("split", SPLITS), ("season", SEASONS), ("country", COUNTRIES))
    )
    whole = (np.zeros(len(items), np.int64), ())
    flags = [items[column] for column in _FLAGS.values()]
    marked = [np.flatnonzero(_mask(flag)) for flag in flags]
    flagged = np.zeros(len(items), bool)
    flagged[np.concatenate(marked)] = True
    marked.append(np.flatnonzero(_mask(pc.and_(*(pc.is_null(flag) for flag in flags)))))
    flag = (np.repeat(np.arange(len(marked)), [len(patches) for patches in marked]), tuple(_FLAGS))
    lists = items["bec:labels"].combine_chunks()
    unlabeled = np.flatnonzero(_mask(pc.is_null(lists)))
    codes, _ = _axis(pc.list_flatten(lists), NAMES_19)
    label = (np.append(codes, np.full(len(unlabeled), len(NAMES_19))), NAMES_19)
    labeled = np.append(pc.list_parent_indices(lists).to_numpy(), unlabeled)
    # What is not known to be clean is not counted as unflagged.
    flagged |= _mask(pc.or_(*(pc.is_null(flag) for flag in flags)))
    return {
        "split": _cross(split, whole, flagged),
        "season": _cross(season, split, flagged),
        "country": _cross(country, season, flagged),
        "flag": _cross(flag, split, flagged, np.concatenate(marked)),
        "label": _cross(label, split, flagged, labeled),
    }


_Axis = tuple[NDArray[np.int64], Sequence[str]]
"""Position of each entry among the names; one behind the last is unknown."""


def _axis(values: Any, names: Sequence[str]) -> _Axis:
    found = pc.index_in(values, value_set=pa.array(names))
    return pc.fill_null(found, len(names)).to_numpy().astype(np.int64), names


def _mask(values: Any) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return mask


def _cross(
    rows: _Axis,
    columns: _Axis,
    flagged: NDArray[np.bool_],
    patches: NDArray[np.int64] | None = None,
) -> Table:
    """Count entries by row and column; ``patches`` says whose they are where not one a patch."""
    (row, row_names), (column, column_names) = rows, columns
    whose = np.arange(len(flagged)) if patches is None else patches
    shape = (len(row_names) + 1, len(column_names) + 1)
    cells = np.ravel_multi_index((row, column[whose]), shape)
    counted = {
        name: np.bincount(cells[keep], minlength=math.prod(shape)).reshape(shape)
        for name, keep in (("all", slice(None)), ("unflagged", ~flagged[whose]))
    }
    used = np.flatnonzero(counted["all"].any(axis=0)) if column_names else ()
    table: Table = {}
    for i in np.flatnonzero(counted["all"].any(axis=1)):
        of_row = {name: counts[i] for name, counts in counted.items()}
        table[[*row_names, UNKNOWN][i]] = {
            **{
                [*column_names, UNKNOWN][j]: {name: int(n[j]) for name, n in of_row.items()}
                for j in used
            },
            TOTAL: {name: int(n.sum()) for name, n in of_row.items()},
        }
    return table
