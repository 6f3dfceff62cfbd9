"""Batches of tensors on the device, from storage or from memory, in one and the same order.

Pixels move as they are stored, uint16: half the bytes. Where they fit they stay in memory after
the first epoch, on the device if it has room: the v1 training split takes 43 GB.

Axes: B row of a batch, C band or class, Y and X pixel, N row of the selection.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigearth_cube.loader.batches import Batch, BatchLoader
from bigearth_cube.loader.plan import lane_bounds
from training.distributed import ALONE, Team

logger = logging.getLogger(__name__)

Tier = Literal["none", "host", "device"]
Cache = Literal["auto", "none", "host", "device"]
CACHE_SHARE: Final = 0.75
"""Of what is free, for patches; the rest is for activations."""
_TIERS: Final[tuple[Tier, ...]] = ("none", "host", "device")
_CPU: Final = torch.device("cpu")
_LABELS: Final = "labels"
_Tensors = tuple[dict[str, Tensor], NDArray[np.int64]]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """What a rank has of one batch, on the device; valid until the next one is asked for.

    Attributes
    ----------
    images
        Group to DN_BCYX as stored.
    labels_BC
        float32, 0 or 1.
    rows
        Rows of the cube, on the host.
    symmetry_B
        How `transformed` is to turn each patch; None leaves all as they are.
    part, n_rows
        Which rows of the global batch, of ``n_rows``, these are.
    """

    images: dict[str, Tensor]
    labels_BC: Tensor
    rows: NDArray[np.int64]
    symmetry_B: Tensor | None
    part: slice
    n_rows: int


class Feed:
    """The batches of a loader on the device, epoch after epoch, from storage or from memory.

    The order is the loader's, whatever the tier. The first epoch streams and fills the cache;
    once all rows are in it, epochs are gathered from there. Several ranks each hold every row, as
    an epoch deals them anew: what one has read the others receive while the cache is filled.

    Parameters
    ----------
    loader
        What to deliver, and in which order.
    device
        Where to.
    cache
        ``"none"`` streams every epoch; ``"host"`` and ``"device"`` keep the patches in that
        memory, ``"auto"`` in the best there is, if three quarters of what is free there hold them.
        Where they do not fit, the next best is taken.
    team
        Whose part this is; the loader's rank must be the team's.
    name
        Of what is delivered, for the log.

    Attributes
    ----------
    tier, why
        Where patches are kept, and the reason; None before the first batch.
    wait_s
        Seconds that the caller waited for batches.
    """

    def __init__(
        self,
        loader: BatchLoader,
        device: torch.device,
        *,
        cache: Cache = "none",
        team: Team = ALONE,
        name: str = "patches",
    ) -> None:
        self.loader = loader
        self.device = torch.empty(0, device=device).device  # "cuda" is one of several
        self.tier: Tier | None = None
        self.why = ""
        self.wait_s = 0.0
        self._wanted, self._team, self._name = cache, team, name
        self._store: _Store | None = None
        self._resume = (-1, 0)
        spec = loader.spec
        self._sizes = spec.batch_sizes(len(loader.rows))
        bounds = lane_bounds(self._sizes, spec.lanes)
        self._bounds = bounds[:, :: max(1, spec.lanes // team.world_size)]

    @property
    def full_rows(self) -> int:
        """Rows that this rank has of a batch that is not the last."""
        return int(self._bounds[0, self._team.rank + 1] - self._bounds[0, self._team.rank])

    def state(self, epoch: int, batch: int) -> dict[str, Any]:
        """Return what `load_state` needs to go on with a batch of an epoch."""
        return {**self.loader.state(), "epoch": epoch, "batch": batch}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Begin the epoch that a state names at the batch that it names, once.

        Raises
        ------
        InvalidInputError
            If the state is of another selection or order.
        """
        self.loader.load_state(state)
        self._resume = (int(state["epoch"]), int(state["batch"]))

    def epoch(
        self, epoch: int, *, augment: bool = False, then: int | None = None
    ) -> Generator[TensorBatch]:
        """Yield the batches of an epoch.

        Parameters
        ----------
        epoch
            Number of the epoch, from 0.
        augment
            Whether to draw a symmetry for each patch, from torch's generator of the CPU.
        then
            Epoch that will be asked for next; where it streams, reading goes on with it.
        """
        if self.tier is None:
            self._choose_tier()
        first = self._resume[1] if self._resume[0] == epoch else 0
        self._resume = (-1, 0)
        source = self._stored(epoch, first) if self._is_full() else self._streamed(epoch, then)
        with closing(source):
            for index in range(first, len(self._sizes)):
                began = time.perf_counter()
                item = next(source, None)
                self.wait_s += time.perf_counter() - began
                assert item is not None  # the loader delivers as many batches as it says
                tensors, rows = item
                if self._team.world_size > 1 and not self._is_full():
                    self._keep_all(tensors, rows, index)
                part, n_rows = self._part(index), int(self._sizes[index])
                symmetry_B = None
                if augment:  # drawn for the whole batch, whoever turns which part of it
                    symmetry_B = torch.randint(8, (n_rows,))[part].to(self.device)
                labels_BC = tensors.pop(_LABELS).to(torch.float32)
                yield TensorBatch(tensors, labels_BC, rows, symmetry_B, part, n_rows)

    def _part(self, index: int) -> slice:
        rank = self._team.rank
        return slice(int(self._bounds[index, rank]), int(self._bounds[index, rank + 1]))

    def _is_full(self) -> bool:
        return self._store is not None and bool(self._store.filled_N.all())

    def _streamed(self, epoch: int, then: int | None) -> Generator[_Tensors]:
        """Batches from storage, kept on the way where there is a cache."""
        batches = self._read(epoch, then if self._store is None else None)
        return batches if self.device.type == "cpu" else ahead(batches)

    def _read(self, epoch: int, then: int | None) -> Generator[_Tensors]:
        upload = _Upload(self.device)
        for batch in self.loader.epoch(epoch, then=then):
            on_host = _from_numpy(batch)
            tensors = upload(on_host)
            if self._store is not None and self._team.world_size == 1:
                here = tensors if self._store.device == self.device else on_host
                self._store.put(np.searchsorted(self.loader.rows, batch.rows), here)
            yield tensors, batch.rows

    def _keep_all(self, tensors: Mapping[str, Tensor], rows: NDArray[np.int64], index: int) -> None:
        """Keep what all ranks have read of a batch."""
        if self._store is None:
            return
        sizes = np.diff(self._bounds[index]).tolist()
        on_device = torch.from_numpy(rows).to(self.device)
        all_rows = self._team.exchanged(on_device, sizes).cpu().numpy()
        everything = {name: self._team.exchanged(t, sizes) for name, t in tensors.items()}
        self._store.put(np.searchsorted(self.loader.rows, all_rows), everything)

    def _stored(self, epoch: int, first: int) -> Generator[_Tensors]:
        """Batches out of the cache."""
        batches = self._gathered(epoch, first)
        assert self._store is not None
        return batches if self._store.device == self.device else ahead(batches)

    def _gathered(self, epoch: int, first: int) -> Generator[_Tensors]:
        assert self._store is not None
        order = self.loader.order(epoch)
        at = torch.from_numpy(np.searchsorted(self.loader.rows, order.rows)).to(self._store.device)
        upload = _Upload(self.device)
        for index in range(first, order.n_batches):
            start, stop = order.offsets[index : index + 2].tolist()
            tensors = self._store.take(at[start:stop])
            yield upload(tensors), order.rows[start:stop]

    def _choose_tier(self) -> None:
        like = _from_numpy(self.loader.empty_batch(0))
        n_rows, team = len(self.loader.rows), self._team
        n_bytes = n_rows * sum(t.itemsize * math.prod(t.shape[1:]) for t in like.values())
        tier, why = choose_tier(self._wanted, n_bytes, self.device, sharers=team.local_world_size)
        least = int(team.gathered([np.array([_TIERS.index(tier)])])[0].min())
        if least < _TIERS.index(tier):
            tier, why = _TIERS[least], "another rank has no room for more"
        if tier != "none":
            self._store = _Store(n_rows, like, self.device if tier == "device" else _CPU)
        self.tier, self.why = tier, why
        if self._wanted != "none" and team.leads:
            logger.info("%s stay in %s: %s", self._name, _PLACES[tier], why)


