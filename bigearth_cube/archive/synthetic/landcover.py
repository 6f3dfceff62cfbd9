"""Which classes meet in a patch, and the map they form.

The shares of classes by country and how often two of them meet are measured on the official
lists of reBEN (549,488 patches), so that synthetic labels are as frequent and as mixed as real
ones. A map holds exactly the classes it was asked for, each on at least 8 % of the patch:
labels are what is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from bigearth_cube.archive.synthetic.textures import WINDOW_PX, window
from bigearth_cube.nomenclature import CLASSES_43, NAMES_19, NODATA_MAP, Archive, labels_43_to_19

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bigearth_cube.archive.synthetic.textures import Field

# fmt: off
_SHARE: Final = {
    "Austria": (358, 38, 633, 100, 247, 316, 303, 0, 365, 328, 406, 40, 9, 30, 0, 20, 0, 46, 0),
    "Belgium": (644, 78, 499, 1, 659, 548, 293, 0, 406, 215, 285, 1, 39, 79, 0, 36, 0, 31, 0),
    "Finland": (36, 10, 161, 0, 2, 1, 191, 0, 71, 682, 621, 0, 1, 354, 0, 82, 2, 325, 214),
    "Ireland": (80, 15, 347, 0, 705, 63, 110, 0, 57, 158, 78, 17, 58, 97, 6, 104, 2, 24, 244),
    "Kosovo": (315, 53, 404, 10, 100, 341, 522, 0, 702, 29, 44, 210, 0, 392, 0, 4, 0, 15, 0),
    "Lithuania": (136, 31, 631, 11, 383, 492, 407, 0, 365, 345, 494, 5, 3, 299, 5, 47, 0, 121, 51),
    "Luxembourg": (475, 72, 693, 34, 661, 500, 315, 0, 699, 280, 366, 0, 0, 13, 0, 2, 0, 41, 0),
    "Portugal": (87, 25, 427, 250, 149, 212, 184, 370, 397, 95, 157, 15, 115, 438, 9, 1, 12, 54, 109),
    "Serbia": (164, 24, 475, 24, 97, 400, 463, 0, 608, 29, 54, 113, 0, 356, 0, 20, 0, 63, 0),
    "Switzerland": (503, 100, 652, 20, 268, 266, 91, 0, 197, 358, 654, 60, 16, 65, 0, 14, 0, 119, 0),
}
"""Patches in a thousand that hold each of the 19 classes, by country (v2, all patches)."""
_MEET: Final = np.array((
    (0, 51, 17, 18, 15, 24, 16, 2, 11, 5, 8, 5, 8, 4, 14, 4, 15, 6, 2),
    (51, 0, 15, 17, 11, 17, 11, 4, 8, 5, 7, 5, 11, 5, 8, 4, 43, 9, 3),
    (17, 15, 0, 15, 14, 15, 12, 16, 11, 6, 8, 4, 4, 7, 7, 5, 12, 6, 1),
    (18, 17, 15, 0, 7, 18, 12, 39, 12, 2, 3, 9, 41, 9, 9, 3, 17, 4, 0),
    (15, 11, 14, 7, 0, 15, 10, 16, 11, 6, 7, 8, 9, 6, 9, 9, 13, 4, 1),
    (24, 17, 15, 18, 15, 0, 19, 7, 17, 4, 7, 10, 9, 8, 8, 4, 9, 4, 0),
    (16, 11, 12, 12, 10, 19, 0, 2, 15, 9, 11, 11, 14, 10, 5, 6, 7, 10, 1),
    (2, 4, 16, 39, 16, 7, 2, 0, 17, 2, 3, 4, 10, 13, 0, 0, 9, 4, 0),
    (11, 8, 11, 12, 11, 17, 15, 17, 0, 5, 8, 25, 11, 13, 3, 4, 8, 6, 1),
    (5, 5, 6, 2, 6, 4, 9, 2, 5, 0, 18, 6, 6, 14, 7, 17, 6, 17, 2),
    (8, 7, 8, 3, 7, 7, 11, 3, 8, 18, 0, 5, 3, 13, 4, 13, 8, 16, 2),
    (5, 5, 4, 9, 8, 10, 11, 4, 25, 6, 5, 0, 33, 18, 22, 10, 7, 3, 1),
    (8, 11, 4, 41, 9, 9, 14, 10, 11, 6, 3, 33, 0, 18, 60, 19, 25, 3, 5),
    (4, 5, 7, 9, 6, 8, 10, 13, 13, 14, 13, 18, 18, 0, 7, 15, 5, 10, 1),
    (14, 8, 7, 9, 9, 8, 5, 0, 3, 7, 4, 22, 60, 7, 0, 6, 60, 7, 60),
    (4, 4, 5, 3, 9, 4, 6, 0, 4, 17, 13, 10, 19, 15, 6, 0, 4, 13, 1),
    (15, 43, 12, 17, 13, 9, 7, 9, 8, 6, 8, 7, 25, 5, 60, 4, 0, 6, 46),
    (6, 9, 6, 4, 4, 4, 10, 4, 6, 17, 16, 3, 3, 10, 7, 13, 6, 0, 0),
    (2, 3, 1, 0, 1, 0, 1, 0, 1, 2, 2, 1, 5, 1, 60, 1, 46, 0, 0),
)) / 10
"""How much more often than by chance two of the 19 classes share a patch; capped at 6."""
# fmt: on
_N_LABELS: Final = (0.105, 0.215, 0.315, 0.235, 0.100, 0.027, 0.003)
"""Shares of patches with 1, 2, … labels among those without marine waters (v2)."""
_MARINE: Final = NAMES_19.index("Marine waters")
_MARINE_ALONE: Final = 0.84
"""Share of the patches with marine waters that hold nothing else (v2)."""

_MEMBERS: Final[dict[str, dict[int, float]]] = {
    "Urban fabric": {112: 0.92, 111: 0.08},
    "Arable land": {211: 1.0},
    "Permanent crops": {222: 0.5, 221: 0.3, 241: 0.2},
    "Natural grassland and sparsely vegetated areas": {321: 0.8, 333: 0.2},
    "Moors, heathland and sclerophyllous vegetation": {322: 1.0},
    "Inland wetlands": {412: 0.6, 411: 0.4},
    "Coastal wetlands": {421: 1.0},
    "Inland waters": {512: 0.75, 511: 0.25},
    "Marine waters": {523: 0.97, 522: 0.03},
}
"""CLC classes that stand for one of the 19, with shares; the other classes have one each."""
_MEMBERS_IBERIA: Final[dict[str, dict[int, float]]] = {
    "Arable land": {211: 0.65, 212: 0.25, 213: 0.10},
    "Permanent crops": {223: 0.45, 221: 0.25, 241: 0.15, 222: 0.15},
    "Moors, heathland and sclerophyllous vegetation": {323: 0.6, 322: 0.4},
    "Coastal wetlands": {421: 0.6, 422: 0.4},
    "Marine waters": {523: 0.8, 522: 0.12, 521: 0.08},
}
"""The same in Portugal: irrigated fields, olives, maquis, salines, lagoons."""
_DROPPED: Final = (122, 123, 124, 131, 132, 133, 141, 142, 332, 334, 423)
"""CLC classes without one of the 19; 335 never occurs."""
_DROPPED_SHARE: Final = 0.05
_LINEAR: Final = frozenset((122, 511))
_SEA: Final = frozenset((521, 522, 523, 423))

MIN_SHARE: Final = 0.08
"""Least share of a patch for a class drawn in it: 11.5 ha, the part of a CORINE polygon (25 ha
at least) that a patch border may leave."""
_GAP_SHARE: Final = 0.03
"""Share of patches with a strip that no polygon covers."""


def choose_labels(rng: np.random.Generator, country: str) -> tuple[str, ...]:
    """Draw the 19-class labels of a place.

    Parameters
    ----------
    rng
        Source of the draw.
    country
        One of the ten.

    Returns
    -------
    tuple of str
        1 to 7 names, in 19-class order.
    """
    share = np.array(_SHARE[country], float) / 1000
    # Seldom met classes go with many others, so the first pick needs no correction for rank.
    if rng.random() < share[_MARINE] * _MARINE_ALONE:
        return (NAMES_19[_MARINE],)
    share[_MARINE] *= 1 - _MARINE_ALONE
    n_labels = min(1 + int(rng.choice(len(_N_LABELS), p=_N_LABELS)), int((share > 0).sum()))
    chosen: list[int] = []
    weight = share.copy()
    for _ in range(n_labels):
        if not weight.any():
            break
        pick = int(rng.choice(len(weight), p=weight / weight.sum()))
        chosen.append(pick)
        weight = weight * np.sqrt(_MEET[pick])
    return tuple(NAMES_19[i] for i in sorted(chosen))


def choose_codes(
    rng: np.random.Generator, labels: tuple[str, ...], country: str
) -> tuple[int, ...]:
    """Choose the CLC level-3 classes that stand for 19-class labels.

    Parameters
    ----------
    rng
        Source of the draw.
    labels
        Names of the 19-class nomenclature; may be empty.
    country
        One of the ten; Portugal has its own mix.

    Returns
    -------
    tuple of int
        Increasing; maps to exactly ``labels``.
    """
    codes: set[int] = set()
    for label in labels:
        members = _MEMBERS.get(label, {})
        if country == "Portugal":
            members = _MEMBERS_IBERIA.get(label, members)
        members = members or {c.code: 1.0 for c in CLASSES_43 if c.name_19 == label}
        shares = np.array(list(members.values()))
        codes.add(int(rng.choice(list(members), p=shares / shares.sum())))
    # A patch of dropped classes alone would be unlabelled, which v2 leaves out.
    if rng.random() < _DROPPED_SHARE and labels and len(labels) < 7:
        codes.add(int(rng.choice(_DROPPED)))
    if not codes:
        codes.add(int(rng.choice(_DROPPED)))
    return tuple(sorted(codes))


def labels_of(codes: tuple[int, ...], archive: Archive) -> tuple[str, ...]:
    """Labels of a map that holds these classes, as the archive publishes them.

    Parameters
    ----------
    codes
        CLC level-3 codes; 999 gives none.
    archive
        v1: the names of the 43 in CLC order; v2: the names of the 19 in alphabetical order.

    Returns
    -------
    tuple of str
        Each once.

    Examples
    --------
    >>> labels_of((111, 112, 523), "v2")
    ('Marine waters', 'Urban fabric')
    """
    names = tuple(c.name for c in CLASSES_43 if c.code in codes)
    return names if archive == "v1" else tuple(sorted(labels_43_to_19(names)))


def _shares(rng: np.random.Generator, codes: tuple[int, ...]) -> list[float]:
    """Share of the patch for each class; sums to 1, none below MIN_SHARE."""
    free = 1 - MIN_SHARE * len(codes)
    return [MIN_SHARE + free * float(s) for s in rng.dirichlet([3.0] * len(codes))]


def _suitability(rng: np.random.Generator, code: int, noise: dict[str, Field]) -> Field:
    """How well each pixel suits a class: blobs, a band for rivers and roads, a side for the sea."""
    if code in _LINEAR:
        return -np.abs(window(noise["region"], rng))
    if code in _SEA:
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[:WINDOW_PX, :WINDOW_PX].astype(np.float32) / WINDOW_PX
        slope = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
        return np.asarray(4 * slope + 0.6 * window(noise["region"], rng))
    return window(noise["region"], rng)


def draw_map(
    rng: np.random.Generator, codes: tuple[int, ...], noise: dict[str, Field]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Draw a land-cover map that holds exactly the given classes.

    Parameters
    ----------
    rng
        Source of the draw: the same for every date of a place.
    codes
        CLC level-3 codes, 1 to 12 of them.
    noise
        The noise fields of ``textures.canvases``.

    Returns
    -------
    tuple of numpy.ndarray
        What is on the ground, and the reference map: the same but for small gaps of 999.
        uint16, (y, x).
    """
    order = [codes[i] for i in rng.permutation(len(codes))]
    # The last class is the background and gets all that is left: neither a class without a
    # label nor, where there is another, a river or the sea.
    order.sort(key=lambda code: (code not in _DROPPED, code not in _LINEAR, code not in _SEA))
    shares = _shares(rng, tuple(order))
    ground = np.full(WINDOW_PX * WINDOW_PX, order[-1], np.uint16)
    free = np.arange(ground.size)
    for code, share in zip(order[:-1], shares[:-1], strict=True):
        # Roads and rivers stay narrow, and dropped classes stay under the quarter v2 allows.
        share = min(share, 0.09) if code in _LINEAR else share
        share = min(share, 0.2) if code in _DROPPED else share
        n_px = max(1, round(share * ground.size))
        suits = _suitability(rng, code, noise).ravel()[free]
        best = np.argpartition(suits, free.size - n_px)
        ground[free[best[-n_px:]]] = code
        free = free[best[:-n_px]]
    clc = ground.copy()
    if rng.random() < _GAP_SHARE:
        ranked = np.argpartition(window(noise["coast"], rng).ravel(), ground.size // 50)
        clc[ranked[: ground.size // 50]] = NODATA_MAP
        if np.unique(clc).size != len(codes) + 1:  # the gap swallowed a class
            clc = ground.copy()
    square = (WINDOW_PX, WINDOW_PX)
    return ground.reshape(square), clc.reshape(square)
