"""The training loop, read top to bottom.

A run is a folder at any URL: ``metrics.jsonl`` (a line an epoch), ``best.pt`` (weights of the
epoch with the highest validation F1) and ``last.pt`` (all that is needed to go on).
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Self

import numpy as np
import torch
from rich.progress import Progress
from torch.nn import functional as F  # noqa: N812

from bigearth_cube.cube import Cube
from bigearth_cube.errors import BigEarthCubeError, InvalidInputError
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.search import Selection
from bigearth_cube.storage import Storage, StorageOptions
from training.checkpoint import BEST, LAST, Checkpoint, arranged, load, save
from training.config import Config, Precision
from training.data import (
    Engine,
    TensorBatch,
    autocast,
    default_device,
    evaluation_loader,
    tensor_batches,
    training_loader,
)
from training.models import Network, build
from training.models.layers import measuring_batch_norm, set_prior_bias
from training.predict import predict

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
NON_FINITE = "non_finite.json"
_PROBE = "probe"


class NonFiniteLossError(BigEarthCubeError):
    """A loss became infinite or not a number; rows of a batch in training stand in the folder."""


@dataclass(frozen=True, slots=True)
class EpochLine:
    """One line of ``metrics.jsonl``.

    Attributes
    ----------
    epoch
        Counted from 1.
    train_loss, validation_loss
        Binary cross-entropy, mean over rows and classes; of training as the steps saw it, of
        validation after the epoch (None without).
    validation_f1
        Sample-averaged F1 at the threshold; None without validation.
    threshold
        Chosen on validation where the config says so, else .5.
    learning_rate
        Of the last step.
    patches_per_s
        Of training, validation left out.
    wait_share
        Share of training time spent waiting for the loader, 0 to 1.
    seconds
        Training and validation.
    """

    epoch: int
    train_loss: float
    validation_loss: float | None
    validation_f1: float | None
    threshold: float
    learning_rate: float
    patches_per_s: float
    wait_share: float
    seconds: float

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch}: train loss {self.train_loss:.4f}"]
        if self.validation_f1 is not None:
            parts += [f"validation loss {self.validation_loss:.4f}", f"F1 {self.validation_f1:.4f}"]
        return ", ".join([*parts, f"{self.patches_per_s:.0f} patches/s, {self.seconds:.0f} s"])


@dataclass(frozen=True, slots=True)
class Run:
    """A finished training.

    Attributes
    ----------
    url
        Its folder.
    history
        A line an epoch.
    best_epoch, best_f1
        Epoch of ``best.pt`` and its validation F1; None without validation.
    threshold
        Chosen on validation in that epoch, or .5.
    """

    url: str
    history: Sequence[EpochLine]
    best_epoch: int | None
    best_f1: float | None
    threshold: float


def fit(
    cube: Cube,
    config: Config,
    *,
    train: Selection,
    validation: Selection | None = None,
    out: str,
    storage_options: StorageOptions | None = None,
    engine: Engine = "threads",
    resume: bool = False,
    save_every_s: float = 30.0,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train a network on some rows of a cube.

    Parameters
    ----------
    cube
        Where the patches are.
    config
        What to train, and how.
    train
        Rows to learn from; at least two.
    validation
        Rows to choose the best epoch and the threshold on; without it the last epoch is kept.
    out
        URL of the run's folder; it must hold no other run.
    storage_options
        Of that folder.
    engine
        ``"threads"``, or a Dask client to load with.
    resume
        Go on after the last epoch saved in ``out``. On a CPU with the same number of threads
        the final weights are those of a run that was never stopped, bit for bit.
    save_every_s
        An epoch is saved if so many seconds passed since the last one was; the last one that was
        finished is saved on leaving, interrupted or not. 0 saves every epoch.
    device
        The first GPU where there is one, else the CPU.
    progress
        Told after every batch.

    Raises
    ------
    InvalidInputError
        If a selection does not suit, ``out`` holds a run and ``resume`` is False, or it holds
        a run of another config or selection.
    NonFiniteLossError
        If a loss is no finite number; of a batch in training the rows are saved first. Finished
        epochs are saved too, as they are on an interrupt.
    CubeIntegrityError
        If the checkpoint to resume from, or the cube, is damaged.
    StorageError
        If storage refuses or cannot be reached.
    """
    folder = Storage(out, storage_options)
    device = device or default_device()
    class_names = cube.class_names(config.labels)
    torch.manual_seed(config.seed)
    model = arranged(build(config.model, len(class_names), cube.archive).to(device), config)
    if config.frozen:
        model.freeze()
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )  # without weight decay AdamW is Adam

    state = Checkpoint(
        config=config,
        archive=cube.archive,
        class_names=class_names,
        cube_id=cube.id,
        release=cube.release.name,
        selection=train.digest,
        validation=None if validation is None else validation.digest,
        model={},
        optimizer=None,
        epoch=0,
        threshold=0.5,
    )
    history: list[EpochLine] = []
    has_run = folder.exists(LAST)
    if resume and not has_run:
        logger.info("no run at %s yet: starting", folder.url)
    if has_run:
        if not resume:
            raise InvalidInputError(f"{folder.url} holds a run; resume it, or name another folder")
        state = _same_run(load(f"{folder.url}/{LAST}", storage_options), state)
        history = _read_history(folder, state.epoch)
        model.load_state_dict(state.model)
        assert state.optimizer is not None
        optimizer.load_state_dict(state.optimizer)
        state = replace(state, model={}, optimizer=None)  # 260 MB that nobody needs twice
    if state.epoch >= config.epochs:
        return Run(folder.url, history, state.best_epoch, state.best_f1, state.threshold)

    groups = model.groups
    with ExitStack() as loaders:
        loader = loaders.enter_context(training_loader(cube, train, config, groups, engine))
        validation_loader = None
        if validation is not None:
            validation_loader = loaders.enter_context(
                evaluation_loader(cube, validation, groups, config.labels, engine)
            )
        if config.weights is not None and not has_run:
            model.load_weights(config.weights)
        if config.prior_bias and not state.epoch:
            set_prior_bias(model, cube.labels(config.labels, train.rows))
        n_steps = config.epochs * loader.n_batches
        _check_writable(folder)
        keeper = loaders.enter_context(_Keeper(folder, history))
        last_save = time.monotonic()
        for epoch in range(state.epoch, config.epochs):
            began, waited = time.monotonic(), loader.counters.wait_s
            bar = progress.add_task(f"epoch {epoch + 1}", total=len(train)) if progress else None
            # An epoch draws its own randomness, whatever ran before it: it can be resumed.
            torch.manual_seed(
                int(np.random.SeedSequence((config.seed, epoch)).generate_state(1)[0])
            )
            model.train()
            total_loss, rate = 0.0, 0.0
            batches = tensor_batches(loader, epoch, device, augment=config.augment)
            for step, batch in enumerate(batches, start=epoch * loader.n_batches):
                rate = config.learning_rate_at(step, n_steps)
                for parameters in optimizer.param_groups:
                    parameters["lr"] = rate
                loss = train_step(model, optimizer, batch, config.precision)
                if not math.isfinite(loss):
                    raise _non_finite(folder, cube, epoch, step, batch.rows)
                total_loss += loss * len(batch.rows)
                if progress and bar is not None:
                    progress.advance(bar, len(batch.rows))
            train_s = time.monotonic() - began
            wait_share = (loader.counters.wait_s - waited) / train_s
            if config.batch_norm_patches:
                _measure_batch_norm(model, loader, epoch, config, device)

            validation_loss, f1, threshold = None, None, 0.5
            if validation_loader is not None:
                predicted = predict(model, validation_loader, config.precision, device)
                if not math.isfinite(predicted.loss):
                    raise NonFiniteLossError(
                        f"the validation loss of epoch {epoch + 1} is not a finite number; "
                        f"lower the learning rate"
                    )
                threshold, f1 = predicted.f1(tune=config.tune_threshold)
                validation_loss = predicted.loss
            if f1 is None or state.best_f1 is None or f1 > state.best_f1:
                state = replace(
                    state,
                    best_f1=f1,
                    best_epoch=None if f1 is None else epoch + 1,
                    threshold=threshold,
                )
                weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
                keeper.best = replace(state, model=weights, epoch=epoch + 1)
            line = EpochLine(
                epoch=epoch + 1,
                train_loss=total_loss / len(train),
                validation_loss=validation_loss,
                validation_f1=f1,
                threshold=threshold,
                learning_rate=rate,
                patches_per_s=len(train) / train_s,
                wait_share=wait_share,
                seconds=time.monotonic() - began,
            )
            history.append(line)
            state = replace(state, epoch=epoch + 1)
            logger.info("%s", line)

            now = replace(state, model=model.state_dict(), optimizer=optimizer.state_dict())
            if epoch + 1 == config.epochs or time.monotonic() - last_save >= save_every_s:
                keeper.last = now
                keeper.save()
                last_save = time.monotonic()
            else:
                keeper.last = copy.deepcopy(now)  # the next epoch changes its tensors in place
    return Run(folder.url, history, state.best_epoch, state.best_f1, state.threshold)