_PLACES: Final[dict[Tier, str]] = {
    "none": "storage alone",
    "host": "memory of the host",
    "device": "memory of the device",
}


class _Store:
    """Every row of a selection in memory, as it is stored."""

    def __init__(self, n_rows: int, like: Mapping[str, Tensor], device: torch.device) -> None:
        self.device = device
        self.filled_N = np.zeros(n_rows, bool)
        self._rows = {
            # Zeroed, so that its pages are taken now: what was promised must not look free to others.
            name: torch.empty((n_rows, *t.shape[1:]), dtype=t.dtype, device=device).zero_()
            for name, t in like.items()
        }
        self._taken: dict[str, Tensor] = {}

    def put(self, at: NDArray[np.int64], tensors: Mapping[str, Tensor]) -> None:
        index = torch.from_numpy(at).to(self.device)
        for name, t in tensors.items():
            _movable(self._rows[name]).index_copy_(0, index, _movable(t.to(self.device)))
        self.filled_N[at] = True

    def take(self, at: Tensor) -> dict[str, Tensor]:
        """Gather rows; on a host into the same buffers each time, which is five times as fast."""
        taken = {}
        for name, rows in self._rows.items():
            out = None
            if self.device.type == "cpu":
                out = self._taken.get(name)
                if out is None or len(out) < len(at):
                    out = self._taken[name] = rows.new_empty((len(at), *rows.shape[1:]))
                out = _movable(out[: len(at)])
            gathered = torch.index_select(_movable(rows), 0, at, out=out)
            taken[name] = gathered.view(rows.dtype)
        return taken


