"""From an archive to a cube: plan the rows, write shard by shard, publish.

Folders are read on Dask, a task one shard, so no two tasks touch the same object; tars are read as
streams, in this process. A finished shard leaves its account under ``ingest/``; a run that was
killed finds it there and goes on. Nothing is visible to readers until the root document is put.
"""

from __future__ import annotations

import functools
import itertools
import json
import operator
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import distributed
from distributed import CancelledError
from distributed.comm.core import CommClosedError

from bigearth_cube import pending
from bigearth_cube.archive import PatchRecord, PatchSource, SetAside, TarSource
from bigearth_cube.archive.base import KINDS, Kind
from bigearth_cube.archive.sources import size_of
from bigearth_cube.errors import InvalidInputError, StorageError
from bigearth_cube.ingest.late import late_plans, written_rows
from bigearth_cube.ingest.plan import Plan, make_plan
from bigearth_cube.ingest.publish import finish
from bigearth_cube.ingest.shard import VIEWS, ShardAccount, write_shard
from bigearth_cube.ingest.spill import clear, place_of
from bigearth_cube.ingest.stream import write_late, write_streamed
from bigearth_cube.ingest.survey import check_source, opened, take_survey
from bigearth_cube.lock import lock
from bigearth_cube.shards import Profile
from bigearth_cube.storage import Storage, StorageOptions
from bigearth_cube.writer import ROOT, ZARR


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
    n_restated
        Published rows of which the source knows what the cube did not, or otherwise: labels,
        split, country, flags. The release states them anew.
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
    n_restated: int
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
        A Dask client to run on. Tars are streams: this process reads them and threads of it
        encode, whatever the client.
    metadata_only
        Make a cube of official lists alone: items and columns of all their patches, no pixels.
        It takes no pixels later; they go into a cube of their own.
    require_complete
        Refuse a source that lacks patches of its own lists.
    spill
        URL for the chunks of tars that do not fit into memory, with the options of the cube.
        Where it is None, what the run that is gone on with had; else below ``ingest/`` of the
        cube. Empty again at the end.
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
    source = opened(sources, storage, archive, metadata_only=metadata_only)
    is_new = not storage.exists(f"{ZARR}/{ROOT}")
    if isinstance(source, TarSource) and not is_new:
        source.read_names()  # what joins a cube must be known before it is planned
    records = list(source.records())
    check_source(source, records)
    if require_complete and is_new and source.absent():
        raise _incomplete(source.absent())
    # Locked before the cube is looked at: the plan begins where the last release ends.
    with lock(storage, break_lock=break_lock) as held:

        def advance(n_done: int, n_all: int) -> None:
            held.check()
            if progress is not None:
                progress(n_done, n_all)

        if is_new and isinstance(source, TarSource) and storage.exists(f"{ZARR}/{ROOT}"):
            source.read_names()  # another run has made the cube while lists were read
            records = list(source.records())
        survey = take_survey(storage, source, records, cube_id)
        if require_complete and survey.absent:
            raise _incomplete(survey.absent)
        cube, old, late = survey.cube, survey.old, survey.late
        if cube is not None:
            pending.forget(storage, cube.release.name)  # a run may have been killed just after it
        new = list(survey.new)
        plan = None
        plans: list[Plan] = []
        shards: list[ShardAccount] = []
        resumed = 0
        if new or late.groups or survey.facts:
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
            about = "" if cube is None else survey.facts.digest(cube.items)
            done = _begin(storage, plans, about, source)
            resumed = len({account.shard for account in done})
            place = place_of(storage, plans, spill)
            threads = workers or os.cpu_count() or 1
            if isinstance(source, TarSource):
                shards, completed = write_streamed(
                    source, plans, done, place, threads=threads, progress=advance
                )
                if completed:
                    new = [completed.get(row, r) for row, r in enumerate(new, plan.start)]
                    plan = replace(plan, records=tuple(new))
                    plans[0] = plan
            else:
                whole = [account for account in done if account.kind is None]
                shards = list(whole)
                if len(whole) < len(plan.shards()):
                    with _cluster(client, workers, len(plan.shards()) - len(whole)) as running:
                        shards += _write_shards(source, plan, whole, running, advance)
                for part in plans[1:]:
                    shards += write_late(
                        source, part, done, place, threads=threads, progress=advance
                    )
            # Shards end in any order; what is kept of them must not depend on it.
            shards.sort(key=lambda account: (account.shard, account.kind or ""))
        quarantined = (
            *source.quarantined(),
            *survey.still_bad,
            *late.quarantined,
            *(q for shard in shards for q in shard.quarantined),
        )
        orphans = (
            *(o for o in source.orphans() if o not in late.joined),
            *late.refused,
            *survey.bad_views,
            *(o for s in shards for o in s.orphans),
        )
        void = {row for shard in shards for row in shard.void}
        ingested = Counter(late.present)
        ingested["s2"] += len(old) + len(new) - len(void)
        for kind in VIEWS:
            ingested[kind] += sum(len(getattr(shard, kind)) for shard in shards)
        gone = _absent(new, plan, void, quarantined)
        if require_complete and gone:
            raise _incomplete(gone)
        accounts = _balance(source.found(), ingested, orphans, quarantined)
        joins = any(written_rows(p, shards) for p in plans[1:])
        if plan is not None and not (new or joins or survey.facts):
            # Every view that came late is in quarantine: its shard stays open for a sound one.
            clear(storage, plans)
            for key, _ in storage.list(plan.folder):
                storage.delete(key)
            plan = None
        if plan is not None:
            cube = finish(storage, source, plans, cube, shards, orphans, survey.facts, held)
    assert cube is not None
    written = [r for row, r in enumerate(new, plan.start if plan else 0) if row not in void]
    return IngestReport(
        cube_url=storage.url,
        release=None if plan is None else plan.release,
        accounts=accounts,
        n_rows=cube.n_patches,
        n_absent=len(survey.absent) + len(gone),
        n_unlabeled=sum(record.labels is None for record in written),
        n_unsplit=sum(record.split is None for record in written),
        n_restated=len(survey.facts.places),
        resumed_shards=resumed,
        quarantined=quarantined,
        orphans=orphans,
        seconds=time.monotonic() - began,
    )


