"""From tars to shards: one pass over the streams, in one process, whatever their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from bigearth_cube.archive import PatchRecord, TarSource
from bigearth_cube.archive.base import KINDS, Kind
from bigearth_cube.archive.pixels import BANDS, read_view, set_aside_view
from bigearth_cube.errors import MalformedPatchError
from bigearth_cube.ingest.assemble import GROUPS_OF, Assembler
from bigearth_cube.ingest.plan import Plan
from bigearth_cube.ingest.shard import ShardAccount, views_of
from bigearth_cube.storage import Storage


def write_streamed(
    source: TarSource,
    plan: Plan,
    done: Sequence[ShardAccount],
    spill: Storage,
    *,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[ShardAccount]:
    """Write the shards of a plan from streams.

    What an earlier run finished or spilled is neither parsed nor encoded again, though the
    streams must be read from their start.

    Parameters
    ----------
    source
        The tars.
    plan
        The rows of the release.
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
    list of ShardAccount
        One for each shard and kind.

    Raises
    ------
    InvalidInputError
        If a tar is damaged or ends in the middle.
    StorageError
        If storage refuses or cannot be reached.
    """
    kinds = [kind for kind in KINDS if GROUPS_OF[kind][0] in plan.filled]
    rows = {kind: _rows_by_name(plan, kind) for kind in kinds}
    assemblers = {kind: Assembler(plan, kind, done, spill, threads=threads) for kind in kinds}
    n_views, n_done = sum(len(names) for names in rows.values()), 0
    try:
        for view in source.views():
            kind = view.kind
            row = rows[kind].get(view.name) if kind in rows else None
            if row is None:
                continue  # set aside when the names were read
            record, first = plan.records[row - plan.start], BANDS[kind][0]
            if not view.complete or record.files.get(first) != view.files[first]:
                continue  # likewise: the same patch a second time
            n_done += 1
            if progress is not None:
                progress(n_done, n_views)
            if not assemblers[kind].wants(row):
                continue
            try:
                pixels = read_view(record, kind, view.files, view.read)
            except MalformedPatchError as error:
                assemblers[kind].put_aside(row, set_aside_view(record, kind, error))
            else:
                assemblers[kind].put(row, pixels)
        return _without_s2(plan, [a for x in assemblers.values() for a in x.finish()])
    finally:
        for assembler in assemblers.values():
            assembler.stop()


def faults_in_stream(
    source: TarSource, records: Sequence[PatchRecord]
) -> Iterator[MalformedPatchError]:
    """Try to read the Sentinel-2 pixels of some patches; yield what is wrong with them."""
    wanted = {record.id: record for record in records}
    for view in source.views():
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


def _without_s2(plan: Plan, accounts: Sequence[ShardAccount]) -> list[ShardAccount]:
    """Make orphans of the views whose Sentinel-2 patch cannot be read: it may come after them."""
    void = {row for account in accounts for row in account.void}
    settled = []
    for account in accounts:
        orphans = [
            view
            for row in sorted(void.intersection((*account.s1, *account.reference)))
            for view in views_of(
                plan.records[row - plan.start], "its Sentinel-2 patch is in quarantine"
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
