"""The rows of a release, decided before any pixel is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bigearth_cube.archive import PatchRecord
from bigearth_cube.cube import Cube
from bigearth_cube.layout import CubeLayout, hierarchy, shard_rows_for
from bigearth_cube.nomenclature import (
    MAP_GROUP,
    S1_GROUP,
    S2_GROUPS,
    SPLITS,
    Archive,
)
from bigearth_cube.shards import Profile
from bigearth_cube.storage import Storage
from bigearth_cube.writer import CubeWriter


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of one release, decided before any pixel is read.

    Attributes
    ----------
    release
        Its name.
    start
        First row.
    records
        A record a row, from ``start`` on.
    writer
        Of the cube, at the length it will have.
    filled
        Pixel groups that are written.
    only
        Shards to write, where they are not all.
    """

    release: str
    start: int
    records: tuple[PatchRecord, ...]
    writer: CubeWriter
    filled: tuple[str, ...]
    only: tuple[int, ...] | None = None

    @property
    def shard_rows(self) -> int:
        """Patches in a shard."""
        return self.writer.layout.shard_rows

    @property
    def stop(self) -> int:
        """End of the rows of the release, padding included."""
        return self.start + self.writer.layout.padded(len(self.records))

    @property
    def folder(self) -> str:
        """Where the run keeps its accounts, below the cube."""
        return f"ingest/{self.release}"

    def shards(self) -> list[int]:
        """Return the shards to write, one task each; none where there are no pixels."""
        if self.only is not None:
            return list(self.only)
        if not self.filled:
            return []
        return list(range(self.start // self.shard_rows, self.stop // self.shard_rows))

    def records_of(self, shard: int) -> tuple[PatchRecord, ...]:
        """Return the patches of one shard, in row order."""
        first = shard * self.shard_rows - self.start
        return self.records[first : first + self.shard_rows]

    def digest(self) -> str:
        """SHA-256 of layout and patches: two plans that agree in it write the same objects."""
        lines = [json.dumps(self.writer.layout.to_json(), sort_keys=True), *self.filled]
        lines += [f"{r.id} {r.s1_id} {','.join(sorted(r.files))}" for r in self.records]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def row_order(record: PatchRecord) -> tuple[Any, ...]:
    """Sort key of rows within a release: a split is contiguous, a chunk is a block of 8 x 8.

    Examples
    --------
    Reading one split then reads almost no other rows: measured on the official lists, 1.00
    rows per row wanted for every split, against 1.5 to 4.5 with the tile first.
    """
    split = SPLITS.index(record.split) if record.split in SPLITS else len(SPLITS)
    block = (record.col // 8, record.row // 8)
    return (split, record.flagged, record.tile, *block, record.col, record.row, record.id)


def make_plan(
    storage: Storage,
    archive: Archive,
    cube: Cube | None,
    records: Sequence[PatchRecord],
    *,
    cube_id: str | None,
    profile: Profile,
    late_groups: Sequence[str] = (),
) -> Plan:
    """Lay out the first release of a new cube, or the next one of an existing cube.

    The pixel groups are those that any record has files of: none where all come from lists.

    Parameters
    ----------
    storage
        Prefix of the cube.
    archive
        Nomenclature of the records.
    cube
        The cube as it is, or None.
    records
        New patches, in row order.
    cube_id, profile
        Name and compression of a new cube.
    late_groups
        Groups in which older rows get views.
    """
    have_files = any(r.files for r in records)
    groups = [g.path for g in S2_GROUPS] if have_files else []
    groups += [S1_GROUP.path] if any("VV" in r.files or "VH" in r.files for r in records) else []
    groups += [MAP_GROUP.path] if any("map" in r.files for r in records) else []
    filled = tuple(groups)
    if cube is None:
        layout = CubeLayout(archive, filled, shard_rows_for(len(records)), profile)
        n_rows = layout.padded(len(records))
        name = cube_id or f"bigearthnet-{archive}"
        writer = CubeWriter(storage, name, layout, hierarchy(layout, n_rows))
        return Plan("r1", 0, tuple(records), writer, filled)
    start = cube.n_rows
    old = CubeWriter(storage, cube.id, cube.layout, cube.documents)
    writer = old.grown(start + cube.layout.padded(len(records)), (*filled, *late_groups))
    return Plan(f"r{len(cube.releases) + 1}", start, tuple(records), writer, filled)
