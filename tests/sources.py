"""Archives that lie in memory: any number of small, known patches, and faults on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from bigearth_cube.archive import Patch, PatchRecord, SetAside
from bigearth_cube.errors import MalformedPatchError
from bigearth_cube.nomenclature import (
    GROUPS,
    NAMES_19,
    S2_GROUPS,
    Archive,
    patch_origin,
    reben_split,
)

_STRIDE = 5003  # a prime that does not divide 91 * 91
_LEARNABLE_CLASSES = 4
_LEARNABLE_SPLITS = ("train", "train", "validation", "test")
TILE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"


@dataclass
class MemorySource:
    """Patches drawn from their own id, so that any reader can say what they should hold."""

    n_patches: int
    archive: Archive = "v2"
    first: int = 0
    malformed: frozenset[int] = frozenset()
    unlabeled: frozenset[int] = frozenset()
    without_s1: frozenset[int] = frozenset()
    with_views: bool = True
    lost: Sequence[str] = field(default_factory=tuple)

    def records(self) -> Iterator[PatchRecord]:
        for index in range(self.first, self.first + self.n_patches):
            col, row = place_of(index)
            epsg, ulx, uly = patch_origin("33UUP", col, row)
            files = {"B02": f"{index}.tif"}
            if self.with_views:
                files["map"] = f"{index}_map.tif"
                if index not in self.without_s1:
                    files |= {"VV": f"{index}_VV.tif", "VH": f"{index}_VH.tif"}
            yield PatchRecord(
                id=f"{TILE}_{col:02d}_{row:02d}",
                tile=TILE,
                mgrs="33UUP",
                col=col,
                row=row,
                acquired=datetime(2017, 6, 13, 10, 10, 31, tzinfo=UTC),
                epsg=epsg,
                ulx=ulx,
                uly=uly,
                labels=None if index in self.unlabeled else labels_of(index),
                country="Austria",
                split=reben_split(col, row),
                flagged_snow=index % 50 == 7,
                flagged_cloud_or_shadow=False,
                s1_id=f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{col}_{row}",
                files=files,
            )

    def read(self, record: PatchRecord) -> Patch:
        index = index_of(record.id)
        if index in self.malformed:
            raise MalformedPatchError(record.id, f"{index}.tif", "B02 is empty")
        return pixels_of(index, with_s1="VV" in record.files, with_map="map" in record.files)

    def found(self) -> Mapping[Any, int]:
        files = [r.files for r in self.records()]
        return {
            "s2": self.n_patches,
            "s1": sum("VV" in f for f in files),
            "reference": sum("map" in f for f in files),
        }

    def orphans(self) -> Sequence[SetAside]:
        return ()

    def quarantined(self) -> Sequence[SetAside]:
        return ()

    def absent(self) -> Sequence[str]:
        return self.lost


@dataclass
class LearnableSource(MemorySource):
    """Patches of one to three of four classes, each a stripe of its own reflectance."""

    with_views: bool = False

    def records(self) -> Iterator[PatchRecord]:
        for index, record in enumerate(super().records()):
            yield replace(
                record,
                labels=tuple(NAMES_19[c] for c in _learnable_classes(index)),
                split=_LEARNABLE_SPLITS[index % len(_LEARNABLE_SPLITS)],
                flagged_snow=False,
            )

    def read(self, record: PatchRecord) -> Patch:
        index = index_of(record.id)
        classes = _learnable_classes(index)
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


def _learnable_classes(index: int) -> list[int]:
    rng = np.random.default_rng(10_000 + index)
    n = int(rng.integers(1, 4))
    return sorted(rng.choice(_LEARNABLE_CLASSES, n, replace=False).tolist())


def place_of(index: int) -> tuple[int, int]:
    """Column and row of a patch; consecutive patches lie far apart, so all splits occur."""
    return divmod(index * _STRIDE % 91**2, 91)


def index_of(patch_id: str) -> int:
    """Number of the patch with this id."""
    col, row = (int(part) for part in patch_id.split("_")[-2:])
    return (col * 91 + row) * pow(_STRIDE, -1, 91**2) % 91**2


def labels_of(index: int) -> tuple[str, ...]:
    return tuple(NAMES_19[i] for i in sorted({index % 19, index * 7 % 19}))


def pixels_of(index: int, *, with_s1: bool = True, with_map: bool = True) -> Patch:
    """Pixels as a function of the patch's number alone."""
    rng = np.random.default_rng(index)
    s2 = {
        path: rng.integers(0, 10_000, group.patch_shape).astype(np.uint16)
        for path, group in GROUPS.items()
        if path.startswith("s2")
    }
    s1 = rng.normal(-15, 5, GROUPS["s1/r10m"].patch_shape).astype(np.float32)
    clc = rng.choice(np.array([111, 312, 523, 999], np.uint16), (120, 120))
    return Patch(s2, s1 if with_s1 else None, clc if with_map else None)
