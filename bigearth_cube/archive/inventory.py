"""From patch folders and lists to records, and to what becomes none: the accounts balance."""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple, NoReturn

from bigearth_cube.archive.base import Kind, PatchRecord, SetAside, Unpaired
from bigearth_cube.archive.grid import Corner, Grid
from bigearth_cube.archive.listing import Listing, PatchFiles, PatchFolder
from bigearth_cube.archive.lists import Listed, Lists, missing_v2_list, read_lists
from bigearth_cube.archive.metadata import (
    METADATA_TAIL,
    S2Metadata,
    parse_s1_metadata,
    parse_s2_metadata,
)
from bigearth_cube.archive.names import (
    check_s1_name,
    mgrs_of_product,
    parse_v1_name,
    parse_v2_name,
    sensed,
)
from bigearth_cube.archive.pixels import measure_corner, read_file
from bigearth_cube.errors import InvalidInputError, MalformedPatchError
from bigearth_cube.nomenclature import (
    GROUPS,
    NAMES_19,
    POLARIZATIONS,
    S2_BANDS,
    Archive,
    check_split,
)

_S2_FILES = tuple(band.name for band in S2_BANDS)
_KNOWN_19 = frozenset(NAMES_19)


@dataclass
class Inventory:
    """What a listing and the lists amount to; every patch folder stands in it once.

    Attributes
    ----------
    records
        Sorted by name; with the Sentinel-1 patches and reference maps that join them.
    orphans, quarantined
        Sorted by kind, name and file.
    unpaired
        The orphans whose Sentinel-2 patch is not at hand, with their files.
    absent
        Names that are listed and not at hand, sorted.
    """

    records: list[PatchRecord] = field(default_factory=list)
    orphans: list[SetAside] = field(default_factory=list)
    quarantined: list[SetAside] = field(default_factory=list)
    unpaired: list[Unpaired] = field(default_factory=list)
    absent: Sequence[str] = ()

    def add_unpaired(self, folder: PatchFolder, s2_id: str | None, reason: str, kind: Kind) -> None:
        """Add an orphan that a cube may have a row for."""
        aside = SetAside(folder.name, folder.path, reason, kind)
        self.orphans.append(aside)
        self.unpaired.append(Unpaired(aside, s2_id, PatchFiles([folder])))


def take_stock(
    archive: Archive,
    listing: Listing,
    lists: Sequence[str],
    read: Callable[[str], bytes] = read_file,
    measure: Callable[[PatchFolder], Corner] | None = None,
    *,
    from_lists: bool = False,
) -> Inventory:
    """Make records of a listing.

    Parameters
    ----------
    archive
        Archive of all the patches.
    listing
        The folders.
    lists
        Paths of the official lists of this archive.
    read
        Gives the bytes of the JSON of v1.
    measure
        Says where a patch lies by its own files, for squares that no table holds; by its B02 on
        disk where it is None.
    from_lists
        Whether the folders are those that lists promise: no JSON of v1 is read then, and
        ``completed`` adds what it says.

    Raises
    ------
    InvalidInputError
        If a list cannot be read.
    """
    stock = Inventory(quarantined=list(listing.set_aside))
    s2 = _by_name(listing.folders["s2"])
    s1 = _by_name(listing.folders["s1"])
    known = read_lists(archive, lists, s2_ids=s2.keys(), s1_ids=s1.keys())
    stock.absent = known.absent
    s1_of: dict[str, PatchFolder] = {}
    for s2_id, radar in _pair_s1(archive, s1, known, stock, read):
        if s2_id not in s2:
            reason = f"its Sentinel-2 patch {s2_id!r:.60} is not at hand"
            stock.add_unpaired(radar, s2_id, reason, "s1")
        elif (other := _partner(s2_id, s1_of, known)) not in (None, radar.name):
            reason = f"pairs with {s2_id}, which pairs with {other} already"
            stock.quarantined.append(SetAside(radar.name, radar.path, reason, "s1"))
        else:
            s1_of[s2_id] = radar
    map_of = {}
    for map_id, folders in _by_name(listing.folders["reference"]).items():
        chosen = _choose(folders, ("map",), "reference", stock)
        if chosen is not None and map_id in s2:
            map_of[map_id] = chosen
        elif chosen is not None:
            reason = "no Sentinel-2 patch of this name is at hand"
            stock.add_unpaired(chosen, map_id, reason, "reference")
    parse: _Parse = functools.partial(_parse_v2, measure or _measured)
    if archive == "v1":
        parse = _parse_v1_listed if from_lists else _parse_v1
    grid = Grid()
    for s2_id in sorted(s2):
        folder = _choose(s2[s2_id], _S2_FILES, "s2", stock)
        parts = (s1_of.get(s2_id), map_of.get(s2_id))
        try:
            if folder is not None:
                listed = known.patches.get(s2_id, Listed())
                stock.records.append(_record(parse, folder, *parts, listed, grid, read))
                continue
        except MalformedPatchError as error:
            stock.quarantined.append(SetAside(s2_id, error.file, error.reason, "s2"))
        kinds: tuple[Kind, Kind] = ("s1", "reference")
        for part, kind in zip(parts, kinds, strict=True):
            if part is not None:
                stock.add_unpaired(
                    part, s2_id, f"its Sentinel-2 patch {s2_id} is quarantined", kind
                )
    for aside in (stock.orphans, stock.quarantined):
        aside.sort(key=lambda s: (s.source, s.id, s.file))
    return stock


