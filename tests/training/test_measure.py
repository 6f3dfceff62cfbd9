"""The script that measures a GPU runs small on a CPU, and what it counts is right."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from training.cli import main
from training.feed import Feed
from training.measure import (
    RandomPatches,
    _Trainer,
    as_markdown,
    ceilings,
    error_against_float64,
    measure,
    parts_of_a_step,
)
from training.models import build
from training.recipes import recipe

CPU = torch.device("cpu")
CONFIG = recipe("tb-cnn", "label_43", batch_size=8, augment=True)


def test_it_writes_a_section_with_every_figure_that_a_cpu_has(learnable: Cube) -> None:
    report = measure(CONFIG, CPU, n_patches=16, n_epochs=2)
    text = as_markdown(report)
    assert text.startswith("## Training on ")
    for told in (
        f"at {report.commit}: torch {torch.__version__}, float32, batch 8",
        "| an epoch of 16 patches |",
        "| so an epoch of 269,695 patches would take |",
        "| device busy | - |",
        "| convolution |",
        "| optimizer |",
        "% of the floor.",
    ):
        assert told in text
    assert report.patches_per_s == pytest.approx(16 / report.epoch_s)
    assert report.flops_per_s > 1e8
    assert report.bytes_per_s > 1e7


def test_the_operations_of_a_step_are_those_of_the_published_network() -> None:
    """1.13 GFLOP a training patch, but for the first layers' gradient to their input."""
    torch.manual_seed(0)
    model = build("tb-cnn", 43, "v1")
    random = RandomPatches(8, 8, model.groups, 43)
    batch = next(Feed(random, CPU).epoch(0))  # type: ignore[arg-type]
    parts = parts_of_a_step(model, CONFIG, batch)
    total = sum(part.flops for part in parts.values())
    assert total == pytest.approx(1.13e9, rel=0.02)
    forward_linear = 2 * (2 * 57_600 * 128 + 12_800 * 128 + 384 * 128 + 128 * 43)
    assert parts["linear"].flops == pytest.approx(3 * forward_linear, rel=0.01)
    # Adam reads and writes weights, gradients and two moments once a step.
    n = sum(p.numel() for p in model.parameters())
    assert parts["optimizer"].n_bytes * 8 >= 4 * 4 * n


def test_random_patches_come_in_the_order_of_a_real_epoch_each_once() -> None:
    random = RandomPatches(100, 16, ("s2/r60m",), 3)
    rows = np.concatenate([batch.rows for batch in random.epoch(1)])
    assert sorted(rows.tolist()) == list(range(100))
    assert rows.tolist() == random.order(1).rows.tolist() != random.order(0).rows.tolist()


def test_the_error_against_float64_is_small_in_float32_and_within_a_percent_in_bfloat16() -> None:
    exact = error_against_float64(CONFIG, CPU, n_patches=4)
    assert max(exact["loss"], exact["logits"]) < 1e-5
    assert exact["gradient"] < 1e-3  # a maximum may be taken elsewhere
    rounded = error_against_float64(replace(CONFIG, precision="bfloat16"), CPU, n_patches=4)
    assert rounded["loss"] < 1e-2
    assert rounded["logits"] < 1e-2
    assert exact["gradient"] < rounded["gradient"] < 5e-2


@pytest.mark.slow
def test_streaming_is_measured_beside_the_loader_alone(
    learnable_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["measure", learnable_url, "--patches", "24", "--batch-size", "24", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["loader_per_s"] > figures["streaming_per_s"] > 0


def test_too_few_patches_or_epochs_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="1 epochs of 16 patches; expected at least 2"):
        measure(CONFIG, CPU, n_patches=16, n_epochs=1)
    assert min(ceilings(CPU, "float32")) > 0
    assert _Trainer(build("tb-cnn", 43, "v1"), CONFIG, None).score.training
