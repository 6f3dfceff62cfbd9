"""The loop: it learns, it can be stopped, and it says what is wrong."""

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigearth_cube.cube import Cube
from bigearth_cube.errors import CubeIntegrityError, InvalidInputError, StorageError
from bigearth_cube.loader.batches import Batch, BatchLoader
from bigearth_cube.storage import Storage
from training import train as training_loop
from training.checkpoint import BEST, Checkpoint, load, newest_whole, step_keys
from training.config import Config
from training.data import Pass, autocast, training_loader
from training.history import METRICS, EpochLine, read_history
from training.predict import Predictions
from training.provenance import commit
from training.recipes import recipe
from training.train import NON_FINITE, NonFiniteLossError, Run, fit


def small(**overrides: object) -> Config:
    values = {"batch_size": 24, "epochs": 2, **overrides}
    return recipe("tb-cnn-small", "label_19", **values)


def run(cube: Cube, out: str, config: Config, **arguments: object) -> Run:
    values = {
        "save_every_s": 1e9,
        "validation": cube.search(split="validation"),
        "device": torch.device("cpu"),
        **arguments,
    }
    return fit(cube, config, train=cube.search(split="train"), out=out, **values)  # type: ignore[arg-type]


class StoppedError(Exception):
    """Stands for a kill."""


