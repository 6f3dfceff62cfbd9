"""What a source says of rows that are published, and the cube does not: labels, split, flags.

A published row stays as it is for its release. The next release states the columns that changed
anew, complete, in ``labels/<release>/`` under their root names, and all items.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigearth_cube import stac
from bigearth_cube.archive import PatchRecord
from bigearth_cube.archive.lists import Listed, read_lists
from bigearth_cube.cube import Cube
from bigearth_cube.layout import LABELS
from bigearth_cube.nomenclature import (
    NAMES_19,
    NAMES_43,
    NOMENCLATURES,
    SPLITS,
    Archive,
    labels_43_to_19,
    multi_hot,
)

logger = logging.getLogger(__name__)

_ITEM_COLUMNS: Final = {
    "split": "bec:split",
    "country": "bec:country",
    "flagged_snow": "bec:snow",
    "flagged_cloud_or_shadow": "bec:cloud_or_shadow",
}
_FIELDS: Final = ("labels", *_ITEM_COLUMNS)


@dataclass(frozen=True)
class Facts:
    """What is said anew of published rows.

    Attributes
    ----------
    said
        Field of a record to place in the items table to its new value; no field without one.
    """

    said: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.said)

    @property
    def places(self) -> list[int]:
        """Places in the items table of the rows concerned, increasing."""
        return sorted(set().union(*self.said.values()))

    def lines(self, items: pa.Table) -> list[str]:
        """Say each fact in a line, for digests."""
        names = items["id"]
        return [
            f"{name} {names[place].as_py()} {value}"
            for name, values in sorted(self.said.items())
            for place, value in sorted(values.items())
        ]

    def digest(self, items: pa.Table) -> str:
        """SHA-256 of the facts; empty where there are none."""
        if not self:
            return ""
        return hashlib.sha256("\n".join(self.lines(items)).encode()).hexdigest()


def find_facts(
    cube: Cube, archive: Archive, old: Sequence[PatchRecord], lists: Sequence[str]
) -> Facts:
    """Compare what the records and the lists at hand say of published rows with the items.

    What they do not say changes nothing; what they say otherwise than the cube is a correction.

    Parameters
    ----------
    cube
        The cube.
    archive
        Its archive.
    old
        Records at hand whose row is in the cube.
    lists
        Paths of the official lists at hand.

    Raises
    ------
    InvalidInputError
        If a list cannot be read.
    """
    if not (old or lists):
        return Facts()
    ids = cube.items["id"].to_pylist()
    told: dict[str, PatchRecord | Listed] = {}
    if lists:
        told.update(read_lists(archive, lists, s2_ids=ids, s1_ids=()).patches)
    told.update((record.id, record) for record in old)
    places = {patch_id: place for place, patch_id in enumerate(ids) if patch_id in told}
    known = _known(cube.items, archive)
    said: dict[str, dict[int, Any]] = {name: {} for name in _FIELDS}
    for patch_id, place in places.items():
        for name in _FIELDS:
            value = getattr(told[patch_id], name)
            if value is None or not _is_new(name, value, known[name][place]):
                continue
            if _is_understood(name, value, archive):
                said[name][place] = value
            else:
                logger.warning("%s of %s is not taken over: %r", name, patch_id, value)
    return Facts({name: values for name, values in said.items() if values})


def restated_items(facts: Facts, items: pa.Table, archive: Archive) -> pa.Table:
    """Items with what is said anew, in the order they have."""
    labels = facts.said.get("labels", {})
    others = {
        _ITEM_COLUMNS[name]: values for name, values in facts.said.items() if name != "labels"
    }
    return stac.with_facts(items, labels, others, archive)


def restated_columns(
    facts: Facts, before: Cube, n_rows: int, new: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the root columns that change: name, and its values of all rows.

    Parameters
    ----------
    facts
        What is said anew.
    before
        The cube as it was.
    n_rows
        Length of the columns.
    new
        Columns of the rows that the release adds, where it adds some.
    """
    rows = before.items["bec:row"].to_numpy()
    for name, values in facts.said.items():
        at = rows[list(values)]
        for column, changed in _columns(name, list(values.values()), before.archive):
            old = before.column(column)
            whole = np.zeros((n_rows, *old.shape[1:]), old.dtype)
            if old.dtype == object:
                whole[...] = ""
            whole[: len(old)] = old
            whole[at] = changed
            if column in new:
                whole[len(old) :] = new[column]
            if not np.array_equal(whole[: len(old)], old):  # "not flagged" is unknown's value
                yield column, whole


def _columns(name: str, values: list[Any], archive: Archive) -> Iterator[tuple[str, Any]]:
    if name != "labels":
        yield name, values
        return
    yield "has_labels", True
    for column in LABELS[archive]:
        names = values
        if archive == "v1" and column == "label_19":
            names = [labels_43_to_19(labels) for labels in values]
        yield column, np.array([multi_hot(labels, NOMENCLATURES[column]) for labels in names])


def _known(items: pa.Table, archive: Archive) -> dict[str, list[Any]]:
    labels = "bec:labels_43" if archive == "v1" else "bec:labels"
    columns = {"labels": labels, **_ITEM_COLUMNS}
    return {name: items[column].to_pylist() for name, column in columns.items()}


def _is_new(name: str, value: Any, known: Any) -> bool:
    if name == "labels" and known is not None:
        return set(value) != set(known)
    return bool(value != known)


def _is_understood(name: str, value: Any, archive: Archive) -> bool:
    if name == "split":
        return value in SPLITS
    return name != "labels" or set(value) <= set(NAMES_43 if archive == "v1" else NAMES_19)
