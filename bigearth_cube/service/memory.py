"""A memory of bounded size for what costs a read or a second to make."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import numpy as np

_LOCKS = 16
_Made = TypeVar("_Made", bytes, np.ndarray)


class Memory:
    """What was made, by key, the least recently asked forgotten first; safe between threads.

    Parameters
    ----------
    most_bytes
        How much is kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[Hashable, bytes | np.ndarray] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()
        # Those who ask for the same wait for one another, so that it is made once.
        self._making = [threading.Lock() for _ in range(_LOCKS)]

    @property
    def n_bytes(self) -> int:
        """How much is kept now."""
        return self._n_bytes

    def get(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """Return what was made for a key; make it if it is not there any more."""
        kept = self._look(key)
        if kept is None:
            with self._making[hash(key) % _LOCKS]:
                kept = self._look(key)
                if kept is None:
                    kept = make()
                    self._keep(key, kept)
        return kept  # type: ignore[return-value]  # a key is always of one kind

    def _look(self, key: Hashable) -> bytes | np.ndarray | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
            return kept

    def _keep(self, key: Hashable, made: bytes | np.ndarray) -> None:
        with self._lock:
            self._kept[key] = made
            self._n_bytes += _size(made)
            while self._n_bytes > self._most_bytes:
                _, dropped = self._kept.popitem(last=False)
                self._n_bytes -= _size(dropped)


def _size(made: bytes | np.ndarray) -> int:
    return made.nbytes if isinstance(made, np.ndarray) else len(made)
