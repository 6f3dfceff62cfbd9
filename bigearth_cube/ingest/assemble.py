"""From views in any order to shards: chunks fill up, are encoded, spill, and join.

A stream does not come in the order of the cube. Sentinel-1 lies by scene, so half of all shards
would be open at once; here a chunk is the unit. One that is full is encoded; what then does not
fit into memory, full or not, spills to storage, encoded, and comes back when it is wanted.
"""

from __future__ import annotations

import json
import struct
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.archive.base import Kind, SetAside
from bigearth_cube.archive.pixels import BANDS
from bigearth_cube.heap import keep_freed_memory
from bigearth_cube.ingest.plan import Plan
from bigearth_cube.ingest.shard import VIEWS, ShardAccount
from bigearth_cube.nomenclature import S2_GROUPS
from bigearth_cube.shards import decode_chunk, encode_chunk, join_chunks
from bigearth_cube.storage import Storage

MEMORY_BYTES: Final = 400 << 20
"""Of chunks, open and encoded, of one kind; beyond it they spill."""
_HEADER: Final = struct.Struct("<I")

GROUPS_OF: Final[Mapping[Kind, tuple[str, ...]]] = {
    "s2": tuple(group.path for group in S2_GROUPS),
    **{kind: (path,) for kind, path in VIEWS.items()},
}
"""The pixel groups that a view of each kind fills."""


@dataclass
class _Chunk:
    """One chunk of every group of a kind: open, encoded or spilled."""

    expected: int  # bits of the rows that the plan has views for
    seen: int = 0  # bits of the rows that came, sound or not
    malformed: list[SetAside] = field(default_factory=list)
    bad: int = 0  # bits of the rows whose view cannot be read
    open: dict[str, NDArray[Any]] | None = None
    encoded: dict[str, bytes] | None = None
    pending: Future[dict[str, bytes]] | None = None
    spilled: bool = False

    @property
    def full(self) -> bool:
        return self.seen == self.expected


