"""How many reads may be under way: more while answers stay quick, fewer when storage tires."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_Item = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]
MAX_REQUESTS = 64
_FLOOR = 4
"""Slow answers alone never go below: two cores that decode keep a fast origin busy with four."""
_START = 8
_CROWDED, _AT_EASE = 2.0, 1.5
"""Times the quickest answer of that size: above, requests queue somewhere; below, there is room."""
_FADING = 1.0005
"""A factor a round on the quickest answers, so that a way that has become longer is learned."""


class Pace:
    """A bound on reads under way that finds its own height; safe to share between threads.

    A read is under way until it is decoded: what came and cannot be decoded yet is as much work as
    what is still to come.

    It grows by doubling until answers slow down or storage pushes back for the first time, then
    by one each round (additive increase); it shrinks by a fifth where answers take more than
    twice as long as the quickest of their size, and by half where storage says that it is too
    much (multiplicative decrease). It stays as it is while fewer requests are wanted than allowed.

    Parameters
    ----------
    ceiling
        Reads under way at most; at least 1.
    """

    def __init__(self, ceiling: int = MAX_REQUESTS) -> None:
        self.ceiling = ceiling
        self.limit = float(min(_START, ceiling))
        self.in_flight = self.peak = 0
        self._floor = min(_FLOOR, ceiling)
        self._doubling = True
        self._quickest: dict[int, float] = {}
        self._held_back_at = 0.0
        self._begin_round()
        self._lock = threading.Lock()

    def _begin_round(self) -> None:
        self._n_answers, self._slowness, self._was_full = 0, 0.0, False

    def enter(self) -> bool:
        """Count one read more, if there may be one; say whether."""
        with self._lock:
            if self.in_flight >= int(self.limit):
                return False
            self.in_flight += 1
            self._was_full |= self.in_flight >= int(self.limit)
            self.peak = max(self.peak, self.in_flight)
            return True

    def stays(self) -> bool:
        """Whether a read may follow one that is done; if not, the caller leaves."""
        with self._lock:
            if self.in_flight > int(self.limit):
                return False
            self._was_full |= self.in_flight >= int(self.limit)
            return True

    def leave(self) -> None:
        """Count one read less."""
        with self._lock:
            self.in_flight -= 1

    def answered(self, seconds: float, n_bytes: int) -> None:
        """Learn from an answer how long it took."""
        # Answers are compared with those of their size, in powers of two: a chunk of the 10 m
        # bands has seventy times the bytes of one of the 60 m bands.
        size = n_bytes.bit_length()
        with self._lock:
            quickest = self._quickest[size] = min(seconds, self._quickest.get(size, seconds))
            self._n_answers += 1
            self._slowness += seconds / quickest
            if self._n_answers < max(_START, self.limit):
                return
            slowness, was_full = self._slowness / self._n_answers, self._was_full
            self._begin_round()
            self._quickest = {size: s * _FADING for size, s in self._quickest.items()}
            if slowness > _CROWDED:
                self._doubling = False
                self.limit = max(min(self._floor, self.limit), self.limit * 0.8)
            elif slowness < _AT_EASE and was_full:
                grown = self.limit * 2 if self._doubling else self.limit + 1
                self.limit = min(self.ceiling, grown)

    def held_back(self) -> None:
        """Learn that storage refused a request for now, or broke it off."""
        with self._lock:
            self._doubling = False
            now = time.monotonic()
            # Those sent together are refused together: that is one sign, not many.
            if now - self._held_back_at > 0.1:
                self._held_back_at = now
                self.limit = max(1.0, self.limit / 2)
                self._begin_round()


class PacedThreads:
    """Threads for work that begins with a request: no more at once than the pace allows.

    What has to wait is a queued future, not a thread, so it can be canceled. A thread that is done
    goes on with what is next: to wake another costs more than the work of a small chunk.

    Parameters
    ----------
    pace
        The bound.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._queue: deque[_Item] = deque()
        self._is_closed = False
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run ``work(*arguments)`` in its turn; once closed, what comes back is canceled."""
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                future.cancel()
                return future
            self._queue.append((future, work, arguments))
            self._begin_more()
        return future

    def close(self) -> None:
        """Cancel what waits, and wait for what runs."""
        with self._lock:
            self._is_closed = True
            waiting, self._queue = self._queue, deque()
            running = list(self._threads)
        for future, *_ in waiting:
            future.cancel()
        for thread in running:
            thread.join()

    def _begin_more(self) -> None:
        """Begin what waits, each in a thread, as far as the pace allows; holds the lock."""
        while self._queue and not self._is_closed and self.pace.enter():
            item = self._queue.popleft()
            thread = threading.Thread(target=self._run, args=(item,), name="bec-read", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _run(self, item: _Item | None) -> None:
        while item is not None:
            _finish(*item)
            item = self._go_on()

    def _go_on(self) -> _Item | None:
        """Return what is next, or count one thread less."""
        with self._lock:
            if not self._queue or not self.pace.stays():
                self.pace.leave()
                self._threads.discard(threading.current_thread())
                return None
            item = self._queue.popleft()
            self._begin_more()  # there may be room for more than before
            return item


def _finish(future: Future[Any], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work(*arguments)
    except BaseException as error:  # noqa: BLE001  # handed to whoever waits for the future
        future.set_exception(error)
    else:
        future.set_result(result)
