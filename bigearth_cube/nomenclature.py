"""Bands, classes, seasons, splits, statistics and the grid: pure data and pure functions.

Sources: the CORINE Land Cover nomenclature (CLC 2018, level 3); the 43-to-19 class table of
BigEarthNet-MM (arXiv 2105.07921) and reBEN (arXiv 2407.03653); band statistics as published
with the archives. Order is part of the data: class and band names travel with every cube.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, get_args

import numpy as np

from bigearth_cube.errors import InvalidInputError

Archive = Literal["v1", "v2"]
ARCHIVES: Final = get_args(Archive)

SPLITS: Final = ("train", "validation", "test")
SEASONS: Final = ("spring", "summer", "autumn", "winter")
COUNTRIES: Final = (
    "Austria",
    "Belgium",
    "Finland",
    "Ireland",
    "Kosovo",
    "Lithuania",
    "Luxembourg",
    "Portugal",
    "Serbia",
    "Switzerland",
)

PATCH_M: Final = 1200
"""Side of a patch in meters, every band and every archive."""
PATCHES_PER_SIDE: Final = 91
"""Whole patches along one side of an MGRS square of 109,800 m."""
NODATA_MAP: Final = 999
"""Reference-map code of a pixel that no CORINE polygon covers."""


@dataclass(frozen=True, slots=True)
class Band:
    """One spectral band of Sentinel-2 (Sentinel-2A MSI; ESA user handbook).

    Attributes
    ----------
    name
        Name of the band, e.g. ``"B8A"``.
    resolution_m
        Ground sampling distance: 10, 20 or 60.
    size_px
        Side of a patch in pixels: 120, 60 or 20.
    common_name
        Name of the STAC eo extension, or None where it has none.
    center_um, fwhm_um
        Center wavelength and full width at half maximum, micrometers.
    """

    name: str
    resolution_m: int
    size_px: int
    common_name: str | None
    center_um: float
    fwhm_um: float


S2_BANDS: Final = (
    Band("B01", 60, 20, "coastal", 0.443, 0.027),
    Band("B02", 10, 120, "blue", 0.490, 0.098),
    Band("B03", 10, 120, "green", 0.560, 0.045),
    Band("B04", 10, 120, "red", 0.665, 0.038),
    Band("B05", 20, 60, "rededge071", 0.704, 0.019),
    Band("B06", 20, 60, "rededge075", 0.740, 0.018),
    Band("B07", 20, 60, "rededge078", 0.783, 0.028),
    Band("B08", 10, 120, "nir", 0.842, 0.145),
    Band("B8A", 20, 60, "nir08", 0.865, 0.033),
    Band("B09", 60, 20, "nir09", 0.945, 0.026),
    Band("B11", 20, 60, "swir16", 1.610, 0.143),
    Band("B12", 20, 60, "swir22", 2.190, 0.242),
)
POLARIZATIONS: Final = ("VV", "VH")


@dataclass(frozen=True, slots=True)
class Group:
    """One group of a cube: bands on one grid, held in one pixel array.

    Attributes
    ----------
    path
        Place in the hierarchy, e.g. ``"s2/r10m"``.
    array
        Name of the pixel array in it.
    axis
        Name of the band axis, or None for a map without one.
    bands
        Names along that axis, in order; empty for a map.
    resolution_m, size_px
        Ground sampling distance and side of a patch.
    dtype
        Stored numpy dtype.
    """

    path: str
    array: str
    axis: str | None
    bands: tuple[str, ...]
    resolution_m: int
    size_px: int
    dtype: str

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Shape of one patch: (band, y, x), or (y, x) for a map."""
        square = (self.size_px, self.size_px)
        return (len(self.bands), *square) if self.axis else square

    @property
    def patch_bytes(self) -> int:
        """Uncompressed bytes of one patch."""
        return int(np.prod(self.patch_shape)) * np.dtype(self.dtype).itemsize

    @property
    def fill_value(self) -> float:
        """What rows without a patch hold: 0, or NaN where the dtype has one."""
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0


