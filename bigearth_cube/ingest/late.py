"""Views that come after their rows: Sentinel-1 or maps for a cube of Sentinel-2.

A shard is never written twice, so a view joins if nothing of its group was written for its shard
yet; else it stays an orphan. A release that adds views states all items anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigearth_cube import stac
from bigearth_cube.archive import FolderSource, PatchRecord, PatchSource, SetAside
from bigearth_cube.archive.base import Kind, Unpaired
from bigearth_cube.archive.pixels import read_view, set_aside_view
from bigearth_cube.cube import Cube
from bigearth_cube.errors import MalformedPatchError
from bigearth_cube.ingest.plan import Plan
from bigearth_cube.ingest.shard import VIEWS, ShardAccount, kind_of, views_of
from bigearth_cube.nomenclature import S1_GROUP
from bigearth_cube.release import runs_of


@dataclass
class LateViews:
    """What becomes of the views of rows that are in the cube.

    Attributes
    ----------
    to_write
        By kind: row to a record with the files of that kind.
    present
        Views that the cube has already, by kind.
    refused
        Views whose shard was written without them.
    quarantined
        Those among them that could not be read when it was.
    joined
        The unpaired views among all these: no orphans any more.
    """

    to_write: dict[Kind, dict[int, PatchRecord]] = field(default_factory=dict)
    present: Counter[Kind] = field(default_factory=Counter)
    refused: list[SetAside] = field(default_factory=list)
    quarantined: list[SetAside] = field(default_factory=list)
    joined: set[SetAside] = field(default_factory=set)

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups that get views."""
        return tuple(VIEWS[kind] for kind, views in self.to_write.items() if views)


