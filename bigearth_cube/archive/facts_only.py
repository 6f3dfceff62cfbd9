"""What official lists say of patches whose pixels are elsewhere: in a cube already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bigearth_cube.archive.base import Kind, Patch, PatchRecord, SetAside
from bigearth_cube.archive.lists import read_lists
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import Archive


class FactSource:
    """Official lists beside no patch: no row comes of them, published rows may learn from them.

    Attributes
    ----------
    archive
        Archive of the lists.
    lists
        Their paths or URLs.
    """

    def __init__(self, archive: Archive, lists: Sequence[str]) -> None:
        self.archive: Archive = archive
        self.lists = tuple(dict.fromkeys(lists))

    def __repr__(self) -> str:
        return f"FactSource({self.archive!r}, {list(self.lists)!r})"

    def records(self) -> Iterator[PatchRecord]:
        """Yield nothing."""
        return iter(())

    def read(self, record: PatchRecord) -> Patch:
        """Refuse: there are no pixels.

        Raises
        ------
        InvalidInputError
            Always.
        """
        raise InvalidInputError(f"patch {record.id!r} has no pixels: only lists were given")

    def found(self) -> Mapping[Kind, int]:
        """Count nothing: a list says something of patches, it holds none."""
        return {}

    def orphans(self) -> Sequence[SetAside]:
        """Return nothing."""
        return ()

    def quarantined(self) -> Sequence[SetAside]:
        """Return nothing."""
        return ()

    def absent(self) -> Sequence[str]:
        """Names that are listed, sorted.

        Raises
        ------
        InvalidInputError
            If a list cannot be read.
        """
        return read_lists(self.archive, self.lists, s2_ids=(), s1_ids=()).absent
