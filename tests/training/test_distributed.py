"""Two and four processes take the steps of one: rows, losses and statistics."""

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigearth_cube.cube import open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.storage import Storage
from training import train as training_loop
from training.checkpoint import newest_whole
from training.distributed import ALONE, joined, synchronized
from training.history import EpochLine, read_history
from training.recipes import recipe
from training.train import fit

N_TRAIN = 22  # a batch of 20 and one of 2, of which most of four ranks have nothing
SETTINGS: dict[str, Any] = {
    "batch_size": 20,
    "epochs": 2,
    "precision": "float32",
    "clip_norm": 1.0,
    "ema": 0.5,
    "class_balance": 0.9,
    "monitor": "ap_macro",
    # Adam's first steps go by the sign of a gradient, that of rounding too: at the usual rate two
    # runs that differ in the order of a sum differ by percents after a few steps.
    "learning_rate": 1e-7,
}


def train_as(rank: int, world_size: int, port: int, cube_url: str, out: str) -> None:
    """Train as one of some processes; leaves the rows and losses of each step beside the run."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    seen: list[tuple[list[int], float]] = []
    step = training_loop.train_step

    def noted(score: Any, optimizer: Any, batch: Any, *others: Any) -> torch.Tensor:
        loss = step(score, optimizer, batch, *others)
        seen.append((batch.rows.tolist(), loss.item()))
        return loss

    training_loop.train_step = noted
    cube = open_cube(cube_url)
    train = cube.search(ids=cube.search(split="train").ids.to_pylist()[:N_TRAIN])
    with joined() as team:
        fit(
            cube,
            recipe("tb-cnn-small", "label_19", **SETTINGS),
            train=train,
            validation=cube.search(split="validation"),
            out=out,
            cache="host",
            team=team,
        )
    Path(out, f"rank-{rank}.json").write_text(json.dumps(seen))


def trained(world_size: int, cube_url: str, out: Path) -> list[tuple[list[int], float]]:
    """Rows of each step, over all ranks in their order, and its loss."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.train"])
    arguments = (world_size, port, cube_url, str(out))
    ranks = [context.Process(target=train_as, args=(r, *arguments)) for r in range(world_size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
        assert process.exitcode == 0
    seen = [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(world_size)]
    for steps in zip(*seen, strict=True):
        assert len({loss for _, loss in steps}) == 1  # every rank knows the loss over all
    return [
        ([row for rows, _ in steps for row in rows], steps[0][1])
        for steps in zip(*seen, strict=True)
    ]


def lines(out: Path) -> list[EpochLine]:
    return read_history(Storage(out))


def test_two_and_four_processes_take_the_steps_of_one(learnable_url: str, tmp_path: Path) -> None:
    alone = trained(1, learnable_url, tmp_path / "1")
    assert [len(rows) for rows, _ in alone] == [20, 2, 20, 2]
    expected = gradients(tmp_path / "1")
    for world_size in (2, 4):
        out = tmp_path / str(world_size)
        together = trained(world_size, learnable_url, out)
        assert [rows for rows, _ in together] == [rows for rows, _ in alone]
        losses = [loss for _, loss in together]
        np.testing.assert_allclose(losses, [loss for _, loss in alone], rtol=1e-4)
        for ours, theirs in zip(lines(out), lines(tmp_path / "1"), strict=True):
            assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
            assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-3)
            assert ours.validation_ap_macro == pytest.approx(theirs.validation_ap_macro, abs=0.02)
            assert ours.loader_bytes > 0 or ours.epoch == 2  # what others read was kept
        ours_now = gradients(out)
        for name, gradient in expected.items():
            found = ours_now[name]
            # Batch norm over two rows makes much of rounding; each step alone is within 2e-5.
            assert (found - gradient).norm() <= 0.1 * gradient.norm() + 1e-6, name


def gradients(out: Path) -> dict[str, torch.Tensor]:
    """What Adam remembers of the gradients of all steps, and the statistics of batch norm."""
    newest = newest_whole(Storage(out))
    assert newest is not None
    state = newest[1]
    assert state.optimizer is not None
    moments = {f"moment {i}": part["exp_avg"] for i, part in state.optimizer["state"].items()}
    return moments | {name: t for name, t in state.model.items() if "running" in name}


def test_without_torchrun_a_process_is_alone() -> None:
    with joined({}) as team:
        assert team is ALONE
        assert team.leads
        assert team.agreed("value") == "value"
    with (
        pytest.raises(InvalidInputError, match="3 processes do not divide the 8 lanes"),
        joined({"WORLD_SIZE": "3"}),
    ):
        pass


def test_a_norm_that_does_more_than_torchs_own_is_refused_by_its_name() -> None:
    class NormAndActivation(torch.nn.BatchNorm2d):
        def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
            return super().forward(x_BCYX).relu()

    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), NormAndActivation(2))
    with pytest.raises(InvalidInputError, match="layer '1' is a NormAndActivation"):
        synchronized(network, torch.device("cpu"))
