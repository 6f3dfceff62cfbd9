"""Who reads the blocks: threads of this process, or Dask workers.

Both bring the same rows to the same places; batches do not depend on who read them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import distributed
from distributed.comm.core import CommClosedError
from distributed.protocol import pickle
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError, StorageError
from bigearth_cube.loader.blocks import BlockReader, Counters
from bigearth_cube.loader.handover import (
    Delivery,
    OnWorker,
    Path,
    Place,
    cancel_and_wait,
    read_block,
    submit_reads,
)
from bigearth_cube.loader.plan import BLOCK_ROWS, Block
from bigearth_cube.loader.shared import NotSharedError, SharedArrays, Ticket

_logger = logging.getLogger(__name__)
_LEAST_AHEAD, _MOST_AHEAD = 4 * BLOCK_ROWS, 16 * BLOCK_ROWS
"""Rows in flight beyond the pool: .33 to 1.3 GB of all Sentinel-2 bands.

The least is a pool of 32 chunks: while the batches of one are gathered, another can be decoded.
"""
_ATTEMPTS = 5
_START_S = 10
_LOOK_S = 2.0
_FETCH_S = 120.0
_DIAL_S = 3.0
_ALONE_S = 30.0
_SETTLE_S = 30.0
_POLL_S = 0.005
_GONE = (OSError, RuntimeError, CancelledError, distributed.client.ClosedClientError)


class Engine(Protocol):
    """Whoever brings the rows of a block to their places."""

    reader: BlockReader
    paths: dict[str, Path]
    block_rows: int
    """Rows of a block, at most."""

    @property
    def ahead_rows(self) -> int:
        """Rows to keep in flight beyond those that batches need by now."""

    def allocate(self, n_rows: int) -> dict[str, NDArray[Any]]:
        """Return the buffers, one a group, that rows are brought to from now on."""

    def submit(
        self, block: Block, place: Place, stopped: threading.Event
    ) -> list[Future[Counters]]:
        """Begin to read a block; its rows are in their places when all are done.

        Once ``stopped`` is set, no more is read than what is on its way.
        """

    def settle(self, futures: Sequence[Future[Counters]]) -> bool:
        """Drop what has not begun and wait for the rest, once ``stopped`` is set.

        Returns
        -------
        bool
            Whether nothing will write into the buffers any more. If not, they must be given up.
        """

    def close(self) -> None:
        """Wait for what runs, drop what does not, and give threads back."""


class ThreadsEngine:
    """Fetch and decode in threads of this process, straight into the arena."""

    block_rows, ahead_rows = BLOCK_ROWS, _LEAST_AHEAD

    def __init__(self, reader: BlockReader) -> None:
        self.reader = reader
        self.paths: dict[str, Path] = {}
        self._buffers: dict[str, NDArray[Any]] = {}

    def allocate(self, n_rows: int) -> dict[str, NDArray[Any]]:
        """Return private memory."""
        self._buffers = {}
        self._buffers = self.reader.empty(n_rows)
        return self._buffers

    def submit(
        self, block: Block, place: Place, stopped: threading.Event
    ) -> list[Future[Counters]]:
        """Begin to fetch and decode, a thread a request."""
        return submit_reads(self.reader, block, place.whole, place.at, self._buffers)

    def settle(self, futures: Sequence[Future[Counters]]) -> bool:
        """Drop what has not begun and wait for the rest."""
        cancel_and_wait(futures)
        return True

    def close(self) -> None:
        """Stop the threads."""
        self.reader.close()
        self._buffers = {}


class _Job:
    """One block on its way, and the task that brings it."""

    def __init__(
        self,
        block: Block,
        place: Place,
        ticket: Ticket | None,
        stopped: threading.Event,
    ) -> None:
        self.block, self.place, self.ticket = block, place, ticket
        self.stopped = stopped
        self.task: distributed.Future[Any] | None = None


class DaskEngine:
    """Fetch and decode on Dask workers, a block a task.

    A worker in this process or on this host decodes straight into the arena; from any other, rows
    come by Dask's own transfer and are copied into it. Each finds out for itself, by looking for
    the arena. A worker that dies costs the blocks it was reading: others read them.

    Parameters
    ----------
    reader
        What reads.
    client
        Of the Dask cluster.
    shared_memory
        False takes the network for every worker.

    Raises
    ------
    StorageError
        If the scheduler has no workers.
    """

    def __init__(
        self, reader: BlockReader, client: distributed.Client, *, shared_memory: bool
    ) -> None:
        self.reader = reader
        self._client = client
        self._shares = shared_memory
        self._on_worker = OnWorker(reader)
        self._spare = pickle.dumps(self._on_worker)
        self._lock = threading.Lock()
        self._key = f"bec-loader-{uuid.uuid4().hex}-"
        self._near: dict[str, bool] = {}
        self._placed: dict[str, distributed.Future[Any]] = {}
        self._collectors = ThreadPoolExecutor(4, thread_name_prefix="bec-collect")
        self._jobs: set[_Job] = set()
        self._buffers: dict[str, NDArray[Any]] = {}
        self.paths: dict[str, Path] = {}
        try:
            client.wait_for_workers(1, timeout=_START_S)
        except TimeoutError:
            raise StorageError(
                f"the Dask scheduler has no workers, or none that answer: {client!r}; start some"
            ) from None
        workers = self._workers()
        # In one process a task takes the interpreter from who reads, as long whatever its size.
        shares_interpreter = bool(workers) and all(w.startswith("inproc://") for w in workers)
        self.block_rows = 2 * BLOCK_ROWS if shares_interpreter else BLOCK_ROWS
        for worker in workers:
            self._keep_on(worker)

    @property
    def ahead_rows(self) -> int:
        """A block for each worker and one more, so that few wait for the batches' pace; bounded."""
        n_workers = len(self._workers())
        return min(max(_LEAST_AHEAD, (1 + n_workers) * self.block_rows), _MOST_AHEAD)

    def allocate(self, n_rows: int) -> dict[str, NDArray[Any]]:
        """Return memory that workers of this host can write into, where the system has such."""
        self._release()
        if self._shares:
            shapes = {
                group: (rows.dtype.str, (n_rows, *rows.shape[1:]))
                for group, rows in self.reader.empty(0).items()
            }
            try:
                self._on_worker.own = SharedArrays(shapes)
            except NotSharedError as error:
                self._shares = False
                _logger.warning("blocks come through Dask: %s", error)
            else:
                self._buffers = self._on_worker.own.arrays
                return self._buffers
        self._buffers = self.reader.empty(n_rows)
        return self._buffers

    def submit(
        self, block: Block, place: Place, stopped: threading.Event
    ) -> list[Future[Counters]]:
        """Begin a task, and the wait for what it brings."""
        own = self._on_worker.own
        ticket = None if own is None else own.issue()
        job = _Job(block, place, ticket, stopped)
        with self._lock:
            self._jobs.add(job)
        self._begin(job)
        return [self._collectors.submit(self._collect, job)]

    def settle(self, futures: Sequence[Future[Counters]]) -> bool:
        """Drop the tasks, and bar their workers from the arena."""
        with self._lock:
            jobs, self._jobs = self._jobs, set()
        tasks = [job.task for job in jobs if job.task is not None]
        with suppress(*_GONE):
            if tasks:
                self._client.cancel(tasks, force=True)
        cancel_and_wait(futures)
        deadline = time.monotonic() + _SETTLE_S
        barred = [self._bar(job, deadline) for job in jobs]
        quiet = all(barred)
        if not quiet:
            self._release()
        return quiet

    def close(self) -> None:
        """Stop the threads, and let go of the arena."""
        self._collectors.shutdown(wait=True, cancel_futures=True)
        for future in self._placed.values():
            future.release()
        self._on_worker.close()
        self._release()

    def _release(self) -> None:
        self._buffers = {}
        own, self._on_worker.own = self._on_worker.own, None
        if own is not None:
            own.close()

    def _keep_on(self, worker: str) -> None:
        """Leave on a worker what is to stay there from block to block; it may be gone by now."""
        key = self._key + worker
        with suppress(*_GONE, KeyError, ValueError):
            placed = self._client.scatter({key: self._on_worker}, workers=[worker], hash=False)
            near = self._client.sync(self._is_near, worker)
            with self._lock:
                self._placed[worker], self._near[worker] = placed[key], near

    def _begin(self, job: _Job) -> None:
        try:
            job.task = self._client.submit(
                read_block,
                self._spare,
                self._key,
                job.block,
                job.place,
                job.ticket,
                key=f"read_block-{uuid.uuid4().hex}",
                pure=False,
            )
        except _GONE as error:
            raise _cluster_is_gone(error) from None

    def _collect(self, job: _Job) -> Counters:
        delivery = self._delivery(job)
        deadline = time.monotonic() + _SETTLE_S
        while delivery.counters is None:
            # A worker that the scheduler takes for dead is still writing, or the epoch has ended.
            if job.stopped.is_set():
                raise CancelledError
            if time.monotonic() > deadline:
                raise _still_writing()
            time.sleep(_POLL_S)
            self._begin(job)
            delivery = self._delivery(job)
        self._note(delivery)
        if not delivery.known:
            self._keep_on(delivery.worker)
        if not self._bar(job, deadline):
            raise _still_writing()
        for group, rows in (delivery.pixels or {}).items():
            self._buffers[group][job.place.at] = rows
        with self._lock:
            self._jobs.discard(job)
        return delivery.counters

    def _delivery(self, job: _Job) -> Delivery:
        """Wait for the task, and begin it anew where it was lost."""
        patience_s, attempts = _FETCH_S, 1
        while True:
            assert job.task is not None
            try:
                self._wait_for(job.task)
                delivery: Delivery = self._client.sync(
                    self._fetch, job.task, callback_timeout=patience_s
                )
            except TimeoutError:
                if job.task.status == "error":
                    raise
                patience_s *= 2  # a fetch begins anew when time is up
            except distributed.KilledWorker as error:
                raise StorageError(
                    f"workers died of a block again and again, perhaps for want of memory "
                    f"({error}); give them more"
                ) from None
            except (CancelledError, asyncio.CancelledError) as error:
                if job.stopped.is_set():
                    raise
                if attempts == _ATTEMPTS:
                    raise _cluster_is_gone(error) from None
                attempts += 1
                self._begin(job)
            except CommClosedError as error:
                raise _cluster_is_gone(error) from None
            else:
                return delivery

    async def _fetch(self, task: distributed.Future[Any]) -> Any:
        # By way of the scheduler, rows would be sent twice.
        direct = True if all(self._near.values()) else None
        return await self._client.gather(task, direct=direct, asynchronous=True)

    async def _is_near(self, worker: str) -> bool:
        """Whether the loader can connect to a worker itself."""
        try:
            comm = await asyncio.wait_for(self._client.rpc.connect(worker), _DIAL_S)
        except (OSError, TimeoutError):
            return False
        self._client.rpc.reuse(worker, comm)
        return True

    def _wait_for(self, task: distributed.Future[Any]) -> None:
        """Return when a task has ended; raise where no worker is left to run it."""
        alone_since = None
        while True:
            try:
                distributed.wait(task, timeout=_LOOK_S)
            except TimeoutError:
                if self._workers():
                    alone_since = None
                    continue
                alone_since = alone_since or time.monotonic()
                if time.monotonic() - alone_since > _ALONE_S:
                    raise StorageError(
                        f"the Dask cluster has had no workers for {_ALONE_S:.0f} s: "
                        f"{self._client!r}; start some and resume"
                    ) from None
            else:
                return

    def _bar(self, job: _Job, deadline: float) -> bool:
        """Keep whoever still has the block's ticket from writing; False if one does for too long."""
        own = self._on_worker.own
        if job.ticket is None or own is None:
            return True
        while not own.revoke(job.ticket):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _workers(self) -> Mapping[str, int]:
        try:
            workers: Mapping[str, int] = self._client.nthreads()
        except _GONE as error:
            raise _cluster_is_gone(error) from None
        return workers

    def _note(self, delivery: Delivery) -> None:
        with self._lock:
            if self.paths.get(delivery.worker) == delivery.path:
                return
            self.paths[delivery.worker] = delivery.path
        if delivery.path == "network":
            _logger.info(
                "worker %s sends its blocks by the network: %s", delivery.worker, delivery.reason
            )
        else:
            _logger.info("worker %s decodes into the arena (%s)", delivery.worker, delivery.path)


def _cluster_is_gone(error: BaseException) -> StorageError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return StorageError(
        f"the Dask scheduler or its workers are gone ({reason}); start them anew and resume"
    )


def _still_writing() -> StorageError:
    return StorageError(
        f"a worker on this host that the Dask scheduler takes for dead has been writing a block "
        f"for {_SETTLE_S:.0f} s; end that process (is it stopped?) and resume"
    )


def make_engine(reader: BlockReader, engine: object, *, shared_memory: bool) -> Engine:
    """Return the engine that an argument names.

    Raises
    ------
    InvalidInputError
        If it names none.
    StorageError
        If a Dask scheduler has no workers.
    """
    if isinstance(engine, distributed.Client):
        return DaskEngine(reader, engine, shared_memory=shared_memory)
    if engine != "threads":
        raise InvalidInputError(f"unknown engine {engine!r}; expected 'threads' or a Dask client")
    return ThreadsEngine(reader)
