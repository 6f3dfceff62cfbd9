"""What a loader draws from: rows of one or several cubes as one sequence of rows and chunks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.blocks import PixelSource
from bigearth_cube.nomenclature import GROUPS
from bigearth_cube.search import Selection
from bigearth_cube.shards import bare_layout
from bigearth_cube.writer import ZARR

logger = logging.getLogger(__name__)

Groups = Sequence[str] | Mapping[str, Sequence[str] | None]


class Patches:
    """The selected rows of some cubes, numbered one cube after another.

    A cube begins at a whole chunk, so no chunk has rows of two cubes.

    Parameters
    ----------
    cubes
        One or more, of equal bands, scale and classes.
    selections
        For each cube which patches; every one where it is None.
    groups
        Names of pixel groups, or those with the bands that are wanted of each (None: all).
    labels
        Name of the labels, or None.

    Attributes
    ----------
    rows
        Selected rows in that numbering, increasing.
    chunk_rows
        Patches in a chunk.
    sources
        Group to its array in each cube.
    labels
        (n_rows, n_classes), or None.
    digest
        Of all selections.

    Raises
    ------
    InvalidInputError
        If a selection is not of its cube or empty, a group or band is not there, rows have no
        labels, or cubes differ.
    """

    def __init__(
        self,
        cubes: Sequence[Cube],
        selections: Sequence[Selection | None],
        groups: Groups,
        labels: str | None,
    ) -> None:
        if not cubes or len(selections) != len(cubes):
            raise InvalidInputError(
                f"{len(cubes)} cubes and {len(selections)} selections; expected at least one cube "
                f"and a selection (or None) for each"
            )
        wanted = _wanted_bands(groups)
        for cube in cubes[1:]:
            _refuse_difference(cubes[0], cube, wanted, labels)
        self.chunk_rows = cubes[0].layout.chunk_rows
        n_chunks = [-(-cube.n_rows // self.chunk_rows) for cube in cubes]
        self._starts = np.cumsum([0, *n_chunks[:-1]]) * self.chunk_rows
        own = [_selected(cube, part) for cube, part in zip(cubes, selections, strict=True)]
        if not sum(map(len, own)):
            raise InvalidInputError("the selection is empty; widen the query")
        self.rows: NDArray[np.int64] = np.concatenate(
            [rows + start for rows, start in zip(own, self._starts, strict=True)]
        )
        self.sources = {
            group: tuple(
                pixel_source(cube, group, bands, int(start) // self.chunk_rows, self.chunk_rows)
                for cube, start in zip(cubes, self._starts, strict=True)
            )
            for group, bands in wanted.items()
        }
        self.labels = None
        if labels is not None:
            self.labels = np.concatenate(
                [cube.labels(labels, rows) for cube, rows in zip(cubes, own, strict=True)]
            )
        self.digest = "+".join(
            cube.release.digest if part is None else part.digest
            for cube, part in zip(cubes, selections, strict=True)
        )

    def locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which cube each row is of, and its number there; -1 for both where padded."""
        if len(self._starts) == 1:
            return np.minimum(rows, 0), rows
        cubes = np.searchsorted(self._starts, rows, side="right") - 1
        return cubes, np.where(cubes < 0, rows, rows - self._starts[cubes])


def _selected(cube: Cube, selection: Selection | None) -> NDArray[np.int64]:
    if selection is None:
        return cube.rows
    if (selection.cube_id, selection.release) != (cube.id, cube.release.name):
        raise InvalidInputError(
            f"the selection is of cube {selection.cube_id!r}, release {selection.release!r}; "
            f"this is {cube.id!r}, {cube.release.name!r}: open that one, or use what "
            f"selection.resolve(cube) gives"
        )
    return selection.rows_in(cube.index)


