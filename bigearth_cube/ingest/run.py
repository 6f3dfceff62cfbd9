"""From an archive to a cube: plan the rows, write shard by shard, publish.

Folders are read on Dask, a task one shard, so no two tasks touch the same object; tars are read as
streams, in this process. A finished shard leaves its account under ``ingest/``; a run that was
killed finds it there and goes on. Nothing is visible to readers until the root document is put.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import distributed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigearth_cube import stac
from bigearth_cube.archive import (
    FolderSource,
    PatchRecord,
    PatchSource,
    SetAside,
    TarSource,
    open_archive,
)
from bigearth_cube.archive.base import KINDS, Kind, Unpaired
from bigearth_cube.archive.catalog_only import open_lists
from bigearth_cube.archive.names import PUBLISHED_FOLDERS
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError, MalformedPatchError, NotFoundError
from bigearth_cube.ingest.columns import columns_of
from bigearth_cube.ingest.late import (
    find_late,
    late_plans,
    late_runs,
    restated_items,
    write_late_columns,
    written_rows,
)
from bigearth_cube.ingest.plan import Plan, make_plan, row_order
from bigearth_cube.ingest.shard import VIEWS, ShardAccount, views_of, write_shard
from bigearth_cube.ingest.stream import faults_in_stream, write_late, write_streamed
from bigearth_cube.lock import HeldLock, lock
from bigearth_cube.nomenclature import S2_GROUPS, Archive
from bigearth_cube.release import Release, StoredObject, current_tables, release_digest, runs_of
from bigearth_cube.shards import Profile
from bigearth_cube.storage import Storage, StorageOptions
from bigearth_cube.writer import CubeWriter


@dataclass(frozen=True, slots=True)
class Account:
    """What became of everything that was found, for one kind of view."""

    found: int
    ingested: int
    orphans: int
    quarantined: int

    @property
    def balanced(self) -> bool:
        """Whether nothing was lost."""
        return self.found == self.ingested + self.orphans + self.quarantined


@dataclass(frozen=True, slots=True)
class IngestReport:
    """How a run ended.

    Attributes
    ----------
    cube_url
        Where the cube lies.
    release
        Name of the release it published, or None where there was nothing new.
    accounts
        By kind: ``s2``, ``s1``, ``reference``.
    n_rows
        Patches in the cube now.
    n_absent
        Patches that the official lists hold and the source lacks.
    n_unlabeled
        Patches ingested without labels, because no source says.
    n_unsplit
        Patches ingested without a split, because no source says.
    n_not_applied
        Published rows without labels or split of which the source says now: they stay as they are.
    resumed_shards
        Shards found finished from an earlier run.
    quarantined, orphans
        What was set aside, and why.
    seconds
        Wall time.
    """

    cube_url: str
    release: str | None
    accounts: Mapping[Kind, Account]
    n_rows: int
    n_absent: int
    n_unlabeled: int
    n_unsplit: int
    n_not_applied: int
    resumed_shards: int
    quarantined: tuple[SetAside, ...]
    orphans: tuple[SetAside, ...]
    seconds: float


_TASKS_FOR_PROCESSES = 64
"""Worker processes take about 4 s to start: 15 shards of 256 patches."""
Progress = Callable[[int, int], None]
"""Called with the number of patches done and of all."""


def ingest(
    sources: str | Sequence[str] | PatchSource,
    cube_url: str,
    *,
    storage_options: StorageOptions | None = None,
    archive: Literal["auto", "v1", "v2"] = "auto",
    cube_id: str | None = None,
    profile: Profile = "default",
    workers: int | None = None,
    client: distributed.Client | None = None,
    metadata_only: bool = False,
    require_complete: bool = False,
    spill: str | None = None,
    break_lock: bool = False,
    progress: Progress | None = None,
) -> IngestReport:
    """Ingest an archive into a cube; run it again to resume, or to add what is new.

    Parameters
    ----------
    sources
        Folder, or folders and metadata files, of one archive; or its published tars (path or
        fsspec URL) and metadata files; or anything with ``records`` and ``read``.
    cube_url
        Where the cube lies or will lie.
    storage_options
        Of the cube; fsspec's names.
    archive
        Layout of the folders; found out by looking where it is ``"auto"``.
    cube_id
        Name of a new cube; ``bigearthnet-v1`` or ``bigearthnet-v2`` where it is None.
    profile
        Compression of a new cube: ``"default"`` or ``"fast"``.
    workers
        Dask workers on this machine; as many as cores where it is None. Ignored with
        ``client``. For tars, threads that encode.
    client
        A Dask client to run on. Tars are streams: this process reads them, whatever the client.
    metadata_only
        Make a cube of official lists alone: items and columns of all their patches, no pixels.
        It takes no pixels later; they go into a cube of their own.
    require_complete
        Refuse a source that lacks patches of its own lists.
    spill
        URL for the chunks of tars that do not fit into memory, with the options of the cube;
        below ``ingest/`` of the cube where it is None. Empty again at the end.
    break_lock
        Take the cube over from a run that holds it; that run stops before it publishes.
    progress
        Told after every shard, of tars after every view.

    Raises
    ------
    InvalidInputError
        If the source is empty or of another archive than the cube, is not complete though
        that is required, has pixels and the cube has none or the reverse, or another run holds
        the cube or takes it over.
    NotFoundError
        If the bucket or a folder does not exist.
    StorageError
        If storage refuses or cannot be reached.
    """
    began = time.monotonic()
    storage = Storage(cube_url, storage_options)
    storage.check_bucket()
    if isinstance(sources, str):
        sources = [sources]
    if isinstance(sources, Sequence):
        _check_place(sources, storage)
    source = _opened(sources, archive, metadata_only=metadata_only)
    records = list(source.records())
    absent = source.absent()
    unpaired = source.unpaired() if isinstance(source, FolderSource | TarSource) else ()
    _check_source(source, records, unpaired, absent, require_complete=require_complete)
    # Locked before the cube is looked at: the plan begins where the last release ends.
    with lock(storage, break_lock=break_lock) as held:

        def advance(n_done: int, n_all: int) -> None:
            held.check()
            if progress is not None:
                progress(n_done, n_all)

        cube = _existing(storage, source.archive, cube_id)
        if cube is None and not records:
            raise InvalidInputError(
                f"only Sentinel-1 patches or reference maps, and no cube at {storage.url} to join "
                f"them to; ingest their Sentinel-2 patches first"
            )
        _check_pixels(cube, records)
        known = set() if cube is None else set(cube.items["id"].to_pylist())
        unknown = [r for r in records if r.id not in known]
        aside = _quarantined_before(cube)
        unknown, still_bad, bad_views = _set_aside_again(source, aside, unknown)
        new = sorted(unknown, key=row_order)
        old = [r for r in records if r.id in known]
        late = find_late(cube, old, unpaired, aside)
        plan = None
        plans: list[Plan] = []
        shards: list[ShardAccount] = []
        resumed = 0
        if new or late.groups:
            plan = make_plan(
                storage,
                source.archive,
                cube,
                new,
                cube_id=cube_id,
                profile=profile,
                late_groups=late.groups,
            )
            plans = [plan, *late_plans(plan, late)]
            done = _begin(storage, plans, streamed=isinstance(source, TarSource))
            resumed = len({account.shard for account in done})
            place = storage.child(f"{plan.folder}/spill")
            if spill is not None:
                place = Storage(spill, storage_options)
            threads = workers or os.cpu_count() or 1
            if isinstance(source, TarSource):
                shards = write_streamed(
                    source, plans, done, place, threads=threads, progress=advance
                )
            else:
                whole = [account for account in done if account.kind is None]
                shards = list(whole)
                if len(whole) < len(plan.shards()):
                    with _cluster(client, workers, len(plan.shards()) - len(whole)) as running:
                        shards += _write_shards(source, plan, whole, running, advance)
                for part in plans[1:]:
                    shards += write_late(source, part, done, place, threads=threads)
            # Shards end in any order; what is kept of them must not depend on it.
            shards.sort(key=lambda account: (account.shard, account.kind or ""))
        quarantined = (
            *source.quarantined(),
            *still_bad,
            *late.quarantined,
            *(q for shard in shards for q in shard.quarantined),
        )
        orphans = (
            *(o for o in source.orphans() if o not in late.joined),
            *late.refused,
            *bad_views,
            *(o for s in shards for o in s.orphans),
        )
        void = {row for shard in shards for row in shard.void}
        ingested = Counter(late.present)
        ingested["s2"] += len(old) + len(new) - len(void)
        for kind in VIEWS:
            ingested[kind] += sum(len(getattr(shard, kind)) for shard in shards)
        accounts = _balance(source.found(), ingested, orphans, quarantined)
        if plan is not None:
            cube = _finish(storage, source, plans, cube, shards, orphans, held)
    assert cube is not None
    written = [r for row, r in enumerate(new, plan.start if plan else 0) if row not in void]
    return IngestReport(
        cube_url=storage.url,
        release=None if plan is None else plan.release,
        accounts=accounts,
        n_rows=cube.n_patches,
        n_absent=len(absent),
        n_unlabeled=sum(record.labels is None for record in written),
        n_unsplit=sum(record.split is None for record in written),
        n_not_applied=_not_applied(cube, old),
        resumed_shards=resumed,
        quarantined=quarantined,
        orphans=orphans,
        seconds=time.monotonic() - began,
    )


def _opened(
    sources: Sequence[str] | PatchSource,
    archive: Literal["auto", "v1", "v2"],
    *,
    metadata_only: bool,
) -> PatchSource:
    # Folders are the usual case; anything else reads itself.
    if isinstance(sources, Sequence):
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


def _not_applied(cube: Cube, old: Sequence[PatchRecord]) -> int:
    """Count the published rows that know less than their records say now."""
    if not old:
        return 0
    known = {
        name: dict(zip(cube.items["id"].to_pylist(), ~np.asarray(lacks), strict=True))
        for name, lacks in (
            ("labels", cube.items["bec:labels"].is_null()),
            ("split", cube.items["bec:split"].is_null()),
        )
    }
    return sum(
        (r.labels is not None and not known["labels"][r.id])
        or (r.split is not None and not known["split"][r.id])
        for r in old
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


def _check_source(
    source: PatchSource,
    records: Sequence[PatchRecord],
    unpaired: Sequence[Unpaired],
    absent: Sequence[str],
    *,
    require_complete: bool,
) -> None:
    if not records and not unpaired:
        reasons = "; ".join(q.reason for q in list(source.quarantined())[:3])
        raise InvalidInputError(
            f"no patch can be read from the source ({reasons or 'it is empty'})"
        )
    if require_complete and absent:
        raise InvalidInputError(
            f"{len(absent)} patches that the lists hold are absent from the source, "
            f"first {absent[0]!r}; add them, or leave out --require-complete"
        )


def _balance(
    found: Mapping[Kind, int],
    ingested: Mapping[Kind, int],
    orphans: Sequence[SetAside],
    quarantined: Sequence[SetAside],
) -> dict[Kind, Account]:
    """Account for every view that was found, or say that some are missing."""
    accounts = {
        kind: Account(
            found=found.get(kind, 0),
            ingested=ingested.get(kind, 0),
            orphans=sum(o.source == kind for o in orphans),
            quarantined=sum(q.source == kind for q in quarantined),
        )
        for kind in KINDS
    }
    for kind, account in accounts.items():
        if not account.balanced:
            raise InvalidInputError(
                f"accounts do not balance for {kind}: {account}; the source counts in found() "
                f"what it neither yields nor sets aside"
            )
    return accounts


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
        for entry in pq.read_table(pa.BufferReader(data)).to_pylist():
            entries[entry["source"], entry["id"]] = SetAside(**entry)
    return entries


def _finish(
    storage: Storage,
    source: PatchSource,
    plans: Sequence[Plan],
    before: Cube | None,
    accounts: Sequence[ShardAccount],
    orphans: Sequence[SetAside],
    held: HeldLock,
) -> Cube:
    """Write columns, items and documents, then publish."""
    # Columns and documents are the first that other runs write too.
    held.confirm()
    plan, late = plans[0], plans[1:]
    assert {a.shard for a in accounts} == {shard for p in plans for shard in p.shards()}
    void = {row for account in accounts for row in account.void}
    rows = np.array(
        [plan.start + i for i in range(len(plan.records)) if plan.start + i not in void], np.int64
    )
    records = [plan.records[row - plan.start] for row in rows]
    if plan.records and not records:
        raise InvalidInputError(
            f"all {len(plan.records)} patches are in quarantine; the first: "
            f"{accounts[0].quarantined[0].reason}"
        )
    writer = plan.writer
    objects = [o for account in accounts for o in account.objects]
    objects += writer.put_documents(writer.documents)
    if before is not None:
        objects += write_late_columns(late, accounts, before)
    new_accounts = [a for a in accounts if a.shard in set(plan.shards())]
    if records:
        for path, values in columns_of(plan, records, rows, new_accounts).items():
            objects += writer.write_column(path, plan.start, values)

    def put(key: str, data: bytes) -> str:
        storage.write(key, data)
        objects.append(StoredObject.of(key, data))
        return key

    present = {
        path: np.isin(rows, [row for a in new_accounts for row in getattr(a, kind)])
        for kind, path in VIEWS.items()
    }
    if not writer.layout.groups:
        present |= {group.path: np.zeros(len(rows), bool) for group in S2_GROUPS}
    table = stac.items_table(
        records, rows, collection=writer.cube_id, archive=source.archive, present=present
    )
    table_all = table if before is None else pa.concat_tables([before.items, table])
    if before is not None and late:
        table_all = pa.concat_tables([restated_items(late, accounts, before), table])
    joined = [
        f"{p.filled[0]} {p.records[row].id}" for p in late for row in written_rows(p, accounts)
    ]
    release = Release(
        name=plan.release,
        start=plan.start,
        stop=plan.stop,
        runs=runs_of(rows),
        arrays=plan.filled,
        tables=(
            put(
                f"items/{plan.release}-0.parquet", stac.parquet_bytes(table_all if late else table)
            ),
        ),
        source=source.archive,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        digest=release_digest([*(r.id for r in records), *joined]),
        late=late_runs(late),
        restates=bool(late),
    )
    releases = (*(before.releases if before else ()), release)
    aside = {
        "quarantine": [*source.quarantined(), *(q for a in accounts for q in a.quarantined)],
        "orphans": orphans,
    }
    for name, entries in aside.items():
        columns = {
            key: pa.array([getattr(e, key) for e in entries], pa.string())
            for key in ("id", "file", "reason", "source")
        }
        put(f"{plan.folder}/{name}.parquet", stac.parquet_bytes(pa.table(columns)))
    _put_descriptions(storage, writer, table_all, releases, put)
    writer.record(f"{plan.folder}/objects.json", objects)
    held.confirm()
    writer.publish(releases)
    return open_cube(storage.url, storage.options)


def _put_descriptions(
    storage: Storage,
    writer: CubeWriter,
    items: pa.Table,
    releases: Sequence[Release],
    put: Callable[[str, bytes], str],
) -> None:
    collection = stac.collection(
        writer.cube_id,
        archive=writer.layout.archive,
        items=items,
        tables=current_tables(releases),
        version=releases[-1].name,
    )
    put("collection.json", json.dumps(collection, indent=1, ensure_ascii=False).encode())
    put("intake.yaml", stac.intake_catalog().encode())


def _begin(storage: Storage, plans: Sequence[Plan], *, streamed: bool) -> list[ShardAccount]:
    """Record the plan, or find the same plan and what a run that did not end finished of it."""
    plan = plans[0]
    key = f"{plan.folder}/plan.json"
    document = {"digests": [p.digest() for p in plans], "patches": len(plan.records)}
    if not storage.write_new(key, json.dumps(document).encode()):
        found = json.loads(storage.read(key))
        if found != document:
            raise InvalidInputError(
                f"an unfinished run of {found['patches']} other patches lies in "
                f"{storage.url}/{plan.folder}; finish it with the same sources, or remove that "
                f"folder to give it up"
            )
    found_done = (
        ShardAccount.from_bytes(storage.read(key))
        for key, _ in storage.list(f"{plan.folder}/shards")
    )
    if streamed:
        return [account for account in found_done if account.kind is not None]
    # A shard with a fault is read again: its files may have been repaired since.
    return [account for account in found_done if not account.quarantined]


def _write_shards(
    source: PatchSource,
    plan: Plan,
    done: Sequence[ShardAccount],
    client: distributed.Client,
    progress: Progress,
) -> Iterator[ShardAccount]:
    finished = {account.shard for account in done}
    waiting = iter([shard for shard in plan.shards() if shard not in finished])
    n_done = sum(len(plan.records_of(shard)) for shard in finished)
    # A window, not the whole list: the records of a shard travel with its task.
    window = 2 * max(1, sum(client.nthreads().values()))
    writer = client.scatter(plan.writer, broadcast=True, hash=False)
    task = functools.partial(write_shard, source=source, folder=plan.folder)

    def submit(shard: int) -> distributed.Future[Any]:
        first = shard * plan.shard_rows
        return client.submit(task, writer, shard, first, plan.records_of(shard), pure=False)

    running = distributed.as_completed(
        [submit(shard) for shard in itertools.islice(waiting, window)]
    )
    for future in running:
        account = future.result()
        n_done += len(plan.records_of(account.shard))
        progress(n_done, len(plan.records))
        for shard in waiting:
            running.add(submit(shard))
            break
        yield account


@contextmanager
def _cluster(
    client: distributed.Client | None, workers: int | None, n_tasks: int
) -> Iterator[distributed.Client]:
    """Run on the given client, or on workers of this machine.

    Encoding releases the interpreter lock, so workers are threads until the run is long enough
    to be worth the seconds that starting processes takes.
    """
    if client is not None:
        yield client
        return
    if workers is not None and workers < 1:
        raise InvalidInputError(f"{workers} workers; expected at least 1")
    n_workers = max(1, min(workers or os.cpu_count() or 1, n_tasks))
    with (
        distributed.LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=n_workers > 1 and n_tasks >= _TASKS_FOR_PROCESSES,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
        ) as cluster,
        distributed.Client(cluster) as own,
    ):
        yield own
