"""Assemble batches: plan the epoch, keep blocks in flight, gather rows, resume.

Chunks are decoded into one arena a group, and a batch is one gather out of it, so memory is the
arena's size (pool, prefetch and one batch), whatever the size of the archive. Of a chunk that
holds few of the wanted rows, only those are kept.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self

import distributed
import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError, StorageError
from bigearth_cube.loader.blocks import BlockReader, Counters, PixelSource, Target
from bigearth_cube.loader.plan import (
    BLOCK_ROWS,
    PADDING,
    Block,
    EpochOrder,
    Last,
    OrderSpec,
    Shuffle,
    balanced_weights,
    checked_weights,
    epoch_order,
    reading_of,
    subset_of,
)
from bigearth_cube.search import Selection
from bigearth_cube.storage import refuse_fork
from bigearth_cube.writer import ZARR

S2 = ("s2/r10m", "s2/r20m", "s2/r60m")
_PREFETCH_ROWS = 2 * BLOCK_ROWS
_PREFETCH_BATCHES = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch. Its arrays are reused: copy what must outlive the next batch.

    Attributes
    ----------
    images
        Group to pixels: (B, band, y, x) in the stored dtype, or (B, y, x) for a map.
    labels
        (B, n_classes) uint8, or None where none were asked for.
    rows
        (B,) int64 rows of the cube; -1 where the batch was padded.
    """

    images: Mapping[str, NDArray[Any]]
    labels: NDArray[np.uint8] | None
    rows: NDArray[np.int64]


