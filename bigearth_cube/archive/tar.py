"""The published tars, read as streams: planned from lists or from a first pass, never unpacked."""

from __future__ import annotations

import functools
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from bigearth_cube.archive.base import KINDS, Kind, Patch, PatchRecord, SetAside, Unpaired
from bigearth_cube.archive.grid import Corner
from bigearth_cube.archive.inventory import Inventory, completed, take_stock
from bigearth_cube.archive.listing import Listing, PatchFolder, band_of
from bigearth_cube.archive.lists import can_plan, listed_pairs, read_lists
from bigearth_cube.archive.metadata import METADATA_TAIL
from bigearth_cube.archive.names import (
    PUBLISHED_FOLDERS,
    archive_of,
    is_s1_patch,
    is_scene,
    mgrs_of_product,
    parse_v2_name,
)
from bigearth_cube.archive.pixels import BANDS, measure_corner
from bigearth_cube.archive.sources import file_name, size_of
from bigearth_cube.archive.tarstream import SUFFIXES, Member, members
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import GROUPS, Archive, square_origins

_B02: Final = "B02.tif"
_JSON: Final = "json"
_MAX_BEGUN: Final = 1024
"""Views of which files are still awaited; those that lack their JSON only are given then."""


@dataclass(frozen=True, slots=True)
class View:
    """The files of one patch of one kind, as they came out of a tar.

    Attributes
    ----------
    kind
        ``"s2"``, ``"s1"`` or ``"reference"``.
    name
        Name of the patch.
    folder
        URL of the tar and path of the folder in it.
    contents
        Band (or ``"map"``, or ``"json"``) to the bytes of its file; any may be missing.
    files
        Band to the path of its file, for messages.
    """

    kind: Kind
    name: str
    folder: str
    contents: dict[str, bytes]
    files: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether every band is there."""
        return all(band in self.contents for band in BANDS[self.kind])

    def read(self, path: str) -> bytes:
        """Bytes of one of its files."""
        return next(self.contents[band] for band, file in self.files.items() if file == path)


class TarSource:
    """The patches in the published tars of one archive.

    They have no random access: ``views`` gives the pixels in the order in which they come. Rows
    are planned from the lists, where these say enough and the tars are large enough to hold what
    they promise; what is found is known when ``views`` has ended then. Else the tars are read once
    more, before, for their names (and for the JSON of v1).

    Parameters
    ----------
    archive
        Archive of all the patches.
    tars
        Their URLs.
    lists
        Paths of official lists.
    from_lists
        Whether to plan rows from the lists; only where every tar has its published name. It does
        not where the tars are far smaller than what is listed, or a listed square is unknown.

    Attributes
    ----------
    archive
        ``"v1"`` or ``"v2"``.
    tars
        Their URLs.
    from_lists
        Whether rows are planned from the lists.
    """

    def __init__(
        self,
        archive: Archive,
        tars: Sequence[str],
        lists: Sequence[str],
        *,
        from_lists: bool = False,
    ) -> None:
        self.archive: Archive = archive
        self.tars = tuple(tars)
        self.from_lists = from_lists
        self._lists = tuple(lists)
        self._aside: dict[Kind, list[SetAside]] = {kind: [] for kind in KINDS}
        self._found: Counter[str] = Counter()
        self._kinds: set[tuple[str, Kind]] = set()
        self._inventory: Inventory | None = None

    def __repr__(self) -> str:
        return f"TarSource({self.archive!r}, {list(self.tars)!r})"

    @property
    def lists(self) -> Sequence[str]:
        """Paths of the official lists."""
        return self._lists

    def records(self) -> Iterator[PatchRecord]:
        """Yield each patch once, sorted by name."""
        yield from self._take_stock().records

    def read(self, record: PatchRecord) -> Patch:
        """Refuse: a tar is read from end to end, by ``views``.

        Raises
        ------
        InvalidInputError
            Always.
        """
        raise InvalidInputError(f"{record.id} lies in a tar, which has no random access")

    def views(self, only: Collection[Kind] | None = None) -> Iterator[View]:
        """Yield every view in the order of the tars; one that lacks a band comes last in its tar.

        Parameters
        ----------
        only
            Leave out tars that hold no view of these kinds.

        Raises
        ------
        InvalidInputError
            If a tar is damaged or ends in the middle.
        StorageError
            If it cannot be read.
        """
        if self.from_lists:
            self._found.clear()
            self._aside = {kind: [] for kind in KINDS}
        for view in self._views(only):
            if self.from_lists:
                self._found[view.kind] += 1
            yield view

    def completed(self, record: PatchRecord, view: View) -> PatchRecord:
        """Add what only the JSON of v1 says to a record that was planned from lists.

        Raises
        ------
        MalformedPatchError
            If the JSON is missing, does not parse, or says that the patch lies elsewhere.
        """
        if not self._with_json or view.kind != "s2":
            return record
        file = view.files.get(_JSON, f"{view.folder}/{view.name}_{METADATA_TAIL}")
        return completed(record, view.contents.get(_JSON), file)

    @property
    def _with_json(self) -> bool:
        return self.from_lists and self.archive == "v1"

    def read_names(self) -> None:
        """Plan rows from the names in the tars, whatever the lists say."""
        self.from_lists = False
        self._inventory = None

    def set_aside(self, view: View, reason: str) -> None:
        """Account for a view that has no row; only where rows are planned from lists.

        A Sentinel-2 patch is quarantined, the other kinds are orphans.
        """
        if self.from_lists:
            known = {(s.source, s.id): s.reason for s in self._take_stock().quarantined}
            told = known.get((view.kind, view.name), reason)
            self._aside[view.kind].append(SetAside(view.name, view.folder, told, view.kind))

    def _views(self, only: Collection[Kind] | None) -> Iterator[View]:
        for url in self.tars:
            if only is not None and not any(self._holds(url, kind) for kind in only):
                continue
            begun: dict[tuple[str, Kind], View] = {}
            odd: set[str] = set()
            for member in members(url):
                place = _place(url, member.path)
                if place is None:
                    self._note_odd(url, member.path, odd)
                    continue
                parent, name, tail = place
                found = band_of(tail)
                if found is None and tail == METADATA_TAIL and self._with_json:
                    found = None if is_s1_patch(name) else ("s2", _JSON)
                if found is None:
                    continue
                kind, band = found
                key = f"{parent}/{name}", kind
                view = begun.get(key)
                if view is None:
                    view = begun[key] = View(kind, name, key[0], {}, {})
                view.contents[band] = member.data
                view.files[band] = f"{key[0]}/{name}_{tail}"
                needed = len(BANDS[kind]) + (kind == "s2" and self._with_json)
                if len(view.contents) == needed:
                    yield begun.pop(key)
                elif len(begun) > _MAX_BEGUN and begun[next(iter(begun))].complete:
                    yield begun.pop(next(iter(begun)))  # its JSON is missing, as of all the others
            yield from begun.values()

    def _note_odd(self, url: str, path: str, seen: set[str]) -> None:
        """Account for a folder that lies where patches lie and is none."""
        odd = _odd_folder(url, path)
        if self.from_lists and odd is not None and odd[0] not in seen:
            folder, name, kind = odd
            seen.add(folder)
            self._found[kind] += 1
            reason = "the name does not parse as that of a patch"
            self._aside[kind].append(SetAside(name, folder, reason, kind))

    def found(self) -> Mapping[Kind, int]:
        """Count the patch folders of each kind; where rows are from lists, after ``views``."""
        self._take_stock()
        return {kind: self._found[kind] for kind in KINDS}

    def orphans(self) -> Sequence[SetAside]:
        """Sentinel-1 patches and reference maps that pair with no record."""
        if self.from_lists:
            return [*self._aside["s1"], *self._aside["reference"]]
        return self._take_stock().orphans

    def unpaired(self) -> Sequence[Unpaired]:
        """Those orphans whose Sentinel-2 patch is not at hand: a cube may hold their rows."""
        return () if self.from_lists else self._take_stock().unpaired

    def quarantined(self) -> Sequence[SetAside]:
        """Patches that make no record, and Sentinel-1 patches and maps that cannot be paired."""
        if self.from_lists:
            return self._aside["s2"]
        return self._take_stock().quarantined

    def absent(self) -> Sequence[str]:
        """Names that the lists hold and the tars lack, sorted; none where rows are from lists."""
        return () if self.from_lists else self._take_stock().absent

    def _holds(self, url: str, kind: Kind) -> bool:
        self._take_stock()
        return (url, kind) in self._kinds

    def _may_hold(self, listing: Listing) -> bool:
        """Whether the tars are large enough to hold what is listed, or a good part of it."""
        sizes = [size_of(url) for url in self.tars]
        expected = sum(
            listing.found[PUBLISHED_TARS[_stem(url)][1]] * PUBLISHED_TARS[_stem(url)][2]
            for url in self.tars
        )
        return None in sizes or sum(size or 0 for size in sizes) >= expected / _SLACK

    def _take_stock(self) -> Inventory:
        if self._inventory is None and self.from_lists:
            listing, squares = _listed(self.archive, self.tars, self._lists)
            if squares <= square_origins().keys() and self._may_hold(listing):
                self._kinds = {(url, PUBLISHED_TARS[_stem(url)][1]) for url in self.tars}
                self._inventory = take_stock(
                    self.archive, listing, self._lists, measure=_no_corner, from_lists=True
                )
            else:
                self.from_lists = False
        if self._inventory is None:
            names = _Names()
            for url in self.tars:
                for member in members(url):
                    names.add(url, member)
            listing = names.listing()
            if listing.found.total() == 0:
                raise InvalidInputError(
                    f"{', '.join(self.tars)}: no patch in it; expected folders such as "
                    f"BigEarthNet-S2/<tile>/<patch> with GeoTIFFs"
                )
            self._found = listing.found
            self._kinds = {
                (url, kind)
                for kind, folders in listing.folders.items()
                for parent in {folder.parent for folder in folders}
                for url in self.tars
                if parent == url or parent.startswith(f"{url}/")
            }
            self._inventory = take_stock(
                self.archive, listing, self._lists, names.read, names.measure
            )
        return self._inventory


class _Names:
    """What a pass over the names in a tar finds, and the few files whose content is needed."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], tuple[str, ...]] = {}
        self._odd: dict[tuple[str, str], Kind] = {}
        self._metadata: dict[str, bytes] = {}  # compressed: 1,000 bytes a patch are 400 then
        self._corners: dict[str, Corner] = {}  # of patches in squares that no table holds
        self._known = square_origins()

    def add(self, url: str, member: Member) -> None:
        place = _place(url, member.path)
        if place is None:
            self._add_odd(url, member.path)
            return
        parent, name, tail = sys.intern(place[0]), place[1], place[2]
        before = self._files.get((parent, name), ())
        self._files[parent, name] = (*before, sys.intern(tail))
        if tail == METADATA_TAIL:
            self._metadata[f"{parent}/{name}/{name}_{tail}"] = zlib.compress(member.data, 1)
        elif tail == _B02 and archive_of(name) == "v2":
            self._measure_if_new_square(parent, name, member.data)

    def _measure_if_new_square(self, parent: str, name: str, data: bytes) -> None:
        try:
            square = parse_v2_name(name).mgrs
        except InvalidInputError:
            return  # the inventory says so of every such patch
        if square not in self._known:
            with suppress(InvalidInputError):  # said when the patch is read
                self._corners[f"{parent}/{name}"] = measure_corner(data, GROUPS["s2/r10m"])

    def _add_odd(self, url: str, path: str) -> None:
        odd = _odd_folder(url, path)
        if odd is not None:
            folder, name, kind = odd
            self._odd[folder.removesuffix(f"/{name}"), name] = kind

    def read(self, path: str) -> bytes:
        if path not in self._metadata:
            raise InvalidInputError("is missing")
        return zlib.decompress(self._metadata[path])

    def measure(self, folder: PatchFolder) -> Corner:
        if folder.path not in self._corners:
            raise InvalidInputError("cannot be measured: no readable B02")
        return self._corners[folder.path]

    def listing(self) -> Listing:
        listing = Listing()
        for (parent, name), tails in self._files.items():
            listing.add_patch(parent, name, [f"{name}_{tail}" for tail in tails])
        for (parent, name), kind in self._odd.items():
            reason = "the name does not parse as that of a patch"
            listing.set_folder_aside(parent, name, reason, kind)
        return listing


