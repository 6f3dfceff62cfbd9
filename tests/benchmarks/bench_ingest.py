"""Patches a second of ingest, beside rasterio and zarr-python doing the same, per core."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
import zarr
import zstandard
from zarr.codecs import BloscCodec, Crc32cCodec

from bigearth_cube.archive import Patch, PatchRecord, open_archive
from bigearth_cube.ingest import ingest
from bigearth_cube.nomenclature import S2_GROUPS, patch_origin, tiles
from tests.benchmarks.conftest import N_PATCHES
from tests.sources import MemorySource, pixels_of

folders = pytest.mark.benchmark(group="ingest S2 patches from v2 folders on warm disk")
tars = pytest.mark.benchmark(group="ingest S2 patches from a .tar.zst on warm disk")
N_BASELINE = 256


@folders
@pytest.mark.parametrize("profile", ["default", "fast"])
@pytest.mark.parametrize("workers", [1, 2])
def test_bec_ingest(
    benchmark: Any, archive: Path, tmp_path: Path, profile: Any, workers: int
) -> None:
    urls = iter(range(99))
    source = [str(archive / "BigEarthNet-S2"), str(archive / "metadata.parquet")]

    def run() -> None:
        ingest(source, str(tmp_path / str(next(urls))), profile=profile, workers=workers)

    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    benchmark.extra_info["patches_per_s"] = round(N_PATCHES / benchmark.stats.stats.median)


@folders
@pytest.mark.parametrize("profile", ["default", "fast"])
def test_bec_ingest_in_two_processes(
    benchmark: Any, archive: Path, tmp_path: Path, profile: Any
) -> None:
    urls = iter(range(99))
    source = [str(archive / "BigEarthNet-S2"), str(archive / "metadata.parquet")]
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0
        ) as cluster,
        distributed.Client(cluster) as client,
    ):

        def run() -> None:
            ingest(source, str(tmp_path / str(next(urls))), profile=profile, client=client)

        benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    benchmark.extra_info["patches_per_s"] = round(N_PATCHES / benchmark.stats.stats.median)


@folders
def test_rasterio_and_zarr_python(benchmark: Any, archive: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    source = open_archive([str(archive / "BigEarthNet-S2")])
    records = list(source.records())[:N_BASELINE]
    urls = iter(range(99))

    def run() -> None:
        root = zarr.create_group(tmp_path / str(next(urls)))
        for group in S2_GROUPS:
            shape = (N_BASELINE, *group.patch_shape)
            array = root.create_array(
                group.path,
                shape=shape,
                dtype="uint16",
                chunks=(64, *group.patch_shape),
                shards=shape,
                compressors=[
                    BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=2),
                    Crc32cCodec(),
                ],
            )
            block = np.empty(shape, np.uint16)
            for position, record in enumerate(records):
                for index, band in enumerate(group.bands):
                    with rasterio.open(record.files[band]) as file:
                        block[position, index] = file.read(1)
            array[:] = block

    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    benchmark.extra_info["patches_per_s"] = round(N_BASELINE / benchmark.stats.stats.median)


@pytest.fixture(scope="module")
def tar(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Sentinel-2 folder as one zstd frame, as published."""
    path = tmp_path_factory.mktemp("tar") / "BigEarthNet-S2.tar.zst"
    compressor = zstandard.ZstdCompressor(level=3)
    with (
        path.open("wb") as file,
        compressor.stream_writer(file) as frame,
        tarfile.open(fileobj=frame, mode="w|") as stream,
    ):
        stream.add(archive / "BigEarthNet-S2", "BigEarthNet-S2")
    return path


@tars
@pytest.mark.parametrize("profile", ["default", "fast"])
def test_bec_ingest_of_a_tar(
    benchmark: Any, tar: Path, archive: Path, tmp_path: Path, profile: Any
) -> None:
    urls = iter(range(99))
    source = [str(tar), *(str(path) for path in archive.glob("metadata*.parquet"))]

    def run() -> None:
        ingest(source, str(tmp_path / str(next(urls))), profile=profile)

    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    benchmark.extra_info["patches_per_s"] = round(N_PATCHES / benchmark.stats.stats.median)


@tars
def test_zstd_and_tar_to_nowhere(benchmark: Any, tar: Path) -> None:
    if not (shutil.which("zstd") and shutil.which("tar")):
        pytest.skip("needs the programs zstd and tar")
    pipe = f"zstd -dc {tar} | tar -x -O > /dev/null"
    benchmark.pedantic(lambda: subprocess.run(pipe, shell=True, check=True), rounds=3)
    benchmark.extra_info["patches_per_s"] = round(N_PATCHES / benchmark.stats.stats.median)


def run_apart(n_patches: int, url: str) -> dict[str, float]:
    """Ingest pairs with maps in a process of its own; returns its seconds and its peak memory.

    Pixels come from memory, 64 patches over and over: files of 50,000 pairs are 20 GB.
    """
    done = subprocess.run(
        [sys.executable, "-c", APART, str(n_patches), url],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


APART = """
import json, resource, sys, time
from tests.benchmarks.bench_ingest import RepeatedSource
from bigearth_cube.ingest import ingest
source = RepeatedSource(int(sys.argv[1]))
began = time.monotonic()
ingest(source, sys.argv[2], workers=2)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": time.monotonic() - began, "peak_mb": peak / 1024}))
"""


class RepeatedSource(MemorySource):
    """Pairs with maps of any number, spread over the tiles of the archives."""

    def __init__(self, n_patches: int) -> None:
        super().__init__(n_patches)
        self._some = [pixels_of(i) for i in range(64)]

    def records(self) -> Iterator[PatchRecord]:
        places = 91**2
        for start, tile in zip(range(0, self.n_patches, places), tiles(), strict=False):
            name = f"S2A_MSIL2A_20170613T101031_N9999_R022_T{tile.mgrs}"
            some = MemorySource(min(places, self.n_patches - start)).records()
            for record in some:
                epsg, ulx, uly = patch_origin(tile.mgrs, record.col, record.row)
                own = {"epsg": epsg, "ulx": ulx, "uly": uly, "mgrs": tile.mgrs, "tile": name}
                tail = f"{record.col:02d}_{record.row:02d}"
                s1_id = f"S1A_IW_GRDH_1SDV_20170613T165043_{tile.mgrs}_{record.col}_{record.row}"
                yield replace(record, id=f"{name}_{tail}", s1_id=s1_id, **own)  # type: ignore[arg-type]

    def read(self, record: PatchRecord) -> Patch:
        return self._some[record.row % 64]


@pytest.mark.benchmark(group="ingest of many pairs with maps, two threads: memory and time")
@pytest.mark.parametrize("n_patches", [5_120, 20_480, 51_200])
def test_memory_stays_and_time_grows_with_the_number_of_patches(
    benchmark: Any, tmp_path: Path, n_patches: int
) -> None:
    found = benchmark.pedantic(
        lambda: run_apart(n_patches, str(tmp_path / "cube")), rounds=1, iterations=1
    )
    shutil.rmtree(tmp_path / "cube")
    benchmark.extra_info["peak_mb"] = round(found["peak_mb"])
    benchmark.extra_info["patches_per_s"] = round(n_patches / found["seconds"])
    assert found["peak_mb"] < 1500
