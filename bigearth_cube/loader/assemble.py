"""Assemble the batches of epochs: keep blocks in flight, gather rows, give room back.

Chunks are decoded into one arena a group, and a batch is one gather out of it, so memory is the
arena's size (a pool, and what is read ahead) and that of a few batches, whatever the size of the
archive. Of a chunk that holds few of the wanted rows, only those are kept.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
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
_Gathered = tuple[dict[str, NDArray[Any]], NDArray[np.int64]]
"""Pixels of a batch by group, and its rows."""


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
        if self.has_room(n_slots, n_rows):
            return
        self.n_slots, self.n_rows = max(n_slots, self.n_slots), max(n_rows, self.n_rows)
        self.buffers = {}  # given back before the larger ones are taken
        self.buffers = self._engine.allocate(self.n_slots * self.chunk_rows + self.n_rows)

    def has_room(self, n_slots: int, n_rows: int) -> bool:
        """Whether there is room for so many whole chunks and single rows."""
        return n_slots <= self.n_slots and n_rows <= self.n_rows

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


class _Pass:
    """One epoch on its way through a run.

    Attributes
    ----------
    order, start
        What it delivers, and from which batch on.
    begins
        Number, in the run, of that batch.
    waiting
        Blocks that have not been submitted.
    room
        Slots and single rows that it needs at once.
    """

    def __init__(
        self, order: EpochOrder, spec: OrderSpec, start: int, begins: int, engine: Engine
    ) -> None:
        self.order, self.start, self.begins = order, start, begins
        reading = reading_of(
            order,
            spec.chunk_rows,
            start=start,
            window_rows=spec.window_rows,
            block_rows=engine.block_rows,
        )
        self.waiting = deque(reading.blocks)
        self.room = room_needed(reading.blocks, spec.chunk_rows, ahead_rows=engine.ahead_rows)
        self._source = reading.source
        self._where = np.zeros(1 + sum(len(block.rows) for block in reading.blocks), np.int64)
        self._n_placed = 0

    def number(self, batch: int) -> int:
        """Return which batch of the run a batch of the order is."""
        return batch - self.start + self.begins

    def places(self, block: Block) -> NDArray[np.int64]:
        """Return, to be filled in, the places in the arena of the rows of the next block."""
        begin, self._n_placed = self._n_placed, self._n_placed + len(block.rows)
        return self._where[begin : self._n_placed]

    def places_of(self, index: int) -> NDArray[np.int64]:
        """Return the places in the arena of the rows of a batch."""
        begin, end = (
            self.order.offsets[index : index + 2] - self.order.offsets[self.start]
        ).tolist()
        places: NDArray[np.int64] = self._where[self._source[begin:end]]
        return places


class EpochRun:
    """Epochs one after another: a thread that keeps blocks in flight and batches in a queue.

    Of the next epoch, if there is one to follow, blocks are read as soon as none of the present
    one is left to be read and there is room.
    """

    def __init__(
        self,
        engine: Engine,
        arena: Arena,
        order: EpochOrder,
        spec: OrderSpec,
        start: int,
        counters: Counters,
        *,
        is_followed: bool = False,
    ) -> None:
        self._engine = engine
        self._counters = counters
        self._cost = Counters()
        # The next epoch may need a slot more than this one.
        self._slack_rows = engine.block_rows if is_followed else 0
        self._arena = arena
        self._spec = spec
        self._following: deque[Callable[[], tuple[EpochOrder, int]]] = deque()
        self._coming: _Pass | None = None
        self._fault_of_coming: Exception | None = None
        self._ended = False
        self._lock = threading.Lock()
        self._buffers: list[dict[str, NDArray[Any]]] = []
        self._free_slots: list[int] = []
        self._free_rows: list[int] = []
        # Batch of the run to what it is the last to need.
        self._expiring: dict[int, tuple[list[int], list[int]]] = {}
        self._queue: queue.Queue[Any] = queue.Queue(_PREFETCH_BATCHES)
        self._stopped = threading.Event()
        self._in_flight: deque[tuple[int, list[Future[Counters]]]] = deque()
        first = self._pass(order, start, 0)
        self._make_room(first)
        self._thread = threading.Thread(
            target=self._run, args=(first,), name="bec-assemble", daemon=True
        )
        self._thread.start()

    def next(self) -> _Gathered:
        """Return the next batch of the epoch, or of the one that follows; raise what was raised."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        batch: _Gathered = item[0]
        self._counters.add(item[1])  # of an epoch that is read ahead: with its first batch
        return batch

    def follow(self, order: Callable[[], tuple[EpochOrder, int]]) -> bool:
        """Go on with another epoch behind the present one; False if that has ended already.

        ``order`` makes its order, and says which of its batches is the first to be delivered.
        """
        with self._lock:
            if not self._ended:
                self._following.append(order)
            return not self._ended

    def stop(self) -> None:
        """End the thread; safe to call at any point."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)
            else:
                if not isinstance(item, BaseException):
                    self._counters.add(item[1])
        self._counters.add(self._cost)
        self._cost = Counters()

    def _run(self, first: _Pass) -> None:
        present: _Pass | None = first
        try:
            while present is not None:
                for batch in self._batches(present):
                    cost, self._cost = self._cost, Counters()
                    self._queue.put((batch, cost))
                    if self._stopped.is_set():
                        return
                present = self._after(present)
        except BaseException as error:  # noqa: BLE001  # handed to the caller, who raises it
            self._queue.put(error)
        finally:
            with self._lock:
                self._ended = True
            self._wait_for_all()

    def _batches(self, present: _Pass) -> Iterator[_Gathered]:
        order = present.order
        for index in range(present.start, order.n_batches):
            number = present.number(index)
            self._submit_what_fits(present)
            while self._in_flight and self._in_flight[0][0] <= number:
                self._collect_first()
            rows = order.batch(index)
            buffers = self._buffers[number % len(self._buffers)]
            out = {group: buffer[: len(rows)] for group, buffer in buffers.items()}
            padded = rows == PADDING
            if not padded.all():
                self._arena.gather(present.places_of(index), out)
            if padded.any():
                for pixels in out.values():
                    pixels[padded] = 0
            slots, singles = self._expiring.pop(number, ([], []))
            self._free_slots += slots
            self._free_rows += singles
            yield out, rows

    def _submit_what_fits(self, present: _Pass) -> None:
        if not self._submit(present) or self._fault_of_coming is not None:
            return
        try:
            if self._coming is None:
                self._coming = self._next_pass(present)
            if self._coming is not None and self._arena.has_room(*self._coming.room):
                self._submit(self._coming)
        except Exception as error:  # noqa: BLE001  # raised in the epoch that it is of
            self._fault_of_coming = error

    def _submit(self, one: _Pass) -> bool:
        """Submit blocks while there is room; True when none is left."""
        chunk_rows = self._arena.chunk_rows
        while one.waiting:
            whole = _go_whole(one.waiting[0], chunk_rows)
            sizes = np.diff(one.waiting[0].offsets)
            n_singles = sizes[~whole].sum()
            if len(self._free_slots) < whole.sum() or len(self._free_rows) < n_singles:
                return False
            block = one.waiting.popleft()
            at = one.places(block)
            for i, last in enumerate(block.last_batch.tolist()):
                part = slice(block.offsets[i], block.offsets[i + 1])
                slots, singles = self._expiring.setdefault(one.number(last), ([], []))
                if whole[i]:
                    slots.append(self._free_slots.pop())
                    at[part] = slots[-1] * chunk_rows + block.rows[part] % chunk_rows
                else:
                    taken = self._free_rows[-int(sizes[i]) :]
                    del self._free_rows[-len(taken) :]
                    at[part] = taken
                    singles += taken
            futures = self._engine.submit(block, Place(at, whole), self._stopped)
            self._in_flight.append((one.number(block.first_batch), futures))
        return True

    def _pass(self, order: EpochOrder, start: int, begins: int) -> _Pass:
        return _Pass(order, self._spec, start, begins, self._engine)

    def _next_pass(self, present: _Pass) -> _Pass | None:
        with self._lock:
            if not self._following:
                return None
            order = self._following.popleft()
        return self._pass(*order(), present.number(present.order.n_batches))

    def _after(self, present: _Pass) -> _Pass | None:
        """Return the epoch that follows, with room for it, or None at the end of all."""
        if self._fault_of_coming is not None:
            raise self._fault_of_coming
        coming, self._coming = self._coming or self._next_pass(present), None
        if coming is None:
            with self._lock:
                self._ended = not self._following
            return None if self._ended else self._after(present)
        self._make_room(coming)
        return coming

    def _make_room(self, one: _Pass) -> None:
        largest = int(np.diff(one.order.offsets).max(initial=0))
        if not self._buffers or largest > len(next(iter(self._buffers[0].values()))):
            # One with the caller, one being gathered, the rest in the queue.
            n_buffers = _PREFETCH_BATCHES + 2
            self._buffers = [self._arena.empty_batch(largest) for _ in range(n_buffers)]
        n_slots, n_rows = one.room
        if one.begins and self._arena.has_room(n_slots, n_rows):
            return
        # Nothing is in it: what epochs before have read they have used up.
        self._arena.reserve(
            n_slots + (-(-self._slack_rows // self._arena.chunk_rows) if n_slots else 0),
            n_rows + (self._slack_rows if n_rows else 0),
        )
        n_whole = self._arena.n_slots * self._arena.chunk_rows
        self._free_slots = list(range(self._arena.n_slots))
        self._free_rows = list(range(n_whole, n_whole + self._arena.n_rows))

    def _collect_first(self) -> None:
        _, futures = self._in_flight[0]  # stays there, to be waited for, if one of them fails
        wait(futures, return_when=FIRST_EXCEPTION)  # woken once, not by each
        for future in futures:
            self._cost.add(future.result())
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
    blocks: Sequence[Block], chunk_rows: int, *, ahead_rows: int = 4 * BLOCK_ROWS
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
