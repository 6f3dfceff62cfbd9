"""From a land-cover map to what the satellites saw of it: 12 bands and two polarizations.

Everything is drawn at 10 m and averaged to 20 and 60 m, so the three resolutions show one
scene. Mixing is linear in reflectance and in backscattered power, as it is in nature; speckle,
decibels and sensor noise come last.

Names that end in ``_p`` are flat: one number for each pixel of the 120 x 120 grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from bigearth_cube.archive.synthetic.materials import (
    CHANNELS,
    EQUALITY,
    GREENNESS,
    LAND_MEAN,
    LAND_SPREAD,
    NAMES,
    RECIPES,
    SEASONAL,
    SPECTRA,
    SUN,
    Recipe,
)
from bigearth_cube.archive.synthetic.textures import WINDOW_PX, window
from bigearth_cube.nomenclature import S2_GROUPS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bigearth_cube.archive.synthetic.textures import Field

_N_BANDS: Final = 12
_LOOKS: Final = 4.4
"""Equivalent number of looks of Sentinel-1 IW GRD high resolution (ESA product specification)."""
_BRIGHTNESS_SD: Final = 0.06
"""Spread, log, of the brightness of one class from patch to patch: soils, species, moisture."""
_TILT_SD: Final = 0.06
"""Spread, log, between visible and short-wave infrared of the same."""
_CONTRAST_SD: Final = 0.2
"""Spread, log, of the contrast inside a class from patch to patch."""
_BAND_MEAN_SD: Final = 0.08
_BAND_CONTRAST_SD: Final = 0.25
"""Spread, log, of mean and contrast of single bands: pigments, minerals, residual atmosphere. With
nothing but brightness and tilt a linear model finds the ten directions that they leave free."""
_MOISTURE_SD: Final = 0.70
"""Spread, log, of backscattered power from patch to patch: moisture, roughness, incidence."""
_DARKEST_DN: Final = 30.0
"""Shade of land is never darker."""
_LIGHT_SD: Final = 0.07
"""Spread, log, of the light over a whole patch."""
_HAZE_DN: Final = 30.0
"""Mean residual haze at 443 nm; falls as wavelength to the power of -2."""
_STEEPEST: Final = 0.16
"""Most that relief brightens or darkens land, by one deviation of its slopes."""
_NOISE: Final = (9.0, 0.022)
"""Sensor noise and texture finer than a pixel: DN, and share of the signal."""
_WAVELENGTH_UM: Final = np.array(
    (0.443, 0.490, 0.560, 0.665, 0.704, 0.740, 0.783, 0.842, 0.865, 0.945, 1.610, 2.190), np.float32
)
_HAZE: Final = (_WAVELENGTH_UM / _WAVELENGTH_UM[0]) ** -2
_TILT: Final = np.log(_WAVELENGTH_UM / 0.842) / np.log(2.190 / 0.443)
_LAND_MEAN: Final = np.array(LAND_MEAN, np.float32)
_LAND_SPREAD: Final = np.array(LAND_SPREAD, np.float32)
_WATERS: Final = frozenset(("clear water", "murky water"))
_BANDS_OF: Final = {g.path: [CHANNELS.index(b) for b in g.bands] for g in S2_GROUPS}
_MATERIAL: Final = {name: i for i, name in enumerate(NAMES)}


@dataclass(frozen=True, slots=True)
class Conditions:
    """How an acquisition sees its patches.

    Attributes
    ----------
    season
        Chooses greenness and sun.
    snow, cloud
        Whether the patch is flagged for them.
    """

    season: str
    snow: bool = False
    cloud: bool = False


def _spectra(rng: np.random.Generator, season: str) -> NDArray[np.float32]:
    """Spectra of all materials on one date: seasonal ones between their two states."""
    spectra = SPECTRA.copy()
    for green, bare in SEASONAL.items():
        share = np.clip(rng.normal(GREENNESS[season], 0.2), 0, 1)
        spectra[_MATERIAL[green]] = (
            share * SPECTRA[_MATERIAL[green]] + (1 - share) * SPECTRA[_MATERIAL[bare]]
        )
    return spectra


def _draw_class(
    rng: np.random.Generator,
    recipe: Recipe,
    where_p: NDArray[np.intp],
    spectra: NDArray[np.float32],
    canvases: dict[str, Field],
) -> NDArray[np.float32]:
    """Signal of one class on its pixels, (channel, pixel)."""
    materials = [recipe.base, *(layer.material for layer in recipe.layers)]
    rows = spectra[[_MATERIAL[name] for name in materials]]
    signal = np.repeat(rows[0][:, None], where_p.size, 1)
    for row, layer in zip(rows[1:], recipe.layers, strict=True):
        cover = layer.cover * rng.uniform(0.65, 1)
        share_p = np.float32(cover) * window(canvases[layer.pattern], rng).reshape(-1)[where_p]
        signal += share_p * (row[:, None] - signal)
    if recipe.base not in _WATERS:
        _equalize(rng, signal[:_N_BANDS])
    signal[_N_BANDS:] *= np.float32(np.exp(rng.normal(0, _MOISTURE_SD)))
    return signal


def _equalize(rng: np.random.Generator, bands: NDArray[np.float32]) -> None:
    """Draw mean and contrast of a class on one patch toward those of land in general.

    What stays is the pattern and which bands rise and fall together in it, so a class is told
    by what lies side by side rather than by its mean color.
    """
    mean = bands.mean(1)
    spread = np.maximum(bands.std(1), 1)
    gain = np.exp(rng.normal(0, _BRIGHTNESS_SD) + rng.normal(0, _TILT_SD) * _TILT)
    gain *= np.exp(rng.normal(0, _BAND_MEAN_SD, _N_BANDS))
    contrast = gain * np.exp(
        rng.normal(0, _CONTRAST_SD) + rng.normal(0, _BAND_CONTRAST_SD, _N_BANDS)
    )
    wanted_mean = gain * mean ** (1 - EQUALITY) * _LAND_MEAN**EQUALITY
    wanted_spread = contrast * spread ** (1 - EQUALITY) * _LAND_SPREAD**EQUALITY
    bands -= mean[:, None]
    bands *= (wanted_spread / spread).astype(np.float32)[:, None]
    bands += wanted_mean.astype(np.float32)[:, None]
    np.maximum(bands, _DARKEST_DN, out=bands)


def draw_scene(
    rng: np.random.Generator,
    ground: NDArray[np.uint16],
    conditions: Conditions,
    canvases: dict[str, Field],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw reflectance and backscatter of a map, before noise.

    Parameters
    ----------
    rng
        Source of the draw.
    ground
        CLC level-3 codes, (y, x).
    conditions
        Season, snow, cloud.
    canvases
        From ``textures.canvases``.

    Returns
    -------
    tuple of numpy.ndarray
        DN of the 12 bands at 10 m, (band, pixel), and linear power, (polarization, pixel); float32.
    """
    ground_p = ground.ravel()
    spectra = _spectra(rng, conditions.season)
    signal = np.empty((len(CHANNELS), ground_p.size), np.float32)
    canopy_p = np.zeros(ground_p.size, np.float32)
    dry_p = np.ones(ground_p.size, np.float32)
    for code in np.unique(ground_p).tolist():
        where_p = np.flatnonzero(ground_p == code)
        recipe = RECIPES[code]
        signal[:, where_p] = _draw_class(rng, recipe, where_p, spectra, canvases)
        canopy_p[where_p] = recipe.canopy
        dry_p[where_p] = 0.0 if code > 500 else 1.0
    relief_p = window(canvases["relief"], rng).reshape(-1)
    light = SUN[conditions.season] * np.exp(rng.normal(0, _LIGHT_SD))
    bands, power = signal[:_N_BANDS], signal[_N_BANDS:]
    slope = np.float32(rng.uniform(0, _STEEPEST))
    bands *= np.float32(light) * (1 + slope * dry_p * np.clip(relief_p, -2, 2))
    if conditions.snow:
        _cover_with_snow(rng, bands, canopy_p, canvases)
    bands += (_HAZE_DN * rng.gamma(4.0, 0.25) * _HAZE)[:, None].astype(np.float32)
    if conditions.cloud:
        _cover_with_cloud(rng, bands, canvases)
    return bands, power


