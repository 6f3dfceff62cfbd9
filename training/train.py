"""The training loop, read top to bottom.

A run is a folder at any URL: ``metrics.jsonl`` (a line an epoch), ``best.pt`` (weights of the epoch
that did best on validation) and ``step-….pt``, the two newest of those that hold all that is
needed to go on, in the middle of an epoch too.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bigearth_cube.cube import Cube
from bigearth_cube.errors import BigEarthCubeError, InvalidInputError
from bigearth_cube.loader.blocks import Counters
from bigearth_cube.search import Selection
from bigearth_cube.storage import Storage, StorageOptions
from training.checkpoint import BEST, Checkpoint, arranged, load, newest_whole, save, step_key
from training.checkpoint import step_keys as saved_steps
from training.config import Config
from training.data import (
    Engine,
    Pass,
    autocast,
    compiles,
    default_device,
    evaluation_loader,
    training_loader,
)
from training.distributed import ALONE, Team, share_dropout, synchronized
from training.feed import Cache, Feed, TensorBatch
from training.history import EpochLine, read_history, write_history
from training.losses import MultiLabelLoss, contrast_of_views, label_weights
from training.metrics import average_precision
from training.models import Network, build
from training.models.layers import PerView, measuring_batch_norm, set_prior_bias
from training.predict import Predictions, predict
from training.provenance import commit

logger = logging.getLogger(__name__)

_UNKNOWN: Final = "unknown"  # commit of an installed copy, beside that of another

NON_FINITE: Final = "non_finite.json"
_PROBE: Final = "probe"
_COUNTED: Final = ("requests", "bytes", "decode_s")


class NonFiniteLossError(BigEarthCubeError):
    """A loss became infinite or not a number; rows of a batch in training stand in the folder."""


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
    cache: Cache = "none",
    resume: bool = False,
    save_every_s: float = 120.0,
    device: torch.device | None = None,
    team: Team = ALONE,
    progress: Progress | None = None,
    after_epoch: Callable[[EpochLine], object] | None = None,
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
        URL of the run's folder; it must hold no other run. Every rank must reach it.
    storage_options
        Of that folder.
    engine
        ``"threads"``, or a Dask client to load with.
    cache
        Where patches stay after the first epoch; see `Feed`. It changes no result.
    resume
        Go on after the last step saved in ``out``. On a CPU with the same number of threads
        the final weights are those of a run that was never stopped, bit for bit.
    save_every_s
        The run is saved after the step or the epoch at which so many seconds have passed since it
        last was; the last epoch that was finished is saved on leaving, interrupted or not. 0 saves
        every step.
    device
        The first GPU where there is one, else the CPU; of several ranks each has its own.
    team
        The processes that train together. Steps are those of one process, to rounding.
    progress
        Told after every batch.
    after_epoch
        Told the line of every epoch.

    Raises
    ------
    InvalidInputError
        If a selection does not suit, ``out`` holds a run and ``resume`` is False, or it holds
        a run of another config or selection; or if a contrast of views is asked of a model of one.
    NonFiniteLossError
        If a loss is no finite number; of a batch in training the rows are saved first. Finished
        epochs are saved too, as they are on an interrupt.
    CubeIntegrityError
        If every checkpoint to resume from, or the cube, is damaged.
    StorageError
        If storage refuses or cannot be reached.
    """
    folder = Storage(out, storage_options)
    device = device or default_device()
    class_names = cube.class_names(config.labels)
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
        commit=commit(),
    )
    saved = _saved(folder, state, resume, team)
    resumed_at = None if saved is None else saved.step
    state, history = saved or state, read_history(folder, saved.epoch) if saved else []
    if _is_done(state):
        return Run(folder.url, history, state.best_epoch, state.best_f1, state.threshold)

    torch.manual_seed(config.seed)
    model = arranged(build(config.model, len(class_names), cube.archive).to(device), config)
    if config.contrast and len(model.encoders()) == 1:
        raise InvalidInputError(
            f"contrast {config.contrast} between views, but model {config.model!r} has one; expected "
            f"0, or a model of several, such as tb-cnn-contrastive"
        )
    if config.frozen:
        model.freeze()
    if team.world_size > 1:
        synchronized(model, device)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )  # without weight decay AdamW is Adam

    with ExitStack() as leaving:
        loader = leaving.enter_context(
            training_loader(cube, train, config, model.groups, engine, team)
        )
        feed = Feed(loader, device, cache=cache, team=team, name="training patches")
        validation_feed = None
        if validation is not None:
            validation_loader = leaving.enter_context(
                evaluation_loader(cube, validation, model.groups, config.labels, engine, team)
            )
            validation_feed = Feed(
                validation_loader, device, cache=cache, team=team, name="validation patches"
            )
        labels_NC = cube.labels(config.labels, train.rows)
        loss_of = MultiLabelLoss(
            config.loss,
            q=config.loss_q,
            weights_SC=label_weights(labels_NC, config.class_balance)
            if config.class_balance
            else None,
        ).to(device)
        if config.weights is not None and resumed_at is None:
            model.load_weights(config.weights)
        if config.prior_bias:
            set_prior_bias(model, labels_NC)
        average = None if config.ema is None else _averaged(model, config.ema)
        if saved is not None:
            _restore(saved, model, optimizer, average)
            saved = None  # 260 MB that nobody needs twice
            state = replace(state, model={}, optimizer=None, average=None)
        validated: Network = model if average is None else average.module  # type: ignore[assignment]
        score: nn.Module = Pass(model, compiled_rows=feed.full_rows if compiles(device) else None)
        if team.world_size > 1:
            score = DistributedDataParallel(score, gradient_as_bucket_view=True)

        n_batches = loader.n_batches
        n_steps = config.epochs * n_batches
        keeper = leaving.enter_context(_Keeper(folder, history, team, resumed_at))
        for epoch in range(state.epoch, config.epochs):
            # An epoch draws its own randomness, whatever ran before it: it can be resumed.
            torch.manual_seed(
                int(np.random.SeedSequence((config.seed, epoch)).generate_state(1)[0])
            )
            first = 0
            sums = {"loss": 0.0, "rows": 0.0, "seconds": 0.0, "wait_s": 0.0}
            if state.loader is not None:
                feed.load_state(state.loader)
                first = int(state.loader["batch"])
                sums = dict(state.so_far or sums)
                _restore_random(state.random, device)
                state = replace(state, loader=None, random=None, so_far=None)
            began, waited, spent = time.monotonic(), feed.wait_s, loader.counters
            bar = None
            if progress:
                bar = progress.add_task(
                    f"epoch {epoch + 1}", total=len(train), completed=int(sums["rows"])
                )
            model.train()
            rate = 0.0
            unread: _Unread | None = None
            steps = range(epoch * n_batches + first, (epoch + 1) * n_batches)
            # Measuring batch norm reads this epoch once more, before the next.
            is_next = epoch + 1 < config.epochs and not config.batch_norm_patches
            then = epoch + 1 if is_next else None
            batches = feed.epoch(epoch, augment=config.augment, then=then)
            for step, batch in zip(steps, batches, strict=True):
                rate = config.learning_rate_at(step, n_steps)
                for parameters in optimizer.param_groups:
                    parameters["lr"] = rate
                loss = train_step(score, optimizer, batch, loss_of, config, team)
                if average is not None:
                    average.update_parameters(model)
                # Read a step later: a device that is asked at once stands still meanwhile.
                if unread is not None:
                    sums["loss"] += unread.read(folder, cube, team)
                sums["rows"] += batch.n_rows
                unread = _Unread(loss, batch.rows.copy(), batch.n_rows, epoch, step)
                if progress and bar is not None:
                    progress.advance(bar, batch.n_rows)
                # The leader alone saves here: it must not wait for the others, as it would to tell
                # them of a loss that is not finite. That is found by all of them a step later.
                if keeper.is_due(save_every_s) and step != steps[-1] and unread.is_finite():
                    sums["loss"] += unread.read(folder, cube, team)
                    unread = None
                    so_far = {
                        **sums,
                        "seconds": sums["seconds"] + time.monotonic() - began,
                        "wait_s": sums["wait_s"] + feed.wait_s - waited,
                    }
                    keeper.last = replace(
                        state,
                        step=step + 1,
                        loader=feed.state(epoch, step + 1 - epoch * n_batches),
                        random=_random_state(device),
                        so_far=so_far,
                        **_learned(model, optimizer, average),
                    )
                    keeper.save()
            if unread is not None:
                sums["loss"] += unread.read(folder, cube, team)
            train_s = sums["seconds"] + time.monotonic() - began
            wait_s = sums["wait_s"] + feed.wait_s - waited
            counters = loader.counters  # of the steps, not of measuring after them
            if config.batch_norm_patches:
                _measure_batch_norm(validated, feed, epoch, config, device)

            validation_loss, f1, ap, threshold = None, None, None, 0.5
            if validation_feed is not None:
                predicted = _of_all(
                    predict(validated, validation_feed, config.precision, device), team
                )
                if not math.isfinite(predicted.loss):
                    raise NonFiniteLossError(
                        f"the validation loss of epoch {epoch + 1} is not a finite number; "
                        f"lower the learning rate"
                    )
                threshold, f1 = predicted.f1(tune=config.tune_threshold)
                validation_loss = predicted.loss
                if config.monitor == "ap_macro":
                    ap = _average_precision(predicted)
            mark = f1 if config.monitor == "f1" else ap
            if mark is None or state.best_score is None or mark > state.best_score:
                state = replace(
                    state,
                    best_f1=f1,
                    best_score=mark,
                    best_epoch=None if f1 is None else epoch + 1,
                    threshold=threshold,
                )
                if team.leads:
                    weights = {k: v.cpu().clone() for k, v in validated.state_dict().items()}
                    keeper.best = replace(state, model=weights, epoch=epoch + 1, step=steps.stop)
            line = EpochLine(
                epoch=epoch + 1,
                train_loss=sums["loss"] / len(train),
                validation_loss=validation_loss,
                validation_f1=f1,
                threshold=threshold,
                learning_rate=rate,
                patches_per_s=len(train) / train_s,
                wait_share=wait_s / train_s,
                seconds=sums["seconds"] + time.monotonic() - began,
                validation_ap_macro=ap,
            )
            line = _with_loading(line, spent, counters, wait_s, device, team)
            history.append(line)
            state = replace(state, epoch=epoch + 1, step=steps.stop)
            if team.leads:
                logger.info("%s", line)
                if after_epoch is not None:
                    after_epoch(line)

            now = replace(state, **_learned(model, optimizer, average))
            if _is_done(state) or keeper.is_due(save_every_s):
                keeper.last = now
                keeper.save()
            elif team.leads:
                keeper.last = copy.deepcopy(now)  # the next epoch changes its tensors in place
            if _is_done(state):
                break
    return Run(folder.url, history, state.best_epoch, state.best_f1, state.threshold)