class BatchLoader:
    """Batches of a selection, straight from storage, in an order that can be repeated.

    Parameters
    ----------
    cube
        Where the patches are.
    selection
        Which patches; every one where it is None.
    batch_size
        Rows of a global batch, over all ranks.
    groups
        Pixel groups to deliver, e.g. ``"s2/r10m"``.
    labels
        ``"label_19"``, ``"label_43"``, or None.
    subset
        Deliver only so many rows of the selection, chosen by the seed, the same in every epoch.
    weights
        Of each selected row, in their order, to be drawn: an epoch then draws as many rows as are
        selected (or in the subset), with replacement. ``"balanced"`` draws rare classes more often
        (``balanced_weights`` of the labels asked for).
    seed, shuffle, pool_chunks, last
        The order; see ``OrderSpec``. Evaluation uses ``shuffle="none"``.
    rank, world_size
        Which part of each global batch to deliver; the world size must divide 8.
    engine
        ``"threads"`` reads in this process; a Dask client reads on its workers, a block a
        task. Order and bytes are the same.
    threads
        Requests in flight in each process that reads.

    Raises
    ------
    InvalidInputError
        If the selection is of another cube or release, or names other patches than its rows
        hold; if it is empty or has rows without the labels asked for; if weights do not fit it; or
        if an argument is out of range.

    Notes
    -----
    One epoch at a time: beginning another ends the one before. Two loaders read two at once.
    """

    def __init__(
        self,
        cube: Cube,
        selection: Selection | None = None,
        *,
        batch_size: int,
        groups: Sequence[str] = S2,
        labels: str | None = "label_19",
        subset: int | None = None,
        weights: ArrayLike | Literal["balanced"] | None = None,
        seed: int = 0,
        shuffle: Shuffle = "pool",
        pool_chunks: int = 32,
        last: Last = "short",
        rank: int = 0,
        world_size: int = 1,
        engine: Literal["threads"] | distributed.Client = "threads",
        threads: int = 8,
    ) -> None:
        selected = self.rows = _selected_rows(cube, selection)
        if subset is not None:
            self.rows = selected[subset_of(len(selected), subset, seed)]
        self.groups = tuple(groups)
        if not self.groups:
            raise InvalidInputError("no groups to deliver; name at least one, e.g. 's2/r10m'")
        self.spec = OrderSpec(
            batch_size=batch_size,
            chunk_rows=cube.layout.chunk_rows,
            seed=seed,
            shuffle=shuffle,
            pool_chunks=pool_chunks,
            last=last,
        )
        self.rank, self.world_size = rank, world_size
        epoch_order(self.rows[:0], self.spec, 0, rank=rank, world_size=world_size)  # refuse early
        self._reading, self._delivery = Counters(), Counters()
        self._digest = selection.digest if selection is not None else cube.release.digest
        self._labels = None if labels is None else cube.labels(labels, self.rows)
        self._chances = None
        if isinstance(weights, str):
            if weights != "balanced" or self._labels is None:
                raise InvalidInputError(
                    f"weights {weights!r} with labels {labels!r}; expected an array, or 'balanced' "
                    f"together with labels"
                )
            self._chances = checked_weights(balanced_weights(self._labels), len(self.rows))
        elif weights is not None:
            values = np.asarray(weights, np.float64)
            if subset is not None and values.shape == selected.shape:
                values = values[np.searchsorted(selected, self.rows)]
            self._chances = checked_weights(values, len(self.rows))
        self._sampling = {
            "subset": subset,
            "weights": None
            if self._chances is None
            else hashlib.sha256(self._chances.tobytes()).hexdigest()[:16],
        }
        sources = {
            group: PixelSource(cube.pixel_layout(group), tuple(cube.filled(group)))
            for group in self.groups
        }
        reader = BlockReader(cube.storage.child(ZARR), sources)
        self._engine = _engine(reader, engine, threads)
        self._arena = _Arena(sources, cube.layout.chunk_rows)
        self._pid = os.getpid()
        self._position = (0, 0)
        self._resume_at: tuple[int, int] | None = None
        self._running: _EpochRun | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def n_batches(self) -> int:
        """Batches in an epoch."""
        return self.spec.n_batches(len(self.rows))

    @property
    def counters(self) -> Counters:
        """What loading has cost so far, over all epochs."""
        total = Counters()
        total.add(self._reading)
        total.add(self._delivery)
        return total

    def order(self, epoch: int) -> EpochOrder:
        """Return the rows this loader delivers in an epoch, without reading any."""
        return epoch_order(
            self.rows,
            self.spec,
            epoch,
            rank=self.rank,
            world_size=self.world_size,
            chances=self._chances,
        )

    def epoch(self, epoch: int, *, first: int = 0, step: int = 1) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Every call begins anew; only after ``load_state`` does the epoch it names begin at the
        batch it names, once.

        Parameters
        ----------
        epoch
            Number of the epoch, from 0.
        first, step
            Deliver batches ``first``, ``first + step``, … alone, for processes that take turns.

        Raises
        ------
        InvalidInputError
            If another epoch of this loader has begun since: both would write to one arena; if
            this process was forked after the loader was made; or if first or step is out of range.
        CubeIntegrityError
            If stored bytes are damaged or missing.
        StorageError
            If storage refuses or cannot be reached.
        """
        refuse_fork(self._pid, "the loader was made")
        if first < 0 or step < 1:
            raise InvalidInputError(f"first {first}, step {step}; expected at least 0 and 1")
        resume_at, self._resume_at = self._resume_at, None
        start = first + (resume_at[1] if resume_at is not None and resume_at[0] == epoch else 0)
        order, skipped = self.order(epoch), start
        if step > 1 or start > order.n_batches:
            order, skipped = order.every(start, step), 0
        if self._running is not None:
            self._running.stop()
        run = _EpochRun(self._engine, self._arena, order, self.spec, skipped, self._reading)
        self._running = run
        self._position = (epoch, start)
        try:
            while True:
                if self._running is not run:
                    raise InvalidInputError(
                        f"another epoch of this loader has begun, so epoch {epoch} cannot go on; "
                        f"make a second loader to read two at once"
                    )
                began = time.perf_counter()
                gathered = run.next()
                self._delivery.wait_s += time.perf_counter() - began
                if gathered is None:
                    break
                images, rows = gathered
                self._position = (epoch, self._position[1] + step)
                self._delivery.patches += len(rows)
                yield Batch(images, self._labels_of(rows), rows)
            self._position = (epoch + 1, 0)
        finally:
            run.stop()
            if self._running is run:
                self._running = None

    def state(self) -> dict[str, Any]:
        """Return what ``load_state`` needs to go on with the batch after the last delivered one."""
        epoch, batch = self._position
        return {
            "epoch": epoch,
            "batch": batch,
            "selection": self._digest,
            **self._sampling,
            **asdict(self.spec),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader stopped, of any engine and world size.

        Raises
        ------
        InvalidInputError
            If that loader had another selection or order, so that its place means nothing here.
        """
        own = self.state()
        for name in own.keys() - {"epoch", "batch"}:
            if state.get(name) != own[name]:
                raise InvalidInputError(
                    f"state was saved with {name} {state.get(name)!r}, this loader has "
                    f"{own[name]!r}; make the loader with the same arguments"
                )
        self._position = self._resume_at = (int(state["epoch"]), int(state["batch"]))

    def close(self) -> None:
        """Stop the threads; a closed loader delivers no more."""
        if self._running is not None:
            self._running.stop()
        self._engine.close()

    def _labels_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        if self._labels is None:
            return None
        labels: NDArray[np.uint8] = self._labels[
            np.searchsorted(self.rows, np.maximum(rows, self.rows[0]))
        ]
        labels[rows == PADDING] = 0
        return labels


