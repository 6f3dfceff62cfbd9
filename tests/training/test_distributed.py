"""Two and four processes take the steps of one: rows, losses and statistics."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
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
from training.losses import contrast_of_views
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


def become(rank: int, world_size: int, port: int) -> None:
    """Say what torchrun says to its processes."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)


def train_as(
    rank: int, world_size: int, port: int, cube_url: str, out: str, recipe_name: str
) -> None:
    """Train as one of some processes; leaves the rows and losses of each step beside the run."""
    become(rank, world_size, port)
    seen: list[tuple[list[int], float]] = []
    step = training_loop.train_step

    def noted(score: Any, optimizer: Any, batch: Any, *others: Any) -> torch.Tensor:
        loss = step(score, optimizer, batch, *others)
        seen.append((batch.rows.tolist(), loss.item()))
        return loss

    training_loop.train_step = noted
    cube = open_cube(cube_url)
    train, validation = (cube.search(split=split) for split in ("train", "validation"))
    if "s1/r10m" in cube.layout.groups:
        there = cube.column("s1/r10m/present")
        train, validation = (
            cube.search(ids=s.ids.filter(there[s.rows].tolist()).to_pylist())
            for s in (train, validation)
        )
    train = cube.search(ids=train.ids.to_pylist()[:N_TRAIN])
    with joined() as team:
        fit(
            cube,
            recipe(recipe_name, "label_19", **SETTINGS),
            train=train,
            validation=validation,
            out=out,
            cache="host",
            team=team,
        )
    Path(out, f"rank-{rank}.json").write_text(json.dumps(seen))


def run_together(target: Callable[..., None], world_size: int, *arguments: str) -> None:
    """Run a function as each of some processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.train"])
    ranks = [
        context.Process(target=target, args=(r, world_size, port, *arguments))
        for r in range(world_size)
    ]
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(240)
            assert process.exitcode == 0
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()


def trained(
    world_size: int, cube_url: str, out: Path, recipe_name: str = "tb-cnn-small"
) -> list[tuple[list[int], float]]:
    """Rows of each step, over all ranks in their order, and its loss."""
    run_together(train_as, world_size, cube_url, str(out), recipe_name)
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


def test_two_processes_contrast_the_views_of_the_whole_batch(
    paired_url: str, tmp_path: Path
) -> None:
    name = "tb-cnn-contrastive-small"
    alone = trained(1, paired_url, tmp_path / "1", name)
    together = trained(2, paired_url, tmp_path / "2", name)
    assert [len(rows) for rows, _ in alone] == [20, 2, 20, 2]
    assert [rows for rows, _ in together] == [rows for rows, _ in alone]
    # Of half a batch the contrast would be about log 10, of a whole one log 20.
    losses = [loss for _, loss in together]
    np.testing.assert_allclose(losses, [loss for _, loss in alone], rtol=1e-4)
    expected, found = gradients(tmp_path / "1"), gradients(tmp_path / "2")
    for moment, gradient in expected.items():
        apart = (found[moment] - gradient).norm()
        assert apart <= 0.1 * gradient.norm() + 1e-6, moment


PARTS = {0: slice(0, 5), 1: slice(5, 5), 2: slice(5, 8), 3: slice(8, 9)}


def contrast_as(rank: int, world_size: int, port: int, out: str) -> None:
    """Contrast one's own part of a batch; leaves its loss and gradient."""
    become(rank, world_size, port)
    features_NVF, labels_NC = batch_of_views()
    mine_BVF = features_NVF[PARTS[rank]].clone().requires_grad_()
    with joined() as team:
        whole_NVF, whole_NC = (
            team.whole_batch(rows, PARTS[rank], len(labels_NC))
            for rows in (mine_BVF, labels_NC[PARTS[rank]])
        )
        loss_B = contrast_of_views(whole_NVF, whole_NC, 0.1, PARTS[rank])
        loss_B.sum().backward()
    torch.save((whole_NVF.detach(), whole_NC, loss_B.detach(), mine_BVF.grad), f"{out}/{rank}.pt")


def batch_of_views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features_NVF = torch.rand(9, 2, 6, generator=generator, dtype=torch.float64)
    return features_NVF, (torch.rand(9, 3, generator=generator) < 0.5).double()


def test_ranks_with_unequal_parts_have_loss_and_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    run_together(contrast_as, 4, str(tmp_path))
    features_NVF, labels_NC = batch_of_views()
    features_NVF.requires_grad_()
    loss_N = contrast_of_views(features_NVF, labels_NC, 0.1)
    loss_N.sum().backward()
    assert features_NVF.grad is not None
    for rank, part in PARTS.items():
        whole_NVF, whole_NC, loss_B, gradient_BVF = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(whole_NVF, features_NVF)
        assert torch.equal(whole_NC, labels_NC)
        torch.testing.assert_close(loss_B, loss_N[part])
        torch.testing.assert_close(gradient_BVF, features_NVF.grad[part])


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
