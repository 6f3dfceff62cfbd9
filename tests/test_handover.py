"""Rows from Dask workers: by every path the same, and whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import psutil
import pytest

from bigearth_cube.cube import Cube
from bigearth_cube.errors import StorageError
from bigearth_cube.ingest import run as ingest_run
from bigearth_cube.loader import engines, shared
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.loader.shared import MappedArrays, NotSharedError, SharedArrays, Ticket, writing
from training import cli as training_cli

GROUPS = ("s2/r60m", "s2/r20m")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux only")


@pytest.fixture(scope="module")
def processes() -> Iterator[distributed.Client]:
    """A Dask cluster of two worker processes."""
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def delivered(loader: BatchLoader, epoch: int = 0) -> list[tuple[Any, ...]]:
    return [
        (b.rows.copy(), {g: x.copy() for g, x in b.images.items()}, b.labels)
        for b in loader.epoch(epoch)
    ]


def assert_same(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    assert len(found) == len(expected)
    for (rows, images, labels), (rows_, images_, labels_) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(rows, rows_)
        np.testing.assert_array_equal(labels, labels_)
        for group in GROUPS:
            np.testing.assert_array_equal(images[group], images_[group])


@pytest.fixture(scope="module")
def expected(cube: Cube) -> list[tuple[Any, ...]]:
    """Epoch 1, read by threads."""
    with BatchLoader(cube, batch_size=50, groups=GROUPS, seed=5) as loader:
        return delivered(loader, 1)


def make(cube: Cube, client: distributed.Client, **options: Any) -> BatchLoader:
    return BatchLoader(cube, batch_size=50, groups=GROUPS, seed=5, engine=client, **options)


def mapped(pid: int | str) -> list[str]:
    """Memory of loaders that a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return [line for line in maps.splitlines() if "memfd:bec-" in line]


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def pids(client: distributed.Client) -> list[int]:
    return list(client.run(os.getpid).values())


@pytest.mark.parametrize("path", ["in process", "shared memory", "network"])
def test_order_and_bytes_are_those_of_threads_by_every_path(
    cube: Cube,
    dask_client: distributed.Client,
    processes: distributed.Client,
    expected: list[tuple[Any, ...]],
    caplog: pytest.LogCaptureFixture,
    path: str,
) -> None:
    client = dask_client if path == "in process" else processes
    with (
        caplog.at_level(logging.INFO, "bigearth_cube"),
        make(cube, client, shared_memory=path != "network") as loader,
    ):
        loader._engine.block_rows = 128  # of this small cube several
        assert_same(delivered(loader, 1), expected)
        assert_same(delivered(loader, 1), expected)
        assert set(loader.worker_paths.values()) == {path}
        assert set(loader.worker_paths) <= set(client.nthreads())
        told = [message for message in caplog.messages if message.startswith("worker ")]
        assert len(told) == len(loader.worker_paths)


def test_a_worker_killed_in_mid_epoch_costs_its_blocks_and_nothing_else(
    cube: Cube, processes: distributed.Client, expected: list[tuple[Any, ...]]
) -> None:
    with make(cube, processes) as loader:
        delivered(loader)
        victim = pids(processes)[0]
        os.kill(victim, signal.SIGSTOP)  # takes a block, and will never bring it
        epoch = loader.epoch(1)
        time.sleep(0.2)
        os.kill(victim, signal.SIGKILL)
        found = [
            (b.rows.copy(), {g: x.copy() for g, x in b.images.items()}, b.labels) for b in epoch
        ]
        assert_same(found, expected)
        assert within(20, lambda: len(processes.nthreads()) == 2)  # the nanny's work
        assert_same(delivered(loader, 1), expected)
        assert set(loader.worker_paths.values()) == {"shared memory"}