def train_step(
    score: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: TensorBatch,
    loss_of: MultiLabelLoss,
    config: Config,
    team: Team = ALONE,
) -> Tensor:
    """Learn from one batch; returns its loss over all ranks, without waiting for the device.

    Parameters
    ----------
    score
        A `Pass`, or one that is distributed.
    optimizer
        Of its network.
    batch
        This rank's part.
    loss_of
        What is minimized.
    config
        Precision, what the contrast of views weighs, and what the gradient is cut to.
    team
        Who shares the batch.
    """
    if team.world_size > 1:
        share_dropout(score, batch.part, batch.n_rows)
    with autocast(config.precision, batch.labels_BC.device):
        outputs = score(batch.images, batch.symmetry_B)
    loss: Tensor
    if isinstance(outputs, PerView):
        loss = _loss_of_views(outputs, batch, loss_of, config, team)
    else:
        n_labels = batch.n_rows * batch.labels_BC.shape[1]
        loss = loss_of(outputs.float(), batch.labels_BC).sum() / n_labels
    optimizer.zero_grad(set_to_none=True)
    # Gradients are averaged over the ranks, but each has only its part of the sum.
    torch.autograd.backward(loss * team.world_size)
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(score.parameters(), config.clip_norm)
    optimizer.step()
    return team.sum(loss.detach())


