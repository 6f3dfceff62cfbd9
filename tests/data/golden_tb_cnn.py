"""The golden run: losses of 50 steps of TB-CNN on a small synthetic archive.

Writes those of this machine into ``golden_tb_cnn.json``; for another kind of machine, or (with the
file removed before) for a change that means to change what a step computes:

    python tests/data/golden_tb_cnn.py

run from the root of the checkout with it on PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.cube import open_cube
from bigearth_cube.ingest import ingest
from training import train as training_loop
from training.recipes import recipe

STORED = Path(__file__).with_suffix(".json")
MACHINE = f"{torch.cpu.get_capabilities()['cpu_name']}, {torch.backends.cpu.get_cpu_capability()}"
"""What rounds alike: its kernels are the same."""
N_STEPS, BATCH, N_PATCHES = 50, 32, 64


def golden_cube(folder: Path) -> str:
    """Write the archive and ingest it; returns the URL of the cube."""
    write_archive(folder / "archive", archive="v2", n_patches=N_PATCHES, seed=0, workers=1)
    ingest([str(folder / "archive")], str(folder / "cube"), workers=1)
    return str(folder / "cube")


def golden_losses(cube_url: str, out: Path, n_steps: int = N_STEPS) -> list[float]:
    """Loss of each step, float32 on two threads of a CPU."""
    losses: list[float] = []
    step = training_loop.train_step

    def noted(*arguments: Any) -> torch.Tensor:
        loss = step(*arguments)
        losses.append(loss.item())
        return loss

    cube = open_cube(cube_url)
    epochs = n_steps * BATCH // N_PATCHES
    training_loop.train_step = noted
    try:
        training_loop.fit(
            cube,
            recipe("tb-cnn", "label_19", batch_size=BATCH, epochs=epochs),
            train=cube.search(),
            out=str(out),
            device=torch.device("cpu"),
        )
    finally:
        training_loop.train_step = step
    return losses


if __name__ == "__main__":
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        found = golden_losses(golden_cube(Path(scratch)), Path(scratch) / "run")
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    STORED.write_text(json.dumps({**stored, MACHINE: found}, indent=1) + "\n")
    sys.stdout.write(f"{len(found)} losses, {found[0]:.4f} to {found[-1]:.4f}: {STORED}\n")