def _s2_group(resolution_m: int) -> Group:
    bands = tuple(b.name for b in S2_BANDS if b.resolution_m == resolution_m)
    path = f"s2/r{resolution_m}m"
    return Group(
        path, "reflectance", "band", bands, resolution_m, PATCH_M // resolution_m, "uint16"
    )


S2_GROUPS: Final = (_s2_group(10), _s2_group(20), _s2_group(60))
S1_GROUP: Final = Group("s1/r10m", "backscatter", "polarization", POLARIZATIONS, 10, 120, "float32")
MAP_GROUP: Final = Group("reference/r10m", "clc", None, (), 10, 120, "uint16")
GROUPS: Final = {g.path: g for g in (*S2_GROUPS, S1_GROUP, MAP_GROUP)}


@dataclass(frozen=True, slots=True)
class LandCover:
    """One class of the 43: CLC level-3 code, name, its class among the 19 (or None), CLC color."""

    code: int
    name: str
    name_19: str | None
    color: str


# fmt: off
CLASSES_43: Final = (
    LandCover(111, "Continuous urban fabric", "Urban fabric", "#e6004d"),
    LandCover(112, "Discontinuous urban fabric", "Urban fabric", "#ff0000"),
    LandCover(121, "Industrial or commercial units", "Industrial or commercial units", "#cc4df2"),
    LandCover(122, "Road and rail networks and associated land", None, "#cc0000"),
    LandCover(123, "Port areas", None, "#e6cccc"),
    LandCover(124, "Airports", None, "#e6cce6"),
    LandCover(131, "Mineral extraction sites", None, "#a600cc"),
    LandCover(132, "Dump sites", None, "#a64d00"),
    LandCover(133, "Construction sites", None, "#ff4dff"),
    LandCover(141, "Green urban areas", None, "#ffa6ff"),
    LandCover(142, "Sport and leisure facilities", None, "#ffe6ff"),
    LandCover(211, "Non-irrigated arable land", "Arable land", "#ffffa8"),
    LandCover(212, "Permanently irrigated land", "Arable land", "#ffff00"),
    LandCover(213, "Rice fields", "Arable land", "#e6e600"),
    LandCover(221, "Vineyards", "Permanent crops", "#e68000"),
    LandCover(222, "Fruit trees and berry plantations", "Permanent crops", "#f2a64d"),
    LandCover(223, "Olive groves", "Permanent crops", "#e6a600"),
    LandCover(231, "Pastures", "Pastures", "#e6e64d"),
    LandCover(241, "Annual crops associated with permanent crops", "Permanent crops", "#ffe6a6"),
    LandCover(242, "Complex cultivation patterns", "Complex cultivation patterns", "#ffe64d"),
    LandCover(243, "Land principally occupied by agriculture, with significant areas of natural vegetation", "Land principally occupied by agriculture, with significant areas of natural vegetation", "#e6cc4d"),
    LandCover(244, "Agro-forestry areas", "Agro-forestry areas", "#f2cca6"),
    LandCover(311, "Broad-leaved forest", "Broad-leaved forest", "#80ff00"),
    LandCover(312, "Coniferous forest", "Coniferous forest", "#00a600"),
    LandCover(313, "Mixed forest", "Mixed forest", "#4dff00"),
    LandCover(321, "Natural grassland", "Natural grassland and sparsely vegetated areas", "#ccf24d"),
    LandCover(322, "Moors and heathland", "Moors, heathland and sclerophyllous vegetation", "#a6ff80"),
    LandCover(323, "Sclerophyllous vegetation", "Moors, heathland and sclerophyllous vegetation", "#a6e64d"),
    LandCover(324, "Transitional woodland/shrub", "Transitional woodland, shrub", "#a6f200"),
    LandCover(331, "Beaches, dunes, sands", "Beaches, dunes, sands", "#e6e6e6"),
    LandCover(332, "Bare rock", None, "#cccccc"),
    LandCover(333, "Sparsely vegetated areas", "Natural grassland and sparsely vegetated areas", "#ccffcc"),
    LandCover(334, "Burnt areas", None, "#000000"),
    LandCover(411, "Inland marshes", "Inland wetlands", "#a6a6ff"),
    LandCover(412, "Peatbogs", "Inland wetlands", "#4d4dff"),
    LandCover(421, "Salt marshes", "Coastal wetlands", "#ccccff"),
    LandCover(422, "Salines", "Coastal wetlands", "#e6e6ff"),
    LandCover(423, "Intertidal flats", None, "#a6a6e6"),
    LandCover(511, "Water courses", "Inland waters", "#00ccf2"),
    LandCover(512, "Water bodies", "Inland waters", "#80f2e6"),
    LandCover(521, "Coastal lagoons", "Marine waters", "#00ffa6"),
    LandCover(522, "Estuaries", "Marine waters", "#a6ffe6"),
    LandCover(523, "Sea and ocean", "Marine waters", "#e6f2ff"),
)
# fmt: on
NAMES_43: Final = tuple(c.name for c in CLASSES_43)
NAMES_19: Final = tuple(dict.fromkeys(c.name_19 for c in CLASSES_43 if c.name_19))
NOMENCLATURES: Final = {"label_43": NAMES_43, "label_19": NAMES_19}

