"""The loop costs nothing: what a step waits for batches, beside the same steps on one batch.

A stand-in for a fast device waits 150 us a patch; TB-CNN computes. All figures of a test are of one
run, the constant batch and the loader in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
import torch

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.ingest import ingest
from tests.benchmarks.conftest import N_PATCHES
from training import train as training_loop
from training.config import Config
from training.data import Pass, default_device, training_loader
from training.feed import Feed
from training.losses import MultiLabelLoss
from training.models import build
from training.recipes import recipe

WAIT_S = 150e-6
ROUNDS = 3
Step = Callable[..., torch.Tensor]


def wait(score: Any, optimizer: Any, batch: Any, *_: Any) -> torch.Tensor:
    """Take as long as a device that trains 6,667 patches a second."""
    time.sleep(WAIT_S * len(batch.rows))
    return torch.tensor(0.5)


def constant_rate(config: Config, cube: Cube, step: Step, n_steps: int) -> float:
    """Patches a second of the step on one batch, given again and again."""
    groups = build(config.model, 19, cube.archive).groups
    with training_loader(cube, cube.search(), config, groups, "threads") as loader:
        batch = next(Feed(loader, default_device()).epoch(0))
        model = build(config.model, 19, cube.archive).train()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        score, loss_of = Pass(model), MultiLabelLoss(config.loss)
        began = time.perf_counter()
        for _ in range(n_steps):
            step(score, optimizer, batch, loss_of, config).item()
        return n_steps * len(batch.rows) / (time.perf_counter() - began)


def fitted(
    config: Config, cube: Cube, engine: Any, step: Step, out: str, patch: pytest.MonkeyPatch
) -> tuple[float, float]:
    """Patches a second of `fit` in its later epochs, and the share of it that it waited."""
    with patch.context() as patched:
        patched.setattr(training_loop, "train_step", step)
        run = training_loop.fit(cube, config, train=cube.search(), out=out, engine=engine)
    later = run.history[1:]
    return (
        float(np.median([line.patches_per_s for line in later])),
        float(np.median([line.wait_share for line in later])),
    )


@pytest.mark.parametrize(("engine", "least"), [("threads", 0.90), ("dask", 0.85)])
@pytest.mark.benchmark(group="150 us a patch, batches of 256: share of the rate on one batch")
def test_a_stand_in_step_keeps_its_rate(
    benchmark: Any,
    bench_cube: str,
    engine: str,
    least: float,
    dask_client: distributed.Client,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    cube, chosen = open_cube(bench_cube), dask_client if engine == "dask" else "threads"
    config = recipe("tb-cnn", "label_19", batch_size=256, epochs=4)
    shares, waits = [], []

    def both() -> None:
        alone = constant_rate(config, cube, wait, N_PATCHES // 256)
        out = str(tmp_path / str(time.time_ns()))
        rate, waited = fitted(config, cube, chosen, wait, out, monkeypatch)
        shares.append(rate / alone)
        waits.append(waited)

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["share_of_constant"] = [round(share, 3) for share in shares[1:]]
    benchmark.extra_info["asked"] = least
    benchmark.extra_info["waited"] = [round(waited, 3) for waited in waits[1:]]


@pytest.mark.benchmark(group="TB-CNN on a CPU, cube on S3 (moto): share of a step spent waiting")
@pytest.mark.parametrize("engine", ["threads", "dask"])
def test_tb_cnn_hardly_waits(
    benchmark: Any,
    archive: Any,
    bucket: str,
    s3_options: dict[str, str],
    engine: str,
    dask_client: distributed.Client,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ingest([str(archive)], f"{bucket}/cube", storage_options=s3_options, workers=2)
    cube = open_cube(f"{bucket}/cube", storage_options=s3_options)
    chosen = dask_client if engine == "dask" else "threads"
    config = recipe("tb-cnn-small", "label_19", epochs=2, batch_norm_patches=0)
    found: list[tuple[float, float]] = []

    def train() -> None:
        out = str(tmp_path / str(time.time_ns()))
        step = training_loop.train_step
        found.append(fitted(config, cube, chosen, step, out, monkeypatch))

    benchmark.pedantic(train, rounds=1)
    benchmark.extra_info["patches_per_s"] = round(found[0][0])
    benchmark.extra_info["waited"] = round(found[0][1], 4)
    benchmark.extra_info["asked"] = 0.05
