"""The bytes of a GeoTIFF to its pixels and georeference.

The files of the archives are plain: classic TIFF, one band, a few strips lying one after the
other, uncompressed (bands, Sentinel-1) or deflated (reference maps). Their directory is read here
by hand and the pixels are one view of the bytes; whatever is not plain goes to GDAL, so that no
file is read differently from what rasterio reads.
"""

from __future__ import annotations

import functools
import importlib
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _FILL_ORDER = 256, 257, 258, 259, 266
_STRIP_OFFSETS, _SAMPLES, _STRIP_BYTES, _PREDICTOR, _TILE_WIDTH = 273, 277, 279, 317, 322
_SAMPLE_FORMAT, _PIXEL_SCALE, _TIEPOINT, _TRANSFORM, _GEO_KEYS = 339, 33550, 33922, 34264, 34735
_RASTER_TYPE_KEY, _PROJECTED_CRS_KEY = 1025, 3072
_PIXEL_IS_POINT: Final = 2
_USER_DEFINED: Final = 32767
_UNCOMPRESSED: Final = 1
_DEFLATE: Final = (8, 32946)
_BYTE_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">"}
_BIGTIFF: Final = (b"II+\0", b"MM\0+")
_TYPE_CODES: Final = {3: "H", 4: "I", 12: "d"}  # SHORT, LONG, DOUBLE: all that the tags here use
_TYPE_BYTES: Final = {3: 2, 4: 4, 12: 8}
_SIX: Final = struct.Struct("<6d")
_KINDS: Final = {1: "u", 2: "i", 3: "f"}  # TIFF SampleFormat to numpy

Directory = Mapping[int, tuple[int, int, int]]
"""Tag to (type, number of values, the values or where they lie)."""


class Georeference(NamedTuple):
    """Where a north-up raster lies.

    Attributes
    ----------
    epsg
        Code of the projected CRS, or None where the file names none.
    ulx, uly
        Upper-left corner of the upper-left pixel, meters.
    resolution_m
        Side of a pixel, meters.
    """

    epsg: int | None
    ulx: float
    uly: float
    resolution_m: float


class _NotPlainError(Exception):
    """The file is none that the direct path reads; it may still be sound."""


def read_geotiff(
    data: bytes, *, shape: tuple[int, int], dtype: str
) -> tuple[NDArray[Any], Georeference]:
    """Read the one band of a GeoTIFF that must have a given shape and dtype.

    Shape and dtype are compared before anything is allocated, so a header that claims billions
    of pixels costs nothing.

    Parameters
    ----------
    data
        The whole file.
    shape
        Expected height and width, pixels.
    dtype
        Expected numpy dtype, e.g. ``"uint16"``.

    Returns
    -------
    tuple
        The pixels (y, x), possibly a read-only view of ``data`` in the byte order of the file,
        and the georeference.

    Raises
    ------
    InvalidInputError
        If the file is empty, truncated, no GeoTIFF, of another shape or dtype, or not north up.
    """
    if not data:
        raise InvalidInputError("is empty, expected a GeoTIFF")
    alike = _read_alike(data, shape, dtype)
    if alike is not None:
        return alike
    try:
        return _read_plain(data, shape, np.dtype(dtype))
    except _NotPlainError:
        return _read_with_gdal(data, shape, np.dtype(dtype))


class _Form(NamedTuple):
    """What all uncompressed files with the same directory have in common.

    Attributes
    ----------
    dtype
        Of the pixels, little-endian.
    strips
        Where the offsets of the strips lie and where their sizes, and the struct codes of both;
        or None where there is one strip.
    first
        First byte of that one strip.
    scale, keys
        Where the size of a pixel and the keys of the CRS lie.
    tiepoint
        First byte of the tiepoint.
    """

    dtype: np.dtype[Any]
    strips: tuple[slice, slice, str, str] | None
    first: int
    scale: slice
    keys: slice
    tiepoint: int


def _read_alike(
    data: bytes, shape: tuple[int, int], dtype: str
) -> tuple[NDArray[Any], Georeference] | None:
    """Read a file by what others with the same directory taught; None if it must be looked at.

    The archives have millions of files and a handful of directories: taken apart once, a file
    costs 5 us instead of 25.
    """
    if data[:4] != b"II*\0":
        return None
    start = int.from_bytes(data[4:8], "little")
    n_entries = int.from_bytes(data[start : start + 2], "little")
    form = _form(data[start : start + 2 + 12 * n_entries], shape, dtype)
    if form is None:
        return None
    n_bytes = shape[0] * shape[1] * form.dtype.itemsize
    first: int | None = form.first
    if form.strips is not None:
        offsets, counts, offset_code, count_code = form.strips
        first = _first_of(data[offsets], data[counts], offset_code, count_code, n_bytes)
    grid = _grid(data[form.scale], data[form.keys])
    if first is None or grid is None:
        return None
    if len(data) < max(first + n_bytes, form.tiepoint + 48, form.scale.stop, form.keys.stop):
        return None  # cut short: a slice would not say so
    scale, half, epsg = grid
    i, j, _, x, y, _ = _SIX.unpack_from(data, form.tiepoint)
    place = Georeference(epsg, x - (i + half) * scale, y + (j + half) * scale, scale)
    pixels = np.frombuffer(data, form.dtype, shape[0] * shape[1], first).reshape(shape)
    return pixels, place


