"""What an ingest will read and write, and what that costs, before anything is written."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.archive import FolderSource, PatchRecord, PatchSource, TarSource
from bigearth_cube.archive.base import KINDS, Kind
from bigearth_cube.archive.pixels import BANDS, read_view
from bigearth_cube.archive.sources import size_of
from bigearth_cube.errors import MalformedPatchError
from bigearth_cube.ingest.facts import restated_columns
from bigearth_cube.ingest.late import late_plans
from bigearth_cube.ingest.plan import Plan, make_plan
from bigearth_cube.ingest.shard import VIEWS
from bigearth_cube.ingest.survey import opened, take_survey
from bigearth_cube.layout import MODEL_ARRAYS
from bigearth_cube.nomenclature import GROUPS
from bigearth_cube.prices import DEFAULT_REGION, prices_of
from bigearth_cube.shards import Profile, encode_chunk
from bigearth_cube.storage import Storage, StorageOptions
from bigearth_cube.writer import ROOT, ZARR

_N_SAMPLED: Final = 64
_COLUMN_BYTES: Final = 60
"""Of all per-patch columns and items of a row, compressed; measured on the official lists."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an ingest would do.

    Attributes
    ----------
    release
        The release it would publish, or None where nothing is new.
    patches
        New rows.
    views
        Views it would write, by kind: those of new rows, and late ones of older rows.
    read_bytes
        Of the files it reads; of tars that are read twice, once for their names, both times.
    objects
        It would put into a new cube, or put anew into an existing one.
    write_bytes
        Of those objects, by the compression of the patches that were tried.
    seconds
        By the speed at which those patches were read and encoded here, on ``workers`` cores; a
        tar is read by one.
    workers
        Cores.
    dollars_a_month, dollars_of_requests
        To keep what is written, and to write it, by ``prices``.
    prices
        Whose.
    """

    release: str | None
    patches: int
    views: Mapping[Kind, int]
    read_bytes: int
    objects: int
    write_bytes: int
    seconds: float
    workers: int
    dollars_a_month: float
    dollars_of_requests: float
    prices: str


def forecast(
    sources: str | Sequence[str] | PatchSource,
    cube_url: str,
    *,
    storage_options: StorageOptions | None = None,
    archive: Literal["auto", "v1", "v2"] = "auto",
    profile: Profile = "default",
    workers: int | None = None,
    region: str = DEFAULT_REGION,
) -> Forecast:
    """Say what ``ingest`` with the same arguments would read and write; writes nothing.

    Patches, objects and requests are exact, but for what then cannot be read. Bytes and time are
    those of up to 64 patches that are read and encoded here, times their number.

    Parameters
    ----------
    sources, cube_url, storage_options, archive, profile, workers
        As for ``ingest``.
    region
        Of the bucket; one that the table of prices has.

    Raises
    ------
    InvalidInputError
        If ``ingest`` would refuse the sources or the cube, or the table has no such region.
    NotFoundError
        If a source or the bucket does not exist.
    StorageError
        If storage refuses or cannot be reached.
    """
    prices = prices_of(region)
    storage = Storage(cube_url, storage_options)
    storage.check_bucket()
    source = opened(sources, storage, archive, metadata_only=False)
    if isinstance(source, TarSource) and storage.exists(f"{ZARR}/{ROOT}"):
        source.read_names()
    records = list(source.records())
    survey = take_survey(storage, source, records, None)
    workers = workers or os.cpu_count() or 1
    if not (survey.new or survey.late.groups or survey.facts):
        return Forecast(
            None, 0, dict.fromkeys(KINDS, 0), 0, 0, 0, 0.0, workers, 0.0, 0.0, prices.label
        )
    plan = make_plan(
        storage,
        source.archive,
        survey.cube,
        survey.new,
        cube_id=None,
        profile=profile,
        late_groups=survey.late.groups,
    )
    if survey.cube is not None:
        changed = restated_columns(survey.facts, survey.cube, plan.stop, {})
        writer = plan.writer.restating(plan.release, [name for name, _ in changed])
        plan = replace(plan, writer=writer) if survey.facts else plan
    plans = [plan, *late_plans(plan, survey.late)]
    views = {kind: sum(_has(r, kind) for p in plans for r in p.records) for kind in KINDS}
    tried = {kind: _try(source, plans, kind) for kind in KINDS if views[kind]}
    write_bytes = sum(views[kind] * tried[kind].stored_bytes for kind in tried)
    write_bytes += len(survey.new) * _COLUMN_BYTES
    reading_s = sum(views[kind] * tried[kind].reading_s for kind in tried)
    encoding_s = sum(views[kind] * tried[kind].encoding_s for kind in tried)
    seconds = (reading_s + encoding_s) / workers
    if isinstance(source, TarSource):
        seconds = max(seconds, reading_s)  # a stream has one reader
    read_bytes = sum(views[kind] * tried[kind].file_bytes for kind in tried)
    known = {} if survey.cube is None else survey.cube.documents
    objects = _n_objects(plans, known, streamed=isinstance(source, TarSource))
    return Forecast(
        release=plan.release,
        patches=len(survey.new),
        views=views,
        read_bytes=_tar_bytes(source) if isinstance(source, TarSource) else round(read_bytes),
        objects=objects,
        write_bytes=round(write_bytes),
        seconds=seconds,
        workers=workers,
        dollars_a_month=write_bytes / 1e9 * prices.gb_month,
        dollars_of_requests=objects / 1000 * prices.puts_1000,
        prices=prices.label,
    )


@dataclass(frozen=True, slots=True)
class _Tried:
    """Means over a few views of a kind."""

    file_bytes: float
    stored_bytes: float
    reading_s: float
    encoding_s: float


def _has(record: PatchRecord, kind: Kind) -> bool:
    return BANDS[kind][0] in record.files


def _try(source: PatchSource, plans: Sequence[Plan], kind: Kind) -> _Tried:
    """Read and encode some views, and take the mean."""
    began = time.perf_counter()
    pixels: list[Mapping[str, NDArray[Any]]] = []
    file_bytes = 0
    for size, view in islice(_views(source, plans, kind), _N_SAMPLED):
        file_bytes += size
        pixels.append(view)
    if not pixels:
        return _Tried(0.0, 0.0, 0.0, 0.0)
    read = time.perf_counter()
    stored = 0
    writer = plans[0].writer
    for group in pixels[0]:
        layout = writer.pixel_layout(group)
        chunk = np.full((layout.chunk_rows, *layout.patch_shape), layout.fill_value, layout.dtype)
        chunk[: len(pixels)] = [view[group] for view in pixels]
        stored += len(encode_chunk(layout, chunk))
    n = len(pixels)
    ended = time.perf_counter()
    return _Tried(file_bytes / n, stored / n, (read - began) / n, (ended - read) / n)


def _views(
    source: PatchSource, plans: Sequence[Plan], kind: Kind
) -> Iterator[tuple[int, Mapping[str, NDArray[Any]]]]:
    """Bytes of the files of some views of a kind, and their pixels."""
    wanted = {
        r.s1_id if kind == "s1" else r.id: r for p in plans for r in p.records if _has(r, kind)
    }
    if isinstance(source, TarSource):
        for view in source.views({kind}):
            record = wanted.get(view.name)
            if view.kind != kind or record is None or not view.complete:
                continue
            try:
                yield (
                    sum(map(len, view.contents.values())),
                    read_view(record, kind, view.files, view.read),
                )
            except MalformedPatchError:
                continue
        return
    step = max(1, len(wanted) // _N_SAMPLED)
    for record in islice(wanted.values(), 0, None, step):
        try:
            if isinstance(source, FolderSource):
                views = read_view(record, kind, record.files)
                yield sum(_size(record.files[band]) for band in BANDS[kind]), views
                continue
            patch = source.read(record)
        except MalformedPatchError:
            continue
        found: Mapping[str, NDArray[Any]] = patch.s2
        if kind != "s2":
            pixels = patch.s1 if kind == "s1" else patch.clc
            found = {} if pixels is None else {VIEWS[kind]: pixels}
        if found:
            yield sum(_size(record.files.get(band, "")) for band in BANDS[kind]), found


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def _tar_bytes(source: TarSource) -> int:
    n_passes = 1 if source.from_lists else 2  # once for the names
    return n_passes * sum(size_of(url) or 0 for url in source.tars)


def _n_objects(plans: Sequence[Plan], known: Collection[str], *, streamed: bool) -> int:
    """Objects that the plans write, the root and the records under ``ingest/`` among them.

    What is there only until the release is published, spilled chunks and copies of what it writes
    over, is not.

    What is not ``known``, the paths of the cube as it is, is written from its first row on.
    """
    plan = plans[0]
    documents = plan.writer.documents
    n = len(documents) + 1
    pixel_paths = {f"{g}/{GROUPS[g].array}" for g in plan.writer.layout.groups}
    for path, document in documents.items():
        if document["node_type"] != "array" or path.split("/")[0] in MODEL_ARRAYS:
            continue
        if path.startswith("labels/") and path.split("/")[1] != plan.release:
            continue
        if path in pixel_paths:
            continue
        chunk = document["chunk_grid"]["configuration"]["chunk_shape"][0]
        if document["dimension_names"][0] != "patch":
            n += math.ceil(document["shape"][0] / chunk)
            continue
        group = path.rpartition("/")[0]
        whole = path not in known or group in {p.filled[0] for p in plans[1:]}
        first = 0 if whole else plan.start
        if first < plan.stop:
            n += (plan.stop - 1) // chunk - first // chunk + 1
    accounts = 0
    for part in plans:
        n += len(part.shards()) * len(part.filled)
        kinds = [k for k in KINDS if k == "s2" or VIEWS[k] in part.filled]
        n_kinds = len(kinds) if part is plan else 1
        accounts += len(part.shards()) * (n_kinds if streamed else 1)
    # items, collection, intake; plan, quarantine, orphans, objects
    return n + accounts + 3 + 4
