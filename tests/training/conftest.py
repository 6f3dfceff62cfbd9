"""A small cube that a network can learn: every class has its own spectrum."""

from __future__ import annotations

import pytest
import torch

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.ingest import ingest
from tests.sources import LearnableSource, MemorySource


@pytest.fixture(scope="session")
def learnable_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cube of 96 patches: 48 train, 24 validation, 24 test."""
    url = str(tmp_path_factory.mktemp("learnable"))
    ingest(LearnableSource(96), url)
    return url


@pytest.fixture(scope="session")
def learnable(learnable_url: str) -> Cube:
    """The same, opened."""
    return open_cube(learnable_url)


@pytest.fixture(scope="session")
def paired_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cube of 60 random patches with reference maps, 58 of them with Sentinel-1."""
    url = str(tmp_path_factory.mktemp("paired"))
    ingest(MemorySource(60, without_s1=frozenset((4, 9))), url, workers=1)
    return url


@pytest.fixture(scope="session")
def paired(paired_url: str) -> Cube:
    """The same, opened."""
    return open_cube(paired_url)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Equal results need equal thread counts; files of tests run side by side, a core each."""
    torch.set_num_threads(1)
