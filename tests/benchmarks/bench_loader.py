"""Patches a second of the loader, beside zarr-python and xarray on the same cube and rows."""

from __future__ import annotations

from typing import Any

import distributed
import numpy as np
import pytest
import xarray as xr
import zarr

from bigearth_cube.cube import open_cube
from bigearth_cube.loader.batches import S2, BatchLoader
from tests.benchmarks.conftest import N_PATCHES

pytestmark = pytest.mark.benchmark(group="load 1,024 S2 patches, shuffled, batches of 256")


def rate(benchmark: Any) -> None:
    benchmark.extra_info["patches_per_s"] = round(N_PATCHES / benchmark.stats.stats.median)


@pytest.mark.parametrize("engine", ["threads", "dask"])
def test_batch_loader(
    benchmark: Any, bench_cube: str, engine: str, dask_client: distributed.Client
) -> None:
    chosen: Any = dask_client if engine == "dask" else "threads"
    with BatchLoader(open_cube(bench_cube), batch_size=256, engine=chosen) as loader:

        def epoch() -> int:
            return sum(len(batch.rows) for batch in loader.epoch(0))

        assert benchmark.pedantic(epoch, rounds=7, warmup_rounds=1) == N_PATCHES
    rate(benchmark)


def test_zarr_python_by_chunks(benchmark: Any, bench_cube: str) -> None:
    cube = open_cube(bench_cube)
    store = cube.storage.child("cube.zarr").zarr_store()
    root: Any = zarr.open_group(store, mode="r", use_consolidated=True)
    arrays = [root[f"{group}/reflectance"] for group in S2]
    chunks = np.random.default_rng(0).permutation(N_PATCHES // 64)

    def epoch() -> int:
        return sum(min([len(a[c * 64 : c * 64 + 64]) for a in arrays]) for c in chunks)

    assert benchmark.pedantic(epoch, rounds=5, warmup_rounds=1) == N_PATCHES
    rate(benchmark)


def test_xarray_isel_per_batch(benchmark: Any, bench_cube: str) -> None:
    tree = open_cube(bench_cube).tree
    order = np.random.default_rng(0).permutation(N_PATCHES)
    datasets: list[xr.DataArray] = [tree[group]["reflectance"] for group in S2]

    def batch() -> int:
        return min([len(d.isel(patch=order[:256]).values) for d in datasets])

    assert benchmark.pedantic(batch, rounds=2) == 256
    benchmark.extra_info["patches_per_s"] = round(256 / benchmark.stats.stats.median)
