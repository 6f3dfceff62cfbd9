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
from numpy.typing import ArrayLike, NDArray

from bigearth_cube.errors import InvalidInputError

Shuffle = Literal["pool", "exact", "none"]
Last = Literal["short", "join", "drop", "pad"]
LANES = 8
PADDING = -1
"""Row of a padded place in a batch."""
# Streams of a seed beside [seed, epoch], which shuffles.
_SUBSET, _DRAW = 1, 2
BLOCK_ROWS = 512
"""Wanted rows a task: below that Dask's 1.3-2.4 ms a task begin to count."""
BLOCK_CHUNKS = 64
"""Chunks a task at most, where few rows of each are wanted."""


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
        ``"pool"``: random chunk order, then rows mixed within a pool of chunks, each chunk read
        once; ``"exact"``: every permutation of the rows is as likely as any other; ``"none"``:
        rows in increasing order. The price of an exact shuffle: a chunk is read again for
        nearly every row wanted of it, up to ``chunk_rows`` times an epoch, by any rank.
    pool_chunks
        Chunks mixed with each other, over all lanes. For an exact shuffle, how many rows are
        read together, in chunks: a chunk that holds several of them is read once for them.
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

    @property
    def window_rows(self) -> int | None:
        """Rows of the order read together, or None where the order itself keeps chunks together."""
        return self.pool_chunks * self.chunk_rows if self.shuffle == "exact" else None

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

    def batch_sizes(self, n_rows: int) -> NDArray[np.int64]:
        """Rows of each global batch of an epoch over ``n_rows`` rows.

        Examples
        --------
        >>> [OrderSpec(8, 64, last=last).batch_sizes(17).tolist() for last in get_args(Last)]
        [[8, 8, 1], [8, 9], [8, 8], [8, 8, 8]]
        """
        sizes = np.full(self.n_batches(n_rows), self.batch_size, np.int64)
        if len(sizes) and self.last in ("short", "join"):
            sizes[-1] += n_rows - len(sizes) * self.batch_size
        return sizes


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

    def every(self, first: int, step: int) -> EpochOrder:
        """Return the order of batches ``first``, ``first + step``, … alone."""
        parts = [self.batch(index) for index in range(first, self.n_batches, step)]
        offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return EpochOrder(np.concatenate([np.empty(0, np.int64), *parts]), offsets)


def subset_of(n_rows: int, subset: int, seed: int) -> NDArray[np.int64]:
    """Choose which rows of a selection stay, the same in every epoch: increasing indices into it.

    Raises
    ------
    InvalidInputError
        If the subset is empty or larger than the selection.
    """
    if not 1 <= subset <= n_rows:
        raise InvalidInputError(f"subset is {subset}, expected 1..{n_rows} rows of the selection")
    # The seed's own stream: that of [seed, epoch] shuffles.
    return np.sort(np.random.default_rng([seed, _SUBSET, 0]).choice(n_rows, subset, replace=False))


def checked_weights(weights: ArrayLike, n_rows: int) -> NDArray[np.float64]:
    """Return the chance of each row of a selection to be drawn; they add up to 1.

    Raises
    ------
    InvalidInputError
        If there is not one weight for each row, one is negative or not finite, or all are 0.
    """
    values = np.asarray(weights, np.float64)
    if values.shape != (n_rows,):
        raise InvalidInputError(
            f"weights have shape {values.shape}, expected one for each of {n_rows} selected rows"
        )
    if not np.isfinite(values).all() or (values < 0).any():
        raise InvalidInputError("a weight is negative or not finite; expected 0 or more")
    if not values.any():
        raise InvalidInputError("every weight is 0; nothing could be drawn")
    values = values / values.max()  # a sum of large ones would not be finite
    chances: NDArray[np.float64] = values / values.sum()
    return chances


