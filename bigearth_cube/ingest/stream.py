"""From tars to shards: one pass over the streams, in one process, whatever their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from bigearth_cube.archive import PatchRecord, PatchSource, SetAside, TarSource
from bigearth_cube.archive.base import KINDS, Kind
from bigearth_cube.archive.pixels import BANDS, read_view, set_aside_view
from bigearth_cube.errors import InvalidInputError, MalformedPatchError
from bigearth_cube.ingest.assemble import GROUPS_OF, Assembler
from bigearth_cube.ingest.late import read_late
from bigearth_cube.ingest.plan import Plan
from bigearth_cube.ingest.shard import ShardAccount, kind_of, views_of
from bigearth_cube.storage import Storage


def write_streamed(
    source: TarSource,
    plans: Sequence[Plan],
    done: Sequence[ShardAccount],
    spill: Storage,
    *,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[ShardAccount], dict[int, PatchRecord]]:
    """Write the shards of some plans from streams.

    What an earlier run finished or spilled is neither parsed nor encoded again, though the
    streams must be read from their start.

    Parameters
    ----------
    source
        The tars.
    plans
        The rows of the release, and the older rows that get views.
    done
        Accounts of the shards that an earlier run finished.
    spill
        Where chunks go that do not fit into memory; empty again at the end.
    threads
        How many encode and write.
    progress
        Told after every view: how many are done, and of how many.

    Returns
    -------
    tuple
        Accounts, one for each shard and kind; and the records that only the stream completed, by
        row.

    Raises
    ------
    InvalidInputError
        If a tar is damaged or ends in the middle.
    StorageError
        If storage refuses or cannot be reached.
    """
    parts: list[_Part] = []
    completed: dict[int, PatchRecord] = {}
    try:
        parts.extend(
            _Part(plan, kind, done, spill, threads)
            for plan in plans
            for kind in KINDS
            if GROUPS_OF[kind][0] in plan.filled
        )
        n_views, n_done = sum(len(part.rows) for part in parts), 0
        # Where rows are from lists, what else is in the tars is known by reading them all.
        wanted = None if source.from_lists else {part.kind for part in parts}
        for view in source.views(wanted):
            part = next((p for p in parts if p.kind == view.kind and view.name in p.rows), None)
            if part is None:
                source.set_aside(view, "no list that was given names it")
                continue  # else set aside when the names were read
            row = part.rows[view.name]
            record, first = part.plan.records[row - part.plan.start], BANDS[view.kind][0]
            if source.from_lists:
                if row in part.seen:
                    source.set_aside(view, "the same patch a second time")
                    continue
            elif not view.complete or record.files.get(first) != view.files[first]:
                continue  # set aside when the names were read, or the same patch a second time
            part.seen.add(row)
            n_done += 1
            if progress is not None:
                progress(n_done, n_views)
            try:
                told = source.completed(record, view)
                if told is not record:
                    completed[row] = told
                if part.assembler.wants(row):
                    part.assembler.put(row, read_view(record, view.kind, view.files, view.read))
            except MalformedPatchError as error:
                if part.assembler.wants(row):
                    part.assembler.put_aside(row, set_aside_view(record, view.kind, error))
            if len(part.seen) == len(part.rows):
                part.finish()  # the next kind's turn to have memory
            if wanted is not None and all(part.accounts for part in parts):
                break
        for part in parts:
            if not source.from_lists and len(part.seen) < len(part.rows):
                raise InvalidInputError(
                    f"{len(part.rows) - len(part.seen)} patches whose names were read first did "
                    f"not come again: a tar changed meanwhile; run the same command again"
                )
            part.finish()
        accounts = [account for part in parts for account in part.accounts]
        return _without_s2(plans, accounts), completed
    finally:
        for part in parts:
            part.assembler.stop()


def write_late(
    source: PatchSource,
    plan: Plan,
    done: Sequence[ShardAccount],
    spill: Storage,
    *,
    threads: int,
    progress: Callable[[int, int], None],
) -> list[ShardAccount]:
    """Write views of older rows from a source with random access; see ``write_streamed``."""
    part = _Part(plan, kind_of(plan.filled[0]), done, spill, threads)
    try:
        for n_done, (row, found) in enumerate(read_late(source, plan), start=1):
            progress(n_done, len(part.rows))
            if not part.assembler.wants(row):
                continue
            if isinstance(found, SetAside):
                part.assembler.put_aside(row, found)
            else:
                part.assembler.put(row, found)
        return part.assembler.finish()
    finally:
        part.assembler.stop()


class _Part:
    """One kind of one plan, and the rows that its views go to."""

    def __init__(
        self, plan: Plan, kind: Kind, done: Sequence[ShardAccount], spill: Storage, threads: int
    ) -> None:
        self.plan, self.kind = plan, kind
        self.rows = _rows_by_name(plan, kind)
        self.seen: set[int] = set()
        self.accounts: list[ShardAccount] = []
        self.assembler = Assembler(plan, kind, done, spill, threads=threads)

    def finish(self) -> None:
        """Write what is left, once."""
        if not self.accounts:
            self.accounts = self.assembler.finish()


def faults_in_stream(
    source: TarSource, records: Sequence[PatchRecord]
) -> Iterator[MalformedPatchError]:
    """Try to read the Sentinel-2 pixels of some patches; yield what is wrong with them."""
    wanted = {record.id: record for record in records}
    for view in source.views({"s2"}):
        record = wanted.get(view.name)
        if view.kind != "s2" or record is None or record.files["B02"] != view.files.get("B02"):
            continue
        try:
            read_view(record, "s2", view.files, view.read)
        except MalformedPatchError as error:
            yield error
        del wanted[view.name]
        if not wanted:
            return


def _rows_by_name(plan: Plan, kind: Kind) -> dict[str, int]:
    """Name of each view of a kind that has a row, and the row."""
    needed = BANDS[kind][0]
    rows = {}
    for row, record in enumerate(plan.records, plan.start):
        if needed in record.files:
            name = record.s1_id if kind == "s1" else record.id
            assert name is not None
            rows[name] = row
    return rows


def _without_s2(plans: Sequence[Plan], accounts: Sequence[ShardAccount]) -> list[ShardAccount]:
    """Make orphans of the views whose Sentinel-2 patch cannot be read: it may come after them."""
    plan = plans[0]
    void = {row for account in accounts for row in account.void}
    settled = []
    for account in accounts:
        orphans = [
            view
            for row in sorted(void.intersection((*account.s1, *account.reference)))
            for view in views_of(
                plan.records[row - plan.start], "its Sentinel-2 patch is absent or in quarantine"
            )
            if view.source == account.kind
        ]
        settled.append(
            replace(
                account,
                s1=tuple(row for row in account.s1 if row not in void),
                reference=tuple(row for row in account.reference if row not in void),
                orphans=tuple(orphans),
            )
        )
    return settled