def _listed(
    archive: Archive, tars: Sequence[str], lists: Sequence[str]
) -> tuple[Listing, set[str]]:
    """List the folders that the tars hold if they hold what lists say, and their MGRS squares."""
    listing, squares = Listing(), set()
    url_of = {PUBLISHED_TARS[_stem(url)][1]: url for url in tars}
    bands = {kind: [f"{band}.tif" for band in BANDS[kind]] for kind in KINDS}
    bands["reference"] = ["reference_map.tif"]
    seen: set[str] = set()
    for patch_id, s1_id in listed_pairs(archive, lists):
        if patch_id in seen:
            continue
        seen.add(patch_id)
        tile, scene = patch_id[:-6], (s1_id or "").rsplit("_", 3)[0]
        squares.add(tile[-5:])
        places = {"s2": (tile, patch_id), "reference": (tile, patch_id)}
        if s1_id is not None:
            places["s1"] = (scene, s1_id)
        for kind, (folder, name) in places.items():
            if kind in url_of:
                url = url_of[kind]
                inner = PUBLISHED_TARS[_stem(url)][0]
                parent = f"{url}/{inner}/{folder}" if archive == "v2" else f"{url}/{inner}"
                listing.add_patch(sys.intern(parent), name, [f"{name}_{b}" for b in bands[kind]])
    if archive == "v1":
        known = read_lists("v1", lists, s2_ids=seen, s1_ids=())
        squares = {mgrs_of_product(x.tile) for x in known.patches.values() if x.tile is not None}
    return listing, squares


