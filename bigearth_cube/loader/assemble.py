"""Assemble the batches of an epoch: keep blocks in flight, gather rows, give room back.

Chunks are decoded into one arena a group, and a batch is one gather out of it, so memory is the
arena's size (pool, prefetch and one batch), whatever the size of the archive. Of a chunk that
holds few of the wanted rows, only those are kept.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.loader.blocks import Counters
from bigearth_cube.loader.engines import Engine
from bigearth_cube.loader.handover import Place
from bigearth_cube.loader.plan import (
    BLOCK_ROWS,
    PADDING,
    Block,
    EpochOrder,
    OrderSpec,
    reading_of,
)

_PREFETCH_BATCHES = 2


class Arena:
    """Room for decoded rows, one buffer a group, kept from epoch to epoch.

    First come slots that take a chunk whole, then single rows.
    """

    def __init__(self, engine: Engine) -> None:
        self.chunk_rows = engine.reader.chunk_rows
        self._engine = engine
        self.buffers: dict[str, NDArray[Any]] = {}
        self.n_slots = self.n_rows = 0

    def reserve(self, n_slots: int, n_rows: int) -> None:
        """Make room for so many whole chunks and single rows; never less than before."""
        if n_slots <= self.n_slots and n_rows <= self.n_rows:
            return
        self.n_slots, self.n_rows = max(n_slots, self.n_slots), max(n_rows, self.n_rows)
        self.buffers = {}  # given back before the larger ones are taken
        self.buffers = self._engine.allocate(self.n_slots * self.chunk_rows + self.n_rows)

    def forget(self) -> None:
        """Give the buffers up: they are not needed, or something may still write into them."""
        self.buffers = {}
        self.n_slots = self.n_rows = 0

    def empty_batch(self, n_rows: int) -> dict[str, NDArray[Any]]:
        """Return room for so many rows of every group."""
        return self._engine.reader.empty(n_rows)

    def gather(self, at: NDArray[np.int64], out: Mapping[str, NDArray[Any]]) -> None:
        """Copy the rows at some places to a batch."""
        for group, target in out.items():
            # mode="clip" lets numpy write into `out` without a copy; indices are in range.
            np.take(self.buffers[group], at, axis=0, out=target, mode="clip")


class EpochRun:
    """One pass over an epoch: a thread that keeps blocks in flight and batches in a queue."""

    def __init__(
        self,
        engine: Engine,
        arena: Arena,
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
        ahead = engine.blocks_ahead * BLOCK_ROWS
        arena.reserve(*room_needed(self._blocks, spec.chunk_rows, ahead_rows=ahead))
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
                place = Place(at, whole)
                self._in_flight.append((block, self._engine.submit(block, place, self._stopped)))
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
        # Readers still write into the arena; the next epoch must not find them there.
        self._stopped.set()
        if not self._engine.settle([f for _, futures in self._in_flight for f in futures]):
            self._arena.forget()


def _go_whole(block: Block, chunk_rows: int) -> NDArray[np.bool_]:
    """Which chunks are decoded straight into the arena: those of which most rows are wanted."""
    whole: NDArray[np.bool_] = np.diff(block.offsets) * 2 > chunk_rows
    return whole


def room_needed(
    blocks: Sequence[Block], chunk_rows: int, *, ahead_rows: int = 2 * BLOCK_ROWS
) -> tuple[int, int]:
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
        (whole.astype(np.int64), -(-ahead_rows // chunk_rows)),
        (np.where(whole, 0, sizes), ahead_rows),
    ):
        given_back = np.concatenate([[0], np.cumsum(np.bincount(last, weights=held))])
        # What batches before a block's first were the last to need has been given back by then.
        live = np.cumsum(held)[ends - 1] - given_back[first].astype(np.int64)
        room.append(min(int(live.max()) + ahead, int(held.sum())))
    return room[0], room[1]
