"""The lock of a cube: one owner, who is seen to live, and who never publishes after losing it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigearth_cube import lock as locks
from bigearth_cube.archive import Patch, PatchRecord
from bigearth_cube.cube import open_cube
from bigearth_cube.errors import InvalidInputError, NotFoundError, StorageError
from bigearth_cube.ingest import ingest
from bigearth_cube.lock import LOCK, lock
from bigearth_cube.storage import Storage
from bigearth_cube.writer import CubeWriter
from tests.sources import MemorySource

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
HERE = os.uname().nodename


@pytest.fixture(scope="module")
def dead_pid() -> int:
    """Number of a process that was here and is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def owner(**changed: Any) -> bytes:
    """The lock of another run, heard of a moment ago."""
    told = {
        "host": "elsewhere",
        "pid": 7,
        "since": "2026-01-01T11:00:00+00:00",
        "heartbeat": NOW.isoformat(),
        "token": "other",
    }
    return json.dumps(told | changed).encode()


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_beating() -> bool:
    return any(thread.name == "cube-heartbeat" for thread in threading.enumerate())


def until_heard_of(take: Callable[[], None]) -> None:
    """Take the cube over until the heartbeat has noticed; one under way may take it back."""

    def noticed() -> bool:
        take()
        return not is_beating()

    assert is_beating()
    until(noticed)


@given(
    here=st.booleans(),
    lives=st.booleans(),
    silent_s=st.integers(-5, 120),
    break_lock=st.booleans(),
)
def test_a_lock_is_taken_over_at_once_from_the_dead_here_and_after_a_minute_from_the_silent(
    here: bool, lives: bool, silent_s: int, break_lock: bool, dead_pid: int
) -> None:
    storage = Storage("memory://lock/taken-over")
    heartbeat = (NOW - timedelta(seconds=silent_s)).isoformat()
    pid = os.getpid() if lives else dead_pid
    held = owner(host=HERE if here else "elsewhere", pid=pid, heartbeat=heartbeat)
    storage.write(LOCK, held)
    if break_lock or (here and not lives) or silent_s > 60:
        with lock(storage, break_lock=break_lock, now=lambda: NOW) as mine:
            mine.confirm()
            assert json.loads(storage.read(LOCK))["pid"] == os.getpid()
        assert not storage.exists(LOCK)
    else:
        with pytest.raises(InvalidInputError), lock(storage, now=lambda: NOW):
            pass
        assert storage.read(LOCK) == held


def test_the_refusal_names_the_first_owner_and_when_it_was_heard_of(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write(LOCK, owner())
    with pytest.raises(InvalidInputError) as refused, lock(storage, now=lambda: NOW):
        pass
    assert str(refused.value) == (
        "the cube is being written by process 7 on elsewhere since 2026-01-01T11:00:00+00:00, "
        "last heard of at 2026-01-01T12:00:00+00:00; wait for it, or pass --break-lock if it is "
        "dead"
    )


@given(st.binary(max_size=40) | st.sampled_from([owner(heartbeat="2026-01-01"), owner(pid="7")]))
def test_a_lock_that_does_not_say_whose_it_is_is_respected_until_it_is_broken(data: bytes) -> None:
    storage = Storage("memory://lock/garbage")
    storage.write(LOCK, data)
    with pytest.raises(InvalidInputError, match=r"does not name.*--break-lock"), lock(storage):
        pass
    assert storage.read(LOCK) == data
    with lock(storage, break_lock=True) as held:
        held.confirm()
    assert not storage.exists(LOCK)


def test_the_owner_is_heard_of_while_it_holds_the_cube_and_not_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.005)
    storage = Storage(tmp_path)
    times = iter(NOW + timedelta(seconds=15 * i) for i in range(1_000_000))
    with lock(storage, now=lambda: next(times)) as held:
        first = json.loads(storage.read(LOCK))
        assert first["since"] == first["heartbeat"] == NOW.isoformat()
        assert (first["host"], first["pid"]) == (HERE, os.getpid())
        until(lambda: json.loads(storage.read(LOCK))["heartbeat"] > "2026-01-01T12:00:30")
        assert json.loads(storage.read(LOCK))["since"] == first["since"]
        held.check()
    assert not is_beating()
    assert not storage.exists(LOCK)