def _wanted_bands(groups: Groups) -> dict[str, tuple[int, ...] | None]:
    """Return for each group which bands of it, or None for all."""
    if isinstance(groups, str):
        raise InvalidInputError(f"groups is {groups!r}; expected names in a list: [{groups!r}]")
    asked = groups if isinstance(groups, Mapping) else dict.fromkeys(groups)
    if not asked:
        raise InvalidInputError("no groups to deliver; name at least one, e.g. 's2/r10m'")
    wanted: dict[str, tuple[int, ...] | None] = {}
    for group, bands in asked.items():
        have = GROUPS[group].bands if group in GROUPS else ()
        for band in bands or ():
            if group in GROUPS and band not in have:
                raise InvalidInputError(
                    f"no band {band!r} in {group}; choose from: {', '.join(have) or 'none'}"
                )
        if bands is not None and len(set(bands)) != max(1, len(bands)):
            raise InvalidInputError(
                f"bands {list(bands)} of {group}; expected at least one, and each once"
            )
        wanted[group] = None if bands is None else tuple(have.index(b) for b in bands if have)
        if wanted[group] == tuple(range(len(have))):
            wanted[group] = None
    return wanted


def _path(group: str) -> str:
    return f"{group}/{GROUPS[group].array}" if group in GROUPS else group


def pixel_source(
    cube: Cube,
    group: str,
    bands: tuple[int, ...] | None = None,
    first_chunk: int = 0,
    chunk_rows: int | None = None,
) -> PixelSource:
    """Return where the pixels of a group lie and how they are stored.

    Parameters
    ----------
    cube
        The cube.
    group
        E.g. ``"s2/r10m"``.
    bands, first_chunk
        As of ``PixelSource``.
    chunk_rows
        Patches in a chunk as it is numbered; those of the cube where it is None.

    Raises
    ------
    InvalidInputError
        If the cube has no such group, or no pixels at all.
    """
    path = _path(group)
    chunk_rows = chunk_rows or cube.layout.chunk_rows
    reason: object = None
    try:
        layout = cube.pixel_layout(group)
    except InvalidInputError as error:
        if path not in cube.documents or not cube.has_pixels:
            raise
        reason, layout = error, bare_layout(path, cube.documents[path], chunk_rows)
    if layout.chunk_rows != chunk_rows:
        reason = f"{path}: chunks of {layout.chunk_rows} patches, the cube has {chunk_rows}"
        layout = bare_layout(path, cube.documents[path], chunk_rows)
    if reason is not None:
        logger.warning("read by zarr-python, several times slower: %s", reason)
    storage, filled = cube.storage.child(ZARR), tuple(cube.filled(group))
    return PixelSource(storage, layout, filled, bands, first_chunk, reason is not None)


def _refuse_difference(
    first: Cube, other: Cube, groups: Mapping[str, object], labels: str | None
) -> None:
    """Raise unless pixels and labels of two cubes mean the same."""
    found: dict[str, tuple[object, object]] = {
        "chunk_rows": (first.layout.chunk_rows, other.layout.chunk_rows),
        "scale": (first.attributes.get("scale"), other.attributes.get("scale")),
    }
    if labels is not None:
        for cube in (first, other):
            cube.class_names(labels)
        known = first.attributes["nomenclature"], other.attributes["nomenclature"]
        found[f"classes of {labels}"] = known[0].get(labels), known[1].get(labels)
    for group in groups:
        path = _path(group)
        if path not in first.documents or path not in other.documents:
            continue  # refused by name, with the choices, where it is opened
        own, its = first.documents[path], other.documents[path]
        found[f"patch shape of {group}"] = own["shape"][1:], its["shape"][1:]
        found[f"data type of {group}"] = own["data_type"], its["data_type"]
        if axis := GROUPS[group].axis:
            names = f"{group}/{axis}"
            found[f"bands of {group}"] = first.column(names).tolist(), other.column(names).tolist()
    for what, (here, there) in found.items():
        if here != there:
            raise InvalidInputError(
                f"cubes {first.id!r} and {other.id!r} differ in {what}: {here} and {there}; "
                f"load them one by one"
            )