def _loss_of_views(
    outputs: PerView, batch: TensorBatch, loss_of: MultiLabelLoss, config: Config, team: Team
) -> Tensor:
    """Add up this rank's part of the loss: labels of each view, and the contrast of the views."""
    logits_BVC = outputs.logits_BVC.float()
    labels_BVC = batch.labels_BC[:, None].expand_as(logits_BVC)
    n_labels = batch.n_rows * math.prod(logits_BVC.shape[1:])
    loss: Tensor = loss_of(logits_BVC, labels_BVC).sum() / n_labels
    if config.contrast:
        features_NVF, labels_NC = (
            team.whole_batch(rows, batch.part, batch.n_rows)
            for rows in (outputs.features_BVF.float(), batch.labels_BC)
        )
        apart_B = contrast_of_views(features_NVF, labels_NC, config.temperature, batch.part)
        loss = loss + config.contrast * apart_B.sum() / batch.n_rows
    return loss


@dataclass(frozen=True, slots=True)
class _Unread:
    """A loss that the device may not have computed yet, and whose it is."""

    loss: Tensor
    rows: NDArray[np.int64]
    n_rows: int
    epoch: int
    step: int

    def is_finite(self) -> bool:
        """Whether it is a number to go on from."""
        return math.isfinite(self.loss.item())

    def read(self, folder: Storage, cube: Cube, team: Team) -> float:
        """Return the sum over the rows; save which patches they are if it is not finite."""
        value = self.loss.item()
        if math.isfinite(value):
            return value * self.n_rows
        (rows,) = team.gathered([self.rows])
        if team.leads:
            about = {
                "epoch": self.epoch + 1,
                "step": self.step + 1,
                "rows": rows.tolist(),
                "ids": cube.column("id")[rows].tolist(),
            }
            folder.write(NON_FINITE, json.dumps(about, indent=1).encode())
        raise NonFiniteLossError(
            f"the loss of step {self.step + 1} (epoch {self.epoch + 1}) is not a finite number; "
            f"the {len(rows)} rows of its batch are in {folder.url}/{NON_FINITE}: look at their "
            f"pixels, or lower the learning rate"
        )


