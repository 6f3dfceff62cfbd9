"""What the benchmarks read: one synthetic archive, and cubes made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.ingest import ingest

N_PATCHES = 1024
collect_ignore = ["peers/mosaic.py"]  # its package lives in an environment of its own


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v2 archive of 1,024 pairs in files."""
    folder = tmp_path_factory.mktemp("bench") / "archive"
    write_archive(folder, archive="v2", n_patches=N_PATCHES, seed=0)
    return folder


@pytest.fixture(scope="session", params=["default", "fast"])
def bench_cube(
    request: pytest.FixtureRequest, archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """URL of a cube on local disk, in both profiles."""
    url = str(tmp_path_factory.mktemp("bench") / request.param)
    ingest([str(archive)], url, profile=request.param, workers=2)
    return url
