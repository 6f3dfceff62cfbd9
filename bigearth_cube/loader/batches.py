"""Batches of a selection: what to deliver, in which order, from where to go on."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import distributed
import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.assemble import Arena, EpochRun
from bigearth_cube.loader.blocks import BlockReader, Counters, PixelSource
from bigearth_cube.loader.engines import make_engine
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
from bigearth_cube.search import Selection
from bigearth_cube.storage import refuse_fork
from bigearth_cube.writer import ZARR

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
    """

    images: Mapping[str, NDArray[Any]]
    labels: NDArray[np.uint8] | None
    rows: NDArray[np.int64]


class BatchLoader:
    """Batches of a selection, straight from storage, in an order that can be repeated.

    Parameters
    ----------
    cube
        Where the patches are.
    selection
        Which patches; every one where it is None.
    batch_size
        Rows of a global batch, over all ranks.
    groups
        Pixel groups to deliver, e.g. ``"s2/r10m"``.
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
        Requests in flight in each process that reads.

    Raises
    ------
    InvalidInputError
        If the selection is of another cube or release, or names other patches than its rows
        hold; if it is empty or has rows without the labels asked for; if weights do not fit it; or
        if an argument is out of range.

    Notes
    -----
    One epoch at a time: beginning another ends the one before. Two loaders read two at once.
    """

    def __init__(
        self,
        cube: Cube,
        selection: Selection | None = None,
        *,
        batch_size: int,
        groups: Sequence[str] = S2,
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
        threads: int = 8,
    ) -> None:
        selected = self.rows = _selected_rows(cube, selection)
        if subset is not None:
            self.rows = selected[subset_of(len(selected), subset, seed)]
        self.groups = tuple(groups)
        if not self.groups:
            raise InvalidInputError("no groups to deliver; name at least one, e.g. 's2/r10m'")
        self.spec = OrderSpec(
            batch_size=batch_size,
            chunk_rows=cube.layout.chunk_rows,
            seed=seed,
            shuffle=shuffle,
            pool_chunks=pool_chunks,
            last=last,
        )
        self.rank, self.world_size = rank, world_size
        epoch_order(self.rows[:0], self.spec, 0, rank=rank, world_size=world_size)  # refuse early
        self._reading, self._delivery = Counters(), Counters()
        self._digest = selection.digest if selection is not None else cube.release.digest
        self._labels = None if labels is None else cube.labels(labels, self.rows)
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
        sources = {
            group: PixelSource(cube.pixel_layout(group), tuple(cube.filled(group)))
            for group in self.groups
        }
        reader = BlockReader(cube.storage.child(ZARR), sources)
        self._engine = make_engine(reader, engine, threads)
        self._arena = Arena(sources, cube.layout.chunk_rows)
        self._pid = os.getpid()
        self._position = (0, 0)
        self._resume_at: tuple[int, int] | None = None
        self._running: EpochRun | None = None

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

    def epoch(self, epoch: int, *, first: int = 0, step: int = 1) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Every call begins anew; only after ``load_state`` does the epoch it names begin at the
        batch it names, once.

        Parameters
        ----------
        epoch
            Number of the epoch, from 0.
        first, step
            Deliver batches ``first``, ``first + step``, … alone, for processes that take turns.

        Raises
        ------
        InvalidInputError
            If another epoch of this loader has begun since: both would write to one arena; if
            this process was forked after the loader was made; or if first or step is out of range.
        CubeIntegrityError
            If stored bytes are damaged or missing.
        StorageError
            If storage refuses or cannot be reached.
        """
        refuse_fork(self._pid, "the loader was made")
        if first < 0 or step < 1:
            raise InvalidInputError(f"first {first}, step {step}; expected at least 0 and 1")
        resume_at, self._resume_at = self._resume_at, None
        start = first + (resume_at[1] if resume_at is not None and resume_at[0] == epoch else 0)
        order, skipped = self.order(epoch), start
        if step > 1 or start > order.n_batches:
            order, skipped = order.every(start, step), 0
        if self._running is not None:
            self._running.stop()
        run = EpochRun(self._engine, self._arena, order, self.spec, skipped, self._reading)
        self._running = run
        self._position = (epoch, start)
        try:
            while True:
                if self._running is not run:
                    raise InvalidInputError(
                        f"another epoch of this loader has begun, so epoch {epoch} cannot go on; "
                        f"make a second loader to read two at once"
                    )
                began = time.perf_counter()
                gathered = run.next()
                self._delivery.wait_s += time.perf_counter() - began
                if gathered is None:
                    break
                images, rows = gathered
                self._position = (epoch, self._position[1] + step)
                self._delivery.patches += len(rows)
                yield Batch(images, self._labels_of(rows), rows)
            self._position = (epoch + 1, 0)
        finally:
            run.stop()
            if self._running is run:
                self._running = None

    def state(self) -> dict[str, Any]:
        """Return what ``load_state`` needs to go on with the batch after the last delivered one."""
        epoch, batch = self._position
        return {
            "epoch": epoch,
            "batch": batch,
            "selection": self._digest,
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
        if self._running is not None:
            self._running.stop()
        self._engine.close()

    def _labels_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        if self._labels is None:
            return None
        labels: NDArray[np.uint8] = self._labels[
            np.searchsorted(self.rows, np.maximum(rows, self.rows[0]))
        ]
        labels[rows == PADDING] = 0
        return labels


def _selected_rows(cube: Cube, selection: Selection | None) -> NDArray[np.int64]:
    if selection is None:
        return cube.rows
    if (selection.cube_id, selection.release) != (cube.id, cube.release.name):
        raise InvalidInputError(
            f"the selection is of cube {selection.cube_id!r}, release {selection.release!r}; "
            f"this is {cube.id!r}, {cube.release.name!r}: open that one, or search again"
        )
    if not len(selection.rows):
        raise InvalidInputError("the selection is empty; widen the query")
    return selection.rows_in(cube.index)
