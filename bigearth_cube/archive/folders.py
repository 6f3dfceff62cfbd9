"""The published folders of v1 and v2, and the records made from them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from bigearth_cube.archive.base import (
    KINDS,
    Kind,
    Patch,
    PatchRecord,
    PatchSource,
    SetAside,
    Unpaired,
)
from bigearth_cube.archive.facts_only import FactSource
from bigearth_cube.archive.geotiff import require_gdal
from bigearth_cube.archive.inventory import Inventory, take_stock
from bigearth_cube.archive.listing import Listing, describe_wrong_folder, list_folders
from bigearth_cube.archive.lists import archive_of_list, expected_lists
from bigearth_cube.archive.names import archive_of
from bigearth_cube.archive.pixels import read_patch
from bigearth_cube.archive.sources import is_remote
from bigearth_cube.archive.tar import TarSource, archive_of_tar, can_read_once, is_tar
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.nomenclature import ARCHIVES, Archive

logger = logging.getLogger(__name__)


def open_archive(
    sources: Sequence[str],
    *,
    archive: Literal["auto", "v1", "v2"] = "auto",
) -> PatchSource:
    """Open the published files of an archive as they lie on disk.

    Parameters
    ----------
    sources
        Folders and official lists, any mix: the folder an archive was unpacked to, its published
        folders (BigEarthNet-S2, BigEarthNet-S1, Reference_Maps, BigEarthNet-v1.0,
        BigEarthNet-S1-v1.0), a folder of patch folders, the Parquet files of v2, the lists of v1.
        Lists that lie in a named folder are found. Or the published tars (``.tar``, ``.tar.gz``,
        ``.tar.zst``; path or fsspec URL) with the lists beside them. Lists may be URLs too.
    archive
        Archive the patches must be of; ``"auto"`` takes it from their names.

    Returns
    -------
    PatchSource
        Folders are listed here, once; no file but the lists and the JSON of v1 is opened before
        ``read``. Tars come as a ``TarSource``, which has no ``read``.

    Raises
    ------
    NotFoundError
        If a source does not exist.
    InvalidInputError
        If a folder is not local, a source holds no patch or is no list, or patches of v1 and v2 are mixed,
        or rasterio is missing.
    """
    require_gdal()
    if archive not in ("auto", *ARCHIVES):
        raise InvalidInputError(f"unknown archive {archive!r}; choose one of: auto, v1, v2")
    if not sources:
        raise InvalidInputError("no source given; name the folder the archive was unpacked to")
    tars = [source for source in sources if is_tar(source)]
    paths = [_local(source) for source in sources if source not in tars]
    if tars:
        return _open_tars(tars, paths, archive)
    roots = [path for path in paths if os.path.isdir(path)]
    named_lists = [_check_list(path) for path in paths if not os.path.isdir(path)]
    listing = list_folders(roots)
    for root in listing.wrong_roots:
        raise InvalidInputError(describe_wrong_folder(root))
    if listing.found.total() == 0:
        raise InvalidInputError(
            f"{', '.join(sources)}: official lists but no patch; name the folder that holds the "
            "patches too, or ask for a cube of the lists alone (bec ingest --metadata-only)"
        )
    found = _detect(listing)
    _check_archive(sources, found, archive, named_lists)
    beside = [path for path in listing.lists if archive_of_list(path) == found]
    return FolderSource(found, roots, dict.fromkeys([*named_lists, *beside]), listing)


def open_facts(
    sources: Sequence[str], *, archive: Literal["auto", "v1", "v2"] = "auto"
) -> FactSource | None:
    """Open official lists that come without any patch; None if the sources are others.

    Raises
    ------
    NotFoundError
        If a list does not exist.
    InvalidInputError
        If they are lists of several archives, or of another than was asked for.
    """
    if not sources or any(archive_of_list(s) is None or os.path.isdir(s) for s in sources):
        return None
    paths = [_local(source) for source in sources]
    found = archive_of_list(paths[0])
    assert found is not None
    _check_archive(sources, found, archive, paths)
    return FactSource(found, paths)


def _open_tars(
    tars: Sequence[str], paths: Sequence[str], archive: Literal["auto", "v1", "v2"]
) -> TarSource:
    for path in paths:
        if os.path.isdir(path):
            raise InvalidInputError(
                f"{path} is a folder and {tars[0]} a tar; name folders or tars, not both"
            )
        _check_list(path)
    found = archive_of_tar(tars[0])
    for tar in tars[1:]:
        if archive_of_tar(tar) != found:
            raise InvalidInputError(
                f"{tar} is of {archive_of_tar(tar)}, {tars[0]} of {found}; each has its own cube"
            )
    _check_archive(tars, found, archive, paths)
    lists = list(dict.fromkeys(paths))
    once = can_read_once(found, tars, lists)
    if not once and any(is_remote(tar) for tar in tars):
        logger.warning(
            "the tars are read twice, once for their names; once is enough if they have their "
            "published names and all lists are given: %s",
            expected_lists(),
        )
    return TarSource(found, tars, lists, from_lists=once)


def _check_archive(
    sources: Sequence[str], found: Archive, asked_for: str, lists: Sequence[str]
) -> None:
    if asked_for not in ("auto", found):
        raise InvalidInputError(
            f"{', '.join(sources)}: patches of {found}, but archive {asked_for} was asked for; "
            "name other sources or leave the archive to auto"
        )
    for path in lists:
        if archive_of_list(path) != found:
            raise InvalidInputError(
                f"{path} is a list of {archive_of_list(path)}, but the patches are of {found}; "
                "leave it out"
            )


def _local(source: str) -> str:
    """Return the absolute path of a folder or list; a list may be a URL and stays one."""
    if is_remote(source):
        if archive_of_list(source) is None:
            raise InvalidInputError(
                f"{source}: folders are read from local disk only; name its tar, or copy the folder"
            )
        return source
    path = os.path.abspath(source.removeprefix("file://"))
    if not os.path.exists(path):
        raise NotFoundError(f"{source} does not exist; name a folder, a tar or an official list")
    return path


def _check_list(path: str) -> str:
    if archive_of_list(path) is None:
        raise InvalidInputError(
            f"{path} is no official list; expected a folder or one of: {expected_lists()}"
        )
    return path


def _detect(listing: Listing) -> Archive:
    examples: dict[Archive, str] = {}
    for folder in (*listing.folders["s2"], *listing.folders["reference"]):
        version = archive_of(folder.name)
        assert version is not None  # the listing takes no other names
        examples.setdefault(version, folder.path)
    if len(examples) == len(ARCHIVES):
        raise InvalidInputError(
            f"patches of both archives, e.g. {examples['v1']} (v1) and {examples['v2']} (v2); "
            "name the folders of one archive: each has its own cube"
        )
    # Without any Sentinel-2 name: v2 has Sentinel-1 patches in folders of their scenes.
    return next(iter(examples), "v2" if listing.has_scenes else "v1")


class FolderSource:
    """The patches in the published folders of one archive.

    It is what was named, and pickles as that. The process that lists its records keeps them.

    Attributes
    ----------
    archive
        ``"v1"`` or ``"v2"``.
    """

    def __init__(
        self, archive: Archive, roots: Sequence[str], lists: Iterable[str], listing: Listing
    ) -> None:
        self.archive: Archive = archive
        self._roots = tuple(roots)
        self._lists = tuple(lists)
        self._found: dict[Kind, int] = {kind: listing.found[kind] for kind in KINDS}
        self._listing: Listing | None = listing
        self._inventory: Inventory | None = None

    def __repr__(self) -> str:
        return f"FolderSource({self.archive!r}, {list(self._roots)!r})"

    @property
    def lists(self) -> Sequence[str]:
        """Paths of the official lists."""
        return self._lists

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_listing": None, "_inventory": None}

    def records(self) -> Iterator[PatchRecord]:
        """Yield each patch once, sorted by name."""
        yield from self._take_stock().records

    def read(self, record: PatchRecord) -> Patch:
        """Read all pixels of ``record``; see ``read_patch``.

        Raises
        ------
        MalformedPatchError
            If the Sentinel-2 pixels cannot be read or do not lie where the record says.
        StorageError
            If the file system fails.
        """
        return read_patch(record)

    def found(self) -> Mapping[Kind, int]:
        """Count the patch folders of each kind."""
        return self._found

    def orphans(self) -> Sequence[SetAside]:
        """Sentinel-1 patches and reference maps that pair with no record."""
        return self._take_stock().orphans

    def unpaired(self) -> Sequence[Unpaired]:
        """Those orphans whose Sentinel-2 patch is not at hand: a cube may hold their rows."""
        return self._take_stock().unpaired

    def quarantined(self) -> Sequence[SetAside]:
        """Patches that make no record, and Sentinel-1 patches and maps that cannot be paired."""
        return self._take_stock().quarantined

    def absent(self) -> Sequence[str]:
        """Names that the official lists hold and the folders lack, sorted."""
        return self._take_stock().absent

    def _take_stock(self) -> Inventory:
        if self._inventory is None:
            listing = self._listing or list_folders(self._roots)
            self._inventory = take_stock(self.archive, listing, self._lists)
            self._listing = None  # its strings live on in the records
        return self._inventory