def find_late(
    cube: Cube | None,
    old: Sequence[PatchRecord],
    unpaired: Sequence[Unpaired],
    aside: Mapping[tuple[str, str], SetAside],
) -> LateViews:
    """Sort the views of rows that are in the cube.

    Parameters
    ----------
    cube
        The cube, or None where there is none yet.
    old
        Records at hand whose row is in the cube.
    unpaired
        Views at hand without a record.
    aside
        What earlier runs put into quarantine, by kind and name.
    """
    late = LateViews()
    if cube is None or not (unpaired or any(views_of(record, "") for record in old)):
        return late
    ids = cube.items["id"].to_pylist()
    rows = dict(zip(ids, cube.items["bec:row"].to_pylist(), strict=True))
    s1_ids = cube.items["bec:s1_id"].to_pylist()
    s2_of, s1_of = dict(zip(s1_ids, ids, strict=True)), dict(zip(ids, s1_ids, strict=True))
    present = {kind: _present(cube, path) for kind, path in VIEWS.items()}
    filled = {kind: _filled(cube, path) for kind, path in VIEWS.items()}
    shard_rows = cube.layout.shard_rows

    def take(kind: Kind, record: PatchRecord, view: SetAside) -> None:
        row = rows[record.id]
        taken = late.to_write.get(kind, {}).get(row)
        other = taken.s1_id if taken else s1_of[record.id] if present[kind][row] else None
        if kind == "s1" and other not in (None, view.id):
            reason = f"pairs with {record.id}, which pairs with {other} already"
            late.refused.append(replace(view, reason=reason))
        elif present[kind][row] or taken:
            late.present[kind] += 1
        elif filled[kind][row // shard_rows]:
            before = aside.get((kind, view.id))
            if before is None:
                late.refused.append(replace(view, reason="its row was published without it"))
            else:
                reason = f"{before.reason}, when its row was published"
                late.quarantined.append(replace(view, reason=reason))
        else:
            late.to_write.setdefault(kind, {})[row] = record

    for record in old:
        for view in views_of(record, ""):
            take(view.source, record, view)
    if unpaired:
        known = _Rows(cube, rows)
        for orphan in unpaired:
            s2_id = orphan.s2_id or s2_of.get(orphan.aside.id)
            if s2_id is not None and s2_id in rows:
                late.joined.add(orphan.aside)
                take(orphan.aside.source, known.record(s2_id, orphan), orphan.aside)
    return late


def late_plans(plan: Plan, late: LateViews) -> list[Plan]:
    """Plan the shards of older rows, for each kind that gets views."""
    plans = []
    for kind, views in late.to_write.items():
        some = next(iter(views.values()))
        records = [replace(some, id="", files={})] * plan.start
        for row, record in views.items():
            records[row] = record
        shards = sorted({row // plan.shard_rows for row in views})
        plans.append(
            replace(
                plan, start=0, records=tuple(records), filled=(VIEWS[kind],), only=tuple(shards)
            )
        )
    return plans


def read_late(
    source: PatchSource, plan: Plan
) -> Iterator[tuple[int, Mapping[str, NDArray[Any]] | SetAside]]:
    """Read the views of a plan from a source with random access, row by row."""
    (group,) = plan.filled
    kind = kind_of(group)
    for row, record in enumerate(plan.records):
        if not record.files:
            continue
        if isinstance(source, FolderSource):
            try:
                yield row, read_view(record, kind, record.files)
            except MalformedPatchError as error:
                yield row, set_aside_view(record, kind, error)
            continue
        try:
            patch = source.read(record)
        except MalformedPatchError as error:
            yield row, set_aside_view(record, kind, error)
            continue
        pixels = patch.s1 if kind == "s1" else patch.clc
        faults = [problem for problem in patch.problems if problem.source == kind]
        if pixels is None and not faults:
            faults = [replace(view, reason="was not read") for view in views_of(record, "")]
        yield row, {group: pixels} if pixels is not None else faults[0]


def late_runs(
    plans: Sequence[Plan], accounts: Sequence[ShardAccount]
) -> tuple[tuple[str, int, int], ...]:
    """Name each group, and the runs of older rows whose shards are written for it."""
    runs = []
    for plan in plans:
        shards = {row // plan.shard_rows for row in written_rows(plan, accounts)}
        for first, last in runs_of(np.array(sorted(shards))):
            runs.append((plan.filled[0], first * plan.shard_rows, last * plan.shard_rows))
    return tuple(runs)


def late_columns(
    plans: Sequence[Plan], accounts: Sequence[ShardAccount], before: Cube
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Say of older rows that their views are present, and of Sentinel-1 whose and when.

    Yields
    ------
    tuple
        Path of the column, and its values from row 0 on.
    """
    for plan in plans:
        (group,) = plan.filled
        rows = written_rows(plan, accounts)
        columns: dict[str, tuple[list[Any], Any]] = {"present": ([True] * len(rows), bool)}
        if group == S1_GROUP.path:
            records = [plan.records[row] for row in rows]
            times = [r.s1_acquired for r in records]
            columns["id"] = ([r.s1_id or "" for r in records], object)
            columns["acquired"] = ([int(t.timestamp()) if t else 0 for t in times], np.int64)
        for name, (values, dtype) in columns.items():
            path = f"{group}/{name}"
            if path in before.documents:
                column = before.column(path).astype(dtype)
            else:
                column = np.full(before.n_rows, "" if dtype is object else 0, dtype)
            column[rows] = values
            yield path, column


def items_with_views(
    plans: Sequence[Plan], accounts: Sequence[ShardAccount], before: Cube
) -> pa.Table:
    """Items of the older rows, with the views they have got."""
    rows = before.items["bec:row"].to_numpy()
    added, s1_ids = {}, {}
    for plan in plans:
        views = written_rows(plan, accounts)
        added[plan.filled[0]] = np.isin(rows, views)
        if plan.filled[0] == S1_GROUP.path:
            places = {int(row): place for place, row in enumerate(rows)}
            s1_ids = {places[row]: plan.records[row].s1_id or "" for row in views}
    return stac.with_views(before.items, added, s1_ids)


def written_rows(plan: Plan, accounts: Sequence[ShardAccount]) -> list[int]:
    """Return the older rows whose view was written."""
    kind, shards = kind_of(plan.filled[0]), set(plan.shards())
    return [
        row
        for account in accounts
        if account.kind == kind and account.shard in shards
        for row in getattr(account, kind)
    ]


def _present(cube: Cube, group: str) -> NDArray[np.bool_]:
    path = f"{group}/present"
    return cube.column(path) if path in cube.documents else np.zeros(cube.n_rows, bool)


def _filled(cube: Cube, group: str) -> NDArray[np.bool_]:
    """Whether the shard of a group was written, for each shard."""
    filled = np.zeros(cube.n_rows // cube.layout.shard_rows, bool)
    for start, stop in cube.filled(group):
        filled[start // cube.layout.shard_rows : stop // cube.layout.shard_rows] = True
    return filled


class _Rows:
    """Records of rows that are in the cube, from its columns."""

    def __init__(self, cube: Cube, rows: Mapping[str, int]) -> None:
        self._rows = rows
        self._columns = {name: cube.column(name) for name in ("tile", "epsg", "ulx", "uly")}
        places = zip(
            cube.items["id"].to_pylist(),
            cube.items["bec:place"].to_pylist(),
            cube.items["datetime"].to_pylist(),
            strict=True,
        )
        self._places = {patch_id: (place, when) for patch_id, place, when in places}

    def record(self, s2_id: str, view: Unpaired) -> PatchRecord:
        row = self._rows[s2_id]
        place, acquired = self._places[s2_id]
        mgrs, col, index = place.split("_")
        return PatchRecord(
            s2_id,
            str(self._columns["tile"][row]),
            mgrs,
            int(col),
            int(index),
            acquired,
            epsg=int(self._columns["epsg"][row]),
            ulx=int(self._columns["ulx"][row]),
            uly=int(self._columns["uly"][row]),
            s1_id=view.aside.id if view.aside.source == "s1" else None,
            files=view.files,
        )
