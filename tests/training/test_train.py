"""The loop: it learns, it can be stopped, and it says what is wrong."""

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigearth_cube.cube import Cube
from bigearth_cube.errors import CubeIntegrityError, InvalidInputError, StorageError
from bigearth_cube.storage import Storage
from training import train as training_loop
from training.checkpoint import load
from training.config import Config
from training.data import autocast, training_loader
from training.models import Network
from training.predict import Predictions
from training.recipes import recipe
from training.train import METRICS, NON_FINITE, EpochLine, NonFiniteLossError, Run, fit


def small(**overrides: object) -> Config:
    values = {"batch_size": 24, "epochs": 2, **overrides}
    return recipe("tb-cnn-small", "label_19", **values)


def run(cube: Cube, out: str, config: Config, **arguments: object) -> Run:
    values = {
        "save_every_s": 0.0,
        "validation": cube.search(split="validation"),
        "device": torch.device("cpu"),
        **arguments,
    }
    return fit(cube, config, train=cube.search(split="train"), out=out, **values)  # type: ignore[arg-type]


class StoppedError(Exception):
    """Stands for a kill between two epochs."""


def stop_after(n_epochs: int, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process end right after a checkpoint of an epoch was written."""
    save = training_loop.save

    def save_and_stop(checkpoint: training_loop.Checkpoint, storage: Storage, key: str) -> None:
        save(checkpoint, storage, key)
        if key == written and checkpoint.epoch == n_epochs:
            raise StoppedError

    monkeypatch.setattr(training_loop, "save", save_and_stop)


@pytest.fixture(scope="module")
def finished(learnable: Cube, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(learnable, str(tmp_path_factory.mktemp("runs") / "one"), small())


def test_the_loss_falls_and_every_epoch_is_one_flat_line(finished: Run) -> None:
    lines = [json.loads(line) for line in Storage(finished.url).read(METRICS).splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    for line in lines:
        assert {"train_loss", "validation_loss", "validation_f1"} <= line.keys()
        assert all(isinstance(value, int | float) for value in line.values())
        assert line["patches_per_s"] > 0
        assert 0 <= line["wait_share"] <= 1
    assert [EpochLine(**line) for line in lines] == list(finished.history)


def test_the_best_epoch_is_kept_with_its_threshold_and_provenance(
    finished: Run, learnable: Cube
) -> None:
    best = load(finished.url)
    scores = [line.validation_f1 for line in finished.history]
    assert finished.best_f1 == max(s for s in scores if s is not None) == best.best_f1
    assert finished.best_epoch == scores.index(finished.best_f1) + 1 == best.best_epoch
    assert best.threshold == finished.history[finished.best_epoch - 1].threshold
    assert best.selection == learnable.search(split="train").digest
    assert (best.cube_id, best.release) == (learnable.id, learnable.release.name)
    assert best.class_names == learnable.class_names("label_19")
    assert best.optimizer is None


@pytest.mark.parametrize(("epoch", "written"), [(1, "last.pt"), (1, "best.pt")])
def test_a_stopped_run_resumes_to_the_same_weights_bit_for_bit(
    epoch: int,
    written: str,
    finished: Run,
    learnable: Cube,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = str(tmp_path / "stopped")
    with monkeypatch.context() as patched:
        stop_after(epoch, written, patched)
        with pytest.raises(StoppedError):
            run(learnable, out, small())
    torch.manual_seed(12345)  # whatever the new process drew before
    resumed = run(learnable, out, small(), resume=True)
    assert load(f"{out}/best.pt").optimizer is None
    for name in ("best.pt", "last.pt"):
        expected, found = load(f"{finished.url}/{name}"), load(f"{out}/{name}")
        assert found.epoch == expected.epoch
        assert all(torch.equal(found.model[k], expected.model[k]) for k in expected.model)
    assert (resumed.best_f1, resumed.threshold) == (finished.best_f1, finished.threshold)
    assert [
        replace(line, seconds=0, patches_per_s=0, wait_share=0) for line in resumed.history
    ] == [replace(line, seconds=0, patches_per_s=0, wait_share=0) for line in finished.history]


def test_resuming_a_finished_run_changes_nothing(finished: Run, learnable: Cube) -> None:
    before = {key: Storage(finished.url).read(key) for key, _ in Storage(finished.url).list()}
    again = run(learnable, finished.url, small(), resume=True)
    assert again == finished
    after = {key: Storage(finished.url).read(key) for key, _ in Storage(finished.url).list()}
    assert after == before
    assert set(before) == {"best.pt", "last.pt", METRICS}


def test_a_folder_that_holds_a_run_is_not_overwritten(finished: Run, learnable: Cube) -> None:
    with pytest.raises(InvalidInputError, match="holds a run; resume it"):
        run(learnable, finished.url, small())


def test_a_run_of_another_config_or_selection_is_not_resumed(
    finished: Run, learnable: Cube
) -> None:
    told = r"learning_rate 0\.001 / 0\.5; ask for what was saved, or name another folder with --out"
    with pytest.raises(InvalidInputError, match=told):
        run(learnable, finished.url, small(learning_rate=0.5), resume=True)
    with pytest.raises(InvalidInputError, match="selection '"):
        fit(
            learnable,
            small(),
            train=learnable.search(split="test"),
            out=finished.url,
            resume=True,
        )


def test_a_damaged_checkpoint_is_refused_by_its_name(
    finished: Run, learnable: Cube, tmp_path: Path
) -> None:
    data = bytearray(Storage(finished.url).read("last.pt"))
    data[len(data) // 2] ^= 1
    Storage(tmp_path).write("last.pt", bytes(data))
    with pytest.raises(CubeIntegrityError, match=r"last\.pt: the checkpoint is damaged"):
        run(learnable, str(tmp_path), small(), resume=True)


def test_the_best_epoch_is_named_even_if_it_was_not_saved_at_once(
    learnable: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.2])  # the first epoch is the better one
    monkeypatch.setattr(Predictions, "f1", lambda *_, **__: (0.4, next(scores)))
    run(learnable, str(tmp_path), small(), save_every_s=1e9)
    best = load(str(tmp_path))
    assert (best.epoch, best.best_epoch, best.best_f1) == (1, 1, 0.9)
    assert load(f"{tmp_path}/last.pt").epoch == 2


def test_a_run_validated_on_other_rows_is_not_resumed(finished: Run, learnable: Cube) -> None:
    for validation in (learnable.search(split="test"), None):
        with pytest.raises(InvalidInputError, match="validation '"):
            run(learnable, finished.url, small(), validation=validation, resume=True)


def test_the_first_scores_are_how_frequent_each_class_is(
    learnable: Cube, monkeypatch: pytest.MonkeyPatch
) -> None:
    biases: list[torch.Tensor] = []

    def first_step(model: Network, *_: object) -> float:
        biases.append(model.head[-1].bias.detach().clone())  # type: ignore[index]
        return math.nan  # ends the run

    monkeypatch.setattr(training_loop, "train_step", first_step)
    for prior_bias in (True, False):
        with pytest.raises(NonFiniteLossError):
            run(learnable, f"memory://runs/prior-{prior_bias}", small(prior_bias=prior_bias))
    train = learnable.search(split="train")
    share_C = learnable.labels("label_19", train.rows).mean(0)
    np.testing.assert_allclose(biases[0].sigmoid(), share_C, atol=0.5 / len(train))
    assert not biases[1].any()


def test_batch_norm_is_measured_without_dropout_on_training_patches(
    finished: Run, learnable: Cube
) -> None:
    """The statistics of the first norm are those of its input, as plain torch computes them."""
    last = load(f"{finished.url}/last.pt")
    network = last.network()
    branch = network.branches[0]  # type: ignore[index]
    normalize, (conv, norm) = branch[0], list(branch[1][0])[:2]
    config = last.config
    with training_loader(
        learnable, learnable.search(split="train"), config, network.groups, "threads"
    ) as loader:
        batches = [batch.images["s2/r10m"].copy() for batch in loader.epoch(config.epochs - 1)]
    with torch.no_grad(), autocast(config.precision, torch.device("cpu")):
        inputs = [conv(normalize(torch.from_numpy(dn))).float() for dn in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=0.02, atol=0.02)
    torch.testing.assert_close(norm.running_var, variance, rtol=0.02, atol=0.02)


def test_a_run_that_fails_leaves_no_thread_behind(learnable: Cube, tmp_path: Path) -> None:
    config = small(learning_rate=1e30, schedule="constant", precision="float32", epochs=3)
    with pytest.raises(NonFiniteLossError):
        run(learnable, str(tmp_path), config)
    assert [t.name for t in threading.enumerate() if t.name.startswith("bec-")] == []


def test_a_validation_loss_that_is_not_finite_stops_the_run_and_keeps_the_epoch_before(
    learnable: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = training_loop.predict
    losses = iter([0.5, math.nan])
    with monkeypatch.context() as patched:
        patched.setattr(
            training_loop, "predict", lambda *a: replace(predict(*a), loss=next(losses))
        )
        with pytest.raises(NonFiniteLossError, match="validation loss of epoch 2 is not a finite"):
            run(learnable, str(tmp_path), small(), save_every_s=1e9)
    assert [load(f"{tmp_path}/{name}").epoch for name in ("last.pt", "best.pt")] == [1, 1]
    assert len(Storage(tmp_path).read(METRICS).splitlines()) == 1
    one_epoch = small(learning_rate=1e30, epochs=1, batch_size=48)
    with pytest.raises(NonFiniteLossError, match="validation loss of epoch 1"):
        run(learnable, str(tmp_path / "one"), one_epoch)
    assert list((tmp_path / "one").iterdir()) == []


def test_an_interrupted_run_keeps_its_finished_epochs_and_resumes_bit_for_bit(
    learnable: Cube,
    finished: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    step, calls = training_loop.train_step, iter(range(100))

    def interrupt(*arguments: Any) -> float:
        if next(calls) == 3:  # in the middle of the second epoch, whose first step is done
            raise KeyboardInterrupt
        return step(*arguments)

    caplog.set_level("INFO", "training")
    with monkeypatch.context() as patched:
        patched.setattr(training_loop, "train_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(learnable, str(tmp_path), small(), save_every_s=1e9, resume=True)
    assert f"no run at {tmp_path} yet: starting" in caplog.messages
    assert caplog.messages[-1] == "stopped: epoch 1 is saved"
    run(learnable, str(tmp_path), small(), resume=True)
    for name in ("best.pt", "last.pt"):
        expected, found = load(f"{finished.url}/{name}"), load(f"{tmp_path}/{name}")
        assert found.epoch == expected.epoch
        assert all(torch.equal(found.model[k], expected.model[k]) for k in expected.model)


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(
    learnable: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(training_loop, "train_step", None)
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/file/"):
        run(learnable, str(tmp_path / "file"), small())


def test_without_validation_the_last_epoch_is_kept(learnable: Cube) -> None:
    config = small()
    result = run(learnable, "memory://runs/without-validation", config, validation=None)
    assert result.best_f1 is None
    assert result.threshold == 0.5
    assert [line.validation_f1 for line in result.history] == [None, None]
    best, last = (load(f"{result.url}/{name}") for name in ("best.pt", "last.pt"))
    assert best.epoch == last.epoch == 2
    assert all(torch.equal(best.model[k], last.model[k]) for k in best.model)


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_rows(
    learnable: Cube, tmp_path: Path
) -> None:
    config = small(learning_rate=1e30, schedule="constant", precision="float32")
    with pytest.raises(NonFiniteLossError, match="not a finite number") as caught:
        run(learnable, str(tmp_path), config)
    about = json.loads((tmp_path / NON_FINITE).read_text())
    assert str(tmp_path / NON_FINITE) in str(caught.value)
    train = learnable.search(split="train")
    assert len(about["rows"]) == len(about["ids"]) == config.batch_size
    assert set(about["rows"]) <= set(train.rows.tolist())
    assert set(about["ids"]) <= set(train.ids.to_pylist())
    assert about["epoch"] == 1
    assert about["step"] > 1
    assert not (tmp_path / "last.pt").exists()


def test_the_learning_rate_of_the_last_step_is_almost_zero(finished: Run) -> None:
    assert 0 < finished.history[-1].learning_rate < 1e-4
    assert math.isclose(
        finished.history[0].learning_rate, small().learning_rate_at(1, 4), rel_tol=1e-12
    )