class Assembler:
    """Take the views of one kind, in any order, and write the shards of a plan.

    Parameters
    ----------
    plan
        The rows, and where they go.
    kind
        What the views are of.
    done
        Shards that an earlier run wrote.
    spill
        Where chunks go that do not fit into memory; what an earlier run left there is used.
    threads
        How many encode and write.
    """

    def __init__(
        self,
        plan: Plan,
        kind: Kind,
        done: Sequence[ShardAccount],
        spill: Storage,
        *,
        threads: int,
    ) -> None:
        self._plan, self._kind, self._spill = plan, kind, spill
        self._layouts = {group: plan.writer.pixel_layout(group) for group in GROUPS_OF[kind]}
        self._chunk_rows = plan.writer.layout.chunk_rows
        self._per_shard = plan.shard_rows // self._chunk_rows
        self._chunk_bytes = self._chunk_rows * sum(
            int(np.prod(x.patch_shape)) * np.dtype(x.dtype).itemsize for x in self._layouts.values()
        )
        keep_freed_memory()
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bec-encode")
        own = set(plan.shards())
        self.accounts = [a for a in done if a.kind == kind and a.shard in own]
        self._finished = {account.shard for account in self.accounts}
        self._chunks = self._expected_chunks()
        self._on_storage: set[int] = set()  # chunks of which something lies in the spill
        self._find_spilled()
        self._opened: OrderedDict[int, None] = OrderedDict()  # chunk numbers, least recent first
        self._in_memory: OrderedDict[int, int] = OrderedDict()  # encoded: chunk to bytes
        self._pending: deque[int] = deque()
        self._writing: deque[Future[ShardAccount]] = deque()
        self._free: list[dict[str, NDArray[Any]]] = []
        self._fills: dict[str, bytes] = {}
        self._left = {shard: self._n_open(shard) for shard in plan.shards()}
        for shard in plan.shards():
            self._write_if_whole(shard)

    def wants(self, row: int) -> bool:
        """Whether the view of a row has not come yet, in this run or an earlier one."""
        if row // self._plan.shard_rows in self._finished:
            return False
        chunk = self._chunks[row // self._chunk_rows]
        return not chunk.seen >> (row % self._chunk_rows) & 1

    def put(self, row: int, pixels: Mapping[str, NDArray[Any]]) -> None:
        """Take the view of a row that is wanted: group to its pixels."""
        number = row // self._chunk_rows
        blocks = self._open(number)
        for group, values in pixels.items():
            blocks[group][row % self._chunk_rows] = values
        self._saw(row)

    def put_aside(self, row: int, entry: SetAside) -> None:
        """Note that the view of a row that is wanted cannot be read."""
        chunk = self._chunks[row // self._chunk_rows]
        chunk.malformed.append(entry)
        chunk.bad |= 1 << (row % self._chunk_rows)
        self._saw(row)

    def finish(self) -> list[ShardAccount]:
        """Write what has not come as fill; returns the accounts of all shards, in order."""
        for number, chunk in self._chunks.items():
            if not chunk.full:
                self._close(number)
        while self._pending or self._writing:
            self._collect(wait=True)
        self._pool.shutdown()
        self._free.clear()
        assert not self._left or not any(self._left.values())
        return sorted(self.accounts, key=lambda account: account.shard)

    def stop(self) -> None:
        """End the threads, whatever happened."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _expected_chunks(self) -> dict[int, _Chunk]:
        chunks = {
            number: _Chunk(expected=0)
            for shard in self._plan.shards()
            for number in self._numbers(shard)
        }
        needed = BANDS[self._kind][0]
        for row, record in enumerate(self._plan.records, self._plan.start):
            if needed in record.files:
                chunks[row // self._chunk_rows].expected |= 1 << (row % self._chunk_rows)
        return chunks

    def _n_open(self, shard: int) -> int:
        """Chunks of a shard that have not been closed."""
        return sum(not self._chunks[number].full for number in self._numbers(shard))

    def _numbers(self, shard: int) -> range:
        return range(shard * self._per_shard, (shard + 1) * self._per_shard)

    def _open(self, number: int) -> dict[str, NDArray[Any]]:
        chunk = self._chunks[number]
        self._opened[number] = None
        self._opened.move_to_end(number)
        if chunk.open is None:
            chunk.open = self._blocks()
            if chunk.spilled:
                for group, data in self._read_spilled(number).items():
                    layout = self._layouts[group]
                    decode_chunk(layout, data, chunk.open[group], self._spill_key(number))
            else:
                for group, block in chunk.open.items():
                    block[...] = self._layouts[group].fill_value
        return chunk.open

    def _blocks(self) -> dict[str, NDArray[Any]]:
        if self._free:
            return self._free.pop()
        return {
            group: np.empty((self._chunk_rows, *layout.patch_shape), layout.dtype)
            for group, layout in self._layouts.items()
        }

    def _saw(self, row: int) -> None:
        number = row // self._chunk_rows
        chunk = self._chunks[number]
        chunk.seen |= 1 << (row % self._chunk_rows)
        if chunk.full:
            self._close(number)
        self._collect(wait=False)
        self._make_room()

    def _close(self, number: int) -> None:
        """Encode a chunk that nothing more comes to; a spilled or an empty one is so already."""
        chunk = self._chunks[number]
        if chunk.open is None:
            self._closed(number)
            return
        del self._opened[number]
        blocks, chunk.open = chunk.open, None
        chunk.spilled = False  # what lies there is older now
        chunk.pending = self._pool.submit(self._encode, blocks)
        self._pending.append(number)
        while len(self._pending) > 2 * self._threads:
            self._collect(wait=True)

    def _encode(self, blocks: dict[str, NDArray[Any]]) -> dict[str, bytes]:
        encoded = {g: encode_chunk(self._layouts[g], block) for g, block in blocks.items()}
        self._free.append(blocks)
        return encoded

    def _collect(self, *, wait: bool) -> None:
        """Take what the threads have finished; the oldest even if it must be waited for."""
        while self._pending:
            number = self._pending[0]
            chunk = self._chunks[number]
            assert chunk.pending is not None
            if not (wait or chunk.pending.done()):
                break
            chunk.encoded, chunk.pending = chunk.pending.result(), None
            self._pending.popleft()
            self._in_memory[number] = sum(map(len, chunk.encoded.values()))
            self._closed(number)
            wait = False
        while self._writing and (wait or self._writing[0].done()):
            self.accounts.append(self._writing.popleft().result())
            wait = False

    def _closed(self, number: int) -> None:
        shard = number // self._per_shard
        self._left[shard] -= 1
        self._write_if_whole(shard)

    def _write_if_whole(self, shard: int) -> None:
        if self._left[shard] or shard in self._finished:
            return
        self._finished.add(shard)
        numbers = self._numbers(shard)
        for number in numbers:
            self._in_memory.pop(number, None)
        self._writing.append(self._pool.submit(self._write, shard))
        while len(self._writing) > 1:  # a shard and its parts are 190 MB while it is joined
            self._collect(wait=True)

    def _write(self, shard: int) -> ShardAccount:
        """Join the chunks of a shard, put it, keep its account, and drop what was spilled."""
        numbers = self._numbers(shard)
        parts: dict[str, list[bytes]] = {group: [] for group in self._layouts}
        for number in numbers:
            chunk = self._chunks[number]
            found = chunk.encoded
            if found is None:
                found = self._read_spilled(number) if chunk.spilled else {}
            for group, chunks in parts.items():
                chunks.append(found.get(group) or self._fill(group))
            chunk.encoded = None
        account = self._account(shard)
        # A late shard without a sound view is not written, so that it stays open for one.
        if self._plan.only is None or account.s1 or account.reference:
            objects = [
                self._plan.writer.put_shard(group, shard, join_chunks(self._layouts[group], chunks))
                for group, chunks in parts.items()
            ]
            account = replace(account, objects=tuple(objects))
        key = f"{self._plan.folder}/shards/{account.key}"
        self._plan.writer.storage.write(key, account.to_bytes())
        for number in numbers:
            self._forget_spilled(number)
        return account

    def _account(self, shard: int) -> ShardAccount:
        present: list[int] = []
        lacking: list[int] = []
        quarantined: list[SetAside] = []
        n_unseen = 0
        for number in self._numbers(shard):
            chunk = self._chunks[number]
            n_unseen += (chunk.expected & ~chunk.seen).bit_count()
            for i in range(self._chunk_rows):
                row = number * self._chunk_rows + i
                if chunk.seen & ~chunk.bad & (1 << i):
                    present.append(row)
                elif row - self._plan.start < len(self._plan.records):
                    lacking.append(row)
            quarantined += chunk.malformed
        return ShardAccount(
            shard=shard,
            void=tuple(lacking) if self._kind == "s2" else (),
            s1=tuple(present) if self._kind == "s1" else (),
            reference=tuple(present) if self._kind == "reference" else (),
            quarantined=tuple(quarantined),
            orphans=(),
            objects=(),
            kind=self._kind,
            n_unseen=n_unseen,
        )

    def _fill(self, group: str) -> bytes:
        """Encode a chunk of padding, once."""
        if group not in self._fills:
            layout = self._layouts[group]
            block = np.full(
                (self._chunk_rows, *layout.patch_shape), layout.fill_value, layout.dtype
            )
            self._fills[group] = encode_chunk(layout, block)
        return self._fills[group]

    def _make_room(self) -> None:
        """Spill the oldest encoded chunks, then those open chunks that were not needed longest."""
        held = len(self._opened) + len(self._pending)
        used = held * self._chunk_bytes + sum(self._in_memory.values())
        if used > MEMORY_BYTES:
            self._free.clear()
        while used > MEMORY_BYTES and self._in_memory:
            number, n_bytes = self._in_memory.popitem(last=False)
            chunk = self._chunks[number]
            assert chunk.encoded is not None
            self._write_spilled(number, chunk.encoded)
            chunk.encoded = None
            used -= n_bytes
        while used > MEMORY_BYTES and len(self._opened) > 1:
            number, _ = self._opened.popitem(last=False)
            chunk = self._chunks[number]
            assert chunk.open is not None
            self._write_spilled(number, self._encode(chunk.open))
            chunk.open = None
            used -= self._chunk_bytes

    def _spill_key(self, number: int) -> str:
        return f"{self._kind}/{number:06d}"

    def _write_spilled(self, number: int, encoded: Mapping[str, bytes]) -> None:
        chunk = self._chunks[number]
        about = {
            "seen": f"{chunk.seen:x}",
            "bad": f"{chunk.bad:x}",
            "sizes": {group: len(data) for group, data in encoded.items()},
        }
        header = json.dumps(about).encode()
        body = b"".join([_HEADER.pack(len(header)), header, *encoded.values()])
        self._on_storage.add(number)
        self._spill.write(self._spill_key(number), body)
        chunk.spilled = True

    def _read_spilled(self, number: int) -> dict[str, bytes]:
        data = memoryview(self._spill.read(self._spill_key(number)))
        about, at = _about(data)
        encoded = {}
        for group, size in about["sizes"].items():
            encoded[group] = bytes(data[at : at + size])
            at += size
        return encoded

    def _forget_spilled(self, number: int) -> None:
        if number in self._on_storage:
            self._spill.delete(self._spill_key(number))
            self._on_storage.discard(number)

    def _find_spilled(self) -> None:
        """Take up the chunks that an earlier run spilled."""
        for key, _ in self._spill.list(self._kind):
            number = int(key.rpartition("/")[2])
            if number not in self._chunks:
                continue  # of older rows, or of newer ones: another assembler of these plans
            self._on_storage.add(number)
            if number // self._per_shard in self._finished:
                self._forget_spilled(number)
                continue
            about, _ = _about(memoryview(self._spill.read(key)))
            chunk = self._chunks[number]
            # What could not be read is wanted again: it may have been repaired since.
            chunk.seen = int(about["seen"], 16) & ~int(about["bad"], 16)
            chunk.spilled = True


def _about(data: memoryview) -> tuple[dict[str, Any], int]:
    """Header of a spilled chunk, and where its bytes begin."""
    (size,) = _HEADER.unpack_from(data)
    return json.loads(bytes(data[_HEADER.size : _HEADER.size + size])), _HEADER.size + size
