"""The service over cubes of known patches."""

from __future__ import annotations

from collections.abc import Iterator

import distributed
import numpy as np
import pytest
from starlette.testclient import TestClient

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.ingest import ingest
from bigearth_cube.service.app import create_app
from tests.service.helpers import encoder, features_of, ids_of
from tests.sources import MemorySource, index_of, pixels_of


@pytest.fixture(scope="module")
def client(cube: Cube) -> Iterator[TestClient]:
    """The service over the cube of 600 known patches."""
    with TestClient(create_app([cube]), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def twins(
    tmp_path_factory: pytest.TempPathFactory, dask_client: distributed.Client
) -> tuple[Cube, Cube]:
    """Two cubes of their own: of 70 patches with embeddings and encoder, and of 20."""
    urls = [str(tmp_path_factory.mktemp("service") / name) for name in ("one", "two")]
    ingest(MemorySource(70, without_s1=frozenset([3])), urls[0], client=dask_client, cube_id="one")
    ingest(MemorySource(20, first=100), urls[1], client=dask_client, cube_id="two")
    first = open_cube(urls[0])
    vectors = np.full((first.n_rows, 4), np.nan, np.float32)
    for row, name in zip(first.rows.tolist(), ids_of(first), strict=True):
        vectors[row] = features_of(pixels_of(index_of(name)).s2["s2/r10m"])
    first.write_embeddings("means", vectors, {"encoder": "embeddings/means/encoder.onnx"})
    first.storage.write("embeddings/means/encoder.onnx", encoder())
    open_cube(urls[0]).write_embeddings("bare", vectors)
    return open_cube(urls[0]), open_cube(urls[1])


@pytest.fixture(scope="module")
def twin_client(twins: tuple[Cube, Cube]) -> Iterator[TestClient]:
    with TestClient(create_app(twins), raise_server_exceptions=False) as client:
        yield client
