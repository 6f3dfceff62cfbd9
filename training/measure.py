"""Measure training on the device at hand, and say which share that is of what it could do.

Patches are random and as many as asked for; they come through the same feed, step and network as
in a training. Runs small on a CPU, where it measures that the measuring works.

Axes: B row of a batch, C class.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.batches import Batch, BatchLoader
from bigearth_cube.loader.blocks import Counters
from bigearth_cube.loader.plan import EpochOrder, OrderSpec, epoch_order
from bigearth_cube.nomenclature import GROUPS, NAMES_43
from training.checkpoint import arranged
from training.config import Config, Precision
from training.data import Pass, autocast, compiles, training_loader
from training.feed import Feed, TensorBatch
from training.losses import MultiLabelLoss
from training.models import Network, build
from training.provenance import commit
from training.train import train_step

V1_TRAIN: Final = 269_695
"""Patches of the official v1 training split."""
_N_RANDOM: Final = 1024
"""Distinct random patches; what a step costs does not depend on their values."""
_KINDS: Final = (
    ("convolution", "convolution"),
    ("linear", "mm"),
    ("batch norm", "batch_norm"),
    ("max-pool", "max_pool"),
    ("optimizer", "adam"),
    ("moving and casting", "copy"),
)


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of operation in a training step.

    Attributes
    ----------
    flops, n_bytes
        A patch: multiplications and additions, and bytes of operands and results as if each
        operation read and wrote memory. What is fused moves less.
    """

    flops: float
    n_bytes: float


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured.

    Attributes
    ----------
    commit, hardware, precision, batch_size, n_patches
        Of which program, on what, how.
    patches_per_s
        Of training from the device's memory, median over epochs after the first.
    epoch_s
        Of one epoch of ``n_patches``, median.
    busy_share
        Share of time in which the device computed; None where it cannot be told (CPU).
    loader_per_s, streaming_per_s
        Patches a second that the loader alone delivers, and that a training streams; None without
        a cube.
    flops_per_s, bytes_per_s
        What the device reaches in a large matrix product and a large copy.
    parts
        Kind of operation to its share of a step.
    error
        Relative error of loss, of logits and of the gradient in the measured precision, against
        float64 on the CPU.
    """

    commit: str
    hardware: str
    precision: str
    batch_size: int
    n_patches: int
    patches_per_s: float
    epoch_s: float
    busy_share: float | None
    loader_per_s: float | None
    streaming_per_s: float | None
    flops_per_s: float
    bytes_per_s: float
    parts: Mapping[str, Part]
    error: Mapping[str, float]


class RandomPatches:
    """Stands for a loader: the order of a real epoch over random patches, at no cost.

    Parameters
    ----------
    n_patches
        Rows of the selection.
    batch_size
        Rows of a batch.
    groups
        What to deliver.
    n_classes
        Length of the labels.
    """

    def __init__(
        self, n_patches: int, batch_size: int, groups: tuple[str, ...], n_classes: int
    ) -> None:
        self.rows: NDArray[np.int64] = np.arange(n_patches)
        self.spec = OrderSpec(batch_size, 64, last="join")
        self.counters = Counters()
        rng = np.random.default_rng(0)
        self._images = {
            group: rng.integers(0, 9000, (_N_RANDOM, *GROUPS[group].patch_shape), np.uint16)
            for group in groups
        }
        self._labels = (rng.random((_N_RANDOM, n_classes)) < 0.1).astype(np.uint8)

    @property
    def n_batches(self) -> int:
        """Batches in an epoch."""
        return self.spec.n_batches(len(self.rows))

    def order(self, epoch: int) -> EpochOrder:
        """Return the rows of an epoch, as a real loader deals them."""
        return epoch_order(self.rows, self.spec, epoch)

    def empty_batch(self, n_rows: int) -> Batch:
        """Return room for a batch."""
        images = {
            group: np.empty((n_rows, *pixels.shape[1:]), np.uint16)
            for group, pixels in self._images.items()
        }
        labels = np.empty((n_rows, self._labels.shape[1]), np.uint8)
        return Batch(images, labels, *np.zeros((2, n_rows), np.int64))

    def epoch(self, epoch: int, *, then: int | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch; none need be waited for."""
        order = self.order(epoch)
        for index in range(order.n_batches):
            rows = order.batch(index)
            at = rows % _N_RANDOM
            images = {group: pixels[at] for group, pixels in self._images.items()}
            yield Batch(images, self._labels[at], rows, np.zeros_like(rows))