V1_STATISTICS: Final = {
    "B01": (340.76769064, 554.81258967),
    "B02": (429.9430203, 572.41639287),
    "B03": (614.21682446, 582.87945694),
    "B04": (590.23569706, 675.88746967),
    "B05": (950.68368468, 729.89827633),
    "B06": (1792.46290469, 1096.01480586),
    "B07": (2075.46795189, 1273.45393088),
    "B08": (2218.94553375, 1365.45589904),
    "B8A": (2266.46036911, 1356.13789355),
    "B09": (2246.0605464, 1302.3292881),
    "B11": (1594.42694882, 1079.19066363),
    "B12": (1009.32729131, 818.86747235),
    "VV": (-12.61999374, 5.11591178),
    "VH": (-19.29044598, 5.46442846),
}
"""Mean and standard deviation of each band over the v1 archives (DN; dB for VV and VH)."""
V2_STATISTICS: Final = {
    "B01": (361.0768, 575.0687),
    "B02": (438.3721, 607.0269),
    "B03": (614.0557, 603.2968),
    "B04": (588.4096, 684.5688),
    "B05": (942.8433, 738.4327),
    "B06": (1769.9316, 1100.4561),
    "B07": (2049.5515, 1275.8054),
    "B08": (2193.2920, 1369.3717),
    "B8A": (2235.5566, 1356.5441),
    "B09": (2241.4553, 1316.3933),
    "B11": (1568.2268, 1070.1613),
    "B12": (997.7325, 813.5276),
    "VV": (-12.6439, 5.1335),
    "VH": (-19.3526, 5.5905),
}
"""The same over the training split of v2."""
STATISTICS: Final = {"v1": V1_STATISTICS, "v2": V2_STATISTICS}


