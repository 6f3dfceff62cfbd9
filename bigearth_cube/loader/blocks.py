"""Fetch and decode chunks: from array metadata to ranged GETs to the caller's buffer.

No xarray, no zarr-python, no task graph on this path: one read is one object, its adjacent
chunks joined, decoded where they will be gathered from. Fetching waits for the network and
decoding for a core, so each has a bound of its own.
"""

from __future__ import annotations

import itertools
import os
import queue
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.errors import CubeIntegrityError, NotFoundError
from bigearth_cube.loader.pace import MAX_REQUESTS, Pace, PacedThreads
from bigearth_cube.shards import (
    ArrayLayout,
    chunk_place,
    decode_chunk,
    read_index,
    without_checksum,
)
from bigearth_cube.storage import Storage


@dataclass(slots=True)
class Counters:
    """What loading has cost so far.

    Attributes
    ----------
    requests, retries
        GETs sent, and how many of them again, after a refusal or a broken connection.
    bytes
        Of chunks and indices received.
    in_flight
        Reads under way at once in one process, at most: requested, or being decoded.
    cache_hits
        Chunks that were in memory, so that none was sent.
    decode_s
        Seconds spent on checking and decoding, over all threads.
    wait_s, epoch_s
        Seconds the caller waited for batches, and those it spent in epochs, its own work too.
    patches
        Patches delivered.
    """

    requests: int = 0
    retries: int = 0
    bytes: int = 0
    in_flight: int = 0
    cache_hits: int = 0
    decode_s: float = 0.0
    wait_s: float = 0.0
    epoch_s: float = 0.0
    patches: int = 0

    @property
    def patches_per_s(self) -> float:
        """Patches delivered a second of the epochs; 0 before the first."""
        return self.patches / self.epoch_s if self.epoch_s else 0.0

    def add(self, other: Counters) -> None:
        """Add what another reader has cost."""
        self.requests += other.requests  # named one by one: this is called for every read
        self.retries += other.retries
        self.bytes += other.bytes
        self.in_flight = max(self.in_flight, other.in_flight)
        self.cache_hits += other.cache_hits
        self.decode_s += other.decode_s
        self.wait_s += other.wait_s
        self.epoch_s += other.epoch_s
        self.patches += other.patches


@dataclass(frozen=True, slots=True)
class PixelSource:
    """One pixel array to read from.

    Attributes
    ----------
    storage
        The Zarr hierarchy that it lies in.
    layout
        How it is stored.
    filled
        Half-open runs of rows that were written; others read as fill.
    bands
        Which bands to deliver, in order; None for all.
    first_chunk
        Number of its first chunk among those of all arrays that are read as one.
    by_zarr
        Whether it is stored in a way that only zarr-python reads.
    """

    storage: Storage
    layout: ArrayLayout
    filled: tuple[tuple[int, int], ...]
    bands: tuple[int, ...] | None = None
    first_chunk: int = 0
    by_zarr: bool = False

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Shape of one patch as delivered."""
        shape = self.layout.patch_shape
        return shape if self.bands is None else (len(self.bands), *shape[1:])

    def rows_of(self, chunk: int) -> tuple[int, int]:
        """First and last row of a chunk."""
        first = (chunk - self.first_chunk) * self.layout.chunk_rows
        return first, first + self.layout.chunk_rows - 1

    def is_filled(self, row: int) -> bool:
        """Whether the shard of a row was written."""
        return any(start <= row < stop for start, stop in self.filled)


@dataclass(frozen=True, slots=True)
class Read:
    """Adjacent chunks of one object, to be fetched by one request.

    Attributes
    ----------
    group
        Which pixel group.
    part
        Which of its arrays.
    shard
        Which object of that.
    chunks
        Chunk numbers, one after another.
    """

    group: str
    part: int
    shard: int
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    r"""Where the rows of one chunk go.

    Attributes
    ----------
    out
        (n, \*patch_shape) as delivered. Without ``at`` it takes the whole chunk and is
        C-contiguous.
    rows
        The wanted rows, counted from the first of the chunk, increasing.
    at
        Places in ``out`` of the wanted rows; None takes the chunk whole.
    """

    out: NDArray[Any]
    rows: NDArray[np.int64]
    at: NDArray[np.int64] | None = None


class ChunkCache:
    """Stored bytes of checked chunks, kept for later epochs until the room is used up.

    What is in it stays: an epoch asks for every chunk once, in another order each time, so
    whatever would be given up for a newer chunk is wanted as soon as that.

    Parameters
    ----------
    max_bytes
        Room for chunks.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.n_bytes = max_bytes, 0
        self._chunks: dict[tuple[str, int], memoryview] = {}
        self._lock = Lock()

    def get(self, group: str, chunk: int) -> memoryview | None:
        """Return the bytes of a chunk, without its checksum, or None."""
        return self._chunks.get((group, chunk))

    def offer(self, group: str, chunk: int, body: memoryview) -> None:
        """Keep a chunk if there is room."""
        with self._lock:
            if (group, chunk) in self._chunks or self.n_bytes + len(body) > self.max_bytes:
                return
            self.n_bytes += len(body)
            # A copy: the view may be a small part of a large answer.
            self._chunks[group, chunk] = memoryview(bytes(body))