def measure(
    config: Config,
    device: torch.device,
    *,
    n_patches: int = V1_TRAIN,
    n_epochs: int = 3,
    cube: Cube | None = None,
) -> Report:
    """Train on random patches from the device's memory, and on a cube's as they stream in.

    Parameters
    ----------
    config
        What to train: model, batch size, precision, augmentation.
    device
        Where.
    n_patches
        Random patches kept on the device, at least one batch of them.
    n_epochs
        Epochs over them; the first, which fills the cache and compiles, does not count.
    cube
        Read for the streaming figures.

    Raises
    ------
    InvalidInputError
        If there is no epoch to measure or not a batch of patches.
    """
    if n_epochs < 2 or n_patches < config.batch_size:
        raise InvalidInputError(
            f"{n_epochs} epochs of {n_patches} patches; expected at least 2, of at least one "
            f"batch of {config.batch_size}"
        )
    n_classes = len(NAMES_43)
    torch.manual_seed(config.seed)
    model = arranged(build(config.model, n_classes, "v1").to(device), config)
    random = RandomPatches(n_patches, config.batch_size, model.groups, n_classes)
    feed = Feed(cast(BatchLoader, random), device, cache="device", name="random patches")
    trainer = _Trainer(model, config, feed.full_rows if compiles(device) else None)
    seconds = [_timed(trainer, feed, epoch, device) for epoch in range(n_epochs)][1:]
    epoch_s = float(np.median(seconds))
    busy = _busy_share(trainer, feed, n_epochs, device) if device.type == "cuda" else None
    alone_per_s, streaming_per_s = (None, None)
    if cube is not None:
        alone_per_s, streaming_per_s = _streaming(cube, config, device)
    first = next(iter(feed.epoch(0)))
    flops_per_s, bytes_per_s = ceilings(device, config.precision)
    return Report(
        commit=(commit() or "unknown")[:9],
        hardware=_hardware(device),
        precision=_precision_name(config.precision, device),
        batch_size=config.batch_size,
        n_patches=n_patches,
        patches_per_s=n_patches / epoch_s,
        epoch_s=epoch_s,
        busy_share=busy,
        loader_per_s=alone_per_s,
        streaming_per_s=streaming_per_s,
        flops_per_s=flops_per_s,
        bytes_per_s=bytes_per_s,
        parts=parts_of_a_step(model, config, first),
        error=error_against_float64(config, device),
    )


class _Trainer:
    """The step of a training, with all that it needs."""

    def __init__(self, model: Network, config: Config, compiled_rows: int | None) -> None:
        self.score = Pass(model, compiled_rows=compiled_rows)
        self.optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, fused=True)
        self.config, self.loss_of = config, MultiLabelLoss(config.loss)
        model.train()

    def step(self, batch: TensorBatch) -> Tensor:
        return train_step(self.score, self.optimizer, batch, self.loss_of, self.config)