def stop_after(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process end right after a checkpoint was written."""
    save = training_loop.save

    def save_and_stop(checkpoint: Checkpoint, storage: Storage, key: str) -> None:
        save(checkpoint, storage, key)
        if key == written:
            raise StoppedError

    monkeypatch.setattr(training_loop, "save", save_and_stop)


@pytest.fixture(scope="module")
def finished(learnable: Cube, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(learnable, str(tmp_path_factory.mktemp("runs") / "one"), small())


@pytest.mark.parametrize(
    ("config", "announced"),
    [
        ({"batch_norm_patches": 0}, [1, 2, None]),
        ({"batch_norm_patches": 24}, [None, None, None]),  # it reads the epoch once more
    ],
)
def test_epochs_that_stream_are_announced_to_the_loader(
    learnable: Cube,
    config: dict[str, int],
    announced: list[int | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, epoch_of = [], BatchLoader.epoch

    def noted(loader: BatchLoader, epoch: int, **how: int | None) -> Iterator[Batch]:
        if loader.spec.shuffle != "none" and (not told or told[-1][0] != epoch):
            told.append((epoch, how["then"]))
        return epoch_of(loader, epoch, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(BatchLoader, "epoch", noted)
    out = str(tmp_path / "run")
    run(learnable, out, small(epochs=3, **config))
    assert told == list(zip(range(3), announced, strict=True))
    told.clear()
    run(learnable, f"{out}-kept", small(epochs=3, **config), cache="host")
    assert told == [(0, None)]  # later epochs come from memory


def test_the_loss_falls_and_every_epoch_is_one_flat_line(finished: Run) -> None:
    lines = [json.loads(line) for line in Storage(finished.url).read(METRICS).splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    for line in lines:
        assert {"train_loss", "validation_loss", "validation_f1"} <= line.keys()
        assert line.pop("validation_ap_macro") is None  # not asked for
        assert all(isinstance(value, int | float) for value in line.values())
        assert line["loader_requests"] > 0
        assert line["loader_bytes"] > 0
        assert line["patches_per_s"] > 0
        assert 0 <= line["wait_share"] <= 1
    assert read_history(Storage(finished.url)) == list(finished.history)


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
    assert best.commit == commit()


def newest(url: str) -> Checkpoint:
    """What the run would go on from."""
    found = newest_whole(Storage(url))
    assert found is not None
    return found[1]


def assert_same_end(found: Run, expected: Run) -> None:
    """Weights and figures are equal bit for bit."""
    for ours, theirs in (
        (load(found.url), load(expected.url)),
        (newest(found.url), newest(expected.url)),
    ):
        assert (ours.epoch, ours.step) == (theirs.epoch, theirs.step)
        assert ours.model.keys() == theirs.model.keys()
        assert all(torch.equal(ours.model[k], theirs.model[k]) for k in theirs.model)
    assert (found.best_f1, found.threshold) == (expected.best_f1, expected.threshold)
    assert [untimed(line) for line in found.history] == [untimed(line) for line in expected.history]


def untimed(line: EpochLine) -> EpochLine:
    return replace(
        line,
        seconds=0,
        patches_per_s=0,
        wait_share=0,
        loader_requests=0,
        loader_bytes=0,
        loader_decode_s=0,
        loader_wait_s=0,
    )


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        (None, None, None),
        (None, "1", "unknown, 1"),
        ("1", None, "1, unknown"),
        ("1", "1", "1"),
        ("1, 2", "1", "1, 2"),
    ],
)
def test_a_run_that_goes_on_names_every_commit(
    before: str | None, now: str | None, named: str | None, finished: Run
) -> None:
    saved = newest(finished.url)
    wanted = replace(saved, commit=now)
    assert training_loop._same_run(replace(saved, commit=before), wanted).commit == named


@pytest.mark.parametrize(
    "written",
    [
        pytest.param("step-00000001.pt", marks=pytest.mark.slow),
        pytest.param("best.pt", marks=pytest.mark.slow),
        "step-00000003.pt",
    ],
)
def test_a_stopped_run_resumes_to_the_same_weights_bit_for_bit(
    written: str, finished: Run, learnable: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, at its end with the old checkpoint in place, and in the last."""
    out = str(tmp_path / "stopped")
    with monkeypatch.context() as patched:
        stop_after(written, patched)
        patched.setattr(training_loop, "commit", lambda: "1" * 40)
        with pytest.raises(StoppedError):
            run(learnable, out, small(), save_every_s=0.0)
    torch.manual_seed(12345)  # whatever the new process drew before
    with monkeypatch.context() as patched:
        patched.setattr(training_loop, "commit", lambda: "2" * 40)
        resumed = run(learnable, out, small(), resume=True)
    assert newest(out).commit == f"{'1' * 40}, {'2' * 40}"
    assert load(f"{out}/best.pt").optimizer is None
    assert_same_end(resumed, finished)


def test_where_patches_are_kept_changes_no_weight(
    finished: Run, learnable: Cube, tmp_path: Path
) -> None:
    cached = run(learnable, str(tmp_path), small(), cache="device")
    assert_same_end(cached, finished)
    first, second = cached.history
    assert first.loader_requests > 0
    assert second.loader_requests == second.loader_bytes == 0


@pytest.mark.slow
def test_averaged_weights_are_kept_as_the_best_and_taken_up_again(
    learnable: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(
        epochs=1, ema=0.5, clip_norm=0.1, loss="generalized", class_balance=0.9, batch_size=12
    )
    whole = str(tmp_path / "whole")
    run(learnable, whole, config, validation=None)
    last, best = newest(whole), load(whole).model
    assert last.average is not None
    assert all(torch.equal(best[k], last.average[k]) for k in best)
    assert not torch.equal(best["fusion.0.weight"], last.model["fusion.0.weight"])
    used = last.network().state_dict()
    assert all(torch.equal(used[k], best[k]) for k in used)
    stopped = str(tmp_path / "stopped")
    with monkeypatch.context() as patched:
        stop_after("step-00000002.pt", patched)
        with pytest.raises(StoppedError):
            run(learnable, stopped, config, validation=None, save_every_s=0.0)
    run(learnable, stopped, config, validation=None, resume=True)
    again = load(stopped).model
    assert all(torch.equal(again[k], best[k]) for k in best)


def test_a_run_that_gets_no_better_ends_early_and_is_then_finished(
    learnable: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.4, 0.9])
    monkeypatch.setattr(Predictions, "f1", lambda *_, **__: (0.4, next(scores)))
    config = small(epochs=5, patience=1, batch_size=48, batch_norm_patches=0)
    ended = run(learnable, str(tmp_path), config)
    assert [line.validation_f1 for line in ended.history] == [0.5, 0.4]
    assert (ended.best_epoch, load(str(tmp_path)).epoch) == (1, 1)
    assert run(learnable, str(tmp_path), config, resume=True) == ended


def test_of_many_checkpoints_the_two_newest_stay(learnable: Cube, tmp_path: Path) -> None:
    run(learnable, str(tmp_path), small(epochs=1, batch_size=12), save_every_s=0.0)
    assert step_keys(Storage(tmp_path)) == ["step-00000004.pt", "step-00000003.pt"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_gone_on_from(
    finished: Run,
    learnable: Cube,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patched:
        stop_after("step-00000003.pt", patched)
        with pytest.raises(StoppedError):
            run(learnable, str(tmp_path), small(), save_every_s=0.0)
    damage(tmp_path, "step-00000003.pt")
    caplog.set_level("WARNING", "training")
    resumed = run(learnable, str(tmp_path), small(), resume=True)
    assert "step-00000003.pt: the checkpoint is damaged" in caplog.text
    assert "looking for the one before" in caplog.text
    assert_same_end(resumed, finished)
    assert step_keys(Storage(tmp_path)) == ["step-00000004.pt", "step-00000002.pt"]


def damage(folder: Path, key: str) -> None:
    data = bytearray((folder / key).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / key).write_bytes(data)


def test_resuming_a_finished_run_changes_nothing(finished: Run, learnable: Cube) -> None:
    before = {key: Storage(finished.url).read(key) for key, _ in Storage(finished.url).list()}
    again = run(learnable, finished.url, small(), resume=True)
    assert again == finished
    after = {key: Storage(finished.url).read(key) for key, _ in Storage(finished.url).list()}
    assert after == before
    assert set(before) == {BEST, "step-00000004.pt", METRICS}


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


def test_a_run_of_damaged_checkpoints_alone_is_refused_by_their_name(
    finished: Run, learnable: Cube, tmp_path: Path
) -> None:
    (key,) = step_keys(Storage(finished.url))
    (tmp_path / key).write_bytes(Storage(finished.url).read(key))
    damage(tmp_path, key)
    with pytest.raises(CubeIntegrityError, match=rf"{key}: the checkpoint is damaged"):
        run(learnable, str(tmp_path), small(), resume=True)


@pytest.mark.slow
def test_the_best_epoch_is_named_even_if_it_was_not_saved_at_once(
    learnable: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.2])  # the first epoch is the better one
    monkeypatch.setattr(Predictions, "f1", lambda *_, **__: (0.4, next(scores)))
    run(learnable, str(tmp_path), small(), save_every_s=1e9)
    best = load(str(tmp_path))
    assert (best.epoch, best.best_epoch, best.best_f1) == (1, 1, 0.9)
    assert newest(str(tmp_path)).epoch == 2


def test_a_run_validated_on_other_rows_is_not_resumed(finished: Run, learnable: Cube) -> None:
    for validation in (learnable.search(split="test"), None):
        with pytest.raises(InvalidInputError, match="validation '"):
            run(learnable, finished.url, small(), validation=validation, resume=True)


def test_the_first_scores_are_how_frequent_each_class_is(
    learnable: Cube, monkeypatch: pytest.MonkeyPatch
) -> None:
    biases: list[torch.Tensor] = []

    def first_step(score: Pass, *_: object) -> torch.Tensor:
        biases.append(score.network.head[-1].bias.detach().clone())  # type: ignore[index]
        return torch.tensor(math.nan)  # ends the run

    monkeypatch.setattr(training_loop, "train_step", first_step)
    for prior_bias in (True, False):
        with pytest.raises(NonFiniteLossError):
            run(learnable, f"memory://runs/prior-{prior_bias}", small(prior_bias=prior_bias))
    train = learnable.search(split="train")
    share_C = learnable.labels("label_19", train.rows).mean(0)
    np.testing.assert_allclose(biases[0].sigmoid(), share_C, atol=0.5 / len(train))
    assert not biases[-1].any()


def test_batch_norm_is_measured_without_dropout_on_training_patches(
    finished: Run, learnable: Cube
) -> None:
    """The statistics of the first norm are those of its input, as plain torch computes them."""
    last = newest(finished.url)
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
    assert [newest(str(tmp_path)).epoch, load(str(tmp_path)).epoch] == [1, 1]
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

    def interrupt(*arguments: Any) -> torch.Tensor:
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
    assert_same_end(run(learnable, str(tmp_path), small(), resume=True), finished)


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
    best, last = load(result.url), newest(result.url)
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
    assert step_keys(Storage(tmp_path)) == []


def test_the_learning_rate_of_the_last_step_is_almost_zero(finished: Run) -> None:
    assert 0 < finished.history[-1].learning_rate < 1e-4
    assert math.isclose(
        finished.history[0].learning_rate, small().learning_rate_at(1, 4), rel_tol=1e-12
    )
