"""Find patch folders: names only, one directory read per folder, no file opened or stat'ed.

The v2 archive has 8.2 million files in 1.6 million patch folders, so a folder is kept as two
strings and a mapping that all folders with the same kind of files share.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bigearth_cube.archive.base import KINDS, Kind, SetAside
from bigearth_cube.archive.lists import archive_of_list
from bigearth_cube.archive.names import (
    PUBLISHED_FOLDERS,
    V2_FOLDERS,
    archive_of,
    is_s1_patch,
    is_scene,
    is_tile,
)
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.nomenclature import POLARIZATIONS, S2_BANDS

S2_BAND_NAMES: Final = tuple(band.name for band in S2_BANDS)
_MAP_STEM: Final = "reference_map"
_SUFFIXES: Final = ("tif", "tiff")


class PatchFolder(NamedTuple):
    """One folder with the files of one patch.

    Attributes
    ----------
    parent
        Folder it lies in; one string for all patches of a tile.
    name
        Its name, with which the names of its files begin.
    tails
        Band (or ``"map"``) to the rest of the file name; one mapping for all alike folders.
    """

    parent: str
    name: str
    tails: Mapping[str, str]

    @property
    def path(self) -> str:
        """The folder."""
        return f"{self.parent}/{self.name}"

    def file(self, tail: str) -> str:
        """Path of the file ``<patch>_<tail>`` in it."""
        return f"{self.parent}/{self.name}/{self.name}_{tail}"


class PatchFiles(Mapping[str, str]):
    """The files of a record, by band: a mapping that holds folders, not paths.

    A record is sent to workers; this way it is about 300 bytes and not 2,500.
    """

    __slots__ = ("_folders",)

    def __init__(self, folders: Sequence[PatchFolder]) -> None:
        self._folders = tuple(folders)

    def __getitem__(self, band: str) -> str:
        for folder in self._folders:
            tail = folder.tails.get(band)
            if tail is not None:
                return folder.file(tail)
        raise KeyError(band)

    def __iter__(self) -> Iterator[str]:
        for folder in self._folders:
            yield from folder.tails

    def __len__(self) -> int:
        return sum(len(folder.tails) for folder in self._folders)

    def __repr__(self) -> str:
        return f"PatchFiles({[folder.path for folder in self._folders]!r})"


@dataclass
class Listing:
    """What lies in the given folders.

    Attributes
    ----------
    folders
        Patch folders by kind, in the order in which they were found.
    found
        Number of patch folders by kind, those with impossible names too.
    set_aside
        Folders that lie where patches lie and are none.
    lists
        Official lists found beside the folders, as paths.
    wrong_roots
        Named folders that hold no patch and no list.
    has_scenes
        Whether Sentinel-1 patches lie in folders of their scenes, as they do in v2.
    """

    folders: dict[Kind, list[PatchFolder]] = field(default_factory=lambda: {k: [] for k in KINDS})
    found: Counter[str] = field(default_factory=Counter)
    set_aside: list[SetAside] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    wrong_roots: list[str] = field(default_factory=list)
    has_scenes: bool = False
    _visited: set[str] = field(default_factory=set)
    _shared_tails: dict[tuple[str, ...], dict[Kind, dict[str, str]]] = field(default_factory=dict)

    def add_root(self, root: str) -> None:
        """Take up a folder that somebody named.

        Raises
        ------
        NotFoundError
            If there is no such folder.
        InvalidInputError
            If it cannot be listed.
        """
        name = os.path.basename(root)
        kind: Kind | None = PUBLISHED_FOLDERS.get(name)
        if kind is None and (is_tile(name) or is_scene(name)):
            kind = _kind_of(name)
        if not self._walk(root, kind):
            self.wrong_roots.append(root)

    def _walk(self, folder: str, kind: Kind | None) -> bool:
        """List a folder and say whether it holds anything of an archive.

        ``kind`` is what the patches in it must be, or None if that is not known.
        """
        real = os.path.realpath(folder)
        if real in self._visited:  # a root and its published folder were both named
            return True
        self._visited.add(real)
        before = self.found.total(), len(self.lists)
        holds_visited = False
        for name, is_folder in _entries(folder):
            path = f"{folder}/{name}"
            if not is_folder:
                if archive_of_list(name) is not None:
                    self.lists.append(path)
            elif name in PUBLISHED_FOLDERS:
                holds_visited |= self._walk(path, PUBLISHED_FOLDERS[name])
            elif is_tile(name):
                holds_visited |= self._walk(path, kind or "s2")
            elif is_scene(name):
                self.has_scenes = True
                holds_visited |= self._walk(path, "s1")
            elif archive_of(name) is not None or is_s1_patch(name):
                self._add_patch(folder, name, kind)
            elif (kind is not None and not name.startswith(".")) or name.startswith(("S1", "S2")):
                reason = "the name does not parse as that of a patch"
                self.set_folder_aside(folder, name, reason, kind or _kind_of(name))
        return holds_visited or before != (self.found.total(), len(self.lists))

    def _add_patch(self, parent: str, name: str, kind: Kind | None) -> None:
        """Add a folder named like a patch: its bands, its reference map, or both."""
        try:
            files = os.listdir(f"{parent}/{name}")
        except OSError as error:
            reason = f"the folder cannot be listed: {error.strerror}"
            self.set_folder_aside(parent, name, reason, kind or _kind_of(name))
            return
        self.add_patch(parent, name, files, kind)

    def add_patch(
        self, parent: str, name: str, files: Sequence[str], kind: Kind | None = None
    ) -> None:
        """Add a folder named like a patch, with the names of the files in it.

        Parameters
        ----------
        parent, name
            The folder it lies in, and its own name.
        files
            Names of its files.
        kind
            What it must be, or None if that is not known.
        """
        tails = self._tails(name, files)
        kinds = {found_kind for found_kind in KINDS if tails[found_kind]} & _kinds_of(name)
        for found_kind in kinds or {kind or _kind_of(name)}:
            self.found[found_kind] += 1
            self.folders[found_kind].append(PatchFolder(parent, name, tails[found_kind]))

    def set_folder_aside(self, parent: str, name: str, reason: str, kind: Kind) -> None:
        """Count a folder that lies where patches lie and is none."""
        self.found[kind] += 1
        # A name may hold bytes that are no UTF-8; what is set aside is written down as text.
        name, parent = (os.fsencode(x).decode(errors="backslashreplace") for x in (name, parent))
        self.set_aside.append(SetAside(name, f"{parent}/{name}", reason, kind))

    def _tails(self, name: str, files: Sequence[str]) -> dict[Kind, dict[str, str]]:
        """Sort the files of a patch folder by what comes after the name of the patch."""
        start = f"{name}_"
        key = tuple(sorted(file.removeprefix(start) for file in files if file.startswith(start)))
        shared = self._shared_tails.get(key)
        if shared is None:
            shared = self._shared_tails[key] = _sort_tails(key)
        return shared


def list_folders(roots: Iterable[str]) -> Listing:
    """List all patch folders under ``roots``; a folder that is named twice counts once.

    Raises
    ------
    NotFoundError
        If a root does not exist.
    InvalidInputError
        If a folder above the patches cannot be listed.
    """
    listing = Listing()
    for root in roots:
        listing.add_root(root)
    return listing


def _kind_of(name: str) -> Kind:
    return "s1" if name.startswith("S1") else "s2"


def _kinds_of(name: str) -> set[Kind]:
    return {"s1"} if name.startswith("S1") else {"s2", "reference"}


@functools.lru_cache(maxsize=256)
def band_of(tail: str) -> tuple[Kind, str] | None:
    """Kind and band (or ``"map"``) of what comes after a patch's name in a file name.

    Examples
    --------
    >>> band_of("B8A.tif"), band_of("reference_map.tiff"), band_of("labels_metadata.json")
    (('s2', 'B8A'), ('reference', 'map'), None)
    """
    for kind, bands in _sort_tails([tail]).items():
        for band in bands:
            return kind, band
    return None


def _sort_tails(tails: Sequence[str]) -> dict[Kind, dict[str, str]]:
    by_stem: dict[str, str] = {}
    for tail in tails:
        stem, _, suffix = tail.partition(".")
        if suffix.lower() in _SUFFIXES:
            by_stem.setdefault(stem, tail)
    return {
        "s2": {band: by_stem[band] for band in S2_BAND_NAMES if band in by_stem},
        "s1": {band: by_stem[band] for band in POLARIZATIONS if band in by_stem},
        "reference": {"map": by_stem[_MAP_STEM]} if _MAP_STEM in by_stem else {},
    }


def _entries(folder: str) -> list[tuple[str, bool]]:
    """Names in a folder, sorted, and whether each is a folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_dir()) for entry in entries)
    except FileNotFoundError:
        raise NotFoundError(
            f"{folder} does not exist; name the folder the archive was unpacked to"
        ) from None
    except OSError as error:
        raise InvalidInputError(f"{folder} cannot be listed: {error.strerror}") from None


def describe_wrong_folder(folder: str) -> str:
    """One line for a folder without a patch: what it holds, what was expected, what to do."""
    entries = _entries(folder)
    example = next(iter(V2_FOLDERS))
    inner = [
        f"{folder}/{name}"
        for name, is_folder in entries
        if is_folder and not PUBLISHED_FOLDERS.keys().isdisjoint(_names_in(f"{folder}/{name}"))
    ]
    if archive_of(os.path.basename(folder)) or is_s1_patch(os.path.basename(folder)):
        hint = "it is a patch folder itself: name the folder that holds it"
    elif inner:
        hint = f"name a folder inside it instead: {inner[0]}"
    else:
        hint = "name the folder the archive was unpacked to"
    holds = f"holds {len(entries)} entries, none" if entries else "is empty; expected"
    return (
        f"{folder} {holds} a BigEarthNet patch folder such as "
        "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57 or a published folder such as "
        f"{example}; {hint}"
    )


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