@functools.lru_cache(maxsize=256)
def _form(directory: bytes, shape: tuple[int, int], dtype: str) -> _Form | None:
    """Take a directory apart; None if its files are not uncompressed or not what is wanted."""
    if len(directory) < 14 or (len(directory) - 2) % 12:
        return None
    fields = struct.iter_unpack("<HHII", directory[2:])
    tags = {tag: (value_type, count, value) for tag, value_type, count, value in fields}

    def one(tag: int, default: int | None = None) -> int | None:
        value_type, count, value = tags.get(tag, (4, 1, default))
        if value is None or count != 1 or value_type not in (3, 4):
            return None
        return int(value & 0xFFFF if value_type == 3 else value)

    def place(tag: int, types: tuple[int, ...]) -> slice | None:
        value_type, count, value = tags.get(tag, (0, 0, 0))
        n_bytes = count * _TYPE_BYTES.get(value_type, 0)
        return slice(value, value + n_bytes) if value_type in types and n_bytes > 4 else None

    found = np.dtype(dtype).newbyteorder("<")
    wanted = {
        _HEIGHT: (None, shape[0]),
        _WIDTH: (None, shape[1]),
        _BITS: (1, 8 * found.itemsize),
        _FILL_ORDER: (1, 1),
        _SAMPLES: (None, 1),
        _COMPRESSION: (1, _UNCOMPRESSED),
    }
    if (
        _TILE_WIDTH in tags
        or _TRANSFORM in tags
        or found.kind != _KINDS.get(one(_SAMPLE_FORMAT, 1) or 0)
    ):
        return None
    if any(one(tag, default) != value for tag, (default, value) in wanted.items()):
        return None
    scale, tiepoint = place(_PIXEL_SCALE, (12,)), place(_TIEPOINT, (12,))
    keys = place(_GEO_KEYS, (3,)) if _GEO_KEYS in tags else slice(0, 0)
    if scale is None or keys is None or tiepoint is None or tags[_TIEPOINT][1] != 6:
        return None
    first = one(_STRIP_OFFSETS)
    if first is not None:
        is_whole = one(_STRIP_BYTES) == shape[0] * shape[1] * found.itemsize
        return _Form(found, None, first, scale, keys, tiepoint.start) if is_whole else None
    offsets, counts = place(_STRIP_OFFSETS, (3, 4)), place(_STRIP_BYTES, (3, 4))
    if offsets is None or counts is None:
        return None
    codes = _TYPE_CODES[tags[_STRIP_OFFSETS][0]], _TYPE_CODES[tags[_STRIP_BYTES][0]]
    return _Form(found, (offsets, counts, *codes), 0, scale, keys, tiepoint.start)


@functools.lru_cache(maxsize=256)
def _first_of(
    offsets: bytes, counts: bytes, offset_code: str, count_code: str, n_bytes: int
) -> int | None:
    """First byte of strips that lie end to end and hold ``n_bytes``."""
    if len(offsets) % struct.calcsize(offset_code) or len(counts) % struct.calcsize(count_code):
        return None
    starts: list[int] = [x for (x,) in struct.iter_unpack(f"<{offset_code}", offsets)]
    sizes: list[int] = [x for (x,) in struct.iter_unpack(f"<{count_code}", counts)]
    if not starts or len(starts) != len(sizes) or 0 in sizes or sum(sizes) != n_bytes:
        return None
    return starts[0] if _lie_end_to_end(starts, sizes) else None


@functools.lru_cache(maxsize=256)
def _grid(scale: bytes, keys: bytes) -> tuple[float, float, int | None] | None:
    """Size of a pixel, what of it lies between the tiepoint and its corner, and the EPSG code."""
    if len(scale) != 24 or len(keys) % 8:
        return None
    x, y, _ = struct.unpack("<ddd", scale)
    values = [value for (value,) in struct.iter_unpack("<H", keys)]
    key_values = {values[i]: values[i + 3] for i in range(4, len(values), 4) if values[i + 1] == 0}
    if not 0 < x == y or key_values.get(_PROJECTED_CRS_KEY) == _USER_DEFINED:
        return None
    half = 0.5 if key_values.get(_RASTER_TYPE_KEY) == _PIXEL_IS_POINT else 0.0
    return x, half, key_values.get(_PROJECTED_CRS_KEY)