class _Keeper:
    """What is to be saved, until it is: at the latest on leaving.

    The checkpoint before the newest stays too: it is whole when the newest turns out not to be.

    Attributes
    ----------
    last, best
        Set by the loop; None once saved.
    """

    def __init__(
        self, folder: Storage, history: Sequence[EpochLine], team: Team, resumed_at: int | None
    ) -> None:
        self.last: Checkpoint | None = None
        self.best: Checkpoint | None = None
        self._folder, self._history, self._leads = folder, history, team.leads
        self._n_epochs = len(history)
        self._before = None if resumed_at is None else step_key(resumed_at)
        self._saved_at = time.monotonic()
        if self._leads:  # find out before the first epoch, not after it
            folder.write(_PROBE, b"")
            folder.delete(_PROBE)
            folder.remove_leftovers()

    def is_due(self, every_s: float) -> bool:
        """Whether so many seconds have passed since something was saved."""
        return self._leads and time.monotonic() - self._saved_at >= every_s

    def save(self) -> None:
        """Save what is set; the newest step last, for resuming trusts the files beside it."""
        if self._leads and self.best is not None:
            save(self.best, self._folder, BEST)
        if self._leads and self.last is not None:
            write_history(self._folder, self._history[: self.last.epoch])
            key = step_key(self.last.step)
            save(self.last, self._folder, key)
            for other in saved_steps(self._folder):
                if other not in (key, self._before):
                    self._folder.delete(other)
            self._n_epochs, self._before = self.last.epoch, key
        self.best = self.last = None
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt | BigEarthCubeError)
        if not stopped or not self._leads:
            return
        if self.last is not None:
            self.save()
        n = self._n_epochs
        logger.info("stopped: %s", f"epoch {n} is saved" if n else "no epoch is saved")


