"""Where a patch must lie: the squares of the archives, and squares they do not know."""

from __future__ import annotations

from collections.abc import Callable

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import PATCH_M, square_origins

Corner = tuple[int, int, int]
"""EPSG code, and x and y of an upper-left corner, meters."""

_SQUARE_M = 100_000
_SLACK_M = 60  # Sentinel-2 moves the corner of a square outward to a multiple of 60 m


class Grid:
    """Origins of MGRS squares: those of the archives by table, others by their first patch.

    A square that no table holds takes its origin from the first patch that is found in it, if
    that origin is a corner of the 100 km lattice of the square's own UTM zone; a patch with
    wrong indices is off that lattice by a multiple of 1,200 m. So new tiles need no new table,
    and all patches of a square must still agree.
    """

    def __init__(self) -> None:
        self._origins = dict(square_origins())

    def corner(self, mgrs: str, col: int, row: int, *, measure: Callable[[], Corner]) -> Corner:
        """Georeference of a patch.

        Parameters
        ----------
        mgrs, col, row
            Square and indices.
        measure
            Says where the patch lies by its own files; called only where the square is new.

        Raises
        ------
        InvalidInputError
            If the square is new and the patch does not lie on its lattice.
        """
        if mgrs not in self._origins:
            epsg, ulx, uly = measure()
            self._origins[mgrs] = _check_origin(
                mgrs, (epsg, ulx - PATCH_M * col, uly + PATCH_M * row)
            )
        epsg, ulx, uly = self._origins[mgrs]
        return epsg, ulx + PATCH_M * col, uly - PATCH_M * row


def _check_origin(mgrs: str, origin: Corner) -> Corner:
    epsg, *corner = origin
    zone = int(mgrs[:2])
    expected = zone + (32600 if mgrs[2] >= "N" else 32700)
    if epsg != expected:
        raise InvalidInputError(f"lies in EPSG:{epsg}, expected EPSG:{expected} of square {mgrs}")
    if any(abs(value - round(value / _SQUARE_M) * _SQUARE_M) > _SLACK_M for value in corner):
        raise InvalidInputError(
            f"is off the grid: by its indices, square {mgrs} would begin at "
            f"({corner[0]}, {corner[1]}), which is no corner of a 100 km square"
        )
    return origin
