"""Where invented patches lie: blocks of neighbors on the real grid, in the real acquisitions."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import PATCHES_PER_SIDE, Archive, Tile, reben_split

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# fmt: off
_SQUARES: Final = {
    "Austria": "33TWM 33TWN 33TXN 33UUP 33UWP 33UWQ 33UXP 33UXQ",
    "Belgium": "31UER 31UGS",
    "Finland": "34VDM 34VDN 34VDR 34VER 34WFS 34WFT 34WFU 34WFV 35VLG 35VLJ 35VNH 35VNJ 35VNK "
               "35VNL 35VPH 35VPJ 35VPK 35WPN 35WPP 35WPR 36VVQ 36VVR",
    "Ireland": "29UNB 29UPA 29UPB 29UPU 29UPV",
    "Kosovo": "34TEN",
    "Lithuania": "34UDG 34UEG 35ULA 35ULB 35UMA 35UMB 35VLC",
    "Luxembourg": "31UGR",
    "Portugal": "29SNB 29SNC 29SND",
    "Serbia": "34TCR 34TCS 34TEP 34TEQ 34TFN 34TFQ",
    "Switzerland": "32TMT",
}
# fmt: on
COUNTRY_OF: Final = {square: c for c, squares in _SQUARES.items() for square in squares.split()}
"""Country that holds most patches of each MGRS square (v2 list); 34TEN is shared with Serbia."""

_SPLIT_CYCLE: Final = ("train", "validation", "train", "test")
_REVISIT_SHARE: Final = 0.5
"""How often a block goes where another date of the square already has one; 54 % of the places
of v2 have more than one date."""
_TRIES: Final = 100
"""Corners to try for a block. In an empty acquisition a fifth of them fit the rarest split, so
all of them fail once in 10^9; then it is crowded, and single cells are as good."""


def invent_places(
    rng: np.random.Generator, archive: Archive, n_patches: int, acquisitions: Sequence[Tile]
) -> Iterator[tuple[Tile, int, int]]:
    """Yield acquisition, column and row of patches, each once: at least as many as asked for.

    They come in blocks of neighbors, in v2 each within one split. Where an acquisition has no
    room for one more block, its free cells are taken, those of the split first; a cell is of the
    split of its place in any case.

    Parameters
    ----------
    rng
        Of the corners and their order.
    archive
        Whose splits, and whose shares of countries and seasons.
    n_patches
        At least 1.
    acquisitions
        Those to cut patches from.

    Raises
    ------
    InvalidInputError
        If the acquisitions have fewer cells.
    """
    capacity = len(acquisitions) * PATCHES_PER_SIDE**2
    if n_patches > capacity:
        raise InvalidInputError(
            f"{n_patches:,} patches asked for; the {len(acquisitions)} acquisitions of {archive} "
            f"can hold {capacity:,}: ask for fewer"
        )
    side, step = _block_side(archive, n_patches), 2 if archive == "v1" else 1
    n_blocks = -(-n_patches // side**2)
    free = {tile.product: np.ones((PATCHES_PER_SIDE,) * 2, bool) for tile in acquisitions}
    corners: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for b, (tile, revisit) in enumerate(_spread(rng, archive, n_blocks, acquisitions)):
        split = _SPLIT_CYCLE[b % 4] if archive == "v2" else ""
        known = corners.setdefault((tile.mgrs, split), [])
        here = free[tile.product]
        wanted = here & _cells_of(split)
        corner = _find_corner(rng, wanted, side, step, list(known) if revisit else [])
        if corner is None:
            cells = np.concatenate([np.argwhere(wanted), np.argwhere(here & ~wanted)])[: side**2]
        else:
            known.append(corner)
            cells = np.argwhere(np.ones((side, side))) + corner
        here[tuple(cells.T)] = False
        yield from ((tile, col, row) for col, row in cells.tolist())
    for tile in acquisitions:  # where an acquisition was full before its share was
        yield from ((tile, col, row) for col, row in np.argwhere(free[tile.product]).tolist())


def _spread(
    rng: np.random.Generator, archive: Archive, n_blocks: int, acquisitions: Sequence[Tile]
) -> list[tuple[Tile, bool]]:
    """Choose an acquisition for each block so that countries and seasons keep their shares."""
    pool = sorted(acquisitions, key=lambda tile: (COUNTRY_OF[tile.mgrs], tile.acquired.month))
    edges = np.cumsum([tile.n_v1 if archive == "v1" else tile.n_v2 for tile in pool])
    points = (np.arange(n_blocks) + rng.random()) / n_blocks * edges[-1]
    chosen = [pool[int(i)] for i in np.searchsorted(edges, points, side="right")]
    revisits = rng.random(n_blocks) < _REVISIT_SHARE
    return [(chosen[i], bool(revisits[i])) for i in rng.permutation(n_blocks)]


def _block_side(archive: Archive, n_patches: int) -> int:
    """Side of the blocks patches come in: 4, fewer where 16 blocks would not fit."""
    side = int(np.clip(np.sqrt(n_patches / 16), 1, 4))
    return max(2, side - side % 2) if archive == "v1" else side


@functools.cache
def _cells_of(split: str) -> NDArray[np.bool_]:
    """Cells (col, row) of a split of v2; all of them for no split."""
    side = range(PATCHES_PER_SIDE)
    return np.array([[split in ("", reben_split(col, row)) for row in side] for col in side])


def _find_corner(
    rng: np.random.Generator,
    wanted: NDArray[np.bool_],
    side: int,
    step: int,
    first: list[tuple[int, int]],
) -> tuple[int, int] | None:
    """Corner of a block of wanted cells: from the end of ``first``, then at random."""
    for _ in range(_TRIES):
        drawn = rng.integers(0, PATCHES_PER_SIDE - side, 2, endpoint=True)
        corner = first.pop() if first else (int(drawn[0]), int(drawn[1]))
        # The splits of v1 are dealt within aligned blocks of 2 x 2.
        col, row = corner[0] - corner[0] % step, corner[1] - corner[1] % step
        if wanted[col : col + side, row : row + side].all():
            return col, row
    return None