def _selected_rows(cube: Cube, selection: Selection | None) -> NDArray[np.int64]:
    if selection is None:
        return cube.rows
    if (selection.cube_id, selection.release) != (cube.id, cube.release.name):
        raise InvalidInputError(
            f"the selection is of cube {selection.cube_id!r}, release {selection.release!r}; "
            f"this is {cube.id!r}, {cube.release.name!r}: open that one, or search again"
        )
    if not len(selection.rows):
        raise InvalidInputError("the selection is empty; widen the query")
    return selection.rows_in(cube.index)


class _Arena:
    """Room for decoded rows, one buffer a group, kept from epoch to epoch.

    First come slots that take a chunk whole, then single rows.
    """

    def __init__(self, sources: Mapping[str, PixelSource], chunk_rows: int) -> None:
        self.chunk_rows = chunk_rows
        self._layouts = {group: source.layout for group, source in sources.items()}
        self.buffers: dict[str, NDArray[Any]] = {}
        self.n_slots = self.n_rows = 0

    def reserve(self, n_slots: int, n_rows: int) -> None:
        if n_slots <= self.n_slots and n_rows <= self.n_rows:
            return
        self.n_slots, self.n_rows = max(n_slots, self.n_slots), max(n_rows, self.n_rows)
        self.buffers = {}  # given back before the larger ones are taken
        self.buffers = self.empty_batch(self.n_slots * self.chunk_rows + self.n_rows)

    def empty_batch(self, n_rows: int) -> dict[str, NDArray[Any]]:
        return {
            group: np.empty((n_rows, *layout.patch_shape), layout.dtype)
            for group, layout in self._layouts.items()
        }

    def gather(self, at: NDArray[np.int64], out: Mapping[str, NDArray[Any]]) -> None:
        for group, target in out.items():
            # mode="clip" lets numpy write into `out` without a copy; indices are in range.
            np.take(self.buffers[group], at, axis=0, out=target, mode="clip")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a block goes: each wanted row's place in the arena, and which chunks go there whole."""

    at: NDArray[np.int64]
    whole: NDArray[np.bool_]


class _Engine(Protocol):
    def submit(self, block: Block, place: _Place, arena: _Arena) -> list[Future[Counters]]: ...
    def close(self) -> None: ...


class _ThreadsEngine:
    """Fetch and decode in threads of this process, straight into the arena."""

    def __init__(self, reader: BlockReader, threads: int) -> None:
        self._reader = reader
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="bec-read")

    def submit(self, block: Block, place: _Place, arena: _Arena) -> list[Future[Counters]]:
        return _submit_reads(
            self._threads, self._reader, block, place.whole, place.at, arena.buffers
        )

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


class _DaskEngine:
    """Fetch and decode on Dask workers, a block a task, then copy into the arena.

    A worker that dies costs the blocks it was reading: the scheduler runs them elsewhere.
    """

    def __init__(self, reader: BlockReader, client: distributed.Client, threads: int) -> None:
        self._client = client
        self._n_threads = threads
        # Stays on each worker, with the shard indices it has read.
        try:
            self._reader = client.scatter(reader, broadcast=True, hash=False)
        except TimeoutError:
            raise StorageError(
                f"the Dask scheduler has no workers, or none that answer: {client!r}; start some"
            ) from None
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="bec-collect")

    def submit(self, block: Block, place: _Place, arena: _Arena) -> list[Future[Counters]]:
        task = self._client.submit(
            read_block, self._reader, block, threads=self._n_threads, pure=False
        )
        return [self._threads.submit(self._collect, task, place, arena)]

    def _collect(self, task: distributed.Future[Any], place: _Place, arena: _Arena) -> Counters:
        pixels: dict[str, NDArray[Any]]
        counters: Counters
        pixels, counters = task.result()
        for group, rows in pixels.items():
            arena.buffers[group][place.at] = rows
        return counters

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._reader.release()


