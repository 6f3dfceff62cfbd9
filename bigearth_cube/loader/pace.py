"""How many requests may be under way: more while answers stay quick, fewer when storage tires."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

MAX_REQUESTS = 64
_FLOOR = 4
"""Slow answers alone never go below: two cores that decode keep a fast origin busy with four."""
_START = 8
_CROWDED, _AT_EASE = 2.0, 1.5
"""Times the quickest answer of that size: above, requests queue somewhere; below, there is room."""
_FADING = 1.0005
"""A factor a round on the quickest answers, so that a way that has become longer is learned."""


class Pace:
    """A bound on requests in flight that finds its own height; safe to share between threads.

    It grows by doubling until answers slow down or storage pushes back for the first time, then
    by one each round (additive increase); it shrinks by a fifth where answers take more than
    twice as long as the quickest of their size, and by half where storage says that it is too
    much (multiplicative decrease). It stays as it is while fewer requests are wanted than allowed.

    Parameters
    ----------
    ceiling
        Requests in flight at most; at least 1.
    """

    def __init__(self, ceiling: int = MAX_REQUESTS) -> None:
        self.ceiling = ceiling
        self.limit = float(min(_START, ceiling))
        self.in_flight = self.peak = 0
        self._floor = min(_FLOOR, ceiling)
        self._doubling = True
        self._quickest: dict[int, float] = {}
        self._waiting = 0
        self._held_back_at = 0.0
        self._begin_round()
        self._changed = threading.Condition()

    def _begin_round(self) -> None:
        self._n_answers, self._slowness, self._was_full = 0, 0.0, False

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait until another request may be sent, and count it until it is left."""
        with self._changed:
            self._waiting += 1
            while self.in_flight >= int(self.limit):
                self._changed.wait()
            self._waiting -= 1
            self.in_flight += 1
            self._was_full |= self.in_flight >= int(self.limit)
            self.peak = max(self.peak, self.in_flight)
        try:
            yield
        finally:
            with self._changed:
                self.in_flight -= 1
                self._changed.notify()

    def answered(self, seconds: float, n_bytes: int) -> None:
        """Learn from an answer how long it took."""
        # Answers are compared with those of their size, in powers of two: a chunk of the 10 m
        # bands has seventy times the bytes of one of the 60 m bands.
        size = n_bytes.bit_length()
        with self._changed:
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
                self.limit = max(self._floor, self.limit * 0.8)
            elif slowness < _AT_EASE and was_full:
                grown = self.limit * 2 if self._doubling else self.limit + 1
                self.limit = min(self.ceiling, grown)
                self._changed.notify(self._waiting)

    def held_back(self) -> None:
        """Learn that storage refused a request for now, or broke it off."""
        with self._changed:
            self._doubling = False
            now = time.monotonic()
            # Those sent together are refused together: that is one sign, not many.
            if now - self._held_back_at > 0.1:
                self._held_back_at = now
                self.limit = max(1.0, self.limit / 2)
                self._begin_round()
