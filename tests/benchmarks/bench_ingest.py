"""Patches a second of ingest, beside rasterio and zarr-python doing the same, per core."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
import zstandard
from zarr.codecs import BloscCodec, Crc32cCodec

from bigearth_cube.archive import open_archive
from bigearth_cube.ingest import ingest
from bigearth_cube.nomenclature import S2_GROUPS
from tests.benchmarks.conftest import N_PATCHES

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
    source = [str(tar), str(archive / "metadata.parquet")]

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