def _by_name(folders: Iterable[PatchFolder]) -> dict[str, list[PatchFolder]]:
    grouped: dict[str, list[PatchFolder]] = defaultdict(list)
    for folder in folders:
        grouped[folder.name].append(folder)
    return grouped


def _choose(
    folders: Sequence[PatchFolder], needed: Sequence[str], kind: Kind, stock: Inventory
) -> PatchFolder | None:
    """First folder with all files; the others are quarantined."""
    chosen = None
    for folder in folders:
        missing = [name for name in needed if name not in folder.tails]
        if not missing and chosen is None:
            chosen = folder
            continue
        reason = f"lacks {', '.join(missing)}" if missing else "the same patch a second time"
        if chosen is not None:
            reason += f"; {chosen.path} is kept"
        stock.quarantined.append(SetAside(folder.name, folder.path, reason, kind))
    return chosen


def _pair_s1(
    archive: Archive,
    s1: dict[str, list[PatchFolder]],
    known: Lists,
    stock: Inventory,
    read: Callable[[str], bytes],
) -> Iterable[tuple[str, PatchFolder]]:
    """Yield the name of the Sentinel-2 patch for each Sentinel-1 folder that has one."""
    for name in sorted(s1):
        folder = _choose(s1[name], POLARIZATIONS, "s1", stock)
        if folder is None:
            continue
        file = folder.path
        try:
            check_s1_name(name)
            s2_id = known.pairs.get(name)
            if s2_id is None and archive == "v1":
                file = folder.file(METADATA_TAIL)
                s2_id = parse_s1_metadata(read(file))
        except InvalidInputError as error:
            stock.quarantined.append(SetAside(name, file, str(error), "s1"))
            continue
        if s2_id is None:
            stock.add_unpaired(folder, None, _why_unpaired(known), "s1")
        else:
            yield s2_id, folder


def _why_unpaired(known: Lists) -> str:
    to_add = missing_v2_list(known.names)
    advice = f"; add {to_add}" if to_add else ""
    return f"no list says which Sentinel-2 patch it pairs with{advice}"


def _partner(s2_id: str, s1_of: dict[str, PatchFolder], known: Lists) -> str | None:
    """Name of the Sentinel-1 patch that a Sentinel-2 patch has already."""
    if s2_id in s1_of:
        return s1_of[s2_id].name
    listed = known.patches.get(s2_id)
    return listed.s1_id if listed else None


class _Told(NamedTuple):
    """What the name and the files of a Sentinel-2 patch, and for v2 the list, say of it."""

    tile: str
    mgrs: str
    col: int
    row: int
    acquired: datetime
    corner: Corner
    labels: tuple[str, ...] | None


_Read = Callable[[str], bytes]
_Parse = Callable[[PatchFolder, Listed, Grid, _Read], _Told]


def _parse_v1(folder: PatchFolder, listed: Listed, grid: Grid, read: _Read) -> _Told:
    col, row = parse_v1_name(folder.name)
    file = folder.file(METADATA_TAIL)
    try:
        metadata = parse_s2_metadata(read(file))
        corner = grid.corner(metadata.mgrs, col, row, measure=lambda: metadata.corner)
        _check_corner(metadata, corner)
        if listed.tile is not None:
            _check_square(metadata, listed.tile)
    except InvalidInputError as error:
        raise MalformedPatchError(folder.name, file, str(error)) from None
    # The list has the product as it is called; the JSON repeats the faults of patch names in it.
    tile = listed.tile or metadata.tile
    return _Told(tile, metadata.mgrs, col, row, metadata.acquired, corner, metadata.labels)


