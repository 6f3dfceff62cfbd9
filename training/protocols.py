"""Which patches train, validate and test: the three protocols, and how far test is from train.

Patches next to each other look alike, so a random split measures memory as well as skill. The
leakage report says by how much: how far each test patch lies from the nearest training patch.

Axes: N patch, D coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import pyproj
from numpy.typing import NDArray
from scipy.spatial import KDTree

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import PATCH_M, S1_GROUP, SPLITS
from bigearth_cube.search import Selection
from training.tables import aligned

Protocol = Literal["paper", "v1-official", "v2-official"]
PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)
CLEAN: Final = '"bec:snow" = false AND "bec:cloud_or_shadow" = false'
_SHARES: Final = (0.6, 0.8)
_GEOCENTRIC: Final = "EPSG:4978"
TOUCHING_M: Final = PATCH_M * 2**0.5 * 1.001
"""Between the centers of patches that share a corner; a thousandth for the scale of UTM."""
_LIMITS_M: Final = {"same place": 1.0, "touching": TOUCHING_M, "within 5 km": 5e3, "50 km": 5e4}


@dataclass(frozen=True, slots=True)
class Splits:
    """Rows to train on, to choose by and to measure on; none in two of them.

    Attributes
    ----------
    protocol
        How they were drawn.
    train, validation, test
        The rows.
    """

    protocol: Protocol
    train: Selection
    validation: Selection
    test: Selection

    @property
    def in_order(self) -> tuple[Selection, Selection, Selection]:
        """Rows to train on, to choose by, to measure on."""
        return self.train, self.validation, self.test


def protocols_of(cube: Cube) -> tuple[Protocol, ...]:
    """Return the protocols that suit a cube, its own official split last."""
    return ("paper", "v1-official" if cube.archive == "v1" else "v2-official")


def split_cube(
    cube: Cube,
    protocol: Protocol,
    labels: str,
    *,
    seed: int = 42,
    subset: int | None = None,
    with_s1: bool = False,
) -> Splits:
    """Split a cube as a protocol says; patches with snow, cloud or shadow are left out.

    Parameters
    ----------
    cube
        What to split.
    protocol
        ``"paper"``: at random, 60 % to train on, 20 % and 20 %, as the 2019 paper did;
        ``"v1-official"`` and ``"v2-official"``: as published with the archive.
    labels
        Label array; patches that have none of its classes are left out.
    seed
        Of the random split and of the subset.
    subset
        Take only so many patches, from each split its share.
    with_s1
        Leave out what has no Sentinel-1 view, too.

    Raises
    ------
    InvalidInputError
        If the cube is of the other archive, a split has no patch, or the subset is too small.
    """
    if protocol not in PROTOCOLS:
        raise InvalidInputError(
            f"unknown protocol {protocol!r}; choose one of: {', '.join(PROTOCOLS)}"
        )
    if protocol not in protocols_of(cube):
        raise InvalidInputError(
            f"protocol {protocol!r} is not for a cube of archive {cube.archive}; choose one of: "
            f"{', '.join(protocols_of(cube))}"
        )
    clean = cube.search(filter=CLEAN).rows
    clean = clean[cube.column("has_labels")[clean]]
    clean = clean[cube.labels(labels, clean).any(axis=1)]
    if with_s1:
        clean = clean[cube.column(f"{S1_GROUP.path}/present")[clean]]
    rng = np.random.default_rng(seed)
    if protocol == "paper":
        # Sorted by name: the same patches give the same split in whatever order a cube has them.
        mixed = clean[by_name(cube.column("id")[clean])][rng.permutation(len(clean))]
        ends = [round(share * len(clean)) for share in _SHARES]
        parts = np.split(mixed, ends)
    else:
        split = cube.column("split")[clean]
        parts = [clean[split == name] for name in SPLITS]
    if subset is not None and subset < len(clean):
        n_all = sum(map(len, parts))
        parts = [
            rng.permutation(np.sort(part))[: round(subset * len(part) / n_all)] for part in parts
        ]
    for name, part in zip(SPLITS, parts, strict=True):
        if not len(part):
            raise InvalidInputError(
                f"no unflagged patch with {labels} is left for {name}; choose another protocol or "
                f"a larger subset"
            )
    query = {"protocol": protocol, "seed": seed, "subset": subset}
    selections = [
        Selection.of(
            cube.index,
            part,
            cube_id=cube.id,
            release=cube.release.name,
            query={**query, "split": name},
        )
        for name, part in zip(SPLITS, parts, strict=True)
    ]
    return Splits(protocol, *selections)


def by_name(names_N: NDArray[Any]) -> NDArray[np.int64]:
    """Return the places of names in alphabetical order.

    numpy 2.4 ends the process where `argsort` of its own string type falls back to a heap sort, as
    it does of a thousand names that rise and fall; Python's strings are sorted otherwise.
    """
    order: NDArray[np.int64] = np.argsort(names_N.astype(object), kind="stable")
    return order


@dataclass(frozen=True, slots=True)
class Leakage:
    """How far test patches lie from training patches.

    Attributes
    ----------
    protocol
        How they were drawn.
    n_train, n_test
        Patches.
    quantiles_m
        Share of the test patches to the distance below which they lie, meters.
    shares
        Share of the test patches at a place that was trained on (another date), touching or
        overlapping a training patch, within 5 km and within 50 km of one; each with those before.
    """

    protocol: str
    n_train: int
    n_test: int
    quantiles_m: dict[str, float]
    shares: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def leakage(cube: Cube, splits: Splits) -> Leakage:
    """Measure how far each test patch lies from the nearest training patch."""
    distances_m = nearest_m(cube, splits.train.rows, splits.test.rows)
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    return Leakage(
        splits.protocol,
        len(splits.train),
        len(splits.test),
        {
            f"{q:.0%}": float(value)
            for q, value in zip(quantiles, np.quantile(distances_m, quantiles), strict=True)
        },
        {name: float((distances_m <= limit).mean()) for name, limit in _LIMITS_M.items()},
    )


def nearest_m(cube: Cube, train: NDArray[np.int64], test: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distance of each test patch from the nearest training patch, center to center, meters.

    Through the earth, so that patches of different UTM zones compare: at 100 km 1 m too short.
    """
    places_ND = _centers(cube)
    distances_m, _ = KDTree(places_ND[train]).query(places_ND[test], workers=1)
    return np.asarray(distances_m, np.float64)