def _read_plain(
    data: bytes, shape: tuple[int, int], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], Georeference]:
    order, tags = _directory(data)
    if _TILE_WIDTH in tags or _one(data, order, tags, _FILL_ORDER, 1) != 1:
        raise _NotPlainError
    kind = _KINDS.get(_one(data, order, tags, _SAMPLE_FORMAT, 1))
    bits = _one(data, order, tags, _BITS, 1)
    if kind is None or bits not in (8, 16, 32, 64):
        raise _NotPlainError
    found = np.dtype(f"{order}{kind}{bits // 8}")
    size = (_one(data, order, tags, _HEIGHT), _one(data, order, tags, _WIDTH))
    _check_form(size, _one(data, order, tags, _SAMPLES, 1), found.newbyteorder("="), shape, dtype)
    return _pixels(data, order, tags, shape, found), _georeference(data, order, tags)


def _pixels(
    data: bytes, order: str, tags: Directory, shape: tuple[int, int], dtype: np.dtype[Any]
) -> NDArray[Any]:
    compression = _one(data, order, tags, _COMPRESSION, 1)
    predictor = _one(data, order, tags, _PREDICTOR, 1)
    offsets = _values(data, order, tags, _STRIP_OFFSETS)
    counts = _values(data, order, tags, _STRIP_BYTES)
    n_values = shape[0] * shape[1]
    n_bytes = n_values * dtype.itemsize
    if len(offsets) != len(counts) or 0 in counts:
        raise _NotPlainError
    if compression == _UNCOMPRESSED:
        if sum(counts) != n_bytes or not _lie_end_to_end(offsets, counts):
            raise _NotPlainError
        end = offsets[0] + n_bytes
        if end > len(data):
            raise InvalidInputError(f"is truncated: {len(data)} bytes, expected {end}")
        return np.frombuffer(data, dtype, n_values, offsets[0]).reshape(shape)
    if compression in _DEFLATE and (predictor == 1 or (predictor == 2 and dtype.kind != "f")):
        strips = _inflate(data, offsets, counts, n_bytes)
        pixels: NDArray[Any] = np.frombuffer(strips, dtype).reshape(shape)
        if predictor == 2:  # each value is stored as its difference from the one to its left
            pixels = np.cumsum(pixels, axis=1, dtype=dtype.newbyteorder("="))
        return pixels
    raise _NotPlainError


def _directory(data: bytes) -> tuple[str, Directory]:
    """Byte order and the first directory of a classic TIFF."""
    order = _BYTE_ORDERS.get(data[:4])
    if order is None:
        if data[:4] in _BIGTIFF:
            raise _NotPlainError
        raise InvalidInputError(f"is no TIFF: it begins with {data[:4]!r}")
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", data, start)
    except struct.error:
        n_entries, start = 1, len(data)
    entries = memoryview(data)[start + 2 : start + 2 + 12 * n_entries]
    if len(entries) < 12 * n_entries:
        raise InvalidInputError(f"is truncated: its directory lies beyond its {len(data)} bytes")
    fields = struct.iter_unpack(f"{order}HHII", entries)
    return order, {tag: (value_type, count, value) for tag, value_type, count, value in fields}


def _values(data: bytes, order: str, tags: Directory, tag: int) -> tuple[Any, ...]:
    value_type, count, value = tags.get(tag, (0, 0, 0))
    code = _TYPE_CODES.get(value_type)
    if code is None:
        raise _NotPlainError
    n_bytes = count * _TYPE_BYTES[value_type]
    if n_bytes <= 4:  # short values lie in the entry itself, from its first byte on
        return struct.unpack_from(f"{order}{count}{code}", struct.pack(f"{order}I", value))
    if value + n_bytes > len(data):
        raise InvalidInputError(f"is truncated: tag {tag} lies beyond its {len(data)} bytes")
    return struct.unpack_from(f"{order}{count}{code}", data, value)


def _one(data: bytes, order: str, tags: Directory, tag: int, default: int | None = None) -> int:
    entry = tags.get(tag)
    if entry is None and default is not None:
        return default
    if entry is not None and entry[1] == 1 and order == "<" and entry[0] in (3, 4):
        return entry[2] & 0xFFFF if entry[0] == 3 else entry[2]  # most reads end here
    values = _values(data, order, tags, tag)
    if len(values) != 1:
        raise _NotPlainError
    return int(values[0])


