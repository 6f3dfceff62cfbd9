"""One writer at a time: the lock of a cube, and its heartbeat.

The lock is an object that only one run can create. Its owner puts it again every 15 s with the
time; a lock without a heartbeat for a minute belongs to nobody. Whoever holds it asks once more
before it publishes: a run that slept through a takeover must not publish over the other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from bigearth_cube.errors import InvalidInputError, NotFoundError, StorageError
from bigearth_cube.storage import Storage

logger = logging.getLogger(__name__)

LOCK = "ingest/lock.json"
HEARTBEAT_S = 15.0
STALE_S = 60.0
"""Three heartbeats may fail before a lock is taken over; clocks of hosts agree within seconds."""


def utc_now() -> datetime:
    """Return the time, UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose lock it is, as the lock says.

    Attributes
    ----------
    host, pid
        Where the run is.
    since, heartbeat
        When it took the cube, and when it last said that it lives; ISO 8601 with zone.
    token
        Drawn at random, so that no two runs are taken for one.
    """

    host: str
    pid: int
    since: str
    heartbeat: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def is_dead(self, now: datetime) -> bool:
        """Whether it ran on this host and is gone, or has been silent for a minute anywhere."""
        silent_s = (now - datetime.fromisoformat(self.heartbeat)).total_seconds()
        return silent_s > STALE_S or (self.host == socket.gethostname() and not _is_alive(self.pid))


class HeldLock:
    """The lock of a cube while this run has it; made by ``lock``."""

    def __init__(self, storage: Storage, owner: Owner, now: Callable[[], datetime]) -> None:
        self._storage = storage
        self._owner = owner
        self._now = now
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="cube-heartbeat", daemon=True)

    def check(self) -> None:
        """Return if the cube is still held, as far as the last heartbeat knows.

        Raises
        ------
        InvalidInputError
            If another run has taken it over, or the lock is gone.
        """
        if self._lost is not None:
            raise InvalidInputError(
                f"this run has lost the cube: {self._lost}; it stops and publishes nothing, run "
                f"the same command again when the cube is free"
            )

    def confirm(self) -> None:
        """Ask storage whether the cube is still held: to be done before publishing.

        Raises
        ------
        InvalidInputError
            If another run has taken it over, or the lock is gone.
        StorageError
            If storage refuses or cannot be reached.
        """
        self._look()
        self.check()

    def _look(self) -> bool:
        try:
            found = _owner_of(self._storage)
        except NotFoundError:
            self._lost = f"its lock {LOCK} was removed"
        else:
            if found is None or found.token != self._owner.token:
                self._lost = f"{found or 'another run'} has broken its lock"
        return self._lost is None

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                if not self._look():
                    return
                # Whoever takes over in this very moment is overwritten, and is then the one that
                # finds it has lost the cube: there is one owner either way.
                alive = replace(self._owner, heartbeat=_text(self._now()))
                self._storage.write(LOCK, _to_bytes(alive))
            except StorageError as error:  # the next one may get through
                logger.warning("the heartbeat of the cube's lock failed: %s", error)

    def _begin(self) -> None:
        self._thread.start()

    def _end(self) -> None:
        """Give the lock back, unless it is another's by now."""
        self._ended.set()
        # A heartbeat under way would put back the lock that is deleted here.
        self._thread.join()
        if self._look():
            self._storage.delete(LOCK)


@contextmanager
def lock(
    storage: Storage, *, break_lock: bool = False, now: Callable[[], datetime] = utc_now
) -> Iterator[HeldLock]:
    """Hold the cube: two writers at once would write the same rows and publish over each other.

    The lock of a run that is dead is taken over: at once if it was on this host, after a minute
    without heartbeat if it was elsewhere.

    Parameters
    ----------
    storage
        The cube's prefix.
    break_lock
        Take it over from a run that lives. That run stops before it publishes.
    now
        Says the time.

    Raises
    ------
    InvalidInputError
        If another writer holds the cube.
    StorageError
        If storage refuses or cannot be reached.
    """
    began = _text(now())
    owner = Owner(socket.gethostname(), os.getpid(), began, began, secrets.token_hex(8))
    if not storage.write_new(LOCK, _to_bytes(owner)):
        _take_over(storage, owner, now(), break_lock=break_lock)
    held = HeldLock(storage, owner, now)
    held._begin()
    try:
        yield held
    finally:
        held._end()


def _take_over(storage: Storage, owner: Owner, now: datetime, *, break_lock: bool) -> None:
    # Where there is none any more, its owner has just ended.
    with contextlib.suppress(NotFoundError):
        first = _owner_of(storage)
        if not (break_lock or (first is not None and first.is_dead(now))):
            whose = "by a run that its lock does not name" if first is None else f"by {first}"
            heard = "" if first is None else f", last heard of at {first.heartbeat}"
            raise InvalidInputError(
                f"the cube is being written {whose}{heard}; wait for it, or pass --break-lock if "
                f"it is dead"
            )
        logger.warning("taking the cube over from %s", first or "a run that its lock does not name")
        storage.delete(LOCK)
    if not storage.write_new(LOCK, _to_bytes(owner)):
        raise InvalidInputError("another run has just taken the cube over; wait for it")


def _owner_of(storage: Storage) -> Owner | None:
    """Read whose lock it is; None where it does not say."""
    data = storage.read(LOCK)
    try:
        owner = Owner(**json.loads(data))
        has_zone = datetime.fromisoformat(owner.heartbeat).tzinfo is not None
        return owner if has_zone and isinstance(owner.pid, int) else None
    except (ValueError, TypeError):
        return None


def _to_bytes(owner: Owner) -> bytes:
    return json.dumps(asdict(owner)).encode()


def _text(when: datetime) -> str:
    return when.isoformat(timespec="seconds")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
