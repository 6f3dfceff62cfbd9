"""Arrays of a reader that other processes of its host decode into.

They lie in an anonymous file (memfd) that others open through ``/proc``. It has no name in a file
system, so nothing is left behind however a process ends; its room is that of the memory, not
that of ``/dev/shm`` (64 MB in a container by default); and no resource tracker takes it away when
a worker exits. What ``/proc`` tells of it carries a nonce, so that a process of another host, or
of a container that numbers its processes on its own, finds that it cannot see it.

Who may write is settled by locks of the kernel, one a ticket: a writer holds its ticket while it
writes, and the reader takes the ticket for good before it uses the room for anything else. The
kernel drops the lock of a process that dies; one that only seems dead (stopped, cut off from the
scheduler) never writes into room that was given away.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

if sys.platform == "linux":
    import fcntl

_ALIGNMENT = mmap.PAGESIZE
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid


class NotSharedError(Exception):
    """Those arrays cannot be written from here; the message says why."""


@dataclass(frozen=True, slots=True)
class Address:
    r"""Where other processes of the host find a reader's arrays.

    Attributes
    ----------
    pid, descriptor
        The reader's process, and the number under which it holds the file.
    name
        What the file is called there, a nonce included.
    shapes
        Name, dtype and shape of each array, in the order in which they lie.
    """

    pid: int
    descriptor: int
    name: str
    shapes: tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave to write one block."""

    address: Address
    number: int


class SharedArrays:
    r"""Arrays that processes of this host may write into, with a ticket.

    Parameters
    ----------
    shapes
        Name to dtype and shape.

    Raises
    ------
    NotSharedError
        If this system has no such memory, or no locks on it.
    """

    def __init__(self, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        if sys.platform != "linux":
            raise NotSharedError(f"shared memory is used on Linux only, this is {sys.platform}")
        label = f"bec-{os.getpid()}-{uuid.uuid4().hex}"
        try:
            self._fd = os.memfd_create(label, os.MFD_CLOEXEC)
        except OSError as error:
            raise NotSharedError(f"the system gives no shared memory: {error}") from None
        specs = tuple((name, dtype, shape) for name, (dtype, shape) in shapes.items())
        self.address = Address(os.getpid(), self._fd, f"/memfd:{label} (deleted)", specs)
        self._issued = 0
        try:
            os.ftruncate(self._fd, _offsets(self.address)[-1])
            _, self.arrays = _map(self._fd, self.address)
            self._try_out()
        except (OSError, NotSharedError) as error:
            os.close(self._fd)
            raise NotSharedError(f"shared memory does not work here: {error}") from None

    def issue(self) -> Ticket:
        """Give leave to write once more."""
        self._issued += 1
        return Ticket(self.address, self._issued)

    def revoke(self, ticket: Ticket) -> bool:
        """Take leave back for good; False while somebody is writing with it."""
        # Neighboring locks of one holder are one lock to the kernel, so these cost nothing.
        return _lock(self._fd, ticket.number)

    def close(self) -> None:
        """Let go; the memory is free when writers, if any are left, let go too."""
        self.arrays = {}
        os.close(self._fd)

    def _try_out(self) -> None:
        ticket = Ticket(self.address, 0)
        with writing(ticket) as mine:
            works = mine and not self.revoke(ticket)
        works = works and self.revoke(ticket)
        with writing(ticket) as mine:
            works = works and not mine
        if not works:
            raise NotSharedError("its locks do not keep writers out")


class MappedArrays:
    """A reader's arrays, mapped into this process.

    Raises
    ------
    NotSharedError
        If this process does not see that reader, or may not write into its memory.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        fd = _open(address)
        try:
            self._memory, self.arrays = _map(fd, address)
        except (OSError, ValueError) as error:
            raise NotSharedError(
                f"the memory of process {address.pid} cannot be mapped: {error}"
            ) from None
        finally:
            os.close(fd)

    @property
    def n_bytes(self) -> int:
        """What is mapped."""
        return len(self._memory)

    def let_go_of_pages(self) -> None:
        """Take the pages off what counts as this process's memory; what they hold stays."""
        self._memory.madvise(mmap.MADV_DONTNEED)


@contextmanager
def writing(ticket: Ticket) -> Iterator[bool]:
    """Hold a ticket while the body writes; yields False if another has it, or it was revoked.

    All writing must have ended when the body does.

    Raises
    ------
    NotSharedError
        If the reader has let go of its memory, or this process does not see it.
    """
    # A description of its own: locks are held by descriptions, and two threads may have a ticket.
    fd = _open(ticket.address)
    try:
        yield _lock(fd, ticket.number)
    finally:
        os.close(fd)


def _open(address: Address) -> int:
    path = f"/proc/{address.pid}/fd/{address.descriptor}"
    try:
        # Looked at before it is opened: that number may be anything in another container.
        if os.readlink(path) != address.name:
            raise NotSharedError(f"process {address.pid} here is another one, or has let go")
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NotSharedError(
            f"process {address.pid} is not seen from here ({error.strerror})"
        ) from None
    if os.readlink(f"/proc/self/fd/{fd}") != address.name:
        os.close(fd)
        raise NotSharedError(f"process {address.pid} has let go")
    return fd


def _lock(fd: int, number: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _offsets(address: Address) -> list[int]:
    """Where each array begins, and where the last one ends."""
    offsets = [0]
    for _, dtype, shape in address.shapes:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    return offsets


def _map(fd: int, address: Address) -> tuple[mmap.mmap, dict[str, NDArray[Any]]]:
    offsets = _offsets(address)
    memory = mmap.mmap(fd, offsets[-1])
    arrays = {
        name: np.frombuffer(memory, dtype, math.prod(shape), offset).reshape(shape)
        for (name, dtype, shape), offset in zip(address.shapes, offsets[:-1], strict=True)
    }
    return memory, arrays