class _Keeper:
    """The last finished epoch and the best one until they are saved: at the latest on leaving.

    Attributes
    ----------
    last, best
        Set by the loop after an epoch; None once saved.
    """

    def __init__(self, folder: Storage, history: Sequence[EpochLine]) -> None:
        self.last: Checkpoint | None = None
        self.best: Checkpoint | None = None
        self._folder, self._history, self._n_saved = folder, history, len(history)

    def save(self) -> None:
        """Save what is set; the last epoch last, for resuming trusts the files beside it."""
        if self.best is not None:
            save(self.best, self._folder, BEST)
        if self.last is not None:
            _write_history(self._folder, self._history[: self.last.epoch])
            save(self.last, self._folder, LAST)
            self._n_saved = self.last.epoch
        self.best = self.last = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, KeyboardInterrupt | BigEarthCubeError):
            return
        if self.last is not None:
            self.save()
        kept = f"epoch {self._n_saved} is saved" if self._n_saved else "no epoch is saved"
        logger.info("stopped: %s", kept)


def train_step(
    model: Network, optimizer: torch.optim.Optimizer, batch: TensorBatch, precision: Precision
) -> float:
    """Learn from one batch; returns its loss, from which nothing is learned if it is not finite."""
    with autocast(precision, batch.labels_BC.device):
        logits_BC = model(batch.images)
    loss = F.binary_cross_entropy_with_logits(logits_BC.float(), batch.labels_BC)
    value = loss.item()
    if math.isfinite(value):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return value