def _centers(cube: Cube) -> NDArray[np.float64]:
    """Geocentric coordinates of every row; padding is NaN."""
    epsg, ulx, uly = (cube.column(name) for name in ("epsg", "ulx", "uly"))
    places_ND = np.full((cube.n_rows, 3), np.nan)
    for code in np.unique(epsg[cube.rows]).tolist():
        rows = cube.rows[epsg[cube.rows] == code]
        to_geocentric = pyproj.Transformer.from_crs(f"EPSG:{code}", _GEOCENTRIC, always_xy=True)
        x, y = ulx[rows] + PATCH_M / 2, uly[rows] - PATCH_M / 2
        places_ND[rows] = np.stack(to_geocentric.transform(x, y, np.zeros(len(rows))), axis=1)
    return places_ND


def leakage_text(reports: Sequence[Leakage]) -> str:
    """Lay reports out as a table, a protocol a line."""
    head = ("protocol", "train", "test", *_LIMITS_M, "median distance to train")
    lines = [
        (
            report.protocol,
            f"{report.n_train:,}",
            f"{report.n_test:,}",
            *(f"{share:.1%}" for share in report.shares.values()),
            f"{report.quantiles_m['50%'] / 1000:,.1f} km",
        )
        for report in reports
    ]
    return aligned(head, lines, range(1, len(head)))
