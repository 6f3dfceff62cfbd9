"""Batches of a selection: what to deliver, in which order, from where to go on."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, Self

import distributed
import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.assemble import Arena, EpochRun
from bigearth_cube.loader.blocks import BlockReader, Counters
from bigearth_cube.loader.engines import make_engine
from bigearth_cube.loader.handover import Path
from bigearth_cube.loader.pace import MAX_REQUESTS
from bigearth_cube.loader.plan import (
    PADDING,
    EpochOrder,
    Last,
    OrderSpec,
    Shuffle,
    balanced_weights,
    checked_weights,
    epoch_order,
    subset_of,
)
from bigearth_cube.loader.sources import Groups, Patches
from bigearth_cube.search import Selection
from bigearth_cube.storage import refuse_fork

S2 = ("s2/r10m", "s2/r20m", "s2/r60m")


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch. Its arrays are reused: copy what must outlive the next batch.

    Attributes
    ----------
    images
        Group to pixels: (B, band, y, x) in the stored dtype, or (B, y, x) for a map.
    labels
        (B, n_classes) uint8, or None where none were asked for.
    rows
        (B,) int64 rows of the cube; -1 where the batch was padded.
    cubes
        (B,) int64 which of the loader's cubes each row is of; -1 where the batch was padded.
    """

    images: Mapping[str, NDArray[Any]]
    labels: NDArray[np.uint8] | None
    rows: NDArray[np.int64]
    cubes: NDArray[np.int64]


