"""Spatial patterns of land cover at 10 m: parcels, rows, orchards, crowns, streets, waves.

A pattern is a large canvas in [0, 1]: the share of a pixel that a class's second material
covers. Drawing a canvas once and cutting windows from it at random places, turned and mirrored,
costs 20 us a window where drawing the window would cost milliseconds. Classes differ by their
pattern more than by their mean color, as they do from orbit.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Field = NDArray[np.float32]

CANVAS_PX: Final = 512
"""Side of a canvas: 154,449 windows of a patch, times eight turns and mirrors."""
WINDOW_PX: Final = 120


def smooth_noise(rng: np.random.Generator, sigma_px: float, size_px: int = CANVAS_PX) -> Field:
    """Gaussian noise of one length scale, mean 0 and standard deviation 1; it wraps around.

    Parameters
    ----------
    rng
        Source of the noise.
    sigma_px
        Standard deviation of the Gaussian that smooths it, pixels.
    size_px
        Side of the square.

    Returns
    -------
    numpy.ndarray
        float32, (y, x).
    """
    white = rng.standard_normal((size_px, size_px), np.float32)
    f_y = np.fft.fftfreq(size_px)[:, None]
    f_x = np.fft.rfftfreq(size_px)[None]
    transfer = np.exp(-2 * (np.pi * sigma_px) ** 2 * (f_y**2 + f_x**2))
    field = np.fft.irfft2(np.fft.rfft2(white) * transfer, (size_px, size_px))
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def _step(field: Field, threshold: float, width: float) -> Field:
    """Soft step: 0 below the threshold, 1 above it."""
    return np.asarray(np.clip((field - threshold) / width + 0.5, 0, 1), np.float32)


def _bent_grid(rng: np.random.Generator) -> tuple[Field, Field]:
    """Two coordinates, turned and bent slowly, so that parcels lie in every direction."""
    y, x = np.mgrid[:CANVAS_PX, :CANVAS_PX].astype(np.float32) - np.float32(CANVAS_PX / 2)
    turn = rng.uniform(0, np.pi / 2)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    bend_u, bend_v = smooth_noise(rng, 50), smooth_noise(rng, 50)
    return cos * x + sin * y + 22 * bend_u, cos * y - sin * x + 22 * bend_v


class _Parcels:
    """A bent grid cut into parcels of irregular widths."""

    def __init__(self, rng: np.random.Generator, narrow_px: float, wide_px: float) -> None:
        self.u, self.v = _bent_grid(rng)
        n_cuts = int(2.2 * CANVAS_PX / narrow_px) + 2
        self._cuts = [
            np.cumsum(rng.uniform(narrow_px, wide_px, n_cuts)) - 1.1 * CANVAS_PX for _ in range(2)
        ]
        self._i = [
            np.searchsorted(cuts, w) for cuts, w in zip(self._cuts, (self.u, self.v), strict=True)
        ]
        self._shape = (n_cuts + 1, n_cuts + 1)
        self._rng = rng

    def values(self) -> Field:
        """One uniform number a parcel."""
        table = self._rng.random(self._shape, np.float32)
        return np.asarray(table[self._i[0], self._i[1]])

    def edges(self, width_px: float) -> Field:
        """1 on the boundary between parcels, 0 inside."""
        near = [
            np.minimum(
                np.abs(w - cuts[np.minimum(i, len(cuts) - 1)]),
                np.abs(w - cuts[np.maximum(i - 1, 0)]),
            )
            for w, cuts, i in zip((self.u, self.v), self._cuts, self._i, strict=True)
        ]
        distance = np.minimum(near[0], near[1])
        return np.asarray(np.clip(width_px - distance, 0, 1), np.float32)


def _wave(phase_px: Field, period_px: float) -> Field:
    return np.asarray(0.5 + 0.5 * np.cos(2 * np.pi / period_px * phase_px), np.float32)


def _fields(rng: np.random.Generator) -> Field:
    """Large fields, each drilled in rows along one of its sides."""
    parcels = _Parcels(rng, 16, 42)
    along_u = parcels.values() > 0.5
    rows = np.where(along_u, _wave(parcels.u, 4.0), _wave(parcels.v, 4.0))
    tone = parcels.values()
    return np.asarray(np.clip(tone * 0.75 + 0.35 * (rows - 0.5) + 0.12, 0, 1), np.float32)


def _small_parcels(rng: np.random.Generator) -> Field:
    """Lay out a patchwork of plots of half a hectare."""
    return _Parcels(rng, 4, 9).values()


def _orchard(rng: np.random.Generator) -> Field:
    """Crowns on a planting grid of 45 m."""
    u, v = _bent_grid(rng)
    return _step(_wave(u, 4.5) * _wave(v, 4.5), 0.4, 0.5)


def _vineyard(rng: np.random.Generator) -> Field:
    """Rows in one direction, interrupted by tracks."""
    parcels = _Parcels(rng, 10, 24)
    rows = np.where(parcels.values() > 0.5, _wave(parcels.u, 3.2), _wave(parcels.v, 3.2))
    return np.asarray(rows * (1 - parcels.edges(1.2)), np.float32)


def _scattered(rng: np.random.Generator) -> Field:
    """Single trees, well apart."""
    seeds = (rng.random((CANVAS_PX, CANVAS_PX)) < 1 / 40).astype(np.float32)
    crown = seeds.copy()
    for shift in ((0, 1), (1, 0), (1, 1)):
        crown = np.maximum(crown, np.roll(seeds, shift, (0, 1)))
    return crown


def _hedges(rng: np.random.Generator) -> Field:
    """Hedgerows around meadows."""
    return _Parcels(rng, 9, 20).edges(1.4)


def _streets(rng: np.random.Generator) -> Field:
    """Houses between streets: roofs are the second material."""
    parcels = _Parcels(rng, 7, 13)
    houses = _step(smooth_noise(rng, 0.7), 0.3, 0.6)
    return np.asarray(np.maximum(houses * (1 - parcels.edges(1.5)), 0.25 * parcels.edges(1.2)))


def _halls(rng: np.random.Generator) -> Field:
    """Large roofs with yards between them."""
    parcels = _Parcels(rng, 6, 15)
    roofs = (parcels.values() > 0.5).astype(np.float32)
    return np.asarray(roofs * (1 - parcels.edges(1.5)), np.float32)


def _channels(rng: np.random.Generator) -> Field:
    """Winding creeks."""
    return 1 - _step(np.abs(smooth_noise(rng, 5)), 0.22, 0.16)


def _swell(rng: np.random.Generator) -> Field:
    """Long-crested waves that turn slowly."""
    u, _ = _bent_grid(rng)
    return np.asarray(_wave(u + 1.2 * smooth_noise(rng, 4), 7.0) * 0.8 + 0.1, np.float32)


def _noise_pattern(sigma_px: float, threshold: float, width: float) -> Callable[..., Field]:
    def draw(rng: np.random.Generator) -> Field:
        return _step(smooth_noise(rng, sigma_px), threshold, width)

    return draw


PATTERNS: Final[dict[str, Callable[[np.random.Generator], Field]]] = {
    "fields": _fields,
    "small parcels": _small_parcels,
    "orchard": _orchard,
    "vineyard": _vineyard,
    "scattered": _scattered,
    "hedges": _hedges,
    "streets": _streets,
    "halls": _halls,
    "channels": _channels,
    "swell": _swell,
    "fine crowns": _noise_pattern(0.45, 0.7, 1.0),
    "coarse crowns": _noise_pattern(1.5, 0.6, 0.8),
    "mosaic": _noise_pattern(3.2, 0.0, 0.3),
    "clumps": _noise_pattern(1.4, 0.9, 0.5),
    "groves": _noise_pattern(4.5, 0.7, 0.3),
    "tussocks": _noise_pattern(0.9, 0.2, 1.0),
    "pools": _noise_pattern(2.2, 0.9, 0.4),
    "drift": _noise_pattern(12.0, 0.0, 4.0),
    "speckles": _noise_pattern(0.6, 1.2, 0.8),
}
"""Every pattern by name: a function of a generator that gives its canvas."""

FIELDS: Final = {"relief": 9.0, "region": 11.0, "coast": 30.0, "cloud": 11.0}
"""Length scales, pixels, of the noise that shapes maps, relief and clouds."""


@functools.lru_cache(maxsize=2)
def canvases(seed: int) -> dict[str, Field]:
    """Draw every pattern and every noise field once for a seed.

    Returns
    -------
    dict
        Read-only float32 canvases, (y, x), by the names of PATTERNS and FIELDS.
    """
    drawn: dict[str, Field] = {}
    for i, (name, draw) in enumerate(PATTERNS.items()):
        drawn[name] = draw(np.random.default_rng([seed, 1, i]))
    for i, (name, sigma_px) in enumerate(FIELDS.items()):
        drawn[name] = smooth_noise(np.random.default_rng([seed, 2, i]), sigma_px)
    for canvas in drawn.values():
        canvas.flags.writeable = False
    return drawn


def window(canvas: Field, rng: np.random.Generator) -> Field:
    """Cut a window of 120 pixels at a random place, turned and mirrored at random.

    Parameters
    ----------
    canvas
        What to cut from, (y, x).
    rng
        Source of place and turn.

    Returns
    -------
    numpy.ndarray
        A view of (120, 120).
    """
    y, x, turn = rng.integers(0, (CANVAS_PX - WINDOW_PX, CANVAS_PX - WINDOW_PX, 8)).tolist()
    cut = canvas[y : y + WINDOW_PX, x : x + WINDOW_PX]
    if turn & 1:
        cut = cut.T
    return cut[:: -1 if turn & 2 else 1, :: -1 if turn & 4 else 1]
