"""Read a block to its places: in threads, here or on a Dask worker.

A worker decodes straight into the loader's arrays where it can reach them; else what it decoded
travels by Dask's own transfer.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import distributed
import numpy as np
from distributed.protocol import pickle
from numpy.typing import NDArray

from bigearth_cube.heap import keep_freed_memory
from bigearth_cube.loader.blocks import BlockReader, Counters, Target
from bigearth_cube.loader.plan import Block
from bigearth_cube.loader.shared import (
    Address,
    MappedArrays,
    NotSharedError,
    SharedArrays,
    Ticket,
    writing,
)

Path = Literal["in process", "shared memory", "network"]
"""How decoded rows come from a worker to the arena."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block goes: each wanted row's place in the arena, and which chunks go there whole."""

    at: NDArray[np.int64]
    whole: NDArray[np.bool_]


def submit_reads(
    reader: BlockReader,
    block: Block,
    whole: NDArray[np.bool_],
    at: NDArray[np.int64],
    outs: Mapping[str, NDArray[Any]],
) -> list[Future[Counters]]:
    """Read a block: each wanted row to its place in ``outs``, some chunks with all their rows."""
    chunk_rows, offsets = reader.chunk_rows, block.offsets.tolist()
    places: dict[int, tuple[NDArray[np.int64], NDArray[np.int64], slice | None]] = {}
    for i, chunk in enumerate(block.chunks.tolist()):
        part = slice(offsets[i], offsets[i + 1])
        rows, at_ = block.rows[part] - chunk * chunk_rows, at[part]
        first = int(at_[0] - rows[0])
        places[chunk] = rows, at_, slice(first, first + chunk_rows) if whole[i] else None
    assert len(places) == len(block.chunks), "a block names a chunk twice"

    def target(out: NDArray[Any], chunk: int) -> Target:
        rows, at, room = places[chunk]
        return Target(out, rows, at) if room is None else Target(out[room], rows)

    return [
        reader.submit(read, [target(out, chunk) for chunk in read.chunks])
        for group, out in outs.items()
        for read in reader.reads(group, places)
    ]


def cancel_and_wait(futures: Sequence[Future[Any]]) -> None:
    """Drop what has not begun, all of it first, and wait for the rest; faults are of no interest."""
    for future in [future for future in futures if not future.cancel()]:
        future.exception()


class OnWorker:
    """What stays on a Dask worker from task to task.

    The shard indices read so far, the threads, and the loader's arrays as far as this process
    sees them. In the loader's own process it is the loader's own. Each worker has one under a key
    of its own: of one key on several workers, Dask's memory manager drops all copies but one.
    """

    def __init__(self, reader: BlockReader) -> None:
        self.reader = reader
        self.own: SharedArrays | None = None
        self._mapped: MappedArrays | None = None
        self._unseen: tuple[Address, str] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.reader,)

    def close(self) -> None:
        """Stop the threads."""
        self.reader.close()

    def arrays(self, address: Address) -> tuple[Path, Mapping[str, NDArray[Any]]]:
        """Return the loader's arrays, and by which path they are reached.

        Raises
        ------
        NotSharedError
            If they are not seen from here.
        """
        own = self.own
        if own is not None and own.address == address:
            return "in process", own.arrays
        with self._lock:
            if self._unseen is not None and self._unseen[0] == address:
                raise NotSharedError(self._unseen[1])
            if self._mapped is None or self._mapped.address != address:
                self._mapped = None  # unmapped before the larger one is mapped
                try:
                    self._mapped = MappedArrays(address)
                except NotSharedError as error:
                    self._unseen = address, str(error)
                    raise
            return "shared memory", self._mapped.arrays

    def spare_memory(self, limit: int | None) -> None:
        """Keep a large arena from counting towards the bytes at which Dask ends a worker."""
        mapped = self._mapped
        if limit and mapped is not None and mapped.n_bytes > limit / 4:
            mapped.let_go_of_pages()

    def read(
        self,
        block: Block,
        whole: NDArray[np.bool_],
        at: NDArray[np.int64],
        outs: Mapping[str, NDArray[Any]],
    ) -> Counters:
        """Read a block; when this returns or raises, nothing writes any more."""
        futures = submit_reads(self.reader, block, whole, at, outs)
        counters = Counters()
        try:
            for future in futures:
                counters.add(future.result())
        finally:
            cancel_and_wait(futures)
        return counters


def _arrived(reader: BlockReader) -> OnWorker:
    keep_freed_memory()
    return OnWorker(reader)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a task brings back.

    Attributes
    ----------
    worker
        Address of the Dask worker.
    known
        Whether it had what stays on a worker; if not, it read with a copy of its own.
    path
        How the rows come.
    counters
        What reading cost; None where nothing was read, as another task has the ticket.
    pixels
        Group to the wanted rows, where they come by the network.
    reason
        Why they do.
    """

    worker: str
    known: bool
    path: Path
    counters: Counters | None
    pixels: Mapping[str, NDArray[Any]] | None = None
    reason: str = ""


def read_block(
    spare: bytes, key: str, block: Block, place: Place, ticket: Ticket | None
) -> Delivery:
    """Read the wanted rows of some chunks, of every group; the task that a Dask worker runs.

    Parameters
    ----------
    spare
        ``OnWorker``, pickled: to read with on a worker that came later, until the loader has noticed.
    key
        Under which a worker finds what stays with it, its own address aside.
    block, place
        What to read, and where it goes.
    ticket
        Leave to write it there, where the loader has memory to share.
    """
    worker = distributed.get_worker()
    on_worker: Any = worker.data.get(key + worker.address)
    known = on_worker is not None
    if not known:
        on_worker = pickle.loads(spare)
    reason = "the loader has no memory to share"
    if ticket is not None:
        try:
            path, arrays = on_worker.arrays(ticket.address)
            with writing(ticket) as mine:
                counters = on_worker.read(block, place.whole, place.at, arrays) if mine else None
        except NotSharedError as error:
            reason = str(error)
        else:
            on_worker.spare_memory(worker.memory_manager.memory_limit)
            return Delivery(worker.address, known, path, counters)
    pixels = on_worker.reader.empty(len(block.rows))
    whole = np.diff(block.offsets) == on_worker.reader.chunk_rows
    counters = on_worker.read(block, whole, np.arange(len(block.rows)), pixels)
    return Delivery(worker.address, known, "network", counters, pixels, reason)
