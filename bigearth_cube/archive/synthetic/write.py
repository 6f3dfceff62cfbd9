"""Draw planned patches and write them in the published layout, on all cores."""

from __future__ import annotations

import bz2
import logging
import multiprocessing
import os
import signal
import uuid
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigearth_cube.archive.base import Patch
from bigearth_cube.archive.synthetic import published
from bigearth_cube.archive.synthetic.landcover import draw_map
from bigearth_cube.archive.synthetic.pixels import Conditions, draw_scene, observe_s1, observe_s2
from bigearth_cube.archive.synthetic.plan import (
    SCHEMA,
    PlannedPatch,
    from_metadata,
    invent,
    patch_rng,
    place_rng,
)
from bigearth_cube.archive.synthetic.textures import canvases
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import (
    ARCHIVES,
    POLARIZATIONS,
    S2_GROUPS,
    SPLITS,
    Archive,
    labels_43_to_19,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

logger = logging.getLogger(__name__)

_BATCH: Final = 32
"""Patches a task: 0.2 s of work, so that tasks cost nothing and progress moves."""
_IGNORE_INTERRUPT: Final = (signal.SIGINT, signal.SIG_IGN)
_FALL: Final = {"autumn": "Fall"}


@dataclass(frozen=True, slots=True)
class SynthReport:
    """What was written.

    Attributes
    ----------
    directory
        Folder of the archive.
    archive
        Layout and nomenclature.
    n_patches, n_files, n_bytes
        Totals.
    n_by_split
        Patches of each split; flagged patches of v1 are in none.
    n_snow, n_cloud
        Flagged patches.
    """

    directory: Path
    archive: Archive
    n_patches: int
    n_files: int
    n_bytes: int
    n_by_split: dict[str, int]
    n_snow: int
    n_cloud: int


def draw_patch(planned: PlannedPatch, seed: int) -> Patch:
    """Draw the pixels of one planned patch: the same for the same seed, wherever it runs."""
    drawn = canvases(seed)
    record = planned.record
    ground, clc = draw_map(_skip_choice(place_rng(seed, record)), planned.codes, drawn)
    rng = patch_rng(seed, record)
    conditions = Conditions(
        record.season, bool(record.flagged_snow), bool(record.flagged_cloud_or_shadow)
    )
    bands, power = draw_scene(rng, ground, conditions, drawn)
    return Patch(observe_s2(rng, bands), observe_s1(rng, power), clc)


def _skip_choice(rng: np.random.Generator) -> np.random.Generator:
    """Draw the map independently of the draws that chose its classes."""
    return rng.spawn(1)[0]


def _files(planned: PlannedPatch, patch: Patch, archive: Archive) -> dict[str, bytes]:
    """All files of one pair, by path below the archive's folder."""
    record = planned.record
    at = {"epsg": record.epsg, "ulx": record.ulx, "uly": record.uly}
    s1_id = str(record.s1_id)
    if archive == "v1":
        s2_stem = f"BigEarthNet-v1.0/{record.id}/{record.id}"
        s1_stem = f"BigEarthNet-S1-v1.0/{s1_id}/{s1_id}"
    else:
        s2_stem = f"BigEarthNet-S2/{record.tile}/{record.id}/{record.id}"
        s1_stem = f"BigEarthNet-S1/{s1_id.rsplit('_', 3)[0]}/{s1_id}/{s1_id}"
    files = {
        f"{s2_stem}_{band}.tif": published.s2_tiff(pixels, archive=archive, **at)
        for group in S2_GROUPS
        for band, pixels in zip(group.bands, patch.s2[group.path], strict=True)
    }
    assert patch.s1 is not None
    assert patch.clc is not None
    for polarization, backscatter in zip(POLARIZATIONS, patch.s1, strict=True):
        files[f"{s1_stem}_{polarization}.tif"] = published.s1_tiff(
            backscatter, archive=archive, **at
        )
    if archive == "v2":
        stem = f"Reference_Maps/{record.tile}/{record.id}/{record.id}"
        files[f"{stem}_reference_map.tif"] = published.map_tiff(patch.clc, **at)
        return files
    assert record.labels is not None
    assert record.s1_acquired is not None
    files[f"{s2_stem}_labels_metadata.json"] = published.s2_json(
        record.labels,
        tile_source=f"{planned.product}.SAFE",
        acquired=f"{record.acquired:%Y-%m-%d %H:%M:%S}",
        **at,
    )
    files[f"{s1_stem}_labels_metadata.json"] = published.s1_json(
        record.labels,
        s2_patch=record.id,
        scene_source=_scene_source(s1_id),
        acquired=f"{record.s1_acquired:%Y-%m-%dT%H:%M:%S}",
        **at,
    )
    return files


def _scene_source(s1_id: str) -> str:
    """Name of the GRD product of a v1 Sentinel-1 patch, its orbit and checksum invented."""
    scene = s1_id.rsplit("_", 3)[0]
    start = np.datetime64(f"{scene[17:21]}-{scene[21:23]}-{scene[23:25]}T00:00:00")
    clock = scene[26:32]
    seconds = int(clock[:2]) * 3600 + int(clock[2:4]) * 60 + int(clock[4:]) + 25
    stop = (start + np.timedelta64(seconds, "s")).astype("datetime64[s]").item()
    number = zlib.crc32(scene.encode())
    orbit, take = 10_000 + number % 12_000, 0x10000 + number % 0x15000
    return f"{scene}_{stop:%Y%m%dT%H%M%S}_{orbit:06d}_{take:06X}_{number >> 16:04X}"


def _write_files(directory: Path, files: dict[str, bytes]) -> None:
    for folder in {os.path.dirname(path) for path in files}:
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        # Plain open of a joined string: pathlib would cost a fifth of the writing.
        with open(f"{directory}/{path}", "xb", buffering=0) as file:
            file.write(content)


def _write_batch(
    batch: Sequence[PlannedPatch], *, directory: Path, archive: Archive, seed: int
) -> tuple[int, int, int]:
    """Draw and write some patches; gives the numbers of patches, files and bytes."""
    n_files = n_bytes = 0
    for planned in batch:
        files = _files(planned, draw_patch(planned, seed), archive)
        _write_files(directory, files)
        n_files += len(files)
        n_bytes += sum(len(content) for content in files.values())
    return len(batch), n_files, n_bytes


def _lists_v2(planned: Sequence[PlannedPatch]) -> dict[str, pa.Table]:
    def table(rows: list[PlannedPatch]) -> pa.Table:
        columns: dict[str, list[Any]] = {
            "patch_id": [p.record.id for p in rows],
            "labels": [list(p.record.labels or ()) for p in rows],
            "split": [p.record.split for p in rows],
            "country": [p.record.country for p in rows],
            "s1_name": [p.record.s1_id for p in rows],
            "s2v1_name": [p.v1_id for p in rows],
            "contains_seasonal_snow": [p.record.flagged_snow for p in rows],
            "contains_cloud_or_shadow": [p.record.flagged_cloud_or_shadow for p in rows],
        }
        return pa.Table.from_pydict(columns, schema=SCHEMA)

    return {
        "metadata.parquet": table([p for p in planned if not p.record.flagged]),
        "metadata_for_patches_with_snow_cloud_or_shadow.parquet": table(
            [p for p in planned if p.record.flagged]
        ),
    }


def _lists_v1(planned: Sequence[PlannedPatch]) -> dict[str, bytes]:
    """Make the official lists of v1: names and line ends as published."""

    def names(rows: Iterable[PlannedPatch], end: str = "\r\n") -> bytes:
        return "".join(p.record.id + end for p in rows).encode()

    unlabelled = [p for p in planned if not labels_43_to_19(p.record.labels or ())]
    left_out = {p.record.id for p in unlabelled}
    lists = {
        f"v1_{short}.csv": names(
            p for p in planned if p.record.split == split and p.record.id not in left_out
        )
        for short, split in zip(("train", "val", "test"), SPLITS, strict=True)
    }
    lists["v1_patches_with_seasonal_snow.csv"] = names(p for p in planned if p.record.flagged_snow)
    lists["v1_patches_with_cloud_and_shadow.csv"] = names(
        p for p in planned if p.record.flagged_cloud_or_shadow
    )
    lists["v1_patches_with_no_19_class_targets.csv"] = names(unlabelled, "\n")
    pairs = [
        ",".join(
            (
                str(p.record.s1_id),
                p.record.id,
                str(p.record.country),
                _FALL.get(p.record.season, p.record.season).capitalize(),
            )
        )
        for p in planned
    ]
    table = "\n".join(["s1_name,s2_name,country,season", *pairs, ""])
    lists["v1_s1_s2_name_country_season.csv"] = table.encode()
    link = "https://scihub.copernicus.eu/apihub/odata/v1/Products('{}')/$value"
    lists["v1_tile_names_and_links.csv"] = "".join(
        f"{p.record.id},{p.record.tile}.SAFE,{link.format(uuid.uuid5(uuid.NAMESPACE_URL, p.record.tile))}\n"
        for p in planned
    ).encode()
    return lists


def _write_lists(directory: Path, archive: Archive, planned: Sequence[PlannedPatch]) -> int:
    if archive == "v2":
        for name, table in _lists_v2(planned).items():
            pq.write_table(table, directory / name, compression="zstd")
        return 2
    lists = _lists_v1(planned)
    for name, content in lists.items():
        (directory / f"{name}.bz2").write_bytes(bz2.compress(content))
    return len(lists)


def _check(directory: Path, archive: str, n_patches: int) -> None:
    if archive not in ARCHIVES:
        raise InvalidInputError(
            f"unknown archive {archive!r}; choose one of: {', '.join(ARCHIVES)}"
        )
    if n_patches < 1:
        raise InvalidInputError(f"n_patches is {n_patches}, expected at least 1; ask for some")
    if directory.exists() and not directory.is_dir():
        raise InvalidInputError(f"{directory} is a file, expected an empty folder; name another")
    if directory.is_dir() and any(directory.iterdir()):
        raise InvalidInputError(
            f"{directory} is not empty, expected an empty or new folder; name another"
        )


def plan_patches(
    archive: Archive, n_patches: int, seed: int, metadata: str | Path | None = None
) -> list[PlannedPatch]:
    """Plan an archive's patches: invented, or from an official list where one is given."""
    if metadata is None:
        return invent(archive, n_patches, seed)
    return from_metadata(archive, n_patches, seed, Path(metadata))


def write_archive(
    directory: str | Path,
    *,
    archive: Archive,
    n_patches: int,
    seed: int = 0,
    metadata: str | Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SynthReport:
    """Write a believable archive in the published layout.

    Readers cannot tell it from a published one: names, folders, tags and lists are the same. The
    same seed gives the same bytes, whatever the number of workers.

    Parameters
    ----------
    directory
        New or empty folder.
    archive
        ``"v1"`` (43 classes, JSON labels) or ``"v2"`` (19 classes, parquet and reference maps).
    n_patches
        Pairs of patches; at least 1.
    seed
        Of everything drawn.
    metadata
        The official ``metadata.parquet`` of v2, to take names, labels, splits, countries and
        dates from; without it they are invented on the real grid.
    workers
        Processes; by default one a core. With 1, or a handful of patches, all is done here.
    progress
        Called with the patches written so far and all of them.

    Returns
    -------
    SynthReport
        What was written.

    Raises
    ------
    InvalidInputError
        If the folder is not empty, the number is below 1 or above what the archive's acquisitions
        can hold, or the metadata are not what they should be. Nothing has been written then.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = write_archive(folder, archive="v2", n_patches=4, workers=1)
    >>> report.n_by_split
    {'train': 2, 'validation': 1, 'test': 1}
    """
    directory = Path(directory)
    _check(directory, archive, n_patches)
    planned = plan_patches(archive, n_patches, seed, metadata)
    directory.mkdir(parents=True, exist_ok=True)
    batches = [planned[i : i + _BATCH] for i in range(0, n_patches, _BATCH)]
    write = partial(_write_batch, directory=directory, archive=archive, seed=seed)
    # Starting a process costs a second: a small archive is written sooner without.
    useful = max(1, len(batches) // 4)
    n_workers = min(workers or os.cpu_count() or 1, useful)
    n_done = 0
    try:
        n_files = _write_lists(directory, archive, planned)
        n_bytes = sum(file.stat().st_size for file in directory.iterdir())
        for n_written, more_files, more_bytes in _run(write, batches, n_workers):
            n_done += n_written
            n_files += more_files
            n_bytes += more_bytes
            if progress is not None:
                progress(n_done, n_patches)
    except BaseException:
        logger.warning("%s is incomplete; remove it before you write it again", directory)
        raise
    splits = Counter(p.record.split for p in planned)
    return SynthReport(
        directory=directory,
        archive=archive,
        n_patches=n_patches,
        n_files=n_files,
        n_bytes=n_bytes,
        n_by_split={split: splits[split] for split in SPLITS},
        n_snow=sum(bool(p.record.flagged_snow) for p in planned),
        n_cloud=sum(bool(p.record.flagged_cloud_or_shadow) for p in planned),
    )


def _run(
    write: Callable[[Sequence[PlannedPatch]], tuple[int, int, int]],
    batches: Sequence[Sequence[PlannedPatch]],
    n_workers: int,
) -> Iterable[tuple[int, int, int]]:
    if n_workers == 1:
        yield from map(write, batches)
        return
    # Spawned, never forked: the caller may hold threads, a store or a torch pool.
    context = multiprocessing.get_context("spawn")
    # An interrupt is for the process that waits: workers would each print a traceback.
    with ProcessPoolExecutor(n_workers, context, signal.signal, _IGNORE_INTERRUPT) as pool:
        try:
            yield from pool.map(write, batches)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else all that is queued is written first
            raise
