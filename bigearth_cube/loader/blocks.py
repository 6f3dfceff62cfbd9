"""Fetch and decode chunks: from array metadata to ranged GETs to the caller's buffer.

No xarray, no zarr-python, no task graph on this path: one read is one object, its adjacent
chunks joined, decoded where they will be gathered from.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.errors import CubeIntegrityError, NotFoundError
from bigearth_cube.shards import ArrayLayout, decode_chunk, read_index
from bigearth_cube.storage import Storage


@dataclass(slots=True)
class Counters:
    """What loading has cost so far.

    Attributes
    ----------
    requests, bytes
        GETs sent, and bytes of chunks and indices received.
    decode_s
        Seconds spent on checking and decoding, over all threads.
    wait_s
        Seconds the caller waited for batches.
    patches
        Patches delivered.
    """

    requests: int = 0
    bytes: int = 0
    decode_s: float = 0.0
    wait_s: float = 0.0
    patches: int = 0

    def add(self, other: Counters) -> None:
        """Add what another reader has cost."""
        self.requests += other.requests
        self.bytes += other.bytes
        self.decode_s += other.decode_s
        self.wait_s += other.wait_s
        self.patches += other.patches


@dataclass(frozen=True, slots=True)
class PixelSource:
    """One pixel array to read from.

    Attributes
    ----------
    layout
        How it is stored.
    filled
        Half-open runs of rows that were written; others read as fill.
    """

    layout: ArrayLayout
    filled: tuple[tuple[int, int], ...]

    def is_filled(self, row: int) -> bool:
        """Whether the shard of a row was written."""
        return any(start <= row < stop for start, stop in self.filled)


@dataclass(frozen=True, slots=True)
class Read:
    """Chunks of one object, to be fetched by one task.

    Attributes
    ----------
    group
        Which pixel array.
    shard
        Which object.
    chunks
        Chunk numbers in the array, increasing.
    """

    group: str
    shard: int
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    r"""Where the rows of one chunk go.

    Attributes
    ----------
    out
        (n, \*patch_shape). Without ``at`` it takes the whole chunk and is C-contiguous.
    at
        Places in ``out`` of the wanted rows; None takes the chunk whole.
    rows
        The wanted rows, counted from the first of the chunk.
    """

    out: NDArray[Any]
    at: NDArray[np.int64] | None = None
    rows: NDArray[np.int64] | None = None


class BlockReader:
    """Read chunks of several pixel arrays of one cube; safe to share between threads.

    Each shard index is read once and kept (16 bytes a chunk).

    Parameters
    ----------
    storage
        The Zarr hierarchy.
    sources
        Group to its pixel array.
    """

    def __init__(self, storage: Storage, sources: Mapping[str, PixelSource]) -> None:
        self.storage = storage
        self.sources = dict(sources)
        self._indices: dict[str, NDArray[np.uint64]] = {}
        self._lock = threading.Lock()
        self._scratch = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockReader, (self.storage, self.sources)

    def reads(self, group: str, chunks: Iterable[int]) -> list[Read]:
        """Split chunks by the object that holds them."""
        layout = self.sources[group].layout
        by_shard: dict[int, list[int]] = {}
        for chunk in sorted(chunks):
            by_shard.setdefault(chunk // layout.chunks_per_shard, []).append(chunk)
        return [Read(group, shard, tuple(part)) for shard, part in by_shard.items()]

    def fetch(self, read: Read, targets: Sequence[Target]) -> Counters:
        """Fetch, check and decode the chunks of one read.

        Parameters
        ----------
        read
            What to read.
        targets
            For each chunk, where its rows go.

        Returns
        -------
        Counters
            What it cost.

        Raises
        ------
        CubeIntegrityError
            If an object that was written is missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        source = self.sources[read.group]
        layout = source.layout
        if not source.is_filled(read.chunks[0] * layout.chunk_rows):
            for target in targets:
                target.out[... if target.at is None else target.at] = layout.fill_value
            return Counters()
        counters = Counters()
        key = layout.key(read.shard)
        try:
            data = self._chunk_bytes(layout, key, read, counters)
        except NotFoundError:
            rows = (read.chunks[0] * layout.chunk_rows, (read.chunks[-1] + 1) * layout.chunk_rows)
            raise CubeIntegrityError(
                key, "object is missing; it was written with the release", (rows[0], rows[1] - 1)
            ) from None
        began = time.perf_counter()
        for chunk, stored, target in zip(read.chunks, data, targets, strict=True):
            rows = (chunk * layout.chunk_rows, (chunk + 1) * layout.chunk_rows - 1)
            if target.at is None:
                decode_chunk(layout, stored, target.out, key, rows)
            else:
                scratch = self._scratch_for(read.group)
                decode_chunk(layout, stored, scratch, key, rows)
                target.out[target.at] = scratch[target.rows]
        counters.decode_s = time.perf_counter() - began
        return counters

    def _scratch_for(self, group: str) -> NDArray[Any]:
        """One chunk's room for each thread and group, for chunks of which few rows are kept."""
        rooms: dict[str, NDArray[Any]] = self._scratch.__dict__
        if group not in rooms:
            layout = self.sources[group].layout
            rooms[group] = np.empty((layout.chunk_rows, *layout.patch_shape), layout.dtype)
        return rooms[group]

    def _chunk_bytes(
        self, layout: ArrayLayout, key: str, read: Read, counters: Counters
    ) -> list[memoryview]:
        if len(read.chunks) == layout.chunks_per_shard:
            # The whole object is wanted: its index comes with it, in the same request.
            data = self.storage.read(key)
            counters.requests += 1
            counters.bytes += len(data)
            if not layout.sharded:
                return [memoryview(data)]
            index = self._index(layout, key, counters, tail=data[-layout.index_bytes :])
            view = memoryview(data)
            return [view[int(o) : int(o) + int(n)] for o, n in index]
        index = self._index(layout, key, counters)
        at = [chunk % layout.chunks_per_shard for chunk in read.chunks]
        return self._ranges(key, [(int(index[i, 0]), int(index[i, 1])) for i in at], counters)

    def _ranges(
        self, key: str, wanted: Sequence[tuple[int, int]], counters: Counters
    ) -> list[memoryview]:
        """Read (offset, size) ranges, adjacent ones in one GET."""
        runs: list[list[int]] = []
        for offset, size in wanted:
            if runs and runs[-1][1] == offset:
                runs[-1][1] += size
            else:
                runs.append([offset, offset + size])
        parts = self.storage.read_ranges(key, [a for a, _ in runs], [b for _, b in runs])
        counters.requests += len(runs)
        counters.bytes += sum(b - a for a, b in runs)
        views = []
        for offset, size in wanted:
            run = next(i for i, (a, b) in enumerate(runs) if a <= offset < b)
            start = offset - runs[run][0]
            view = memoryview(parts[run])[start : start + size]
            if len(view) != size:
                raise CubeIntegrityError(key, f"chunk has {len(view)} bytes, expected {size}")
            views.append(view)
        return views

    def _index(
        self, layout: ArrayLayout, key: str, counters: Counters, *, tail: bytes | None = None
    ) -> NDArray[np.uint64]:
        known = self._indices.get(key)
        if known is not None:
            return known
        if tail is None:
            tail = self.storage.read_tail(key, layout.index_bytes)
            counters.requests += 1
            counters.bytes += len(tail)
        index = read_index(layout, tail, key)
        with self._lock:
            self._indices[key] = index
        return index