PUBLISHED_TARS: Final[Mapping[str, tuple[str, Kind, int]]] = {
    "BigEarthNet-S2": ("BigEarthNet-S2", "s2", 115_110),
    "BigEarthNet-S1": ("BigEarthNet-S1", "s1", 99_000),
    "Reference_Maps": ("Reference_Maps", "reference", 514),
    "BigEarthNet-S2-v1.0": ("BigEarthNet-v1.0", "s2", 118_600),
    "BigEarthNet-v1.0": ("BigEarthNet-v1.0", "s2", 118_600),
    "BigEarthNet-S1-v1.0": ("BigEarthNet-S1-v1.0", "s1", 99_000),
}
"""Name of a tar without its suffix to the folder in it, its kind, and its bytes a patch."""
_SLACK: Final = 8
"""Tars smaller than an eighth of what is listed would make a cube of padding: they are looked into."""


def _stem(url: str) -> str:
    """Name of a tar without its suffix."""
    return re.sub(r"\.(?:tar(?:\.gz|\.zst)?|tgz)$", "", file_name(url))


def can_read_once(archive: Archive, tars: Sequence[str], lists: Sequence[str]) -> bool:
    """Whether rows may be planned from lists: tars named as published, and lists that say enough."""
    stems = [_stem(url) for url in tars]
    if len(set(stems)) < len(stems) or not PUBLISHED_TARS.keys() >= set(stems):
        return False
    kinds = [PUBLISHED_TARS[stem][1] for stem in stems]
    if "s2" not in kinds or len(set(kinds)) < len(kinds):
        return False
    return can_plan(archive, lists, with_s1="s1" in kinds)


