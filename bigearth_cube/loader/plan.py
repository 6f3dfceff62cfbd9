"""Which rows in which order: pure functions of selection, seed, epoch and rank.

The order of an epoch is defined on lanes, not on ranks. A lane owns whole chunks and shuffles
them in windows of its own; each batch takes an equal part from every lane, and a rank owns a
run of lanes. So every world size that divides the lanes gives the same global batches, and no
two ranks read the same chunk until the lanes run out of step in the tail.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError

Shuffle = Literal["pool", "none"]
Last = Literal["short", "join", "drop", "pad"]
LANES = 8
PADDING = -1
"""Row of a padded place in a batch."""


@dataclass(frozen=True, slots=True)
class OrderSpec:
    """What fixes the order of every epoch.

    Attributes
    ----------
    batch_size
        Rows of a global batch, over all ranks.
    chunk_rows
        Patches in a chunk of the cube.
    seed
        Of the shuffle.
    shuffle
        ``"pool"``: random chunk order, then rows mixed within a pool of chunks;
        ``"none"``: rows in increasing order.
    pool_chunks
        Chunks mixed with each other, over all lanes.
    last
        What becomes of the rest of an epoch: a shorter batch (``"short"``); the same, but a
        single row joins the batch before (``"join"``, as batch statistics need two);
        left out (``"drop"``); filled up with rows of -1 (``"pad"``).
    lanes
        Parts of each batch; world sizes must divide it.
    """

    batch_size: int
    chunk_rows: int
    seed: int = 0
    shuffle: Shuffle = "pool"
    pool_chunks: int = 32
    last: Last = "short"
    lanes: int = LANES

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InvalidInputError(f"batch_size is {self.batch_size}, expected at least 1")
        if self.pool_chunks < 1:
            raise InvalidInputError(f"pool_chunks is {self.pool_chunks}, expected at least 1")
        if self.shuffle not in get_args(Shuffle):
            raise InvalidInputError(
                f"unknown shuffle {self.shuffle!r}; choose one of: {', '.join(get_args(Shuffle))}"
            )
        if self.last not in get_args(Last):
            raise InvalidInputError(
                f"unknown last {self.last!r}; choose one of: {', '.join(get_args(Last))}"
            )
        # A batch smaller than the lanes cannot take a row from each of them.
        object.__setattr__(self, "lanes", min(self.lanes, self.batch_size))

    def n_batches(self, n_rows: int) -> int:
        """Batches in an epoch over ``n_rows`` rows.

        Examples
        --------
        >>> [OrderSpec(8, 64, last=last).n_batches(17) for last in get_args(Last)]
        [3, 2, 2, 3]
        """
        full, rest = divmod(n_rows, self.batch_size)
        if self.last == "drop" or rest == 0:
            return full
        return full if self.last == "join" and rest == 1 and full else full + 1


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The rows one rank delivers in one epoch.

    Attributes
    ----------
    rows
        int64, in order of delivery; -1 where a batch was padded.
    offsets
        Batch ``i`` is ``rows[offsets[i]:offsets[i + 1]]``.
    """

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @property
    def n_batches(self) -> int:
        """Batches in the epoch."""
        return len(self.offsets) - 1

    def batch(self, index: int) -> NDArray[np.int64]:
        """Return the rows of one batch."""
        return self.rows[self.offsets[index] : self.offsets[index + 1]]


def epoch_order(
    rows: NDArray[np.int64], spec: OrderSpec, epoch: int, *, rank: int = 0, world_size: int = 1
) -> EpochOrder:
    """Order the rows of a selection for one epoch and one rank.

    Parameters
    ----------
    rows
        Selected rows, increasing, each once.
    spec
        What fixes the order.
    epoch
        Number of the epoch, from 0.
    rank, world_size
        Part of every global batch to deliver.

    Raises
    ------
    InvalidInputError
        If the world size does not divide the lanes, or the rank is out of range.
    """
    if world_size < 1 or spec.lanes % world_size:
        fitting = [n for n in range(1, spec.lanes + 1) if spec.lanes % n == 0]
        raise InvalidInputError(
            f"world_size {world_size} does not divide {spec.lanes} lanes; "
            f"choose one of: {', '.join(map(str, fitting))}"
        )
    if not 0 <= rank < world_size:
        raise InvalidInputError(f"rank is {rank}, expected 0..{world_size - 1}")
    ordered, bounds = _global_order(rows, spec, epoch)
    per_rank = spec.lanes // world_size
    starts, stops = bounds[:, rank * per_rank], bounds[:, (rank + 1) * per_rank]
    offsets = np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int64)
    # Positions of this rank's part of every batch, without a loop over batches.
    at = np.repeat(starts - offsets[:-1], stops - starts) + np.arange(offsets[-1])
    return EpochOrder(ordered[at], offsets)


