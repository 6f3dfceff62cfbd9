"""Who reads the blocks: threads of this process, or Dask workers.

Both bring the same rows to the same places; batches do not depend on who read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any, Protocol

import distributed
import numpy as np
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError, StorageError
from bigearth_cube.loader.blocks import BlockReader, Counters, Target
from bigearth_cube.loader.plan import Block


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block goes: each wanted row's place in the arena, and which chunks go there whole."""

    at: NDArray[np.int64]
    whole: NDArray[np.bool_]


class Engine(Protocol):
    """Whoever brings the rows of a block to their places."""

    def submit(
        self, block: Block, place: Place, buffers: Mapping[str, NDArray[Any]], stopped: Event
    ) -> list[Future[Counters]]:
        """Begin to read a block; its rows are in the buffers (a group each) when all are done.

        Once ``stopped`` is set, no more is read than what is on its way.
        """

    def close(self) -> None:
        """Wait for what runs, drop what does not, and give threads back."""


class ThreadsEngine:
    """Fetch and decode in threads of this process, straight into the arena."""

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self._threads = ThreadPoolExecutor(reader.max_requests, thread_name_prefix="bec-read")

    def submit(
        self, block: Block, place: Place, buffers: Mapping[str, NDArray[Any]], stopped: Event
    ) -> list[Future[Counters]]:
        """Begin to fetch and decode, a thread a request."""
        return _submit_reads(
            self._threads, self._reader, block, place.whole, place.at, buffers, stopped
        )

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)


class DaskEngine:
    """Fetch and decode on Dask workers, a block a task, then copy into the arena.

    A worker that dies costs the blocks it was reading: the scheduler runs them elsewhere.
    """

    def __init__(self, reader: BlockReader, client: distributed.Client) -> None:
        self._client = client
        # Stays on each worker, with the shard indices it has read.
        try:
            self._reader = client.scatter(reader, broadcast=True, hash=False)
        except TimeoutError:
            raise StorageError(
                f"the Dask scheduler has no workers, or none that answer: {client!r}; start some"
            ) from None
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="bec-collect")

    def submit(
        self, block: Block, place: Place, buffers: Mapping[str, NDArray[Any]], stopped: Event
    ) -> list[Future[Counters]]:
        """Begin a task, and the copy of what it brings."""
        task = self._client.submit(read_block, self._reader, block, pure=False)
        return [self._threads.submit(self._collect, task, place, buffers)]

    def _collect(
        self, task: distributed.Future[Any], place: Place, buffers: Mapping[str, NDArray[Any]]
    ) -> Counters:
        pixels: dict[str, NDArray[Any]]
        counters: Counters
        pixels, counters = task.result()
        for group, rows in pixels.items():
            buffers[group][place.at] = rows
        return counters

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._reader.release()


def _submit_reads(
    threads: ThreadPoolExecutor,
    reader: BlockReader,
    block: Block,
    whole: NDArray[np.bool_],
    at: NDArray[np.int64],
    outs: Mapping[str, NDArray[Any]],
    stopped: Event,
) -> list[Future[Counters]]:
    """Read a block: each wanted row to its place in ``outs``, some chunks with all their rows."""
    index = {int(chunk): i for i, chunk in enumerate(block.chunks)}
    futures = []
    chunk_rows = reader.chunk_rows
    for group, out in outs.items():

        def target(chunk: int, out: NDArray[Any] = out) -> Target:
            i = index[chunk]
            part = slice(block.offsets[i], block.offsets[i + 1])
            rows = block.rows[part] - chunk * chunk_rows
            if not whole[i]:
                return Target(out, rows, at[part])
            first = int(at[part][0] - rows[0])
            return Target(out[first : first + chunk_rows], rows)

        futures += [
            threads.submit(reader.fetch, read, [target(chunk) for chunk in read.chunks], stopped)
            for read in reader.reads(group, index)
        ]
    return futures


def make_engine(reader: BlockReader, engine: object) -> Engine:
    """Return the engine that an argument names.

    Raises
    ------
    InvalidInputError
        If it names none.
    StorageError
        If a Dask scheduler has no workers.
    """
    if isinstance(engine, distributed.Client):
        return DaskEngine(reader, engine)
    if engine != "threads":
        raise InvalidInputError(f"unknown engine {engine!r}; expected 'threads' or a Dask client")
    return ThreadsEngine(reader)


def read_block(reader: BlockReader, block: Block) -> tuple[dict[str, NDArray[Any]], Counters]:
    r"""Read the wanted rows of some chunks, of every group; the task that a Dask worker runs.

    Returns
    -------
    tuple
        Group to (n_rows, \*patch_shape) in the order of the block, and what it cost.
    """
    pixels = reader.empty(len(block.rows))
    whole = np.diff(block.offsets) == reader.chunk_rows
    at = np.arange(len(block.rows))
    counters = Counters()
    stopped = Event()
    with ThreadPoolExecutor(reader.max_requests) as pool:
        try:
            for future in _submit_reads(pool, reader, block, whole, at, pixels, stopped):
                counters.add(future.result())
        finally:
            stopped.set()
    return pixels, counters
