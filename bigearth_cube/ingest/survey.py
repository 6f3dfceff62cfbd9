"""What an ingest finds before it writes: the source, the cube, and which rows are new."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from bigearth_cube.archive import (
    FolderSource,
    PatchRecord,
    PatchSource,
    SetAside,
    TarSource,
    open_archive,
)
from bigearth_cube.archive.base import Unpaired
from bigearth_cube.archive.catalog_only import open_lists
from bigearth_cube.archive.facts_only import FactSource
from bigearth_cube.archive.folders import open_facts
from bigearth_cube.archive.names import PUBLISHED_FOLDERS
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError, MalformedPatchError, NotFoundError
from bigearth_cube.ingest.facts import Facts, find_facts
from bigearth_cube.ingest.late import LateViews, find_late
from bigearth_cube.ingest.plan import row_order
from bigearth_cube.ingest.shard import views_of
from bigearth_cube.ingest.stream import faults_in_stream
from bigearth_cube.nomenclature import Archive
from bigearth_cube.storage import Storage
from bigearth_cube.writer import ROOT, ZARR


@dataclass(frozen=True)
class Survey:
    """How a source and a cube stand to each other.

    Attributes
    ----------
    cube
        The cube as it is, or None where there is none yet.
    new
        Patches that get rows, in row order.
    old
        Patches whose rows are in the cube.
    late
        Views for rows that are in the cube.
    still_bad, bad_views
        Patches that an earlier run put into quarantine and that still cannot be read; what is at
        hand of their other views.
    absent
        Patches that the lists hold and that neither the source nor the cube has.
    facts
        What the source says of rows that are in the cube, and the cube does not.
    """

    cube: Cube | None
    new: Sequence[PatchRecord]
    old: Sequence[PatchRecord]
    late: LateViews
    still_bad: Sequence[SetAside]
    bad_views: Sequence[SetAside]
    absent: Sequence[str]
    facts: Facts


def take_survey(
    storage: Storage,
    source: PatchSource,
    records: Sequence[PatchRecord],
    cube_id: str | None,
) -> Survey:
    """Compare a source with the cube at a place; writes nothing.

    Raises
    ------
    InvalidInputError
        If the cube is of another archive or has another name, one of both has pixels and the
        other has none, or there are views alone and no cube to join them to.
    StorageError
        If storage refuses or cannot be reached.
    """
    cube = _existing(storage, source.archive, cube_id)
    if cube is None and not records:
        raise InvalidInputError(
            f"only Sentinel-1 patches or reference maps, and no cube at {storage.url} to join "
            f"them to; ingest their Sentinel-2 patches first"
        )
    if not isinstance(source, FactSource):
        _check_pixels(cube, records)
    known = set() if cube is None else set(cube.items["id"].to_pylist())
    aside = _quarantined_before(cube)
    unknown, still_bad, bad_views = _set_aside_again(
        source, aside, [r for r in records if r.id not in known]
    )
    old = [r for r in records if r.id in known]
    late = find_late(cube, old, unpaired_of(source), aside)
    absent = [name for name in source.absent() if name not in known]
    new = sorted(unknown, key=row_order)
    lists = source.lists if isinstance(source, FolderSource | TarSource | FactSource) else ()
    facts = Facts() if cube is None else find_facts(cube, source.archive, old, lists)
    return Survey(cube, new, old, late, still_bad, bad_views, absent, facts)


def unpaired_of(source: PatchSource) -> Sequence[Unpaired]:
    """Name the views whose Sentinel-2 patch is not in the source; only published forms have some."""
    return source.unpaired() if isinstance(source, FolderSource | TarSource) else ()


def opened(
    sources: str | Sequence[str] | PatchSource,
    storage: Storage,
    archive: Literal["auto", "v1", "v2"],
    *,
    metadata_only: bool,
) -> PatchSource:
    """Open what was named as sources of the cube at ``storage``.

    Raises
    ------
    NotFoundError
        If a source does not exist.
    InvalidInputError
        If a source is none, or the cube would lie in one.
    """
    if isinstance(sources, str):
        sources = [sources]
    if isinstance(sources, Sequence):
        _check_place(sources, storage)
    # Folders are the usual case; anything else reads itself.
    if isinstance(sources, Sequence):
        # Lists alone say something of the rows of a cube; where there is none, they are too little.
        if not metadata_only and storage.exists(f"{ZARR}/{ROOT}"):
            facts = open_facts(list(sources), archive=archive)
            if facts is not None:
                return facts
        open_sources = open_lists if metadata_only else open_archive
        return open_sources(list(sources), archive=archive)
    if metadata_only:
        raise InvalidInputError(
            f"metadata only was asked for of {type(sources).__name__}; name official lists, or "
            f"give a source whose records have no files"
        )
    return sources


def _check_pixels(cube: Cube | None, records: Sequence[PatchRecord]) -> None:
    """Refuse to mix rows with and without pixels: their arrays would have holes."""
    if cube is None:
        return
    # A source without records has views alone.
    have_files = not records or any(record.files for record in records)
    if have_files and not cube.has_pixels:
        raise InvalidInputError(
            f"the cube at {cube.url} has no pixels: it was made from lists alone; give another "
            f"URL for a cube with pixels"
        )
    if cube.has_pixels and not have_files:
        raise InvalidInputError(
            f"the cube at {cube.url} has pixels, the source has none; give another URL for a cube "
            f"of lists alone"
        )


def _check_place(sources: Sequence[str], storage: Storage) -> None:
    """Refuse a cube within a source: the argument for the cube was forgotten."""
    if "://" in storage.url:
        return
    place = os.path.realpath(storage.url)
    name = os.path.basename(place)
    for source in sources:
        path = os.path.realpath(source)
        if place == path or (os.path.isdir(path) and place.startswith(f"{path}{os.sep}")):
            raise InvalidInputError(
                f"the cube would lie in the source {source}; name a folder of its own for the "
                f"cube, after the sources"
            )
    if os.path.isfile(place) or name in PUBLISHED_FOLDERS:
        raise InvalidInputError(
            f"{storage.url} is a file or folder of an archive, not a cube; name the cube after the "
            f"sources"
        )


def check_source(source: PatchSource, records: Sequence[PatchRecord]) -> None:
    """Refuse a source that holds nothing.

    Raises
    ------
    InvalidInputError
        If nothing in it can be read.
    """
    if not records and not unpaired_of(source) and not isinstance(source, FactSource):
        reasons = "; ".join(q.reason for q in list(source.quarantined())[:3])
        raise InvalidInputError(
            f"no patch can be read from the source ({reasons or 'it is empty'})"
        )


def _existing(storage: Storage, archive: Archive, cube_id: str | None) -> Cube | None:
    try:
        cube = open_cube(storage.url, storage.options)
    except NotFoundError:
        return None
    if cube.archive != archive:
        raise InvalidInputError(
            f"the cube at {storage.url} holds archive {cube.archive}, the source is {archive}; "
            f"give another URL"
        )
    if cube_id is not None and cube_id != cube.id:
        raise InvalidInputError(f"the cube at {storage.url} is {cube.id!r}, not {cube_id!r}")
    return cube


def _set_aside_again(
    source: PatchSource,
    aside: Mapping[tuple[str, str], SetAside],
    records: Sequence[PatchRecord],
) -> tuple[list[PatchRecord], list[SetAside], list[SetAside]]:
    """Leave out what an earlier run put into quarantine, if it still cannot be read.

    Without this look every later run would publish a release of padding rows for them.
    """
    again = [record for record in records if ("s2", record.id) in aside and record.files]
    faults = {error.patch_id: error for error in _faults(source, again)}
    readable = [record for record in records if record.id not in faults]
    quarantined = [SetAside(e.patch_id, e.file, e.reason, "s2") for e in faults.values()]
    orphans = [
        view
        for record in again
        if record.id in faults
        for view in views_of(record, "its Sentinel-2 patch is in quarantine")
    ]
    return readable, quarantined, orphans


def _faults(source: PatchSource, records: Sequence[PatchRecord]) -> Iterator[MalformedPatchError]:
    """Try to read some patches; yield what is wrong with those that cannot be read."""
    if isinstance(source, TarSource):
        if records:
            yield from faults_in_stream(source, records)
        return
    for record in records:
        try:
            source.read(record)
        except MalformedPatchError as error:
            yield error


def _quarantined_before(cube: Cube | None) -> dict[tuple[str, str], SetAside]:
    """Read what earlier runs put into quarantine, by kind and name."""
    entries: dict[tuple[str, str], SetAside] = {}
    if cube is None:
        return entries
    for release in cube.releases:
        data = cube.storage.read(f"ingest/{release.name}/quarantine.parquet")
        for entry in pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pylist():
            entries[entry["source"], entry["id"]] = SetAside(**entry)
    return entries