@pytest.mark.slow
def test_workers_that_are_all_started_anew_read_what_was_lost(
    cube: Cube, processes: distributed.Client, expected: list[tuple[Any, ...]]
) -> None:
    with make(cube, processes) as loader:
        for pid in pids(processes):
            os.kill(pid, signal.SIGSTOP)
        epoch = loader.epoch(1)
        time.sleep(0.2)
        processes.restart()
        found = [
            (b.rows.copy(), {g: x.copy() for g, x in b.images.items()}, b.labels) for b in epoch
        ]
        assert_same(found, expected)


def test_what_a_task_brings_is_fetched_anew_where_the_fetch_hangs(
    cube: Cube,
    processes: distributed.Client,
    expected: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "_LOOK_S", 0.1)
    monkeypatch.setattr(engines, "_FETCH_S", 0.2)
    canceled: list[str] = []
    gather = processes.gather

    async def hangs_at_first(task: distributed.Future[Any], **options: Any) -> Any:
        if not canceled:
            try:
                await asyncio.Event().wait()
            finally:
                canceled.append(task.key)
        return await gather(task, **options)

    monkeypatch.setattr(processes, "gather", hangs_at_first)
    with make(cube, processes, shared_memory=False) as loader:
        assert_same(delivered(loader, 1), expected)
    assert canceled


