"""A small cube that a network can learn: every class has its own spectrum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from bigearth_cube.archive import Patch, PatchRecord, SetAside
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.ingest import ingest
from bigearth_cube.nomenclature import NAMES_19, S2_GROUPS, Archive, patch_origin

N_CLASSES_USED = 4
_SPLITS = ("train", "train", "validation", "test")


@dataclass
class LearnableSource:
    """Patches of one to three of four classes, each a stripe of its own reflectance."""

    n_patches: int
    archive: Archive = "v2"

    def records(self) -> Iterator[PatchRecord]:
        for index in range(self.n_patches):
            col, row = divmod(index, 91)
            epsg, ulx, uly = patch_origin("33UUP", col, row)
            yield PatchRecord(
                id=f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{col:02d}_{row:02d}",
                tile="S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP",
                mgrs="33UUP",
                col=col,
                row=row,
                acquired=datetime(2017, 6, 13, 10, 10, 31, tzinfo=UTC),
                epsg=epsg,
                ulx=ulx,
                uly=uly,
                labels=tuple(NAMES_19[c] for c in _classes_of(index)),
                country="Austria",
                split=_SPLITS[index % len(_SPLITS)],
                flagged_snow=False,
                flagged_cloud_or_shadow=False,
                files={"B02": str(index)},
            )

    def read(self, record: PatchRecord) -> Patch:
        index = int(record.files["B02"])
        classes = _classes_of(index)
        rng = np.random.default_rng(index)
        s2 = {}
        for group in S2_GROUPS:
            pixels = rng.normal(1000, 60, group.patch_shape)
            for stripe, rows in zip(
                classes, np.array_split(np.arange(group.size_px), len(classes)), strict=True
            ):
                spectrum = np.random.default_rng(1000 + stripe).uniform(
                    0, 3000, group.patch_shape[0]
                )
                pixels[:, rows] += spectrum[:, None, None]
            s2[group.path] = pixels.clip(1, 20_000).astype(np.uint16)
        return Patch(s2)

    def found(self) -> Mapping[Any, int]:
        return {"s2": self.n_patches, "s1": 0, "reference": 0}

    def orphans(self) -> Sequence[SetAside]:
        return ()

    def quarantined(self) -> Sequence[SetAside]:
        return ()

    def absent(self) -> Sequence[str]:
        return ()


def _classes_of(index: int) -> list[int]:
    rng = np.random.default_rng(10_000 + index)
    n = int(rng.integers(1, 4))
    return sorted(rng.choice(N_CLASSES_USED, n, replace=False).tolist())


@pytest.fixture(scope="session")
def learnable_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cube of 96 patches: 48 train, 24 validation, 24 test."""
    url = str(tmp_path_factory.mktemp("learnable"))
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        ingest(LearnableSource(96), url, client=client)
    return url


@pytest.fixture(scope="session")
def learnable(learnable_url: str) -> Cube:
    """The same, opened."""
    return open_cube(learnable_url)


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """Equal results need equal thread counts, on every machine that runs these tests."""
    torch.set_num_threads(2)
