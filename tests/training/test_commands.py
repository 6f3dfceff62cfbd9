"""The commands: one call each, results on stdout, one line an error, exit codes as promised."""

import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
import pytest

from bigearth_cube.cube import open_cube
from bigearth_cube.ingest import ingest
from bigearth_cube.storage import Storage
from tests.sources import LearnableSource
from training.checkpoint import load
from training.cli import cli, main


def exit_code(*arguments: str) -> int:
    """Run the command; 0 where it returns."""
    try:
        main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def run_url(learnable_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of one epoch, made by the command."""
    out = str(tmp_path_factory.mktemp("runs") / "first")
    code = exit_code(
        *("fit", learnable_url, "--recipe", "tb-cnn-small", "--epochs", "1", "--batch-size", "24"),
        *("--out", out),
    )
    assert code == 0
    return out


def test_fit_leaves_a_run_and_resuming_it_when_finished_exits_0(
    run_url: str, learnable_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {key for key, _ in Storage(run_url).list()} == {
        "best.pt",
        "step-00000002.pt",
        "metrics.jsonl",
        "learning-curve.png",
    }
    arguments = ("--recipe", "tb-cnn-small", "--epochs", "1", "--batch-size", "24")
    assert exit_code("fit", learnable_url, *arguments, "--out", run_url, "--resume") == 0
    assert capsys.readouterr().out.startswith("1 epochs on 48 patches, best epoch 1 with F1 0.")
    assert exit_code("fit", learnable_url, *arguments, "--out", run_url) == 2
    assert "holds a run; resume it" in capsys.readouterr().err


def test_a_saved_selection_and_all_rows_can_be_trained_on(
    learnable_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = open_cube(learnable_url)
    few = str(tmp_path / "few.parquet")
    cube.search(ids=cube.items["id"].to_pylist()[:8]).save(few)
    common = ("fit", learnable_url, "--recipe", "tb-cnn-small", "--epochs", "1", "--out")
    assert (
        exit_code(*common, str(tmp_path / "a"), "--selection", few, "--validation-split", "none")
        == 0
    )
    assert "on 8 patches, threshold 0.50" in capsys.readouterr().out
    code = exit_code(
        *(*common, str(tmp_path / "b"), "--train-split", "all", "--validation-selection", few),
        "--no-augment",
    )
    assert code == 0
    assert "on 96 patches, best epoch 1" in capsys.readouterr().out
    assert load(str(tmp_path / "a")).config.augment
    assert not load(str(tmp_path / "b")).config.augment


def test_evaluate_prints_a_table_and_json_of_the_same_figures(
    run_url: str, learnable_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("evaluate", learnable_url, "--checkpoint", run_url)
    assert exit_code(*arguments, "--baselines", "--published") == 0
    text = capsys.readouterr().out
    assert exit_code(*arguments, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["n_patches"] == 24
    assert f"sample_f1          {figures['metrics']['sample_f1']:8.4f}" in text
    assert "most frequent" in text
    assert "| TB-CNN " in text
    assert text.count("published") == 4


@pytest.mark.slow
def test_embed_writes_beside_the_cube(
    run_url: str, learnable_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "vectors")
    arguments = ("--checkpoint", run_url, "--out", out, "--engine", "dask")
    assert exit_code("embed", learnable_url, *arguments) == 0
    assert f"128 features of 96 patches to {out}" in capsys.readouterr().out
    assert {key for key, _ in Storage(out).list()} == {"encoder.onnx", "part-000000000.parquet"}
    table = pq.read_table(f"{out}/part-000000000.parquet")
    cube = open_cube(learnable_url)
    assert table["id"].to_pylist() == cube.search().ids.to_pylist()
    assert np.stack(table["vector"].to_numpy()).shape == (96, 128)


def test_evaluate_keeps_scores_and_shows_classes_and_groups(
    run_url: str, learnable_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--by", "season", "--per-class", "--predictions", "cube", "--name", "kept")
    assert exit_code("evaluate", learnable_url, "--checkpoint", run_url, *arguments) == 0
    text = capsys.readouterr().out
    assert "| season | summer |      24 |" in text
    assert "| Urban fabric " in text
    assert "by macro" in text
    assert open_cube(learnable_url).predicted.count("kept") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "memory://no-cube"], "no cube at memory://no-cube"),
        (
            ["fit", "CUBE", "--recipe", "resnet18"],
            "unknown recipe 'resnet18'; choose one of: tb-cnn",
        ),
        (["fit", "CUBE", "--labels", "label_43"], "no labels 'label_43' here"),
        (["fit", "CUBE", "--selection", "none.parquet"], "none.parquet"),
        (
            ["fit", "CUBE", "--scheduler", "tcp://127.0.0.1:1"],
            "no Dask scheduler answers at tcp://127.0.0.1:1",
        ),
        (
            ["evaluate", "CUBE", "--checkpoint", "memory://no-run"],
            "no checkpoint at memory://no-run",
        ),
        (["embed", "CUBE", "--checkpoint", "memory://no-run"], "no checkpoint at memory://no-run"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    arguments: list[str],
    message: str,
    learnable_url: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(*(learnable_url if a == "CUBE" else a for a in arguments)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert message in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_train_on_is_said_so(
    tmp_path: Path, learnable_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = open_cube(learnable_url)
    empty = str(tmp_path / "empty.parquet")
    cube.search(ids=[]).save(empty)
    assert exit_code("fit", learnable_url, "--selection", empty, "--out", str(tmp_path / "r")) == 2
    assert "the selection is empty" in capsys.readouterr().err
    two_of_train = str(tmp_path / "cube")
    ingest(LearnableSource(2), two_of_train, workers=1)
    assert exit_code("fit", two_of_train, "--out", str(tmp_path / "r")) == 2
    assert "is in split 'validation'; choose another, or 'all'" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "advice"), [("fit", "--resume"), ("embed", "")])
def test_ctrl_c_exits_130_with_advice_that_holds(
    command: str,
    advice: str,
    run_url: str,
    learnable_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.cli._open", interrupt)
    options = {"fit": (), "embed": ("--checkpoint", run_url)}[command]
    assert exit_code(command, learnable_url, *options) == 130
    told = capsys.readouterr().err
    assert "interrupted" in told
    assert ("--resume" in told) == bool(advice)


def test_a_damaged_checkpoint_exits_1_and_is_named(
    run_url: str, learnable_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(Storage(run_url).read("best.pt"))
    data[len(data) // 3] ^= 4
    (tmp_path / "best.pt").write_bytes(data)
    assert exit_code("evaluate", learnable_url, "--checkpoint", str(tmp_path)) == 1
    assert f"{tmp_path}/best.pt: the checkpoint is damaged" in capsys.readouterr().err


def test_unknown_options_exit_2() -> None:
    assert exit_code("fit", "somewhere", "--no-such-option") == 2
    assert exit_code("fit") == 2


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_shows_an_example_of_itself(name: str) -> None:
    command = cli.commands[name]
    help_text = command.get_help(click.Context(command, info_name=name))
    assert f"python -m training {name}" in help_text
    assert "Example:" in help_text


def test_help_answers_without_importing_torch() -> None:
    code = "import sys, training.cli; sys.exit(bool({'torch', 'zarr'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