def test_a_heartbeat_that_storage_refuses_is_told_and_the_next_gets_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.005)
    write, refused = Storage.write, iter([True])

    def refusing(self: Storage, key: str, data: bytes) -> None:
        if next(refused, False):
            raise StorageError("slow down")
        write(self, key, data)

    monkeypatch.setattr(Storage, "write", refusing)
    storage = Storage(tmp_path)
    times = iter(NOW + timedelta(seconds=15 * i) for i in range(1_000_000))
    with lock(storage, now=lambda: next(times)) as held:
        until(lambda: json.loads(storage.read(LOCK))["heartbeat"] > NOW.isoformat())
        held.confirm()
    assert caplog.messages == ["the heartbeat of the cube's lock failed: slow down"]


@pytest.mark.parametrize(
    ("taken", "reason"),
    [
        (owner(), "process 7 on elsewhere since 2026-01-01T11:00:00+00:00 has broken its lock"),
        (b"?", "another run has broken its lock"),
        (None, "its lock ingest/lock.json was removed"),
    ],
)
def test_who_has_lost_the_cube_learns_it_and_leaves_the_lock_to_the_other(
    taken: bytes | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path)

    def take() -> None:
        storage.delete(LOCK) if taken is None else storage.write(LOCK, taken)

    with lock(storage) as held:
        held.confirm()
        take()
        held.check()  # the next heartbeat is 15 s away
        lost = re.escape(f"lost the cube: {reason}; it stops and publishes nothing")
        with pytest.raises(InvalidInputError, match=lost):
            held.confirm()
    assert (storage.read(LOCK) if storage.exists(LOCK) else None) == taken
    storage.delete(LOCK)
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.005)
    with lock(storage) as held:
        until_heard_of(take)
        with pytest.raises(InvalidInputError, match=lost):
            held.check()
    assert (storage.read(LOCK) if storage.exists(LOCK) else None) == taken


def test_of_two_that_think_they_hold_the_cube_one_does(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with lock(storage) as first:
        with lock(storage, break_lock=True) as second:
            second.confirm()
            with pytest.raises(InvalidInputError, match=f"process {os.getpid()} on {HERE} since"):
                first.confirm()
        assert not storage.exists(LOCK)
    with lock(storage) as first:
        mine = storage.read(LOCK)
        with lock(storage, break_lock=True) as second:
            storage.write(LOCK, mine)  # a heartbeat that crossed the takeover
            first.confirm()
            with pytest.raises(InvalidInputError, match="lost the cube"):
                second.confirm()
        assert storage.read(LOCK) == mine
    assert not storage.exists(LOCK)


def test_the_cube_is_free_again_after_an_error(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with pytest.raises(KeyError), lock(storage):
        raise KeyError
    assert not is_beating()
    with lock(storage):
        pass


class BrokenIn(MemorySource):
    """Another run breaks the lock while the first patch is read."""

    storage: Storage
    seen: list[str]
    wait: bool

    def read(self, record: PatchRecord) -> Patch:
        if not self.seen:
            if self.wait:
                until_heard_of(lambda: self.storage.write(LOCK, owner()))
            else:
                self.storage.write(LOCK, owner())
        self.seen.append(record.id)
        return super().read(record)


@pytest.mark.parametrize("wait", [True, False], ids=["heard of", "not heard of"])
def test_a_run_that_lost_its_lock_publishes_nothing_and_can_be_run_again(
    wait: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wait:
        monkeypatch.setattr(locks, "HEARTBEAT_S", 0.005)
    source = BrokenIn(1100)
    source.storage, source.seen, source.wait = Storage(tmp_path), [], wait
    with pytest.raises(InvalidInputError, match="lost the cube: process 7 on elsewhere"):
        ingest(source, str(tmp_path), workers=1)
    written = source.storage.list("ingest/r1/shards")
    if wait:
        assert 0 < len(written) < 5  # it does not go on to the last of the five shards
    else:
        assert len(written) == 5
    assert source.storage.read(LOCK) == owner()
    assert not source.storage.exists("cube.zarr/id/c/0")
    with pytest.raises(NotFoundError, match="no cube"):
        open_cube(str(tmp_path))
    report = ingest(MemorySource(1100), str(tmp_path), workers=1, break_lock=True)
    assert (report.release, report.resumed_shards) == ("r1", len(written))


def test_embeddings_are_not_published_after_the_lock_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(MemorySource(10, with_views=False), str(tmp_path), workers=1)
    cube = open_cube(str(tmp_path))
    record = CubeWriter.record

    def recording(self: CubeWriter, key: str, objects: Any) -> None:
        cube.storage.write(LOCK, owner())
        record(self, key, objects)

    monkeypatch.setattr(CubeWriter, "record", recording)
    with pytest.raises(InvalidInputError, match="lost the cube"):
        cube.write_embeddings("model", np.zeros((cube.n_rows, 2), np.float32))
    assert open_cube(str(tmp_path)).embedded == ()