def _no_corner(folder: PatchFolder) -> Corner:
    raise InvalidInputError("lies in a square that no table holds")


def _odd_folder(url: str, path: str) -> tuple[str, str, Kind] | None:
    """Folder, name and kind of what lies where patches lie and has files like theirs."""
    parts = path.split("/")
    kind = next((PUBLISHED_FOLDERS[p] for p in parts[:-1] if p in PUBLISHED_FOLDERS), None)
    if kind is None or band_of(parts[-1].rpartition("_")[2]) is None:
        return None
    return "/".join([url, *parts[:-1]]), parts[-2], kind


def _place(url: str, path: str) -> tuple[str, str, str] | None:
    """Parent folder, patch name and rest of the file name; None where the file is of no patch."""
    parent, _, file = path.rpartition("/")
    folder = _patch_folder(url, parent)
    if folder is None or not file.startswith(f"{folder[1]}_"):
        return None
    return *folder, file[len(folder[1]) + 1 :]


@functools.lru_cache(maxsize=16)  # a patch's files come one after the other
def _patch_folder(url: str, path: str) -> tuple[str, str] | None:
    """Parent folder and name, where the name is that of a patch."""
    above, _, name = path.rpartition("/")
    if not (archive_of(name) or is_s1_patch(name)):
        return None
    return (f"{url}/{above}" if above else url), name


def is_tar(source: str) -> bool:
    """Whether a source is named like a tar."""
    return file_name(source).endswith(SUFFIXES)


def archive_of_tar(url: str) -> Archive:
    """Archive of the first patch in a tar.

    Raises
    ------
    NotFoundError
        If there is no such object.
    InvalidInputError
        If it is no tar, or holds no patch.
    StorageError
        If it cannot be read.
    """
    for member in members(url):
        place = _place(url, member.path)
        if place is None:
            continue
        parent, name, _ = place
        version = archive_of(name)
        if version is not None:
            return version
        # Sentinel-1 patches are named alike; v2 has them in folders of their scenes.
        return "v2" if is_scene(os.path.basename(parent)) else "v1"
    raise InvalidInputError(
        f"{url}: no patch in it; expected folders such as BigEarthNet-S2/<tile>/<patch>"
    )