def _cover_with_snow(
    rng: np.random.Generator,
    bands: NDArray[np.float32],
    canopy_p: NDArray[np.float32],
    canvases: dict[str, Field],
) -> None:
    patches_p = window(canvases["relief"], rng).reshape(-1)
    cover_p = np.clip(0.75 + rng.normal(0, 0.15) + 0.3 * patches_p, 0.05, 1) * (1 - canopy_p)
    snow = SPECTRA[_MATERIAL["snow"], :_N_BANDS] * np.float32(np.exp(rng.normal(0, 0.15)))
    bands += cover_p * (snow[:, None] - bands)


def _cover_with_cloud(
    rng: np.random.Generator, bands: NDArray[np.float32], canvases: dict[str, Field]
) -> None:
    """Lay clouds over the patch, and their shadows 200 m beside them."""
    field = window(canvases["cloud"], rng) + rng.normal(0.2, 0.4)
    field = field + 0.4 * window(canvases["coarse crowns"], rng)
    cover = np.clip(0.6 * field, 0, 1)
    shadow = np.roll(cover, (20, 14), (0, 1))
    bands *= 1 - 0.55 * shadow.reshape(-1)
    cloud = SPECTRA[_MATERIAL["cloud"], :_N_BANDS] * np.float32(np.exp(rng.normal(0, 0.15)))
    bands += cover.reshape(-1) * (cloud[:, None] - bands)