def _global_order(
    rows: NDArray[np.int64], spec: OrderSpec, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of all batches one after another, and where each lane's part of a batch begins.

    Returns
    -------
    tuple
        Rows, and bounds (n_batches, lanes + 1) into them.
    """
    ordered = rows if spec.shuffle == "none" else _shuffled(rows, spec, epoch)
    n_batches = spec.n_batches(len(rows))
    sizes = np.full(n_batches, spec.batch_size, np.int64)
    if spec.last == "drop":
        ordered = ordered[: n_batches * spec.batch_size]
    elif spec.last == "pad":
        missing = n_batches * spec.batch_size - len(rows)
        ordered = np.concatenate([ordered, np.full(missing, PADDING, np.int64)])
    elif n_batches:
        sizes[-1] += len(rows) - n_batches * spec.batch_size
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if n_batches else np.empty(0, np.int64)
    lanes = np.arange(spec.lanes + 1)
    base, extra = sizes[:, None] // spec.lanes, sizes[:, None] % spec.lanes
    return ordered, starts[:, None] + lanes * base + np.minimum(lanes, extra)


def _shuffled(rows: NDArray[np.int64], spec: OrderSpec, epoch: int) -> NDArray[np.int64]:
    if not len(rows):
        return rows
    rng = np.random.default_rng([spec.seed, epoch])
    lanes = [
        _windows(chunks, max(1, spec.pool_chunks // spec.lanes), rng)
        for chunks in _deal(rows, spec, rng)
    ]
    share, extra = divmod(spec.batch_size, spec.lanes)
    quotas = [share + (lane < extra) for lane in range(spec.lanes)]
    n_even = min(len(lane) // quota for lane, quota in zip(lanes, quotas, strict=True))
    even = [
        lane[: n_even * quota].reshape(n_even, quota)
        for lane, quota in zip(lanes, quotas, strict=True)
    ]
    tail = np.concatenate(
        [lane[n_even * quota :] for lane, quota in zip(lanes, quotas, strict=True)]
    )
    return np.concatenate([np.concatenate(even, axis=1).reshape(-1), rng.permutation(tail)])


def _deal(
    rows: NDArray[np.int64], spec: OrderSpec, rng: np.random.Generator
) -> list[list[NDArray[np.int64]]]:
    """Deal chunks in random order, each to the lane with the fewest rows so far."""
    breaks = np.flatnonzero(np.diff(rows // spec.chunk_rows)) + 1
    chunks = np.split(rows, breaks)
    lanes: list[list[NDArray[np.int64]]] = [[] for _ in range(spec.lanes)]
    shortest = [(0, lane) for lane in range(spec.lanes)]
    for index in rng.permutation(len(chunks)):
        n_rows, lane = heapq.heappop(shortest)
        lanes[lane].append(chunks[index])
        heapq.heappush(shortest, (n_rows + len(chunks[index]), lane))
    return lanes


def _windows(
    chunks: list[NDArray[np.int64]], window: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Mix the rows of each run of ``window`` chunks."""
    parts = [
        rng.permutation(np.concatenate(chunks[i : i + window]))
        for i in range(0, len(chunks), window)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Block:
    """Chunks to be read together.

    Attributes
    ----------
    chunks
        Chunk numbers, in the order in which they are first needed.
    first_batch
        Batch that needs the first of them.
    last_batch
        Last batch that needs each of them.
    """

    chunks: tuple[int, ...]
    first_batch: int
    last_batch: tuple[int, ...]


def blocks_of(order: EpochOrder, chunk_rows: int, block_chunks: int, start: int = 0) -> list[Block]:
    """Group the chunks of an epoch into blocks, in the order in which they are needed.

    Parameters
    ----------
    order
        The rank's epoch.
    chunk_rows
        Patches in a chunk.
    block_chunks
        Chunks in a block; the last may have fewer.
    start
        First batch to deliver; chunks that no later batch needs are left out.
    """
    first_row = int(order.offsets[start])
    rows = order.rows[first_row:]
    batch_of = np.repeat(np.arange(start, order.n_batches), np.diff(order.offsets[start:]))
    real = rows != PADDING
    chunks, batch_of = rows[real] // chunk_rows, batch_of[real]
    needed, first_at = np.unique(chunks, return_index=True)
    last_at = len(chunks) - 1 - np.unique(chunks[::-1], return_index=True)[1]
    by_need = np.argsort(first_at, kind="stable")
    blocks = []
    for i in range(0, len(needed), block_chunks):
        part = by_need[i : i + block_chunks]
        blocks.append(
            Block(
                chunks=tuple(int(c) for c in needed[part]),
                first_batch=int(batch_of[first_at[part[0]]]),
                last_batch=tuple(int(b) for b in batch_of[last_at[part]]),
            )
        )
    return blocks