class _Upload:
    """Move a batch to the device, through pinned memory and beside what is computed there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned: dict[str, Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._stream is None or all(t.device == self._device for t in tensors.values()):
            return dict(tensors)
        moved = {}
        with torch.cuda.stream(self._stream):
            for name, t in tensors.items():
                pinned = self._pinned.get(name)
                if pinned is None or len(pinned) < len(t):
                    pinned = self._pinned[name] = torch.empty_like(t, pin_memory=True)
                staged = pinned[: len(t)].copy_(t)
                moved[name] = staged.to(self._device, non_blocking=True)
                # Else its memory could be given away while the step still reads it.
                moved[name].record_stream(torch.cuda.default_stream(self._device))
        self._stream.synchronize()  # in a thread of its own: the step goes on
        return moved


def ahead(source: Generator[_T]) -> Generator[_T]:
    """Run a generator in a thread, one item ahead of who asks.

    What the generator raises is raised where the item would have been.
    """
    items: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue(1)
    stopped = threading.Event()

    def run() -> None:
        error: BaseException | None = None
        try:
            with closing(source):
                for item in source:
                    items.put((item, None))
                    if stopped.is_set():
                        return
        except BaseException as raised:  # noqa: BLE001  # handed to the caller, who raises it
            error = raised
        items.put((None, error or StopIteration()))

    thread = threading.Thread(target=run, name="bec-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # an item, as there is no error
    finally:
        stopped.set()
        while thread.is_alive():
            try:
                items.get_nowait()
            except queue.Empty:
                thread.join(0.01)


def choose_tier(
    wanted: Cache,
    n_bytes: int,
    device: torch.device,
    *,
    sharers: int = 1,
    free: Callable[[torch.device], int | None] | None = None,
) -> tuple[Tier, str]:
    """Choose where patches are kept, by how much memory is free, and say why.

    Parameters
    ----------
    wanted
        The best tier to try; ``"auto"`` is that of the device, where it has memory of its own.
    n_bytes
        What is to be kept.
    device
        Of the training.
    sharers
        Processes of this machine that each keep as much.
    free
        Measures free bytes; `free_bytes` where None.

    Examples
    --------
    >>> choose_tier("auto", 10, torch.device("cpu"), free=lambda _: 100)[0]
    'host'
    """
    tiers: Mapping[Cache, tuple[Tier, ...]] = {
        "auto": ("device", "host") if device.type != "cpu" else ("host",),
        "device": ("device", "host"),
        "host": ("host",),
        "none": (),
    }
    told = []
    for tier in tiers[wanted]:
        place = device if tier == "device" else _CPU
        found = (free or free_bytes)(place)
        if found is None:
            told.append(f"how much memory of the {tier} is free is not known")
            continue
        room = CACHE_SHARE * found / (sharers if place.type == "cpu" else 1)
        said = f"{n_bytes / 1e9:.2f} GB, and of the {tier} {room / 1e9:.2f} GB may be taken"
        if n_bytes <= room:
            return tier, "; ".join([*told, said])
        told.append(said)
    return "none", "; ".join(told) or "as asked"


def free_bytes(device: torch.device) -> int | None:
    """Memory of a device that is free, in bytes; of the host what its container may still take.

    None where the system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    if (group / "memory.max").exists():
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])
            found.append(max(0, int(limit) - used))
    return min(found, default=None)


def _from_numpy(batch: Batch) -> dict[str, Tensor]:
    """Tensors on the loader's own buffers; labels of no columns where there are none."""
    tensors = {path: torch.from_numpy(dn) for path, dn in batch.images.items()}
    labels = np.empty((len(batch.rows), 0), np.uint8) if batch.labels is None else batch.labels
    return {**tensors, _LABELS: torch.from_numpy(labels)}


def _movable(tensor: Tensor) -> Tensor:
    """Look at unsigned values of 16 bits as signed: moving needs no sign, and few kernels know them."""
    return tensor.view(torch.int16) if tensor.dtype == torch.uint16 else tensor
