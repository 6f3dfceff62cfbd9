"""The pairs that the official lists of v2 hold, without their pixels."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NoReturn

from bigearth_cube.archive.base import Kind, Patch, PatchRecord, PatchSource, SetAside
from bigearth_cube.archive.grid import Corner, Grid
from bigearth_cube.archive.lists import Listed, archive_of_list, read_v2_list
from bigearth_cube.archive.names import check_s1_name, parse_v2_name
from bigearth_cube.archive.sources import is_remote
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.nomenclature import NAMES_19, Archive, check_split

_KNOWN_19: Final = frozenset(NAMES_19)
_EXPECTED: Final = (
    "name metadata.parquet and, for the flagged patches, "
    "metadata_for_patches_with_snow_cloud_or_shadow.parquet"
)


def open_lists(
    sources: Sequence[str], *, archive: Literal["auto", "v1", "v2"] = "auto"
) -> PatchSource:
    """Open official lists as a source of records that have no files.

    What such records are ingested to has items and columns and no pixels: a catalog of the
    archive, made in a minute where nobody wants to move 120 GB yet.

    Parameters
    ----------
    sources
        Parquet files of v2, paths or URLs; what an earlier one says of a patch holds.
    archive
        Archive the lists must be of.

    Raises
    ------
    NotFoundError
        If a file does not exist.
    InvalidInputError
        If a source is no list of v2. The lists of v1 hold no labels and no places.
    """
    if archive == "v1":
        raise InvalidInputError(f"the lists of v1 hold no labels; {_EXPECTED}")
    paths = [s if is_remote(s) else os.path.abspath(s) for s in sources]
    for source, path in zip(sources, paths, strict=True):
        if os.path.isdir(path):
            raise InvalidInputError(
                f"{source} is a folder, but metadata only was asked for; {_EXPECTED}"
            )
        listed = archive_of_list(path)
        if listed == "v1":
            raise InvalidInputError(f"{source} is a list of v1, which holds no labels; {_EXPECTED}")
        if listed is None:
            raise InvalidInputError(f"{source} is no official list; {_EXPECTED}")
        if not is_remote(path) and not os.path.exists(path):
            raise NotFoundError(f"{source} does not exist; {_EXPECTED}")
    if not paths:
        raise InvalidInputError(f"no list given; {_EXPECTED}")
    return ListSource(paths)


class ListSource:
    """Every patch of some lists, as a record without files.

    It is the names of the lists, and pickles as those.

    Parameters
    ----------
    paths
        Parquet files of v2.

    Attributes
    ----------
    archive
        ``"v2"``.
    """

    archive: Archive = "v2"

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(dict.fromkeys(paths))

    def __repr__(self) -> str:
        return f"ListSource({list(self._paths)!r})"

    def __reduce__(self) -> tuple[type[ListSource], tuple[Sequence[str]]]:
        return ListSource, (self._paths,)

    def records(self) -> Iterator[PatchRecord]:
        """Yield each patch once, in the order of the lists.

        Raises
        ------
        InvalidInputError
            If a file is not what its name promises.
        """
        yield from self._stock[0]

    def read(self, record: PatchRecord) -> Patch:
        """Refuse: there are no pixels.

        Raises
        ------
        InvalidInputError
            Always.
        """
        raise InvalidInputError(f"patch {record.id!r} has no pixels: it comes from a list alone")

    def found(self) -> Mapping[Kind, int]:
        """Count the patches that are listed."""
        return {"s2": sum(len(part) for part in self._stock)}

    def orphans(self) -> Sequence[SetAside]:
        """Return nothing: a pair stands in one row of a list."""
        return ()

    def quarantined(self) -> Sequence[SetAside]:
        """Rows of a list that make no record."""
        return self._stock[1]

    def absent(self) -> Sequence[str]:
        """Return nothing: what is listed is at hand."""
        return ()

    @functools.cached_property
    def _stock(self) -> tuple[list[PatchRecord], list[SetAside]]:
        records: dict[str, PatchRecord] = {}
        quarantined: dict[str, SetAside] = {}
        grid = Grid()
        for path in self._paths:
            for patch_id, listed in read_v2_list(path):
                if patch_id in records or patch_id in quarantined:
                    continue
                try:
                    records[patch_id] = _record(patch_id, listed, grid)
                except InvalidInputError as error:
                    quarantined[patch_id] = SetAside(patch_id, path, str(error), "s2")
        return list(records.values()), list(quarantined.values())


def _record(patch_id: str, listed: Listed, grid: Grid) -> PatchRecord:
    name = parse_v2_name(patch_id)
    unknown = [label for label in listed.labels or () if label not in _KNOWN_19]
    if unknown:
        raise InvalidInputError(
            f"the list gives the unknown label {unknown[0]!r}; expected one of the 19 class names"
        )

    def measure() -> NoReturn:
        raise InvalidInputError(
            f"square {name.mgrs} is none of the archive's, and a list does not say where it lies"
        )

    corner: Corner = grid.corner(name.mgrs, name.col, name.row, measure=measure)
    return PatchRecord(
        patch_id,
        sys.intern(name.tile),
        sys.intern(name.mgrs),
        name.col,
        name.row,
        name.acquired,
        *corner,
        labels=listed.labels,
        country=listed.country,
        split=None if listed.split is None else check_split(listed.split),
        flagged_snow=listed.flagged_snow,
        flagged_cloud_or_shadow=listed.flagged_cloud_or_shadow,
        s1_id=None if listed.s1_id is None else check_s1_name(listed.s1_id),
    )
