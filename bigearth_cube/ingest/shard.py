"""Read the patches of one shard and write it: the task that Dask runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.archive import PatchRecord, PatchSource, SetAside
from bigearth_cube.archive.base import Kind
from bigearth_cube.errors import MalformedPatchError
from bigearth_cube.heap import keep_freed_memory
from bigearth_cube.nomenclature import MAP_GROUP, S1_GROUP
from bigearth_cube.release import StoredObject
from bigearth_cube.shards import encode_chunk, join_chunks
from bigearth_cube.writer import CubeWriter

VIEWS: Mapping[Kind, str] = {"s1": S1_GROUP.path, "reference": MAP_GROUP.path}
"""Kinds of view that join a row, and the group they fill."""
_KIND_OF: Mapping[str, Kind] = {path: kind for kind, path in VIEWS.items()}


@dataclass(frozen=True, slots=True)
class ShardAccount:
    """What became of one shard: kept under ``ingest/`` and read again by a resumed run.

    A stream gives a shard kind by kind, each with an account of its own.
    """

    shard: int
    void: tuple[int, ...]  # rows of the release whose patch could not be read
    s1: tuple[int, ...]  # rows with a Sentinel-1 view
    reference: tuple[int, ...]  # rows with a reference map
    quarantined: tuple[SetAside, ...]
    orphans: tuple[SetAside, ...]
    objects: tuple[StoredObject, ...]
    kind: Kind | None = None  # of a stream's account; None where the shard was written whole
    n_unseen: int = 0  # views that were expected and did not come

    @property
    def key(self) -> str:
        """Name of the object it is kept in."""
        return f"{self.shard:06d}{f'-{self.kind}' if self.kind else ''}.json"

    def to_bytes(self) -> bytes:
        """JSON as it is kept under ``ingest/``."""
        return json.dumps(asdict(self), indent=1).encode()

    @staticmethod
    def from_bytes(data: bytes) -> ShardAccount:
        """Read what ``to_bytes`` wrote."""
        document = json.loads(data)
        aside = {
            name: tuple(SetAside(**entry) for entry in document.pop(name))
            for name in ("quarantined", "orphans")
        }
        objects = tuple(StoredObject(**entry) for entry in document.pop("objects"))
        return ShardAccount(
            shard=document["shard"],
            void=tuple(document["void"]),
            s1=tuple(document["s1"]),
            reference=tuple(document["reference"]),
            quarantined=aside["quarantined"],
            orphans=aside["orphans"],
            objects=objects,
            kind=document["kind"],
            n_unseen=document["n_unseen"],
        )


def write_shard(
    writer: CubeWriter,
    shard: int,
    first_row: int,
    records: Sequence[PatchRecord],
    *,
    source: PatchSource,
    filled: Sequence[str],
    folder: str,
) -> ShardAccount:
    """Read the patches of one shard and write it, all groups that are filled; Dask runs it.

    Other groups of the cube get nothing: a shard that is written is never written again, and
    views of these rows may still come. A chunk is encoded when its patches are read: they are
    still in the cache then, and a shard in memory is its encoded bytes, not its 311 MB of pixels.
    """
    keep_freed_memory()
    layouts = {path: writer.pixel_layout(path) for path in filled}
    chunk_rows = writer.layout.chunk_rows
    blocks: dict[str, NDArray[Any]] = {
        path: np.empty((chunk_rows, *layout.patch_shape), layout.dtype)
        for path, layout in layouts.items()
    }
    chunks: dict[str, list[bytes]] = {path: [] for path in layouts}
    void: list[int] = []
    present: dict[str, list[int]] = {"s1": [], "reference": []}
    quarantined: list[SetAside] = []
    orphans: list[SetAside] = []
    for first in range(0, writer.layout.shard_rows, chunk_rows):
        for path, layout in layouts.items():
            blocks[path].fill(layout.fill_value)
        for position, record in enumerate(records[first : first + chunk_rows]):
            row = first_row + first + position
            try:
                patch = source.read(record)
            except MalformedPatchError as error:
                void.append(row)
                quarantined.append(SetAside(record.id, error.file, error.reason, "s2"))
                orphans += views_of(record, "its Sentinel-2 patch is in quarantine")
                continue
            quarantined += patch.problems
            for path, pixels in patch.s2.items():
                blocks[path][position] = pixels
            if patch.s1 is not None:
                blocks[S1_GROUP.path][position] = patch.s1
                present["s1"].append(row)
            if patch.clc is not None:
                blocks[MAP_GROUP.path][position] = patch.clc
                present["reference"].append(row)
        for path, layout in layouts.items():
            chunks[path].append(encode_chunk(layout, blocks[path]))
    objects = [
        writer.put_shard(path, shard, join_chunks(layout, chunks.pop(path)))
        for path, layout in layouts.items()
    ]
    account = ShardAccount(
        shard=shard,
        void=tuple(void),
        s1=tuple(present["s1"]),
        reference=tuple(present["reference"]),
        quarantined=tuple(quarantined),
        orphans=tuple(orphans),
        objects=tuple(objects),
    )
    writer.storage.write(f"{folder}/shards/{account.key}", account.to_bytes())
    return account


def kind_of(group: str) -> Kind:
    """Kind of view that fills a group of ``VIEWS``."""
    return _KIND_OF[group]


def views_of(record: PatchRecord, reason: str) -> list[SetAside]:
    """List the Sentinel-1 patch and the reference map of a record, with a reason."""
    views = []
    if "VV" in record.files or "VH" in record.files:
        file = record.files.get("VV") or record.files["VH"]
        views.append(SetAside(record.s1_id or record.id, file, reason, "s1"))
    if "map" in record.files:
        views.append(SetAside(record.id, record.files["map"], reason, "reference"))
    return views