def balanced_weights(labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Weigh rows so that rare classes are drawn as often as a row of many classes allows.

    Parameters
    ----------
    labels
        (n_rows, n_classes), 0 or 1.

    Returns
    -------
    ndarray
        For each row the mean over its classes of one over the rows that have the class; 0 for a
        row of no class.

    Examples
    --------
    >>> balanced_weights(np.array([[1, 0], [1, 0], [0, 1], [1, 1]], np.uint8)).round(2).tolist()
    [0.33, 0.33, 0.5, 0.42]
    """
    rarity = 1 / np.maximum(labels.sum(axis=0, dtype=np.float64), 1)
    weights: NDArray[np.float64] = labels @ rarity / np.maximum(labels.sum(axis=1), 1)
    return weights


def epoch_order(
    rows: NDArray[np.int64],
    spec: OrderSpec,
    epoch: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    chances: NDArray[np.float64] | None = None,
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
    chances
        Of each row to be drawn, from ``checked_weights``. As many rows as are selected are drawn
        anew each epoch, with replacement, and then shuffled like any others.

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
    if chances is not None and len(rows):
        drawn = np.random.default_rng([spec.seed, _DRAW, epoch]).choice(
            len(rows), len(rows), p=chances
        )
        rows = rows[np.sort(drawn)]
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
    ordered = rows
    if spec.shuffle == "pool":
        ordered = _shuffled(rows, spec, epoch)
    elif spec.shuffle == "exact":
        ordered = rows[np.random.default_rng([spec.seed, epoch]).permutation(len(rows))]
    sizes = spec.batch_sizes(len(rows))
    n_batches = len(sizes)
    if spec.last == "drop":
        ordered = ordered[: n_batches * spec.batch_size]
    elif spec.last == "pad":
        missing = n_batches * spec.batch_size - len(rows)
        ordered = np.concatenate([ordered, np.full(missing, PADDING, np.int64)])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if n_batches else np.empty(0, np.int64)
    return ordered, starts[:, None] + lane_bounds(sizes, spec.lanes)


def lane_bounds(sizes: NDArray[np.int64], lanes: int) -> NDArray[np.int64]:
    """Where each lane's part begins in batches of these sizes, and the end: (n_batches, lanes + 1).

    Examples
    --------
    >>> lane_bounds(np.array([10]), 4).tolist()
    [[0, 3, 6, 8, 10]]
    """
    lane = np.arange(lanes + 1)
    base, extra = sizes[:, None] // lanes, sizes[:, None] % lanes
    bounds: NDArray[np.int64] = lane * base + np.minimum(lane, extra)
    return bounds


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
    """Chunks to be read together, and the rows wanted of them.

    Attributes
    ----------
    chunks
        Chunk numbers, in the order in which they are first needed; each once.
    offsets
        The wanted rows of chunk ``i`` are ``rows[offsets[i]:offsets[i + 1]]``.
    rows
        Wanted rows, increasing within a chunk; each once.
    first_batch
        Batch that needs the first of them.
    last_batch
        Last batch that needs each chunk.
    """

    chunks: NDArray[np.int64]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    first_batch: int
    last_batch: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read for an epoch, and where each delivered row is found in it.

    Attributes
    ----------
    blocks
        In the order in which they are needed.
    source
        For each row of the order from the first batch on, its place among the rows of all blocks
        one after another; 0 where a batch was padded.
    """

    blocks: list[Block]
    source: NDArray[np.int64]


def reading_of(
    order: EpochOrder,
    chunk_rows: int,
    *,
    start: int = 0,
    window_rows: int | None = None,
    block_rows: int = BLOCK_ROWS,
    block_chunks: int = BLOCK_CHUNKS,
) -> Reading:
    """Group what an epoch needs into blocks, in the order in which it is needed.

    Parameters
    ----------
    order
        The rank's epoch.
    chunk_rows
        Patches in a chunk.
    start
        First batch to deliver; what no later batch needs is left out.
    window_rows
        Rows of the order that may wait for each other: a chunk is read once for each run of that
        many rows which needs it. None reads every chunk once, however long it is kept.
    block_rows, block_chunks
        Wanted rows and chunks in a block, at most; a chunk is never split.
    """
    first_row = int(order.offsets[start])
    sizes = np.diff(order.offsets[start:])
    batch_of = np.repeat(np.arange(start, order.n_batches, dtype=np.int32), sizes)
    real = np.flatnonzero(order.rows[first_row:] != PADDING)
    source = np.zeros(len(order.rows) - first_row, np.int64)
    if not len(real):
        return Reading([], source)
    key = order.rows[first_row:][real]
    if len(real) < len(source):
        batch_of = batch_of[real]
    stride = (int(key.max()) // chunk_rows + 1) * chunk_rows
    if window_rows is not None:
        # Whole batches: a window that ended within one would read its chunks twice for it.
        per_window = max(1, window_rows // max(1, int(sizes.max())))
        key += (batch_of.astype(np.int64) - start) // per_window * stride
    # One sort instead of np.unique: memory of a plan is the only one that grows with the rows.
    by_key = np.argsort(key, kind="stable")
    key = key[by_key]
    begins = np.flatnonzero(np.diff(key, prepend=-1))
    wanted, first_at = key[begins], by_key[begins]
    last_at = by_key[np.append(begins[1:], len(key)) - 1]
    del key
    visit_start = np.flatnonzero(np.diff(wanted // chunk_rows, prepend=-1))
    visit_size = np.diff(visit_start, append=len(wanted))
    by_need = np.argsort(np.minimum.reduceat(first_at, visit_start), kind="stable")
    ends = np.cumsum(visit_size[by_need])
    # Rows of all visits one after another, in the order in which the visits are needed.
    taken = np.repeat(visit_start[by_need] - ends + visit_size[by_need], visit_size[by_need])
    taken += np.arange(len(wanted))
    place = np.empty(len(wanted), np.int64)
    place[taken] = np.arange(len(wanted))
    source[real[by_key]] = np.repeat(place, np.diff(begins, append=len(by_key)))
    wanted_rows = wanted[taken] % stride
    window_of = (wanted[visit_start] // stride)[by_need]
    del by_key, begins, place, taken, wanted, real
    visit_first = batch_of[np.minimum.reduceat(first_at, visit_start)][by_need]
    visit_last = batch_of[np.maximum.reduceat(last_at, visit_start)][by_need].astype(np.int64)
    blocks, visit = [], 0
    offsets = np.concatenate([[0], ends])
    while visit < len(by_need):
        fitting = int(np.searchsorted(offsets, offsets[visit] + block_rows, side="right")) - 1
        # A window at a time: two of them may want the same chunk, and a block reads it once.
        of_window = int(np.searchsorted(window_of, window_of[visit], side="right"))
        stop = max(visit + 1, min(fitting, visit + block_chunks, of_window))
        block = wanted_rows[offsets[visit] : offsets[stop]]
        at = offsets[visit : stop + 1] - offsets[visit]
        blocks.append(
            Block(
                chunks=block[at[:-1]] // chunk_rows,
                offsets=at,
                rows=block,
                first_batch=int(visit_first[visit]),
                last_batch=visit_last[visit:stop],
            )
        )
        visit = stop
    return Reading(blocks, source)
