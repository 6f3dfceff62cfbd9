"""Killed for real, by signal 9: the run goes on to the weights that it would have had."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from bigearth_cube.storage import Storage
from training.checkpoint import Checkpoint, load, newest_whole
from training.history import read_history

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ALONE = (sys.executable, "-m")
TOGETHER = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    *("--max-restarts", "2", "-m"),
)


def start(launcher: tuple[str, ...], cube_url: str, out: Path) -> subprocess.Popen[str]:
    fit = ("training", "fit", cube_url, "--recipe", "tb-cnn-small", "--epochs", "2")
    options = ("--batch-size", "12", "--save-every", "0", "--resume", "--out", str(out))
    return subprocess.Popen(
        [*launcher, *fit, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str]) -> str:
    told, _ = process.communicate(timeout=900)
    assert process.returncode == 0, told
    return told


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def assert_same_end(found: Path, expected: Path) -> None:
    ours, theirs = newest(found), newest(expected)
    assert (ours.epoch, ours.step) == (theirs.epoch, theirs.step) == (2, 8)
    for one, other in ((ours, theirs), (load(str(found)), load(str(expected)))):
        assert all(torch.equal(one.model[k], other.model[k]) for k in other.model)
    losses = [[line.train_loss for line in read_history(Storage(f))] for f in (found, expected)]
    assert losses[0] == losses[1]


def newest(folder: Path) -> Checkpoint:
    found = newest_whole(Storage(folder))
    assert found is not None
    return found[1]


def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(
    learnable_url: str, tmp_path: Path
) -> None:
    told = finish(start(ALONE, learnable_url, tmp_path / "whole"))
    assert "2 epochs on 48 patches, best epoch" in told
    killed = start(ALONE, learnable_url, tmp_path / "killed")
    wait_for(tmp_path / "killed" / "step-00000002.pt", killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert newest(tmp_path / "killed").step < 8
    finish(start(ALONE, learnable_url, tmp_path / "killed"))
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


def test_a_killed_rank_is_restarted_and_no_patch_is_lost_or_doubled(
    learnable_url: str, tmp_path: Path
) -> None:
    finish(start(TOGETHER, learnable_url, tmp_path / "whole"))
    agent = start(TOGETHER, learnable_url, tmp_path / "killed")
    wait_for(tmp_path / "killed" / "step-00000002.pt", agent)
    ranks = [
        child
        for child in psutil.Process(agent.pid).children()
        if "training" in child.cmdline() and child.environ().get("RANK") == "1"
    ]
    ranks[0].kill()
    told = finish(agent)
    assert told.count("training patches stay in memory") == 2  # it was started anew
    assert told.count("2 epochs on 48 patches") == 1
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
