"""Readers that are not ours: tensorstore (C++) and zarrita (JavaScript) see the same bits.

Plain xarray and zarr-python are in test_cube.py; here zarr-python says what is expected.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
import zarr

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.ingest import ingest
from tests.sources import MemorySource, index_of, pixels_of


@pytest.fixture(scope="module", params=["default", "fast"])
def compressed(
    request: pytest.FixtureRequest,
    cube: Cube,
    tmp_path_factory: pytest.TempPathFactory,
    dask_client: distributed.Client,
) -> Cube:
    """A cube in each of the two compressions."""
    if request.param == cube.layout.profile:
        return cube
    url = str(tmp_path_factory.mktemp("fast") / "cube")
    ingest(MemorySource(300), url, profile=request.param, client=dask_client)
    return open_cube(url)


def arrays_of(cube: Cube, *, strings: bool) -> list[str]:
    return [
        path
        for path, document in cube.documents.items()
        if document["node_type"] == "array" and (strings or document["data_type"] != "string")
    ]


def expected(cube: Cube, path: str) -> list[tuple[int, int, np.ndarray]]:
    """Some rows of a pixel array, or all of a column."""
    array: Any = zarr.open_array(f"{cube.url}/cube.zarr/{path}", mode="r")
    runs = [(0, array.shape[0])]
    if array.ndim > 2:
        # In a chunk of 64, over its edge, over the edge of a shard of 256, and into the padding.
        runs = [(0, 2), (63, 65), (255, 257), (cube.n_patches - 1, cube.n_patches + 1)]
    return [(start, stop, np.asarray(array[start:stop])) for start, stop in runs]


def test_tensorstore_reads_every_number_bit_for_bit(compressed: Cube) -> None:
    ts = pytest.importorskip("tensorstore")
    cube = compressed
    paths = arrays_of(cube, strings=False)
    assert {"s2/r60m/reflectance", "s1/r10m/backscatter", "label_19", "acquired"} <= set(paths)
    for path in paths:
        place = {"driver": "file", "path": f"{cube.url}/cube.zarr/{path}"}
        array = ts.open({"driver": "zarr3", "kvstore": place}, read=True).result()
        dims = cube.documents[path]["dimension_names"]
        assert [dim.label for dim in array.domain] == dims
        for start, stop, values in expected(cube, path):
            found = array[start:stop].read().result()
            assert found.dtype == values.dtype, path
            assert found.tobytes() == values.tobytes(), path
    ids = cube.items["id"].to_pylist()
    place = {"driver": "file", "path": f"{cube.url}/cube.zarr/s2/r10m/reflectance"}
    array = ts.open({"driver": "zarr3", "kvstore": place}, read=True).result()
    known = pixels_of(index_of(ids[256])).s2["s2/r10m"]
    np.testing.assert_array_equal(array[256].read().result(), known)


@pytest.fixture(scope="module")
def zarrita() -> list[str]:
    """The command that reads with zarrita."""
    script = Path(__file__).parent / "data" / "read_zarr.mjs"
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (script.parent / "node_modules" / "zarrita").is_dir():
        pytest.skip("zarrita is not installed; run npm install --prefix tests/data")
    return [node, str(script)]


def test_zarrita_reads_every_array_bit_for_bit(compressed: Cube, zarrita: list[str]) -> None:
    cube = compressed
    rows = [(path, *run) for path in arrays_of(cube, strings=True) for run in expected(cube, path)]
    wanted = [{"path": path, "start": start, "stop": stop} for path, start, stop, _ in rows]
    done = subprocess.run(
        [*zarrita, f"{cube.url}/cube.zarr"],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for (path, _, _, values), found in zip(rows, json.loads(done.stdout), strict=True):
        assert found["dims"] == cube.documents[path]["dimension_names"]
        assert found["shape"] == list(values.shape)
        if "values" in found:
            assert found["values"] == values.tolist(), path
        else:
            assert found["sha256"] == hashlib.sha256(values.tobytes()).hexdigest(), path
