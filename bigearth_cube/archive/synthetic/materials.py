"""What the ground is made of: spectra and backscatter of materials, and classes built from them.

A class is a base material with a second one laid over it in a pattern, and often a third one in
another. Classes share materials, so their mean colors overlap as real ones do; what tells them
apart is which materials lie side by side, and how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from bigearth_cube.nomenclature import POLARIZATIONS, S2_BANDS

CHANNELS: Final = (*(band.name for band in S2_BANDS), *POLARIZATIONS)
"""Columns of MATERIALS: DN of the 12 bands, then sigma-nought in dB, VV and VH."""

# fmt: off
MATERIALS: Final[dict[str, tuple[float, ...]]] = {
    #               B01   B02   B03   B04   B05   B06   B07   B08   B8A   B09   B11   B12   VV     VH
    "clear water": (230,  205,  180,  115,  110,   95,   90,   85,   80,   75,   45,   30, -21.0, -28.5),
    "murky water": (340,  380,  470,  330,  330,  220,  210,  190,  170,  160,   80,   50, -18.5, -27.0),
    "foam":        (420,  450,  430,  340,  320,  290,  280,  270,  250,  230,  150,  110, -15.5, -26.0),
    "wet mud":     (330,  400,  540,  580,  700,  820,  880,  920,  980, 1000,  850,  600, -14.5, -22.5),
    "leaves":      (190,  230,  480,  290,  830, 2500, 3250, 3450, 3650, 3650, 1750,  830,  -9.5, -15.0),
    "bare wood":   (230,  290,  420,  480,  720, 1050, 1200, 1300, 1450, 1480, 1650, 1050,  -9.8, -15.6),
    "needles":     (140,  170,  310,  210,  500, 1350, 1650, 1780, 1880, 1900,  850,  400,  -9.3, -14.4),
    "crown shade": (110,  120,  190,  130,  260,  600,  720,  760,  820,  830,  420,  220, -10.5, -15.8),
    "crop":        (280,  350,  700,  400, 1100, 3300, 4200, 4450, 4600, 4600, 2050, 1050,  -11.0, -17.5),
    "soil":        (460,  620,  870, 1130, 1380, 1530, 1680, 1780, 1950, 1990, 2600, 2150, -12.2, -20.5),
    "grass":       (260,  330,  640,  430, 1080, 2700, 3300, 3550, 3700, 3700, 2250, 1200, -11.8, -19.0),
    "dry grass":   (360,  480,  760,  900, 1330, 1800, 2050, 2250, 2400, 2480, 2850, 1900, -12.5, -20.0),
    "shrub":       (220,  270,  450,  430,  800, 1500, 1780, 1920, 2060, 2090, 1750, 1050, -10.8, -17.0),
    "peat":        (190,  230,  370,  400,  680, 1050, 1200, 1290, 1400, 1430, 1250,  700, -12.0, -19.5),
    "asphalt":     (620,  720,  800,  850,  950, 1030, 1090, 1150, 1200, 1230, 1250, 1100, -10.0, -19.0),
    "roof":        (950, 1180, 1330, 1500, 1680, 1780, 1880, 1980, 2060, 2100, 2200, 1950,  -2.5, -10.5),
    "white roof":  (1700, 2050, 2250, 2400, 2500, 2600, 2700, 2800, 2850, 2850, 2700, 2400, -1.5, -10.0),
    "sand":        (1350, 1750, 2200, 2600, 2800, 2900, 3000, 3100, 3200, 3200, 3600, 3200, -15.0, -24.0),
    "rock":        (700,  850, 1020, 1170, 1300, 1400, 1480, 1550, 1630, 1680, 2000, 1750, -11.0, -18.5),
    "char":        (200,  240,  290,  340,  420,  520,  580,  640,  720,  760, 1300, 1250, -11.0, -18.0),
    "snow":        (5400, 5550, 5200, 5500, 5600, 5600, 5600, 5500, 5400, 5000,  700,  600, -12.5, -20.0),
    "cloud":       (5400, 5500, 5200, 5400, 5500, 5500, 5600, 5700, 5700, 4900, 3800, 2800,   0.0,   0.0),
}
"""Typical level-2A reflectance x 10,000 by band and C-band backscatter at mid incidence. Means of
homogeneous targets, rounded, and adjusted by up to a quarter so that an archive with the
published class shares has the published band statistics."""
# fmt: on

LAND_MEAN: Final = (240, 335, 560, 520, 975, 2000, 2350, 2530, 2590, 2590, 1850, 1110)
"""Mean DN of land over the year, by band: the published mean less the share of water and snow."""
LAND_SPREAD: Final = (150, 220, 325, 445, 530, 1010, 1150, 1080, 1210, 1750, 1100, 1000)
"""Standard deviation inside one class of one patch, by band, as the published deviations ask."""
EQUALITY: Final = 0.97
"""How far, on a log scale, a class's mean and contrast on a patch are drawn to those of land in
general. At 0 a logistic regression on band means reaches an F1 of .54 and on means and deviations
.66; at 1 they fall to .48 and .60, while what convolutions see stays as telling (.80). Real
classes overlap as much: soils, species and dates blur their means over a continent."""

SEASONAL: Final = {"leaves": "bare wood", "crop": "soil", "grass": "dry grass"}
"""What a material turns into when it is not green."""
GREENNESS: Final = {"winter": 0.45, "spring": 0.70, "summer": 0.95, "autumn": 0.65}
"""Mean share of the green state, by season."""
SUN: Final = {"winter": 0.9, "spring": 1.02, "summer": 1.04, "autumn": 0.97}
"""Mean brightness: residual shade that sen2cor leaves under a low sun."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A material laid over a class's base: covers ``cover`` of each pixel where the pattern is 1."""

    material: str
    pattern: str
    cover: float = 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a class is made: a base material, layers over it in order, and snow its canopy holds.

    Attributes
    ----------
    base
        Name of the material under all.
    layers
        Materials and their patterns.
    canopy
        Share of lying snow that tree crowns hide.
    """

    base: str
    layers: tuple[Layer, ...]
    canopy: float = 0.0


def _of(base: str, *layers: Layer, canopy: float = 0.0) -> Recipe:
    return Recipe(base, layers, canopy)


_CONIFERS: Final = _of("needles", Layer("crown shade", "fine crowns", 0.95), canopy=0.4)
RECIPES: Final[dict[int, Recipe]] = {
    111: _of("asphalt", Layer("roof", "streets")),
    112: _of("grass", Layer("roof", "streets"), Layer("leaves", "clumps", 0.5)),
    121: _of("asphalt", Layer("white roof", "halls")),
    122: _of("grass", Layer("asphalt", "drift")),
    123: _of("asphalt", Layer("murky water", "groves"), Layer("white roof", "halls", 0.6)),
    124: _of("grass", Layer("asphalt", "hedges")),
    131: _of("rock", Layer("sand", "drift"), Layer("murky water", "pools")),
    132: _of("soil", Layer("rock", "tussocks")),
    133: _of("soil", Layer("sand", "groves"), Layer("asphalt", "hedges")),
    141: _of("grass", Layer("leaves", "groves")),
    142: _of("grass", Layer("dry grass", "groves"), Layer("leaves", "hedges")),
    211: _of("soil", Layer("crop", "fields")),
    212: _of("soil", Layer("crop", "fields"), Layer("wet mud", "hedges", 0.5)),
    213: _of("murky water", Layer("crop", "fields")),
    221: _of("soil", Layer("shrub", "vineyard")),
    222: _of("soil", Layer("leaves", "orchard")),
    223: _of("soil", Layer("shrub", "orchard")),
    231: _of("grass", Layer("crown shade", "hedges"), Layer("dry grass", "drift", 0.5)),
    241: _of("crop", Layer("shrub", "orchard")),
    242: _of("soil", Layer("crop", "small parcels")),
    243: _of("grass", Layer("dry grass", "small parcels", 0.6), Layer("needles", "groves")),
    244: _of("dry grass", Layer("crown shade", "scattered", 0.9)),
    311: _of("crown shade", Layer("leaves", "coarse crowns"), canopy=0.2),
    312: _CONIFERS,
    313: _of("leaves", Layer("needles", "mosaic"), Layer("crown shade", "fine crowns", 0.5), canopy=0.3),
    321: _of("grass", Layer("dry grass", "drift"), Layer("rock", "speckles", 0.6)),
    322: _of("dry grass", Layer("shrub", "tussocks")),
    323: _of("soil", Layer("shrub", "tussocks")),
    324: _of("dry grass", Layer("leaves", "clumps"), canopy=0.2),
    331: _of("sand", Layer("dry grass", "drift", 0.3)),
    332: _of("rock", Layer("crown shade", "speckles")),
    333: _of("rock", Layer("grass", "tussocks")),
    334: _of("char", Layer("bare wood", "clumps")),
    411: _of("grass", Layer("clear water", "pools"), Layer("shrub", "drift", 0.7)),
    412: _of("grass", Layer("clear water", "pools"), Layer("peat", "drift", 0.7)),
    421: _of("shrub", Layer("wet mud", "channels")),
    422: _of("murky water", Layer("sand", "hedges")),
    423: _of("wet mud", Layer("murky water", "channels")),
    511: _of("murky water", Layer("clear water", "drift")),
    512: _of("clear water", Layer("murky water", "drift", 0.5)),
    521: _of("murky water", Layer("clear water", "drift")),
    522: _of("murky water", Layer("wet mud", "drift", 0.2)),
    523: _of("clear water", Layer("foam", "swell", 0.8)),
}  # fmt: skip
"""How each CLC class is drawn."""

NAMES: Final = tuple(MATERIALS)
SPECTRA: Final = np.array(list(MATERIALS.values()), np.float32)
"""MATERIALS as an array, (material, channel), backscatter as linear power."""
SPECTRA[:, -2:] = 10 ** (SPECTRA[:, -2:] / 10)
SPECTRA.flags.writeable = False
