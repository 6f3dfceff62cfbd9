"""The golden run: what a step computes does not change unnoticed.

Kernels of another processor round otherwise, and Adam makes much of it: losses are stored for each
kind of machine that was at hand, and met to 1e-4 there. Elsewhere they are met to 1e-4 before the
first update, and roughly after it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.golden_tb_cnn import MACHINE, N_STEPS, STORED, golden_cube, golden_losses
from training.checkpoint import load

ELSEWHERE = 2e-2


@pytest.fixture(scope="module", autouse=True)
def threads_of_the_stored_losses() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def golden_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return golden_cube(tmp_path_factory.mktemp("golden"))


def assert_stored(losses: list[float]) -> None:
    stored = json.loads(STORED.read_text())
    for machine, expected in stored.items():
        n_alike = len(losses) if machine == MACHINE else 1
        np.testing.assert_allclose(losses[:n_alike], expected[:n_alike], rtol=0, atol=1e-4)
        np.testing.assert_allclose(losses, expected[: len(losses)], rtol=0, atol=ELSEWHERE)


def test_the_first_steps_meet_the_stored_losses(golden_url: str, tmp_path: Path) -> None:
    assert_stored(golden_losses(golden_url, tmp_path / "run", n_steps=4))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_golden_runs_are_equal_bit_for_bit_and_meet_the_stored_losses(
    golden_url: str, tmp_path: Path
) -> None:
    runs = [golden_losses(golden_url, tmp_path / name) for name in ("one", "two")]
    assert len(runs[0]) == N_STEPS
    assert runs[0] == runs[1]
    one, two = (load(str(tmp_path / name)).model for name in ("one", "two"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert_stored(runs[0])