def _parse_v1_listed(folder: PatchFolder, listed: Listed, grid: Grid, read: _Read) -> _Told:
    col, row = parse_v1_name(folder.name)
    assert listed.tile is not None  # the folder is from the list of tiles
    mgrs = mgrs_of_product(listed.tile)
    corner = grid.corner(mgrs, col, row, measure=functools.partial(_unknown_square, mgrs))
    return _Told(listed.tile, mgrs, col, row, sensed(listed.tile), corner, None)


def _unknown_square(mgrs: str) -> NoReturn:
    raise InvalidInputError(f"no table holds square {mgrs}")


def completed(record: PatchRecord, data: bytes | None, file: str) -> PatchRecord:
    """Complete a record of v1 that was made from lists by what its JSON says: labels and time.

    Parameters
    ----------
    record
        The record.
    data
        The JSON, or None where there is none.
    file
        Its path.

    Raises
    ------
    MalformedPatchError
        If it is missing, does not parse, or says that the patch lies elsewhere.
    """
    if data is None:
        raise MalformedPatchError(record.id, file, "is missing")
    try:
        metadata = parse_s2_metadata(data)
        _check_square(metadata, record.tile)
        _check_corner(metadata, (record.epsg, record.ulx, record.uly))
    except InvalidInputError as error:
        raise MalformedPatchError(record.id, file, str(error)) from None
    return replace(record, acquired=metadata.acquired, labels=metadata.labels)


def _measured(folder: PatchFolder) -> Corner:
    return measure_corner(read_file(folder.file(folder.tails["B02"])), GROUPS["s2/r10m"])


def _parse_v2(
    measure: Callable[[PatchFolder], Corner],
    folder: PatchFolder,
    listed: Listed,
    grid: Grid,
    read: _Read,
) -> _Told:
    name = parse_v2_name(folder.name)
    corner = grid.corner(name.mgrs, name.col, name.row, measure=lambda: measure(folder))
    _check_labels(listed)
    return _Told(name.tile, name.mgrs, name.col, name.row, name.acquired, corner, listed.labels)


def _record(
    parse: _Parse,
    folder: PatchFolder,
    s1: PatchFolder | None,
    reference: PatchFolder | None,
    listed: Listed,
    grid: Grid,
    read: _Read,
) -> PatchRecord:
    try:
        told = parse(folder, listed, grid, read)
        split = None if listed.split is None else check_split(listed.split)
        s1_id = _s1_id(s1, listed)
    except InvalidInputError as error:
        raise MalformedPatchError(folder.name, folder.path, str(error)) from None
    return PatchRecord(
        folder.name,
        sys.intern(told.tile),
        told.mgrs,
        told.col,
        told.row,
        told.acquired,
        *told.corner,
        labels=told.labels,
        country=listed.country,
        split=split,
        flagged_snow=listed.flagged_snow,
        flagged_cloud_or_shadow=listed.flagged_cloud_or_shadow,
        s1_id=s1_id,
        files=PatchFiles([part for part in (folder, s1, reference) if part is not None]),
    )


def _check_corner(metadata: S2Metadata, expected: Corner) -> None:
    if metadata.corner != expected:
        raise InvalidInputError(
            f"is off the grid: (EPSG, x, y) is {metadata.corner}, expected {expected} by square "
            f"{metadata.mgrs} and indices"
        )


def _check_square(metadata: S2Metadata, tile: str) -> None:
    square = mgrs_of_product(tile)
    if metadata.mgrs != square:
        raise InvalidInputError(f"names square {metadata.mgrs}, the list of tiles says {square}")


def _check_labels(listed: Listed) -> None:
    unknown = [label for label in listed.labels or () if label not in _KNOWN_19]
    if unknown:
        raise InvalidInputError(
            f"the list gives the unknown label {unknown[0]!r}; expected one of the 19 class names"
        )


def _s1_id(s1: PatchFolder | None, listed: Listed) -> str | None:
    if s1 is not None:
        return s1.name
    return None if listed.s1_id is None else check_s1_name(listed.s1_id)