def _incomplete(absent: Sequence[str]) -> InvalidInputError:
    return InvalidInputError(
        f"{len(absent)} patches that the lists hold are absent from the source, first "
        f"{absent[0]!r}; add them, or leave out --require-complete"
    )


def _absent(
    new: Sequence[PatchRecord],
    plan: Plan | None,
    void: Collection[int],
    quarantined: Sequence[SetAside],
) -> list[str]:
    """Name the patches that were planned from lists and then were not there."""
    aside = {entry.id for entry in quarantined if entry.source == "s2"}
    start = plan.start if plan is not None else 0
    return [r.id for row, r in enumerate(new, start) if row in void and r.id not in aside]


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


def _begin(
    storage: Storage, plans: Sequence[Plan], facts: str, source: PatchSource
) -> list[ShardAccount]:
    """Record the plan, or find the same plan and what a run that did not end finished of it."""
    plan = plans[0]
    place = f"{plan.folder}/plan.json"
    digests = [p.digest() for p in plans]
    document = {"digests": digests, "patches": len(plan.records), "facts": facts}
    streamed = isinstance(source, TarSource)
    tars = source.tars if isinstance(source, TarSource) else ()
    sizes = {os.path.basename(tar): size_of(tar) for tar in tars}
    noted = json.dumps({**document, "tars": sizes}).encode()
    same_tars = storage.write_new(place, noted)
    if not same_tars:
        found = json.loads(storage.read(place))
        same_tars = found.pop("tars") == sizes and None not in sizes.values()
        if found != document:
            raise InvalidInputError(
                f"an unfinished run of other patches lies in {storage.url}/{plan.folder}; finish "
                f"it with the same sources, or give it up: bec give-up {storage.url}"
            )
    kept = []
    for key, _ in storage.list(f"{plan.folder}/shards"):
        account = ShardAccount.from_bytes(storage.read(key))
        late = account.shard * plan.shard_rows < plan.start
        whole = account.kind is None
        # A shard with a fault is read again, its files may have been repaired since; so is one
        # that a run over sources of another form wrote, whose bytes this run may write anew, and
        # one that lacks views which other tars than then may hold.
        unseen = account.n_unseen and not same_tars
        if account.quarantined or unseen or (not late and whole == streamed):
            storage.delete(key)
        else:
            kept.append(account)
    if not same_tars:
        storage.write(place, noted)
    return kept


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
    write = functools.partial(
        write_shard, plan.writer, source=source, filled=plan.filled, folder=plan.folder
    )
    try:
        # Not with every shard: a source may be of any size.
        task = client.scatter(write, broadcast=True, hash=False)
    except TimeoutError:
        raise StorageError(
            f"the Dask scheduler has no workers, or none that answer: {client!r}; start some"
        ) from None

    def submit(shard: int) -> distributed.Future[Any]:
        first = shard * plan.shard_rows
        return client.submit(operator.call, task, shard, first, plan.records_of(shard), pure=False)

    running = distributed.as_completed(
        [submit(shard) for shard in itertools.islice(waiting, window)]
    )
    for future in running:
        try:
            account = future.result()
        except distributed.KilledWorker as error:
            raise StorageError(
                f"workers died of a shard again and again, perhaps for want of memory ({error}); "
                f"give them more, and run the same command again"
            ) from None
        except (CancelledError, CommClosedError) as error:
            reason = str(error).splitlines()[0]
            raise StorageError(
                f"the Dask scheduler or its workers are gone ({reason}); run the same command "
                f"again to go on"
            ) from None
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
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=0,
        ) as cluster,
        distributed.Client(cluster) as own,
    ):
        yield own