def labels_43_to_19(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Map CLC level-3 names to the 19-class nomenclature, by name.

    Returns
    -------
    tuple of str
        In 19-class order, each once. Empty where all of them are among the 11 dropped classes.

    Raises
    ------
    InvalidInputError
        If a name is not one of the 43.

    Examples
    --------
    >>> labels_43_to_19(("Vineyards", "Airports", "Olive groves"))
    ('Permanent crops',)
    """
    by_name = {c.name: c.name_19 for c in CLASSES_43}
    unknown = [name for name in labels if name not in by_name]
    if unknown:
        raise InvalidInputError(f"unknown label {unknown[0]!r}; expected one of the 43 CLC names")
    wanted = {by_name[name] for name in labels}
    return tuple(name for name in NAMES_19 if name in wanted)


def multi_hot(labels: tuple[str, ...], names: tuple[str, ...]) -> np.ndarray:
    """Encode class names as a uint8 vector over ``names``.

    Raises
    ------
    InvalidInputError
        If a label is not in ``names``.

    Examples
    --------
    >>> multi_hot(("b",), ("a", "b"))
    array([0, 1], dtype=uint8)
    """
    vector = np.zeros(len(names), np.uint8)
    for label in labels:
        if label not in names:
            raise InvalidInputError(
                f"unknown label {label!r}; expected a name of the {len(names)}-class nomenclature"
            )
        vector[names.index(label)] = 1
    return vector


def season_of(acquired: datetime) -> str:
    """Season by calendar month: March to May is spring, and so on (the published counts).

    Examples
    --------
    >>> season_of(datetime(2017, 12, 1))
    'winter'
    """
    return ("winter", "spring", "summer", "autumn")[acquired.month % 12 // 3]


def check_split(split: str) -> str:
    """Return ``split`` if it is one of the three.

    Raises
    ------
    InvalidInputError
        Otherwise; ``val`` is not taken for ``validation``.
    """
    if split not in SPLITS:
        raise InvalidInputError(f"unknown split {split!r}; choose one of: {', '.join(SPLITS)}")
    return split


def reben_split(col: int, row: int) -> str:
    """Split of a v2 patch from its indices: geographic bands of each square (reBEN, 2024).

    Examples
    --------
    >>> reben_split(26, 57)
    'test'
    """
    low, high = min(col, row), max(col, row)
    if low <= 12 or high >= 78:
        return "train"
    if low <= 22 or high >= 69:
        return "validation"
    return "test"


@dataclass(frozen=True, slots=True)
class Tile:
    """One acquisition the archives were cut from.

    Attributes
    ----------
    product
        Name of the L1C product, without ``.SAFE``.
    mgrs
        MGRS square, e.g. ``"33UUP"``.
    epsg, ulx, uly
        UTM zone and the upper-left corner of patch (0, 0), meters.
    n_v1, n_v2
        Patches published from it; 0 where the archive leaves the acquisition out.
    """

    product: str
    mgrs: str
    epsg: int
    ulx: int
    uly: int
    n_v1: int
    n_v2: int

    @property
    def acquired(self) -> datetime:
        """Sensing time, UTC."""
        return datetime.strptime(self.product.split("_")[2] + "+0000", "%Y%m%dT%H%M%S%z")


@functools.cache
def tiles() -> tuple[Tile, ...]:
    """Return the 125 acquisitions of BigEarthNet (v2 uses 115 of them)."""
    text = importlib.resources.files("bigearth_cube").joinpath("data/tiles.csv").read_text()
    return tuple(
        Tile(r["product"], r["mgrs"], *(int(r[k]) for k in ("epsg", "ulx", "uly", "n_v1", "n_v2")))
        for r in csv.DictReader(text.splitlines())
    )


@functools.cache
def square_origins() -> dict[str, tuple[int, int, int]]:
    """Return MGRS square to (epsg, ulx, uly) of its patch (0, 0), for the squares of the archives."""
    return {t.mgrs: (t.epsg, t.ulx, t.uly) for t in tiles()}


def patch_origin(mgrs: str, col: int, row: int) -> tuple[int, int, int]:
    """Georeference of a patch from its square and indices alone.

    Returns
    -------
    tuple of int
        EPSG code, and x and y of the upper-left corner in meters.

    Raises
    ------
    InvalidInputError
        If the square is not one of the archives', or an index is outside 0..90.

    Examples
    --------
    >>> patch_origin("33UUP", 61, 39)
    (32633, 373200, 5353200)
    """
    if mgrs not in square_origins():
        raise InvalidInputError(
            f"unknown MGRS square {mgrs!r}; the archives lie in {len(square_origins())} squares"
        )
    if not (0 <= col < PATCHES_PER_SIDE and 0 <= row < PATCHES_PER_SIDE):
        raise InvalidInputError(
            f"patch index ({col}, {row}) is off the grid; expected 0..{PATCHES_PER_SIDE - 1}"
        )
    epsg, ulx, uly = square_origins()[mgrs]
    return epsg, ulx + PATCH_M * col, uly - PATCH_M * row