@torch.no_grad()
def _measure_batch_norm(
    model: Network, loader: BatchLoader, epoch: int, config: Config, device: torch.device
) -> None:
    """Measure on the first patches of the epoch's own order: resumed runs see the same."""
    n_batches = math.ceil(config.batch_norm_patches / loader.spec.batch_size)
    with closing(tensor_batches(loader, epoch, device)) as batches, measuring_batch_norm(model):
        for batch in islice(batches, n_batches):
            with autocast(config.precision, device):
                model(batch.images)


def _same_run(found: Checkpoint, wanted: Checkpoint) -> Checkpoint:
    """Return the checkpoint to go on from, if it is of the run that was asked for."""
    differences = found.config.differences(wanted.config)
    for name in ("cube_id", "release", "selection", "validation"):
        if getattr(found, name) != getattr(wanted, name):
            differences.append(f"{name} {getattr(found, name)!r} / {getattr(wanted, name)!r}")
    if differences:
        raise InvalidInputError(
            f"the run to resume is another one (saved / asked for): {'; '.join(differences)}; "
            f"ask for what was saved, or name another folder with --out"
        )
    return found


def _check_writable(folder: Storage) -> None:
    """Find out before the first epoch, not after it."""
    folder.write(_PROBE, b"")
    folder.delete(_PROBE)


def _read_history(folder: Storage, n_epochs: int) -> list[EpochLine]:
    lines = folder.read(METRICS).decode().splitlines()
    return [EpochLine(**json.loads(line)) for line in lines[:n_epochs]]


def _write_history(folder: Storage, history: Sequence[EpochLine]) -> None:
    text = "".join(json.dumps(asdict(line)) + "\n" for line in history)
    folder.write(METRICS, text.encode())


def _non_finite(
    folder: Storage, cube: Cube, epoch: int, step: int, rows: np.ndarray
) -> NonFiniteLossError:
    """Save which patches the batch held, and say so."""
    ids = cube.column("id")[rows].tolist()
    about = {"epoch": epoch + 1, "step": step + 1, "rows": rows.tolist(), "ids": ids}
    folder.write(NON_FINITE, json.dumps(about, indent=1).encode())
    return NonFiniteLossError(
        f"the loss of step {step + 1} (epoch {epoch + 1}) is not a finite number; the "
        f"{len(rows)} rows of its batch are in {folder.url}/{NON_FINITE}: look at their pixels, "
        f"or lower the learning rate"
    )
