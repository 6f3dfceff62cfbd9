"""One writer at a time: the lock of a cube."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.storage import Storage

logger = logging.getLogger(__name__)

LOCK = "ingest/lock.json"


@contextmanager
def lock(storage: Storage, *, break_lock: bool = False) -> Iterator[None]:
    """Hold the cube: two writers at once would write the same rows and publish over each other.

    A lock whose process was on this host and is gone is taken over.

    Raises
    ------
    InvalidInputError
        If another writer holds the cube.
    StorageError
        If storage refuses or cannot be reached.
    """
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    data = json.dumps(owner).encode()
    if not storage.write_new(LOCK, data):
        held = json.loads(storage.read(LOCK))
        dead = held["host"] == owner["host"] and not _is_alive(held["pid"])
        if not (dead or break_lock):
            raise InvalidInputError(
                f"the cube is being written by process {held['pid']} on {held['host']} since "
                f"{held['since']}; wait for it, or pass --break-lock if it is dead"
            )
        logger.warning("taking the cube over from process %s on %s", held["pid"], held["host"])
        storage.delete(LOCK)
        if not storage.write_new(LOCK, data):
            raise InvalidInputError("another run has just taken the cube over; wait for it")
    try:
        yield
    finally:
        storage.delete(LOCK)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