def _saved(folder: Storage, wanted: Checkpoint, resume: bool, team: Team) -> Checkpoint | None:
    """Return the checkpoint to go on from, which the first rank chooses for all."""
    key = None
    found: Checkpoint | None = None
    if team.leads:
        newest = newest_whole(folder) if resume else None
        if not resume and (saved_steps(folder) or folder.exists(BEST)):
            raise InvalidInputError(f"{folder.url} holds a run; resume it, or name another folder")
        if newest is not None:
            key, found = newest
        elif resume:
            logger.info("no run at %s yet: starting", folder.url)
    key = team.agreed(key)
    if key is not None and found is None:
        found = load(f"{folder.url}/{key}", folder.options)
    return None if found is None else _same_run(found, wanted)


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
    commits = [*(found.commit or _UNKNOWN).split(", "), wanted.commit or _UNKNOWN]
    named = ", ".join(dict.fromkeys(commits))
    return replace(found, commit=None if named == _UNKNOWN else named)


def _is_done(state: Checkpoint) -> bool:
    """Whether all epochs were trained, or the best is too long ago."""
    patience, best = state.config.patience, state.best_epoch
    too_long = patience is not None and best is not None and state.epoch - best >= patience
    return state.epoch >= state.config.epochs or too_long


def _learned(
    model: Network, optimizer: torch.optim.Optimizer, average: AveragedModel | None
) -> dict[str, Any]:
    """Fields of a checkpoint that hold what was learned."""
    averaged = None if average is None else average.module.state_dict()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": averaged,
    }


def _averaged(model: Network, decay: float) -> AveragedModel:
    """Follow the weights and the statistics of batch norm by an exponential moving average."""
    follow: Callable[..., Any] = get_ema_multi_avg_fn
    return AveragedModel(model, multi_avg_fn=follow(decay), use_buffers=True)


def _restore(
    saved: Checkpoint,
    model: Network,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
) -> None:
    """Take up what was learned."""
    assert saved.optimizer is not None
    model.load_state_dict(saved.model)
    optimizer.load_state_dict(saved.optimizer)
    if average is not None:
        assert saved.average is not None
        average.module.load_state_dict(saved.average)
        average.n_averaged.fill_(saved.step)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    random = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    return random


def _restore_random(random: dict[str, Tensor] | None, device: torch.device) -> None:
    assert random is not None
    torch.set_rng_state(random["cpu"])
    if device.type == "cuda" and "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"], device)


@torch.no_grad()
def _measure_batch_norm(
    model: Network, feed: Feed, epoch: int, config: Config, device: torch.device
) -> None:
    """Measure on the first patches of the epoch's own order: resumed runs see the same."""
    n_batches = math.ceil(config.batch_norm_patches / feed.loader.spec.batch_size)
    with closing(feed.epoch(epoch)) as batches, measuring_batch_norm(model):
        for batch in islice(batches, n_batches):
            with autocast(config.precision, device):
                model(batch.images)


def _of_all(predicted: Predictions, team: Team) -> Predictions:
    """Put the parts of all ranks together, in the order of the rows."""
    if team.world_size == 1:
        return predicted
    total = np.array([predicted.loss * predicted.scores_NC.size])
    rows, scores_NC, labels_NC, losses = team.gathered(
        [predicted.rows, predicted.scores_NC, predicted.labels_NC, total]
    )
    order = np.argsort(rows)
    loss = float(losses.sum()) / scores_NC.size
    return Predictions(rows[order], scores_NC[order], labels_NC[order], loss)


def _average_precision(predicted: Predictions) -> float:
    """Mean over classes; 0 for a class that no patch has."""
    by_class = zip(predicted.scores_NC.T, predicted.labels_NC.T.astype(bool), strict=True)
    return float(np.mean([average_precision(scores, labels) for scores, labels in by_class]))


def _with_loading(
    line: EpochLine,
    before: Counters,
    after: Counters,
    wait_s: float,
    device: torch.device,
    team: Team,
) -> EpochLine:
    """Add what loading has cost all ranks."""
    spent = [getattr(after, name) - getattr(before, name) for name in _COUNTED]
    spent += [wait_s, line.wait_share]
    total = team.sum(torch.tensor(spent, dtype=torch.float64, device=device)).tolist()
    n_requests, n_bytes, decode_s, all_wait_s, all_shares = total
    return replace(
        line,
        wait_share=all_shares / team.world_size,
        loader_requests=int(n_requests),
        loader_bytes=int(n_bytes),
        loader_decode_s=decode_s,
        loader_wait_s=all_wait_s,
    )