def _submit_reads(
    threads: ThreadPoolExecutor,
    reader: BlockReader,
    block: Block,
    whole: NDArray[np.bool_],
    at: NDArray[np.int64],
    outs: Mapping[str, NDArray[Any]],
) -> list[Future[Counters]]:
    """Read a block: each wanted row to its place in ``outs``, some chunks with all their rows."""
    index = {int(chunk): i for i, chunk in enumerate(block.chunks)}
    futures = []
    for group, source in reader.sources.items():
        out, chunk_rows = outs[group], source.layout.chunk_rows

        def target(chunk: int, out: NDArray[Any] = out, chunk_rows: int = chunk_rows) -> Target:
            i = index[chunk]
            part = slice(block.offsets[i], block.offsets[i + 1])
            rows = block.rows[part] - chunk * chunk_rows
            if not whole[i]:
                return Target(out, at[part], rows)
            first = int(at[part][0] - rows[0])
            return Target(out[first : first + chunk_rows])

        futures += [
            threads.submit(reader.fetch, read, [target(chunk) for chunk in read.chunks])
            for read in reader.reads(group, index)
        ]
    return futures


def _engine(reader: BlockReader, engine: object, threads: int) -> _Engine:
    if threads < 1:
        raise InvalidInputError(f"{threads} threads; expected at least 1")
    if isinstance(engine, distributed.Client):
        return _DaskEngine(reader, engine, threads)
    if engine != "threads":
        raise InvalidInputError(f"unknown engine {engine!r}; expected 'threads' or a Dask client")
    return _ThreadsEngine(reader, threads)


def read_block(
    reader: BlockReader, block: Block, *, threads: int
) -> tuple[dict[str, NDArray[Any]], Counters]:
    r"""Read the wanted rows of some chunks, of every group; the task that a Dask worker runs.

    Returns
    -------
    tuple
        Group to (n_rows, \*patch_shape) in the order of the block, and what it cost.
    """
    pixels: dict[str, NDArray[Any]] = {}
    for group, source in reader.sources.items():
        layout = source.layout
        pixels[group] = np.empty((len(block.rows), *layout.patch_shape), layout.dtype)
    chunk_rows = next(iter(reader.sources.values())).layout.chunk_rows
    whole = np.diff(block.offsets) == chunk_rows
    at = np.arange(len(block.rows))
    counters = Counters()
    with ThreadPoolExecutor(threads) as pool:
        for future in _submit_reads(pool, reader, block, whole, at, pixels):
            counters.add(future.result())
    return pixels, counters