def test_a_task_is_larger_where_it_takes_the_interpreter_from_who_reads(
    cube: Cube,
    dask_client: distributed.Client,
    processes: distributed.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for client, block_rows in ((dask_client, 1024), (processes, 512)):
        with make(cube, client) as loader:
            engine, sizes = loader._engine, []
            submit = engine.submit

            def noted(block: Any, *rest: Any, submit: Any = submit, sizes: Any = sizes) -> Any:
                sizes.append(len(block.rows))
                return submit(block, *rest)

            monkeypatch.setattr(engine, "submit", noted)
            assert engine.block_rows == block_rows
            engine.block_rows = 128  # what tasks are made by
            delivered(loader)
            assert max(sizes) <= 128
            assert sum(sizes) == 600


def test_rows_in_flight_grow_with_the_workers_and_no_further_than_a_bound(
    cube: Cube, processes: distributed.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(cube, processes) as loader:
        engine = loader._engine
        for block_rows, n_workers, ahead in (
            *((512, 1, 2048), (512, 3, 2048), (512, 5, 3072), (512, 40, 8192)),
            *((1024, 1, 2048), (1024, 2, 3072), (1024, 40, 8192)),
        ):
            engine.block_rows = block_rows
            monkeypatch.setattr(engine, "_workers", lambda n=n_workers: dict.fromkeys(range(n), 1))
            assert engine.ahead_rows == ahead


def test_a_cluster_without_workers_is_told_and_not_waited_for_for_ever(
    cube: Cube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_ALONE_S", 0.5)
    monkeypatch.setattr(engines, "_LOOK_S", 0.2)
    with (
        distributed.LocalCluster(
            n_workers=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        distributed.Client(cluster) as client,
        make(cube, client) as loader,
    ):
        cluster.scale(0)
        assert within(10, lambda: not client.nthreads())
        with pytest.raises(StorageError, match="has had no workers for 0 s"):
            next(iter(loader.epoch(0)))


def shared_files() -> set[str]:
    """Return what lies in shared memory; semaphores are of other tests, which run beside these."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}


def test_no_worker_keeps_memory_of_a_loader_that_was_closed_left_or_failed(
    cube: Cube, processes: distributed.Client
) -> None:
    before = shared_files()
    with make(cube, processes) as loader:
        for _ in loader.epoch(0):
            break
        next(iter(loader.epoch(1)))
        assert any(mapped(pid) for pid in pids(processes))
    with suppress(KeyError), make(cube, processes) as loader:
        next(iter(loader.epoch(0)))
        raise KeyError
    assert within(10, lambda: not any(mapped(pid) for pid in pids(processes)))
    assert not mapped("self")
    assert shared_files() == before


READER = """
import sys, time, distributed
from bigearth_cube.cube import open_cube
from bigearth_cube.loader.batches import BatchLoader
with distributed.Client(sys.argv[1]) as client:
    loader = BatchLoader(open_cube(sys.argv[2]), batch_size=50, groups=("s2/r60m",), engine=client)
    next(iter(loader.epoch(0)))
    assert set(loader.worker_paths.values()) == {"shared memory"}, loader.worker_paths
    print("ready", flush=True)
    time.sleep(60)
"""


def test_nothing_is_left_of_a_loader_that_was_killed(
    cube: Cube, cube_url: str, processes: distributed.Client
) -> None:
    before = shared_files()
    command = [sys.executable, "-c", READER, processes.scheduler.address, cube_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        assert any(mapped(pid) for pid in pids(processes))
        reader.kill()
    assert within(10, lambda: not any(mapped(pid) for pid in pids(processes)))
    assert shared_files() == before


def test_where_memory_cannot_be_shared_the_network_is_taken_and_said_once(
    cube: Cube,
    dask_client: distributed.Client,
    expected: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(shared.os, "memfd_create", refuse)
    with make(cube, dask_client) as loader:
        assert_same(delivered(loader, 1), expected)
        assert set(loader.worker_paths.values()) == {"network"}
    (told,) = [m for m in caplog.messages if "Function not implemented" in m]
    assert told.startswith("blocks come through Dask: the system gives no shared memory: ")


# A process that maps the arrays and keeps a ticket until it is told to end.
WRITER = """
import sys
from bigearth_cube.loader.shared import Address, MappedArrays, Ticket, writing
ticket = Ticket(Address(*eval(sys.argv[1])), int(sys.argv[2]))
with writing(ticket) as mine:
    MappedArrays(ticket.address).arrays["a"][:] = 7
    print(mine, flush=True)
    sys.stdin.readline()
"""


def writer(ticket: Ticket) -> subprocess.Popen[str]:
    address = repr(dataclasses.astuple(ticket.address))
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, address, str(ticket.number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_room_is_given_away_only_when_its_writer_has_ended_or_died() -> None:
    memory = SharedArrays({"a": ("uint16", (3, 5)), "b": ("float32", (7,))})
    first, second = memory.issue(), memory.issue()
    with writer(first) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert (memory.arrays["a"] == 7).all()
        assert not memory.arrays["b"].any()
        with writing(first) as mine:
            assert not mine
        assert not memory.revoke(first)
        assert memory.revoke(second)
        process.send_signal(signal.SIGSTOP)
        assert not memory.revoke(first)
        process.kill()
        process.wait()
    assert memory.revoke(first)
    with writing(first) as mine:
        assert not mine
    memory.close()
    with pytest.raises(NotSharedError, match=r"let go|not seen"), writing(first):
        pass


def test_a_process_is_known_by_its_nonce_and_not_by_its_number() -> None:
    memory = SharedArrays({"a": ("uint16", (4,))})
    other = SharedArrays({"a": ("uint16", (4,))})
    for wrong in (
        dataclasses.replace(memory.address, descriptor=other.address.descriptor),
        dataclasses.replace(memory.address, pid=os.getppid()),
        dataclasses.replace(memory.address, pid=2**22 - 1),
    ):
        with pytest.raises(NotSharedError, match=r"another one|not seen"):
            MappedArrays(wrong)
    memory.close()
    other.close()


def test_pages_that_are_let_go_keep_what_was_written() -> None:
    memory = SharedArrays({"a": ("uint16", (100_000,))})
    seen = MappedArrays(memory.address)
    seen.arrays["a"][:] = np.arange(100_000) % 60_000
    seen.let_go_of_pages()
    np.testing.assert_array_equal(memory.arrays["a"], np.arange(100_000) % 60_000)
    memory.close()


def listening() -> set[str]:
    here = psutil.Process()
    return {
        connection.laddr.ip
        for process in [here, *here.children(recursive=True)]
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }


def test_clusters_that_commands_start_listen_on_loopback_only(
    dask_client: distributed.Client, processes: distributed.Client
) -> None:
    with ingest_run._cluster(None, 2, 1_000), training_cli._loading("dask", None):
        assert listening() <= {"127.0.0.1", "::1"}