def _mean_pool(bands: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Mean over squares of ``factor`` pixels: (C, y, x) to (C, y / factor, x / factor)."""
    rows = np.add.reduce([bands[:, i::factor] for i in range(factor)])
    pooled = np.add.reduce([rows[:, :, i::factor] for i in range(factor)])
    return np.asarray(pooled / np.float32(factor * factor))


def observe_s2(
    rng: np.random.Generator, bands: NDArray[np.float32]
) -> dict[str, NDArray[np.uint16]]:
    """Turn reflectance at 10 m into what each group of bands records.

    Parameters
    ----------
    rng
        Source of the noise.
    bands
        DN of the 12 bands at 10 m, (band, pixel).

    Returns
    -------
    dict
        Group path to uint16 DN, (band, y, x), at least 1: v2 leaves out patches with a 0.
    """
    image = bands.reshape(_N_BANDS, WINDOW_PX, WINDOW_PX)
    seen: dict[str, NDArray[np.uint16]] = {}
    for group in S2_GROUPS:
        signal = image[_BANDS_OF[group.path]]
        factor = group.resolution_m // 10
        if factor > 1:
            signal = _mean_pool(signal, factor)
        sigma = np.float32(_NOISE[0]) + np.float32(_NOISE[1]) * signal
        noisy = signal + sigma * rng.standard_normal(signal.shape, np.float32)
        seen[group.path] = np.clip(noisy, 1, 20_000).astype(np.uint16)
    return seen


def observe_s1(rng: np.random.Generator, power: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn backscattered power into speckled decibels.

    Parameters
    ----------
    rng
        Source of the speckle.
    power
        Linear sigma-nought, (polarization, pixel).

    Returns
    -------
    numpy.ndarray
        float32 dB, (polarization, y, x).
    """
    speckle = rng.standard_gamma(_LOOKS, power.shape, np.float32)
    decibels = np.float32(10) * np.log10(power * speckle / np.float32(_LOOKS))
    return np.asarray(decibels.reshape(-1, WINDOW_PX, WINDOW_PX))