class BatchLoader:
    """Batches of a selection, straight from storage, in an order that can be repeated.

    Parameters
    ----------
    cube
        Where the patches are. Several cubes make one stream, mixed like the chunks of one; their
        bands, scale and classes must agree.
    selection
        Which patches; every one where it is None. For several cubes one each, or None.
    batch_size
        Rows of a global batch, over all ranks.
    groups
        Pixel groups to deliver, e.g. ``["s2/r10m", "s1/r10m"]``; or with the bands wanted of each,
        in the order wanted: ``{"s2/r10m": ["B04", "B03", "B02"], "s2/r20m": None}``, None for all.
    labels
        ``"label_19"``, ``"label_43"``, or None.
    subset
        Deliver only so many rows of the selection, chosen by the seed, the same in every epoch.
    weights
        Of each selected row, in their order, to be drawn: an epoch then draws as many rows as are
        selected (or in the subset), with replacement. ``"balanced"`` draws rare classes more often
        (``balanced_weights`` of the labels asked for).
    seed, shuffle, pool_chunks, last
        The order; see ``OrderSpec``. Evaluation uses ``shuffle="none"``.
    rank, world_size
        Which part of each global batch to deliver; the world size must divide 8.
    engine
        ``"threads"`` reads in this process; a Dask client reads on its workers, a block a
        task. Order and bytes are the same.
    threads
        Chunks decoded at once in each process that reads. Where None, twice as many as it has
        cores; for local files, which are read by the same threads, one more than cores.
    max_requests
        Reads under way in each process that reads, at most. How many there are follows from how
        quickly storage answers; local files have one a thread that decodes.
    cache_bytes
        Keep stored chunks in memory, as they came, up to so many bytes: later epochs ask storage
        for the others only. Not with a Dask client, whose workers each get other chunks every
        epoch.
    shared_memory
        Whether Dask workers on this host decode into memory of this process. Those that do not
        see it, and all where it is False, send what they decoded by the network.

    Attributes
    ----------
    rows
        Rows that an epoch is made of, increasing. Those of several cubes are numbered one cube
        after another; ``locate`` tells them apart.
    spec
        What fixes the order.

    Raises
    ------
    InvalidInputError
        If the selection is of another cube or release, or names other patches than its rows
        hold; if it is empty or has rows without the labels asked for; if weights do not fit it; if
        cubes differ; or if an argument is out of range.

    Notes
    -----
    One epoch at a time: beginning another ends the one before. Two loaders read two at once.

    Arrays that are stored in another way than this package writes (other codecs, chunks across
    pixels) are read by zarr-python, more slowly; a warning is logged.
    """

    def __init__(
        self,
        cube: Cube | Sequence[Cube],
        selection: Selection | Sequence[Selection | None] | None = None,
        *,
        batch_size: int,
        groups: Groups = S2,
        labels: str | None = "label_19",
        subset: int | None = None,
        weights: ArrayLike | Literal["balanced"] | None = None,
        seed: int = 0,
        shuffle: Shuffle = "pool",
        pool_chunks: int = 32,
        last: Last = "short",
        rank: int = 0,
        world_size: int = 1,
        engine: Literal["threads"] | distributed.Client = "threads",
        threads: int | None = None,
        max_requests: int = MAX_REQUESTS,
        cache_bytes: int = 0,
        shared_memory: bool = True,
    ) -> None:
        for name, value, least in (
            ("threads", threads, 1),
            ("max_requests", max_requests, 1),
            ("cache_bytes", cache_bytes, 0),
        ):
            if value is not None and value < least:
                raise InvalidInputError(f"{name} is {value}, expected at least {least}")
        if cache_bytes and engine != "threads":
            raise InvalidInputError(
                "cache_bytes with a Dask client: its workers get other chunks every epoch; "
                "leave it out, or use engine='threads'"
            )
        cubes = [cube] if isinstance(cube, Cube) else list(cube)
        selections: Sequence[Selection | None]
        if selection is None:
            selections = [None] * len(cubes)
        else:
            selections = [selection] if isinstance(selection, Selection) else selection
        self._patches = Patches(cubes, selections, groups, labels)
        selected = self.rows = self._patches.rows
        self._labels = self._patches.labels
        if subset is not None:
            chosen = subset_of(len(selected), subset, seed)
            self.rows = selected[chosen]
            self._labels = None if self._labels is None else self._labels[chosen]
        self.spec = OrderSpec(
            batch_size=batch_size,
            chunk_rows=self._patches.chunk_rows,
            seed=seed,
            shuffle=shuffle,
            pool_chunks=pool_chunks,
            last=last,
        )
        self.rank, self.world_size = rank, world_size
        epoch_order(self.rows[:0], self.spec, 0, rank=rank, world_size=world_size)  # refuse early
        self._reading, self._delivery = Counters(), Counters()
        self._chances = None
        if isinstance(weights, str):
            if weights != "balanced" or self._labels is None:
                raise InvalidInputError(
                    f"weights {weights!r} with labels {labels!r}; expected an array, or 'balanced' "
                    f"together with labels"
                )
            self._chances = checked_weights(balanced_weights(self._labels), len(self.rows))
        elif weights is not None:
            values = np.asarray(weights, np.float64)
            if subset is not None and values.shape == selected.shape:
                values = values[np.searchsorted(selected, self.rows)]
            self._chances = checked_weights(values, len(self.rows))
        self._sampling = {
            "subset": subset,
            "weights": None
            if self._chances is None
            else hashlib.sha256(self._chances.tobytes()).hexdigest()[:16],
        }
        reader = BlockReader(
            self._patches.sources,
            decoders=threads,
            max_requests=max_requests,
            cache_bytes=cache_bytes,
        )
        self._engine = make_engine(reader, engine, shared_memory=shared_memory)
        self._arena = Arena(self._engine)
        self._pid = os.getpid()
        self._position = (0, 0)
        self._resume_at: tuple[int, int] | None = None
        self._running: EpochRun | None = None
        self._begun: tuple[int, int, int] | None = None
        self._turn = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def n_batches(self) -> int:
        """Batches in an epoch."""
        return self.spec.n_batches(len(self.rows))

    @property
    def counters(self) -> Counters:
        """What loading has cost so far, over all epochs."""
        total = Counters()
        total.add(self._reading)
        total.add(self._delivery)
        return total

    @property
    def worker_paths(self) -> dict[str, Path]:
        """How rows have come from each Dask worker so far, by its address."""
        return dict(self._engine.paths)

    def locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which cube each of ``rows`` (or of an ``order``) is of, and its row there."""
        return self._patches.locate(rows)

    def empty_batch(self, n_rows: int) -> Batch:
        """Return room for a batch of ``n_rows``, as this loader delivers them; not filled."""
        labels = (
            None if self._labels is None else np.empty((n_rows, self._labels.shape[1]), np.uint8)
        )
        rows = np.full(n_rows, PADDING, np.int64)
        return Batch(self._arena.empty_batch(n_rows), labels, rows, np.zeros(n_rows, np.int64))

    def order(self, epoch: int) -> EpochOrder:
        """Return the rows this loader delivers in an epoch, without reading any."""
        return epoch_order(
            self.rows,
            self.spec,
            epoch,
            rank=self.rank,
            world_size=self.world_size,
            chances=self._chances,
        )

    def epoch(
        self, epoch: int, *, first: int = 0, step: int = 1, then: int | None = None
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Every call begins the epoch at its first batch; only after ``load_state`` does the epoch
        it names begin at the batch it names, once.

        Parameters
        ----------
        epoch
            Number of the epoch, from 0.
        first, step
            Deliver batches ``first``, ``first + step``, … alone, for processes that take turns.
        then
            Epoch that will be asked for next, with the same ``first`` and ``step``: it is read from
            as soon as nothing of this one is left to be read, into the room that this one gives
            back, and hardly needs to be waited for. It is kept until it, another epoch or
            ``close`` is asked for.

        Raises
        ------
        InvalidInputError
            If another epoch of this loader has begun since: both would write to one arena; if it
            is closed; if this process was forked after the loader was made; or if an epoch, first
            or step is out of range.
        CubeIntegrityError
            If stored bytes are damaged or missing.
        StorageError
            If storage refuses or cannot be reached.
        """
        refuse_fork(self._pid, "the loader was made")
        self._refuse_closed()
        if first < 0 or step < 1:
            raise InvalidInputError(f"first {first}, step {step}; expected at least 0 and 1")
        if min(epoch, epoch if then is None else then) < 0:
            raise InvalidInputError(f"epoch {epoch}, then {then}; expected at least 0")
        resume_at, self._resume_at = self._resume_at, None
        start = first + (resume_at[1] if resume_at is not None and resume_at[0] == epoch else 0)
        n_batches = len(range(start, self.n_batches, step))
        run = self._run_of(epoch, start, first, step, is_followed=then is not None)
        follows = then is not None and run.follow(partial(self._part, then, first, step))
        self._turn = turn = self._turn + 1
        self._position = (epoch, start)
        n_delivered = 0
        entered = time.perf_counter()
        try:
            while n_delivered < n_batches:
                self._refuse_closed()
                if self._turn != turn:
                    raise InvalidInputError(
                        f"another epoch of this loader has begun, so epoch {epoch} cannot go on; "
                        f"make a second loader to read two at once"
                    )
                began = time.perf_counter()
                images, rows = run.next()
                self._delivery.wait_s += time.perf_counter() - began
                self._position = (epoch, self._position[1] + step)
                self._delivery.patches += len(rows)
                self._delivery.epoch_s += began - entered
                entered = began
                cubes, own_rows = self._patches.locate(rows)
                n_delivered += 1
                yield Batch(images, self._labels_of(rows), own_rows, cubes)
            self._position = (epoch + 1, 0)
        finally:
            self._delivery.epoch_s += time.perf_counter() - entered
            if self._turn != turn:
                pass  # another epoch has ended the run, or goes on with it
            elif n_delivered == n_batches and then is not None and follows:
                self._begun = (then, first, step)
            else:
                self._end_run()

    def _part(self, epoch: int, start: int, step: int) -> tuple[EpochOrder, int]:
        """Return an order, and the first of its batches that is wanted."""
        order = self.order(epoch)
        if step > 1 or start > order.n_batches:
            return order.every(start, step), 0
        return order, start

    def _run_of(
        self, epoch: int, start: int, first: int, step: int, *, is_followed: bool
    ) -> EpochRun:
        """Return the run that delivers an epoch: one that has begun to read it, or a new one."""
        begun, self._begun = self._begun, None
        if self._running is None or begun != (epoch, first, step) or start != first:
            self._end_run()
            order, skipped = self._part(epoch, start, step)
            self._running = EpochRun(
                self._engine,
                self._arena,
                order,
                self.spec,
                skipped,
                self._reading,
                is_followed=is_followed,
            )
        return self._running

    def _end_run(self) -> None:
        if self._running is not None:
            self._running.stop()
        self._running = None

    def state(self) -> dict[str, Any]:
        """Return what ``load_state`` needs to go on with the batch after the last delivered one."""
        epoch, batch = self._position
        return {
            "epoch": epoch,
            "batch": batch,
            "selection": self._patches.digest,
            **self._sampling,
            **asdict(self.spec),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader stopped, of any engine and world size.

        Raises
        ------
        InvalidInputError
            If that loader had another selection or order, so that its place means nothing here.
        """
        own = self.state()
        for name in own.keys() - {"epoch", "batch"}:
            if state.get(name) != own[name]:
                raise InvalidInputError(
                    f"state was saved with {name} {state.get(name)!r}, this loader has "
                    f"{own[name]!r}; make the loader with the same arguments"
                )
        self._position = self._resume_at = (int(state["epoch"]), int(state["batch"]))

    def close(self) -> None:
        """Stop the threads; a closed loader delivers no more."""
        self._closed = True
        self._end_run()
        self._engine.close()
        self._arena.forget()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise InvalidInputError("the loader is closed; make another one")

    def _labels_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        if self._labels is None:
            return None
        labels: NDArray[np.uint8] = self._labels[
            np.searchsorted(self.rows, np.maximum(rows, self.rows[0]))
        ]
        labels[rows == PADDING] = 0
        return labels