class Answer:
    """Memory for the answer to one request, used again for the next."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def room(self, n_bytes: int) -> memoryview:
        """Return room for so many bytes."""
        if n_bytes > len(self._bytes):
            self._bytes = np.empty(n_bytes, np.uint8)
        return self._bytes[:n_bytes].data


class BlockReader:
    """Read chunks of several pixel groups; safe to share between threads.

    Each shard index is read once and kept (16 bytes a chunk).

    Parameters
    ----------
    sources
        Group to its arrays, which are read as one: as many and in the same order for every group.
    decoders
        Chunks decoded at once. Where it is None, twice the cores of this process, so that a thread
        with an answer seldom waits for another; for local files one more than the cores.
    max_requests
        Requests in flight, at most; local files are read by as many threads as decode.
    cache_bytes
        Room to keep stored chunks in memory. It does not travel to other processes.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[PixelSource]],
        *,
        decoders: int | None = None,
        max_requests: int = MAX_REQUESTS,
        cache_bytes: int = 0,
    ) -> None:
        self.sources = {group: tuple(parts) for group, parts in sources.items()}
        self.max_requests = max_requests
        self.decoders = decoders
        self.chunk_rows = next(iter(self.sources.values()))[0].layout.chunk_rows
        self._first_chunks = [s.first_chunk for s in next(iter(self.sources.values()))]
        # Local files are read by whom decodes: there is little to wait for.
        is_local = all(s.storage.is_local for parts in self.sources.values() for s in parts)
        n_decoders = decoders or (_n_cores() + 1 if is_local else 2 * _n_cores())
        self._pace = Pace(min(n_decoders, max_requests) if is_local else max_requests)
        self._threads = PacedThreads(self._pace)
        self._answers: deque[Answer] = deque()
        # Who holds one may decode. It is also the room for chunks of which not all is kept.
        self._rooms: queue.LifoQueue[dict[str, NDArray[Any]]] = queue.LifoQueue()
        for _ in range(n_decoders):
            self._rooms.put({})
        self._cache = ChunkCache(cache_bytes) if cache_bytes else None
        self._indices: dict[tuple[str, int, int], NDArray[np.uint64]] = {}
        self._reading: dict[tuple[str, int, int], Lock] = {}
        self._lock = Lock()
        self._arrays: dict[tuple[str, int], Any] = {}
        self._found: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return _same_reader, (self.sources, self.decoders, self.max_requests)

    def empty(self, n_rows: int) -> dict[str, NDArray[Any]]:
        """Return room for so many rows of every group."""
        return {
            group: np.empty((n_rows, *parts[0].patch_shape), parts[0].layout.dtype)
            for group, parts in self.sources.items()
        }

    def reads(self, group: str, chunks: Iterable[int]) -> list[Read]:
        """Split chunks into runs that lie in one object, one after another."""
        runs: list[Read] = []
        for chunk in sorted(chunks):
            part = bisect_right(self._first_chunks, chunk) - 1
            source = self.sources[group][part]
            shard = (chunk - source.first_chunk) // source.layout.chunks_per_shard
            last = runs[-1] if runs else None
            if last and (last.part, last.shard, last.chunks[-1]) == (part, shard, chunk - 1):
                runs[-1] = replace(last, chunks=(*last.chunks, chunk))
            else:
                runs.append(Read(group, part, shard, (chunk,)))
        return runs

    def submit(self, read: Read, targets: Sequence[Target]) -> Future[Counters]:
        """Fetch in a thread of this reader, as soon as the pace allows; see ``fetch``."""
        return self._threads.submit(self.fetch, read, targets)

    def close(self) -> None:
        """Cancel what waits, wait for what runs, and end the threads."""
        self._threads.close()

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
        source = self.sources[read.group][read.part]
        counters = Counters()
        if not source.is_filled(source.rows_of(read.chunks[0])[0]):
            for target in targets:
                target.out[... if target.at is None else target.at] = source.layout.fill_value
            return counters
        if source.by_zarr:
            return self._fetch_by_zarr(source, read, targets)
        kept = {} if self._cache is None else self._kept(read)
        counters.cache_hits = len(kept)
        fetched = {}
        answer = self._answers.pop() if self._answers else Answer()
        if len(kept) < len(read.chunks):
            wanted = [chunk for chunk in read.chunks if chunk not in kept]
            fetched = self._chunk_bytes(source, read, wanted, counters, answer)
            counters.in_flight = self._pace.peak
        key = self._named(source, source.layout.key(read.shard))
        room = self._rooms.get()
        began = time.perf_counter()
        try:
            for chunk, target in zip(read.chunks, targets, strict=True):
                stored = kept.get(chunk), fetched.get(chunk)
                self._decode(key, read.group, source, chunk, *stored, target, room)
        finally:
            self._rooms.put(room)
        self._answers.append(answer)
        counters.decode_s = time.perf_counter() - began
        return counters

    def _kept(self, read: Read) -> dict[int, memoryview]:
        assert self._cache is not None
        found = {chunk: self._cache.get(read.group, chunk) for chunk in read.chunks}
        return {chunk: body for chunk, body in found.items() if body is not None}

    def _decode(
        self,
        key: str,
        group: str,
        source: PixelSource,
        chunk: int,
        kept: memoryview | None,
        fetched: memoryview | None,
        target: Target,
        room: dict[str, NDArray[Any]],
    ) -> None:
        layout = source.layout
        if target.at is None and source.bands is None:
            out = target.out
        else:
            if group not in room:
                shape = (layout.chunk_rows, *layout.patch_shape)
                room[group] = np.empty(shape, layout.dtype)
            out = room[group]
        rows = source.rows_of(chunk)
        if kept is not None:
            decode_chunk(replace(layout, checksum=False), kept, out, key, rows)
        else:
            assert fetched is not None
            decode_chunk(layout, fetched, out, key, rows)
            if self._cache is not None:
                self._cache.offer(group, chunk, without_checksum(layout, fetched))
        if out is not target.out:
            _keep(out, source, target)

    def _chunk_bytes(
        self,
        source: PixelSource,
        read: Read,
        wanted: Sequence[int],
        counters: Counters,
        answer: Answer,
    ) -> dict[int, memoryview]:
        """Return the stored bytes of some chunks of one object."""
        layout, key = source.layout, source.layout.key(read.shard)
        try:
            if len(wanted) == layout.chunks_per_shard:
                # The whole object is wanted: its index comes with it, in the same request.
                data = self._get(counters, partial(source.storage.read, key))
                places = [(0, len(data))]
                if layout.sharded:
                    tail = bytes(data[-layout.index_bytes :])
                    places = self._places(source, read, wanted, counters, tail=tail)
                return {
                    chunk: self._cut(source, read, chunk, data, offset, size)
                    for chunk, (offset, size) in zip(wanted, places, strict=True)
                }
            runs: list[tuple[int, int, list[tuple[int, int, int]]]] = []
            places = self._places(source, read, wanted, counters)
            for chunk, (offset, size) in zip(wanted, places, strict=True):
                if runs and runs[-1][1] == offset:
                    start, _, members = runs.pop()
                else:
                    start, members = offset, []
                runs.append((start, offset + size, [*members, (chunk, offset - start, size)]))
            found = {}
            room = answer.room if len(runs) == 1 else None
            for start, stop, members in runs:
                request = partial(source.storage.read_range, key, start, stop, into=room)
                data = self._get(counters, request)
                for chunk, offset, size in members:
                    found[chunk] = self._cut(source, read, chunk, data, offset, size)
        except NotFoundError:
            rows = source.rows_of(read.chunks[0])[0], source.rows_of(read.chunks[-1])[1]
            raise CubeIntegrityError(
                self._named(source, key), "object is missing; it was written with the release", rows
            ) from None
        return found

    def _cut(
        self, source: PixelSource, read: Read, chunk: int, data: memoryview, offset: int, size: int
    ) -> memoryview:
        view = data[offset : offset + size]
        if len(view) != size:
            raise CubeIntegrityError(
                self._named(source, source.layout.key(read.shard)),
                f"object is short: it has {len(view)} bytes of a chunk of {size}",
                source.rows_of(chunk),
            )
        return view

    def _places(
        self,
        source: PixelSource,
        read: Read,
        wanted: Sequence[int],
        counters: Counters,
        *,
        tail: bytes | None = None,
    ) -> list[tuple[int, int]]:
        """Return offset and size of chunks in their object; ``tail`` if it came along."""
        named = self._named(source, source.layout.key(read.shard))
        index = self._indices.get((read.group, read.part, read.shard))
        if index is None:
            index = self._read_index(source, read, counters, named, tail)
        return [
            chunk_place(
                index,
                (chunk - source.first_chunk) % source.layout.chunks_per_shard,
                named,
                source.rows_of(chunk),
            )
            for chunk in wanted
        ]

    def _read_index(
        self,
        source: PixelSource,
        read: Read,
        counters: Counters,
        named: str,
        tail: bytes | None,
    ) -> NDArray[np.uint64]:
        layout, at = source.layout, (read.group, read.part, read.shard)
        with self._lock:
            # Several reads of one new shard come at once: its index is read by the first.
            reading = self._reading.setdefault(at, Lock())
        with reading:
            if at not in self._indices:
                if tail is None:
                    key = layout.key(read.shard)
                    request = partial(source.storage.read_tail, key, layout.index_bytes)
                    tail = bytes(self._get(counters, request))
                first = read.shard * layout.shard_rows
                rows = first, first + layout.shard_rows - 1
                self._indices[at] = read_index(layout, tail, named, rows)
            return self._indices[at]

    def _get(self, counters: Counters, request: Callable[..., Any]) -> memoryview:
        """Send one request, count it, and let the pace learn from it."""
        n_retries = 0

        def held_back() -> None:
            nonlocal n_retries
            n_retries += 1
            self._pace.held_back()

        began = time.perf_counter()
        data = memoryview(request(on_retry=held_back)).cast("B")
        if not n_retries:
            self._pace.answered(time.perf_counter() - began, len(data))
        counters.requests += 1 + n_retries
        counters.retries += n_retries
        counters.bytes += len(data)
        return data

    def _named(self, source: PixelSource, key: str) -> str:
        """Name an object; with its cube, where there are several."""
        return key if len(self._first_chunks) == 1 else f"{source.storage.url}/{key}"

    def _fetch_by_zarr(
        self, source: PixelSource, read: Read, targets: Sequence[Target]
    ) -> Counters:
        counters = Counters()
        with self._lock:
            array = self._arrays.get((read.group, read.part))
            if array is None:
                array = source.storage.zarr_array(source.layout.path)
                self._arrays[read.group, read.part] = array
        for chunk, target in zip(read.chunks, targets, strict=True):
            # No further: zarr-python leaves out what is nothing but fill, such as padding.
            begin, end = int(target.rows[0]), int(target.rows[-1])
            first = source.rows_of(chunk)[0] + begin
            last = first + end - begin
            room = self._rooms.get()
            began = time.perf_counter()
            try:
                for key in _objects(source.layout.path, array, first, last):
                    # zarr-python gives fill values for an object that is not there.
                    if key not in self._found and not source.storage.exists(key):
                        reason = "object is missing; it was written with the release"
                        raise CubeIntegrityError(self._named(source, key), reason, (first, last))
                    self._found.add(key)
                _keep(array[first : last + 1], source, target, begin)
            except (ValueError, RuntimeError) as error:
                named = self._named(source, source.layout.path)
                reason = f"chunk does not decode: {error}"
                raise CubeIntegrityError(named, reason, (first, last)) from None
            finally:
                self._rooms.put(room)
            counters.decode_s += time.perf_counter() - began
        return counters


def _same_reader(
    sources: Mapping[str, Sequence[PixelSource]], decoders: int | None, max_requests: int
) -> BlockReader:
    return BlockReader(sources, decoders=decoders, max_requests=max_requests)


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _keep(pixels: NDArray[Any], source: PixelSource, target: Target, first: int = 0) -> None:
    """Copy what is wanted of a chunk, or of its part from row ``first`` on: rows and bands."""
    kept = pixels if target.at is None else pixels[target.rows - first]
    if source.bands is not None:
        kept = kept[:, source.bands]
    target.out[slice(first, first + len(kept)) if target.at is None else target.at] = kept


def _objects(path: str, array: Any, first: int, last: int) -> Iterator[str]:
    """Keys of the objects that hold some rows of a zarr-python array."""
    size = array.shards or array.chunks
    grid = [range(first // size[0], last // size[0] + 1)]
    grid += [range(-(-n // m)) for n, m in zip(array.shape[1:], size[1:], strict=True)]
    for place in itertools.product(*grid):
        yield f"{path}/{array.metadata.encode_chunk_key(place)}"
