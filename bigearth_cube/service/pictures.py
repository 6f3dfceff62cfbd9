"""Pixels of one patch, and pictures of them: one chunk is read for each group.

Contrast is fixed for all patches of an archive, from its published band statistics. Stretched to
its own range, a patch of open water would be a picture of noise, and no two could be compared.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.loader.blocks import BlockReader, Target
from bigearth_cube.loader.sources import pixel_source
from bigearth_cube.nomenclature import (
    CLASSES_43,
    GROUPS,
    MAP_GROUP,
    POLARIZATIONS,
    S1_GROUP,
    S2_BANDS,
    S2_GROUPS,
    STATISTICS,
)
from bigearth_cube.service.memory import Memory
from bigearth_cube.service.shelf import Served

KINDS: Final[dict[str, tuple[str, ...]]] = {
    "true_color": ("B04", "B03", "B02"),
    "false_color": ("B08", "B04", "B03"),
    "s1": ("VV", "VH", "VV-VH"),
    "map": (),
}
"""Pictures by name, and the bands that are red, green and blue in them; the map has colors."""

_SIZE_PX: Final = 120
_GAMMA: Final = 1 / 1.4  # opens shadows, as in the figures of the library
_RATIO: Final = "VV-VH"
_RATIO_DB: Final = (1.5, 12.0)
_CHUNKS_BYTES: Final = 32 << 20
_PICTURES_BYTES: Final = 64 << 20
_NO_DATA: Final = 0


class Pictures:
    """Pixels and pictures of one cube; safe to share between threads.

    Parameters
    ----------
    served
        The cube.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._chunks = Memory(_CHUNKS_BYTES)
        self._pictures = Memory(_PICTURES_BYTES)

    @functools.cached_property
    def _reader(self) -> BlockReader:
        cube = self._served.cube
        return BlockReader({path: (pixel_source(cube, path),) for path in cube.layout.groups})

    def groups_of(self, place: int) -> tuple[str, ...]:
        """Return the groups that a patch has pixels of."""
        sets, which = self._served.presence
        return sets[int(which[place])]

    def pixels(self, place: int, group: str) -> NDArray[Any]:
        """Read the pixels of a patch in one group, as stored: shape (band, y, x), or (y, x).

        Parameters
        ----------
        place
            Row of the cube's index.
        group
            E.g. ``"s2/r10m"``.

        Raises
        ------
        InvalidInputError
            If there is no such group.
        NotFoundError
            If the patch has no pixels of it.
        CubeIntegrityError
            If what holds them is missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        if group not in GROUPS:
            raise InvalidInputError(f"no group {group!r:.60}; choose one of: {', '.join(GROUPS)}")
        here = self.groups_of(place)
        if group not in here:
            name = self._served.index.column("id")[place].as_py()
            has = f"it has: {', '.join(here)}" if here else "it has none at all"
            raise NotFoundError(f"patch {name!r} has no pixels of {group}; {has}")
        row = int(self._served.index.rows[place])
        rows = self._reader.chunk_rows
        chunk = self._chunks.get((group, row // rows), lambda: self._read(group, row // rows))
        pixels: NDArray[Any] = chunk[row % rows]
        return pixels

    def _read(self, group: str, chunk: int) -> NDArray[Any]:
        layout = self._reader.sources[group][0].layout
        out = np.empty((layout.chunk_rows, *layout.patch_shape), layout.dtype)
        (read,) = self._reader.reads(group, [chunk])
        self._reader.fetch(read, [Target(out, np.arange(layout.chunk_rows))])
        return out

    def picture(self, place: int, bands: Sequence[str]) -> bytes:
        """Draw a patch as a PNG of 120 x 120 px; drawn once, then remembered for a while.

        Parameters
        ----------
        place
            Row of the cube's index.
        bands
            What is red, green and blue: ``KINDS`` or three bands, e.g. ``("B12", "B8A", "B04")``;
            none for the reference map in CLC colors.

        Raises
        ------
        InvalidInputError
            If these are not three bands.
        NotFoundError
            If the patch has no pixels of one of them.
        CubeIntegrityError
            If what holds them is missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        chosen = tuple(bands)
        return self._pictures.get((place, chosen), lambda: self._draw(place, chosen))

    def _draw(self, place: int, bands: tuple[str, ...]) -> bytes:
        if not bands:
            return png_of_map(self.pixels(place, MAP_GROUP.path))
        unknown = next((band for band in bands if band not in (*_GROUP_OF, _RATIO)), None)
        if unknown is not None or len(bands) != 3:
            found = f"{unknown!r:.60}" if unknown is not None else f"{len(bands)} bands"
            raise InvalidInputError(
                f"found {found}; expected three of: {', '.join((*_GROUP_OF, _RATIO))}"
            )
        return png_of_colors(np.stack([self._shade(place, band) for band in bands], axis=-1))

    def _shade(self, place: int, band: str) -> NDArray[np.uint8]:
        """Scale one band to 0..255, with nearest neighbors where it is coarser than 10 m."""
        if band == _RATIO:
            vv, vh = self.pixels(place, S1_GROUP.path)
            # Over calm water both are the noise of the sensor, and so is their ratio.
            return (_scaled(vv - vh, *_RATIO_DB, 1.0) * (self._shade(place, "VV") / 255)).astype(
                np.uint8
            )
        group = GROUPS[_GROUP_OF[band]]
        values = self.pixels(place, group.path)[group.bands.index(band)]
        mean, deviation = STATISTICS[self._served.cube.archive][band]
        if group is S1_GROUP:
            shade = _scaled(values, mean - 1.25 * deviation, mean + 2 * deviation, 1.0)
        else:
            low, high = max(0.0, mean - 0.75 * deviation), mean + 2 * deviation
            shade = _scaled(values, low, high, _GAMMA)
            shade[values == _NO_DATA] = 0
        times = _SIZE_PX // group.size_px
        return shade.repeat(times, axis=0).repeat(times, axis=1)

    def spectrum(self, place: int, x: int, y: int) -> list[dict[str, Any]]:
        """Read all bands of a patch where one 10 m pixel lies, in order of their names.

        Parameters
        ----------
        place
            Row of the cube's index.
        x, y
            Column and row of the pixel from the upper left, 0 to 119.

        Returns
        -------
        list of dict
            ``name``, ``value`` (DN, or dB), ``resolution_m``, and of optical bands ``reflectance``
            and ``wavelength_um``; ``code`` and ``class`` of the map, if there is one.

        Raises
        ------
        InvalidInputError
            If the pixel is outside.
        NotFoundError
            If the patch has no pixels at all.
        CubeIntegrityError
            If what holds them is missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        if not (0 <= x < _SIZE_PX and 0 <= y < _SIZE_PX):
            raise InvalidInputError(f"pixel is x={x}, y={y}; expected 0 to {_SIZE_PX - 1} of both")
        here = self.groups_of(place)
        if not here:
            self.pixels(place, S2_GROUPS[0].path)  # says that there are none
        found = []
        for band in S2_BANDS:
            group = GROUPS[_GROUP_OF[band.name]]
            if group.path in here:
                value = int(self._at(place, group.path, x, y)[group.bands.index(band.name)])
                found.append(
                    {
                        "name": band.name,
                        "value": value,
                        "reflectance": None if value == _NO_DATA else value / 10_000,
                        "wavelength_um": band.center_um,
                        "resolution_m": band.resolution_m,
                    }
                )
        if S1_GROUP.path in here:
            for name, level in zip(
                POLARIZATIONS, self._at(place, S1_GROUP.path, x, y), strict=True
            ):
                db = float(level) if np.isfinite(level) else None
                found.append({"name": name, "value": db, "resolution_m": 10})
        if MAP_GROUP.path in here:
            code = int(self._at(place, MAP_GROUP.path, x, y))
            entry = {"name": "map", "code": code, "class": _CLASS_OF.get(code), "resolution_m": 10}
            found.append(entry)
        return found

    def _at(self, place: int, group: str, x: int, y: int) -> Any:
        times = _SIZE_PX // GROUPS[group].size_px
        return self.pixels(place, group)[..., y // times, x // times]


_GROUP_OF: Final = {
    band: path for path, group in GROUPS.items() if group.axis for band in group.bands
}
_CLASS_OF: Final = {cover.code: cover.name for cover in CLASSES_43}


def _scaled(values: NDArray[Any], low: float, high: float, gamma: float) -> NDArray[np.uint8]:
    share = ((values.astype(np.float32) - low) / (high - low)).clip(0, 1)
    shade: NDArray[np.uint8] = (np.nan_to_num(share) ** gamma * 255).round().astype(np.uint8)
    return shade


# --- PNG -----------------------------------------------------------------------------------------


def png_of_colors(shades_YXC: NDArray[np.uint8]) -> bytes:
    """Write red, green and blue, shape (y, x, 3), as a PNG."""
    height, width, _ = shades_YXC.shape
    # Each row as its difference to the one above, which is smaller: filter 2 of PNG.
    rows = shades_YXC.reshape(height, -1)
    differences = np.diff(rows, axis=0, prepend=np.zeros((1, rows.shape[1]), np.uint8))
    return _png(width, height, 2, np.full((height, 1), 2, np.uint8), differences)


def png_of_map(codes_YX: NDArray[np.uint16]) -> bytes:
    """Write a reference map in CLC colors as a PNG; what has no class is transparent."""
    height, width = codes_YX.shape
    known = np.array([cover.code for cover in CLASSES_43])
    at = np.searchsorted(known, codes_YX).clip(0, len(known) - 1)
    indices = np.where(known[at] == codes_YX, at + 1, 0).astype(np.uint8)
    palette = b"\0\0\0" + b"".join(bytes.fromhex(cover.color[1:]) for cover in CLASSES_43)
    extra = _part(b"PLTE", palette) + _part(b"tRNS", b"\0")
    return _png(width, height, 3, np.zeros((height, 1), np.uint8), indices, extra)


def _png(
    width: int,
    height: int,
    color_type: int,
    filters: NDArray[np.uint8],
    rows: NDArray[np.uint8],
    extra: bytes = b"",
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    data = zlib.compress(np.hstack([filters, rows]).tobytes(), 6)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _part(b"IHDR", header),
            extra,
            _part(b"IDAT", data),
            _part(b"IEND", b""),
        ]
    )


def _part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