class _EpochRun:
    """One pass over an epoch: a thread that keeps blocks in flight and batches in a queue."""

    def __init__(
        self,
        engine: _Engine,
        arena: _Arena,
        order: EpochOrder,
        spec: OrderSpec,
        start: int,
        counters: Counters,
    ) -> None:
        self._engine = engine
        self._counters = counters
        self._arena = arena
        self._order = order
        self._start = start
        reading = reading_of(order, spec.chunk_rows, start=start, window_rows=spec.window_rows)
        self._blocks, self._source = reading.blocks, reading.source
        arena.reserve(*_room_needed(self._blocks, spec.chunk_rows))
        largest = int(np.diff(order.offsets).max(initial=0))
        # One with the caller, one being gathered, the rest in the queue.
        self._buffers = [arena.empty_batch(largest) for _ in range(_PREFETCH_BATCHES + 2)]
        self._queue: queue.Queue[Any] = queue.Queue(_PREFETCH_BATCHES)
        self._stopped = threading.Event()
        self._in_flight: deque[tuple[Block, list[Future[Counters]]]] = deque()
        self._thread = threading.Thread(target=self._run, name="bec-assemble", daemon=True)
        self._thread.start()

    def next(self) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]] | None:
        """Return the next batch, or None at the end; raise what the threads raised."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item  # type: ignore[no-any-return]

    def stop(self) -> None:
        """End the thread; safe to call at any point."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _run(self) -> None:
        try:
            for item in self._batches():
                self._queue.put(item)
                if self._stopped.is_set():
                    return
            self._queue.put(None)
        except BaseException as error:  # noqa: BLE001  # handed to the caller, who raises it
            self._queue.put(error)
        finally:
            self._wait_for_all()

    def _batches(self) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.int64]]]:
        arena, chunk_rows = self._arena, self._arena.chunk_rows
        free_slots = list(range(arena.n_slots))
        free_rows = list(
            range(arena.n_slots * chunk_rows, arena.n_slots * chunk_rows + arena.n_rows)
        )
        where = np.zeros(1 + sum(len(block.rows) for block in self._blocks), np.int64)
        waiting = deque(self._blocks)
        n_placed = 0
        # Batch to what it is the last to need.
        expiring: dict[int, tuple[list[int], list[int]]] = {}
        first_row = int(self._order.offsets[self._start])
        for index in range(self._start, self._order.n_batches):
            while waiting:
                whole = _go_whole(waiting[0], chunk_rows)
                sizes = np.diff(waiting[0].offsets)
                if len(free_slots) < whole.sum() or len(free_rows) < sizes[~whole].sum():
                    break
                block = waiting.popleft()
                at = where[n_placed : n_placed + len(block.rows)]
                n_placed += len(block.rows)
                for i, last in enumerate(block.last_batch.tolist()):
                    part = slice(block.offsets[i], block.offsets[i + 1])
                    slots, singles = expiring.setdefault(last, ([], []))
                    if whole[i]:
                        slots.append(free_slots.pop())
                        at[part] = slots[-1] * chunk_rows + block.rows[part] % chunk_rows
                    else:
                        taken = free_rows[-int(sizes[i]) :]
                        del free_rows[-len(taken) :]
                        at[part] = taken
                        singles += taken
                place = _Place(at, whole)
                self._in_flight.append((block, self._engine.submit(block, place, arena)))
            while self._in_flight and self._in_flight[0][0].first_batch <= index:
                self._collect_first()
            rows = self._order.batch(index)
            out = {g: b[: len(rows)] for g, b in self._buffers[index % len(self._buffers)].items()}
            begin = int(self._order.offsets[index]) - first_row
            arena.gather(where[self._source[begin : begin + len(rows)]], out)
            padded = rows == PADDING
            if padded.any():
                for pixels in out.values():
                    pixels[padded] = 0
            slots, singles = expiring.pop(index, ([], []))
            free_slots += slots
            free_rows += singles
            yield out, rows

    def _collect_first(self) -> None:
        _, futures = self._in_flight[0]  # stays there, to be waited for, if one of them fails
        for future in futures:
            self._counters.add(future.result())
        self._in_flight.popleft()

    def _wait_for_all(self) -> None:
        # Threads still write into the arena; the next epoch must not find them there.
        for _, futures in self._in_flight:
            for future in futures:
                if not future.cancel():
                    future.exception()


def _go_whole(block: Block, chunk_rows: int) -> NDArray[np.bool_]:
    """Which chunks are decoded straight into the arena: those of which most rows are wanted."""
    whole: NDArray[np.bool_] = np.diff(block.offsets) * 2 > chunk_rows
    return whole


def _room_needed(blocks: Sequence[Block], chunk_rows: int) -> tuple[int, int]:
    """Slots and single rows that must be held at once, plus what is fetched ahead."""
    if not blocks:
        return 0, 0
    whole = np.concatenate([_go_whole(block, chunk_rows) for block in blocks])
    sizes = np.concatenate([np.diff(block.offsets) for block in blocks])
    last = np.concatenate([block.last_batch for block in blocks])
    first = np.array([block.first_batch for block in blocks])
    ends = np.cumsum([len(block.chunks) for block in blocks])
    room = []
    for held, ahead in (
        (whole.astype(np.int64), -(-_PREFETCH_ROWS // chunk_rows)),
        (np.where(whole, 0, sizes), _PREFETCH_ROWS),
    ):
        given_back = np.concatenate([[0], np.cumsum(np.bincount(last, weights=held))])
        # What batches before a block's first were the last to need has been given back by then.
        live = np.cumsum(held)[ends - 1] - given_back[first].astype(np.int64)
        room.append(min(int(live.max()) + ahead, int(held.sum())))
    return room[0], room[1]