def _lie_end_to_end(offsets: Sequence[int], counts: Sequence[int]) -> bool:
    ends = map(int.__add__, offsets[:-1], counts[:-1])
    return all(end == start for end, start in zip(ends, offsets[1:], strict=True))


def _inflate(data: bytes, offsets: Sequence[int], counts: Sequence[int], n_bytes: int) -> bytes:
    """Inflate all strips, never to more than ``n_bytes``."""
    strips, left = [], n_bytes
    for offset, count in zip(offsets, counts, strict=True):
        if offset + count > len(data):
            raise InvalidInputError(f"is truncated: {len(data)} bytes, expected {offset + count}")
        try:
            strip = zlib.decompressobj().decompress(data[offset : offset + count], left + 1)
        except zlib.error as error:
            raise InvalidInputError(f"cannot be decompressed: {error}") from None
        strips.append(strip)
        left -= len(strip)
        if left < 0:
            break
    if left != 0:
        raise InvalidInputError(f"does not decompress to its {n_bytes} bytes of pixels")
    return b"".join(strips)


def _georeference(data: bytes, order: str, tags: Directory) -> Georeference:
    if _PIXEL_SCALE not in tags or _TIEPOINT not in tags or _TRANSFORM in tags:
        raise _NotPlainError
    scale = _values(data, order, tags, _PIXEL_SCALE)
    tiepoint = _values(data, order, tags, _TIEPOINT)
    keys = _values(data, order, tags, _GEO_KEYS) if _GEO_KEYS in tags else ()
    if len(scale) != 3 or len(tiepoint) != 6 or len(keys) % 4 or not 0 < scale[0] == scale[1]:
        raise _NotPlainError
    key_values = {keys[i]: keys[i + 3] for i in range(4, len(keys), 4) if keys[i + 1] == 0}
    if key_values.get(_PROJECTED_CRS_KEY) == _USER_DEFINED:
        raise _NotPlainError
    # The tiepoint ties pixel (i, j) to (x, y): its corner, or its center for "point" rasters.
    half = 0.5 if key_values.get(_RASTER_TYPE_KEY) == _PIXEL_IS_POINT else 0.0
    i, j, _, x, y, _ = tiepoint
    return Georeference(
        key_values.get(_PROJECTED_CRS_KEY),
        x - (i + half) * scale[0],
        y + (j + half) * scale[1],
        scale[0],
    )


def _check_form(
    size: tuple[int, int],
    n_bands: int,
    found: np.dtype[Any],
    shape: tuple[int, int],
    dtype: np.dtype[Any],
) -> None:
    if n_bands != 1:
        raise InvalidInputError(f"holds {n_bands} bands, expected 1")
    if size != shape:
        raise InvalidInputError(f"is {size[1]}x{size[0]} px, expected {shape[1]}x{shape[0]} px")
    if found != dtype:
        raise InvalidInputError(f"holds {found.name}, expected {dtype.name}")


def require_gdal() -> None:
    """Refuse where rasterio cannot be imported, rather than at the first file that is not plain.

    That file may come hours into an ingest. Not at the top of the module: the base install has
    no rasterio, and importing it takes 0.2 s.

    Raises
    ------
    InvalidInputError
        If it cannot be imported.
    """
    try:
        importlib.import_module("rasterio")
    except ImportError as error:
        raise InvalidInputError(
            f'reading an archive needs rasterio ({error}): pip install "bigearth-cube[ingest]"'
        ) from None


def _read_with_gdal(
    data: bytes, shape: tuple[int, int], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], Georeference]:
    """Read compressed, tiled, BigTIFF and other unusual files."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with rasterio.MemoryFile(data) as file, file.open(driver="GTiff") as dataset:
            _check_form(dataset.shape, dataset.count, np.dtype(dataset.dtypes[0]), shape, dtype)
            transform, crs = dataset.transform, dataset.crs
            if transform.b or transform.d or transform.a != -transform.e:
                raise InvalidInputError("is not north up with square pixels")
            georeference = Georeference(
                crs.to_epsg() if crs else None, transform.c, transform.f, transform.a
            )
            return dataset.read(1), georeference
    except NotGeoreferencedWarning:
        raise InvalidInputError("has no georeference") from None
    except (RasterioError, MemoryError, ValueError, TypeError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"cannot be read as GeoTIFF: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    """First line of what GDAL says, without the random name it gave the bytes."""
    cause = error.__cause__ or error  # rasterio says "see previous exception"
    line = (str(cause) or type(cause).__name__).splitlines()[0]
    return re.sub(r"'?[/\w-]*[0-9a-f-]{36}\.tif'?:?\s*", "", line)
