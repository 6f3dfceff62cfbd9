"""The end of an ingest: columns, items and documents, then the one PUT that publishes them.

All of them are made before the first is put: what it will write over is noted first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigearth_cube import pending, stac
from bigearth_cube.archive import PatchSource, SetAside
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.ingest.columns import columns_of
from bigearth_cube.ingest.facts import Facts, restated_columns, restated_items
from bigearth_cube.ingest.late import (
    items_with_views,
    late_columns,
    late_runs,
    written_rows,
)
from bigearth_cube.ingest.plan import Plan
from bigearth_cube.ingest.shard import VIEWS, ShardAccount
from bigearth_cube.ingest.spill import clear
from bigearth_cube.lock import HeldLock
from bigearth_cube.nomenclature import S2_GROUPS
from bigearth_cube.release import Release, StoredObject, current_tables, release_digest, runs_of
from bigearth_cube.storage import Storage
from bigearth_cube.writer import CubeWriter


def finish(
    storage: Storage,
    source: PatchSource,
    plans: Sequence[Plan],
    before: Cube | None,
    accounts: Sequence[ShardAccount],
    orphans: Sequence[SetAside],
    facts: Facts,
    held: HeldLock,
) -> Cube:
    """Write columns, items and documents, then publish.

    Parameters
    ----------
    storage
        The cube's prefix.
    source
        Where the patches are from.
    plans
        The rows of the release, then the older rows that get views.
    before
        The cube as it was, or None.
    accounts
        Of every shard that the plans write.
    orphans
        To be kept in its table.
    facts
        What is learned of older rows.
    held
        The lock, which is asked for again before anything that other runs write too.

    Raises
    ------
    InvalidInputError
        If every patch is in quarantine, or another run has taken the cube over.
    StorageError
        If storage refuses or cannot be reached.
    """
    held.confirm()
    storage.remove_leftovers()
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
    own = set(plan.shards())
    new_accounts = [account for account in accounts if account.shard in own]
    columns = columns_of(plan, records, rows, new_accounts) if records else {}
    restated = {} if before is None else dict(restated_columns(facts, before, plan.stop, columns))
    writer = plan.writer.restating(plan.release, restated) if restated else plan.writer
    staged = writer.encoded_documents(writer.documents)

    def read(key: str) -> bytes:
        return staged[key] if key in staged else storage.read(key)

    def stage(path: str, start: int, values: NDArray[Any]) -> None:
        staged.update(writer.encoded_column(path, start, values, read))

    def put(key: str, data: bytes) -> str:
        staged[key] = data
        return key

    if before is not None:
        for path in [path for path in columns if path not in before.documents]:
            # The older rows say that they have nothing.
            shape, dtype = (plan.start, *columns[path].shape[1:]), columns[path].dtype
            stage(path, 0, np.full(shape, "" if dtype == object else 0, dtype))
        for path, values in late_columns(late, accounts, before):
            stage(path, 0, values)
    for path, values in columns.items():
        stage(path, plan.start, values)
    for name, values in restated.items():
        stage(f"labels/{plan.release}/{name}", 0, values)
    present = {
        path: np.isin(rows, [row for a in new_accounts for row in getattr(a, kind)])
        for kind, path in VIEWS.items()
    }
    if not writer.layout.groups:
        present |= {group.path: np.zeros(len(rows), bool) for group in S2_GROUPS}
    table = stac.items_table(
        records, rows, collection=writer.cube_id, archive=source.archive, present=present
    )
    table_all = table
    if before is not None:
        old = items_with_views(late, accounts, before) if late else before.items
        table_all = pa.concat_tables([restated_items(facts, old, source.archive), table])
    learned = [] if before is None else facts.lines(before.items)
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
                f"items/{plan.release}-0.parquet",
                stac.parquet_bytes(table_all if joined or learned else table),
            ),
        ),
        source=source.archive,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        digest=release_digest([*(r.id for r in records), *joined, *learned]),
        label_arrays=tuple(f"labels/{plan.release}/{name}" for name in restated),
        late=late_runs(late, accounts),
        restates=bool(joined or learned),
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
    if before is not None:
        pending.note(storage, plan.release, staged, before.recorded_objects())
    # Columns and documents are the first that other runs write too.
    held.confirm()
    for key, data in staged.items():
        storage.write(key, data)
    objects = [o for account in accounts for o in account.objects]
    objects += [StoredObject.of(key, data) for key, data in staged.items()]
    writer.record(f"{plan.folder}/objects.json", objects)
    clear(storage, plans)
    held.confirm()
    writer.publish(releases)
    pending.forget(storage, plan.release)
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