def _timed(trainer: _Trainer, feed: Feed, epoch: int, device: torch.device) -> float:
    began = time.perf_counter()
    for batch in feed.epoch(epoch, augment=trainer.config.augment):
        trainer.step(batch)
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _busy_share(trainer: _Trainer, feed: Feed, epoch: int, device: torch.device) -> float:
    """Time in which at least one kernel ran, of the time of some steps, as the profiler saw it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        for batch in islice(feed.epoch(epoch, augment=trainer.config.augment), 50):
            trainer.step(batch)
        _wait(device)
        wall_us = (time.perf_counter() - began) * 1e6
    spans = sorted((e.time_range.start, e.time_range.end) for e in profiler.events() or ())
    busy_us, until = 0.0, 0.0
    for start, end in spans:
        busy_us += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy_us / wall_us


def _streaming(cube: Cube, config: Config, device: torch.device) -> tuple[float, float]:
    """Patches/s of the loader alone, and of a training that streams; in turns, medians of three."""
    labels = "label_43" if cube.archive == "v1" else "label_19"
    config = replace(config, labels=labels)
    selection = cube.search()
    model = arranged(build(config.model, len(cube.class_names(labels)), cube.archive), config)
    with training_loader(cube, selection, config, model.groups, "threads") as loader:
        feed = Feed(loader, device)
        rows = feed.full_rows if compiles(device) else None
        trainer = _Trainer(model.to(device), config, rows)
        _timed(trainer, feed, 0, device)  # compiles, and fills what caches there are
        alone, streamed = [], []
        for epoch in range(1, 4):
            began = time.perf_counter()
            for _ in loader.epoch(epoch):
                pass
            alone.append(len(selection) / (time.perf_counter() - began))
            streamed.append(len(selection) / _timed(trainer, feed, epoch, device))
    return float(np.median(alone)), float(np.median(streamed))


def ceilings(device: torch.device, precision: Precision) -> tuple[float, float]:
    """Operations and bytes a second that the device reaches: a matrix product, and a copy.

    Measured rather than looked up, so that the shares are of what this machine can do.
    """
    size, n_bytes = (8192, 2**30) if device.type == "cuda" else (1024, 2**26)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    source = torch.ones(n_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    with torch.inference_mode(), autocast(precision, device):
        product_s = _fastest_s(lambda: a @ b, device)
    copy_s = _fastest_s(lambda: target.copy_(source), device)
    return 2 * size**3 / product_s, 2 * n_bytes / copy_s


def _fastest_s(act: Any, device: torch.device, n: int = 10) -> float:
    fastest_s = float("inf")
    for _ in range(n):
        _wait(device)
        began = time.perf_counter()
        act()
        _wait(device)
        fastest_s = min(fastest_s, time.perf_counter() - began)
    return fastest_s


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations and bytes of everything that torch is asked to do, by kind."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: Counter[str] = Counter()
        self.n_bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.is_view:
            return out
        kind = next((kind for kind, part in _KINDS if part in name), "elementwise")
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops[kind] += count(*args, **kwargs, out_val=out)
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        self.n_bytes[kind] += sum(t.nbytes for t in tensors)
        return out


def parts_of_a_step(model: Network, config: Config, batch: TensorBatch) -> dict[str, Part]:
    """Count what one training step computes and moves, a patch, by kind of operation."""
    trainer = _Trainer(model, config, None)
    with _Tally() as tally:
        trainer.step(batch)
    n = len(batch.rows)
    order = [*(kind for kind, _ in _KINDS), "elementwise"]
    return {
        kind: Part(tally.flops[kind] / n, tally.n_bytes[kind] / n)
        for kind in order
        if tally.n_bytes[kind]
    }


def error_against_float64(
    config: Config, device: torch.device, n_patches: int = 16
) -> dict[str, float]:
    """Compare loss, logits and gradient of a pass on the device with float64 on the CPU.

    Without dropout and with the statistics of batch norm as they are at the start, so that
    both compute the same function.
    """
    torch.manual_seed(config.seed)
    model = build(config.model, len(NAMES_43), "v1").eval()
    random = RandomPatches(n_patches, n_patches, model.groups, len(NAMES_43))
    batch = next(iter(random.epoch(0)))
    images = {group: torch.from_numpy(dn) for group, dn in batch.images.items()}
    labels_BC = torch.from_numpy(np.asarray(batch.labels)).double()
    found = []
    for place, exact in ((device, False), (torch.device("cpu"), True)):
        network = build(config.model, len(NAMES_43), "v1").eval()
        network.load_state_dict(model.state_dict())
        network = network.double() if exact else arranged(network.to(place), config)
        with autocast("float32" if exact else config.precision, place):
            logits_BC = (
                _doubled(network, images)
                if exact
                else network({group: dn.to(place) for group, dn in images.items()})
            )
        wide_BC = logits_BC if exact else logits_BC.float()
        loss = MultiLabelLoss("bce")(wide_BC, labels_BC.to(wide_BC)).mean()
        loss.backward()
        gradients = [
            p.grad.double().cpu().flatten() for p in network.parameters() if p.grad is not None
        ]
        found.append((loss.detach(), logits_BC.detach(), torch.cat(gradients)))
    names = ("loss", "logits", "gradient")
    return {
        name: float((ours.double().cpu() - exact).norm() / exact.norm())
        for name, ours, exact in zip(names, *found, strict=True)
    }


def _doubled(network: nn.Module, images: Mapping[str, Tensor]) -> Tensor:
    """Score in float64; normalization, which is written for float32, is widened after it."""
    hooks = [
        module.register_forward_hook(lambda _, __, out: out.double())
        for module in network.modules()
        if type(module).__name__ == "BandNormalize"
    ]
    logits_BC: Tensor = network(images)
    for hook in hooks:
        hook.remove()
    return logits_BC


def _precision_name(precision: Precision, device: torch.device) -> str:
    with autocast(precision, device):
        return str((torch.ones(1, 1, device=device) @ torch.ones(1, 1, device=device)).dtype)[6:]


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else ())
        if line.startswith("model name")
    ]
    return f"{torch.get_num_threads()} threads of {names[0] if names else platform.machine()}"


def as_markdown(report: Report) -> str:
    """Write a section for RESULTS.md: figures, and a table of operations against the ceilings."""

    def figure(value: float | None, form: str, unit: str = "") -> str:
        return "-" if value is None else f"{value:{form}}{unit}"

    streamed = None
    if report.streaming_per_s is not None and report.loader_per_s is not None:
        streamed = report.streaming_per_s / report.loader_per_s
    figures = [
        ("training from the device's memory", f"{report.patches_per_s:,.0f} patches/s"),
        (f"an epoch of {report.n_patches:,} patches", f"{report.epoch_s:.2f} s"),
        (
            f"so an epoch of {V1_TRAIN:,} patches would take",
            f"{V1_TRAIN / report.patches_per_s:,.1f} s",
        ),
        ("device busy", figure(report.busy_share, ".1%")),
        ("the loader alone", figure(report.loader_per_s, ",.0f", " patches/s")),
        ("training, streaming", figure(report.streaming_per_s, ",.0f", " patches/s")),
        ("so streaming reaches of the loader alone", figure(streamed, ".1%")),
        *(
            (f"relative error of the {name} against float64", f"{value:.1e}")
            for name, value in report.error.items()
        ),
    ]
    peak, width = report.flops_per_s, report.bytes_per_s
    spent_us = 1e6 / report.patches_per_s
    rows, floors = [], 0.0
    for name, part in report.parts.items():
        floor_us = 1e6 * max(part.flops / peak, part.n_bytes / width)
        floors += floor_us
        bound = "operations" if part.flops / peak > part.n_bytes / width else "bytes"
        rows.append(
            f"| {name} | {part.flops / 1e6:,.1f} | {part.n_bytes / 1e6:,.2f} | {bound} "
            f"| {floor_us:,.2f} |"
        )
    flops = sum(part.flops for part in report.parts.values())
    n_bytes = sum(part.n_bytes for part in report.parts.values())
    told = (
        f"`python -m training measure` at {report.commit}: torch {torch.__version__}, "
        f"{report.precision}, batch {report.batch_size}, random patches."
    )
    known = (
        f"Ceilings measured there: {peak / 1e12:,.2f} TFLOP/s in a matrix product, "
        f"{width / 1e9:,.0f} GB/s in a copy. A patch, each operation as if it read and wrote "
        f"memory (fused, it moves less, and a share may exceed 100 %):"
    )
    reached = (
        f"A patch took {spent_us:,.2f} us: {flops / peak * 1e6 / spent_us:.1%} of the "
        f"operations' ceiling, {n_bytes / width * 1e6 / spent_us:.1%} of the bytes', "
        f"{floors / spent_us:.1%} of the floor."
    )
    return "\n".join(
        [
            f"## Training on {report.hardware}",
            "",
            told,
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in figures),
            "",
            known,
            "",
            "| part of a step | MFLOP | MB | bound by | floor, us |",
            "|---|---|---|---|---|",
            *rows,
            f"| all | {flops / 1e6:,.1f} | {n_bytes / 1e6:,.2f} | | {floors:,.2f} |",
            "",
            reached,
            "",
        ]
    )


def as_dict(report: Report) -> dict[str, Any]:
    """Return plain values."""
    return asdict(report)
