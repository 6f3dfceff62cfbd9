"""The GeoTIFF reader against rasterio, on files of every form and on broken ones."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bigearth_cube.archive import geotiff as geotiff_module
from bigearth_cube.archive.geotiff import Georeference, read_geotiff
from bigearth_cube.errors import InvalidInputError

CORNER = Georeference(32633, 331200.0, 5331600.0, 10.0)
RNG = np.random.default_rng(0)
DN = RNG.integers(0, 2**16, (120, 120), np.uint16)
DB = RNG.normal(-12.6, 5.1, (120, 120)).astype(np.float32)
CLC = RNG.choice(np.array([111, 211, 523, 999], np.uint16), (120, 120))


def geotiff(pixels: NDArray[Any], **profile: Any) -> bytes:
    with rasterio.MemoryFile() as file:
        with file.open(
            driver="GTiff",
            height=pixels.shape[0],
            width=pixels.shape[1],
            count=1,
            dtype=pixels.dtype,
            crs="EPSG:32633",
            transform=Affine(10, 0, CORNER.ulx, 0, -10, CORNER.uly),
            **profile,
        ) as dataset:
            dataset.write(pixels, 1)
        return bytes(file.read())


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """Overwrite the inline value of one tag of a little-endian TIFF."""
    start = struct.unpack_from("<I", data, 4)[0]
    for i in range(struct.unpack_from("<H", data, start)[0]):
        place = start + 2 + 12 * i
        if struct.unpack_from("<H", data, place)[0] == tag:
            return data[: place + 8] + struct.pack("<I", value) + data[place + 12 :]
    raise AssertionError(f"no tag {tag}")


def read(data: bytes, dtype: str = "uint16") -> tuple[NDArray[Any], Georeference]:
    return read_geotiff(data, shape=(120, 120), dtype=dtype)


FORMS = {
    "plain": {},
    "one strip": {"blockysize": 120},
    "strips of 7 rows": {"blockysize": 7},
    "with nodata": {"nodata": 0},
    "deflate, predictor 2": {"compress": "deflate", "predictor": 2},
    "deflate, predictor 2, strips": {"compress": "deflate", "predictor": 2, "blockysize": 7},
    "deflate": {"compress": "deflate"},
    "big-endian": {"ENDIANNESS": "BIG"},
    "big-endian deflate, predictor 2": {
        "ENDIANNESS": "BIG",
        "compress": "deflate",
        "predictor": 2,
    },
    "lzw": {"compress": "lzw"},
    "zstd": {"compress": "zstd"},
    "tiled": {"tiled": True, "blockxsize": 64, "blockysize": 64},
    "tiled deflate": {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"},
    "BigTIFF": {"BIGTIFF": "YES"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pixels", [DN, DB, CLC], ids=["DN", "dB", "CLC"])
def test_every_form_of_file_gives_the_pixels_that_were_written(
    form: str, pixels: NDArray[Any]
) -> None:
    profile = dict(FORMS[form])
    if pixels.dtype.kind == "f":
        profile.pop("predictor", None)
    found, corner = read(geotiff(pixels, **profile), str(pixels.dtype))
    assert found.dtype.newbyteorder("=") == pixels.dtype
    assert found.astype(pixels.dtype).tobytes() == pixels.tobytes()
    assert corner == CORNER


def test_floats_keep_every_bit_of_nan_infinity_and_negative_zero() -> None:
    pixels = np.zeros((120, 120), np.float32)
    pixels[0, :4] = np.array([0x7FC00001, 0xFF800000, 0x80000000, 1], np.uint32).view(np.float32)
    assert read(geotiff(pixels), "float32")[0].tobytes() == pixels.tobytes()


def test_a_point_raster_is_tied_by_pixel_centers_as_gdal_has_it(tmp_path: Path) -> None:
    data = geotiff(DN)
    keys = struct.pack("<4H", 1025, 0, 1, 1)
    assert data.count(keys) == 1
    point = data.replace(keys, struct.pack("<4H", 1025, 0, 1, 2))
    (tmp_path / "point.tif").write_bytes(point)
    with rasterio.open(tmp_path / "point.tif") as dataset:
        expected = dataset.transform
    _, corner = read(point)
    assert (corner.ulx, corner.uly) == (expected.c, expected.f) == (331195.0, 5331605.0)


def test_strips_out_of_order_are_read_in_the_order_of_their_rows() -> None:
    data = bytearray(geotiff(DN, blockysize=60))
    plain = tifffile.TiffFile(io.BytesIO(bytes(data))).pages[0]
    offsets = plain.tags["StripOffsets"]  # type: ignore[union-attr]
    first, second = offsets.value
    place = offsets.valueoffset
    form = "<HH" if second < 2**16 and offsets.dtype == 3 else "<II"
    struct.pack_into(form, data, place, second, first)
    expected = np.concatenate([DN[60:], DN[:60]])
    assert read(bytes(data))[0].tobytes() == expected.tobytes()


@given(length=st.integers(0, len(geotiff(DN))))
def test_a_truncated_band_is_refused_wherever_it_ends(length: int) -> None:
    whole = geotiff(DN)
    if length == len(whole):
        assert read(whole)[0].tobytes() == DN.tobytes()
        return
    with pytest.raises(InvalidInputError, match=r"truncated|empty|no TIFF"):
        read(whole[:length])


BANDS = [geotiff(DN), geotiff(CLC, compress="deflate", predictor=2), geotiff(DN, BIGTIFF="YES")]


@given(
    data=st.sampled_from([*BANDS, geotiff(DN, tiled=True, blockxsize=64, blockysize=64)]),
    flips=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=8),
    length=st.none() | st.integers(0, 40_000),
)
def test_a_damaged_file_is_refused_or_has_the_right_form(
    data: bytes, flips: list[tuple[int, int]], length: int | None
) -> None:
    damaged = bytearray(data)
    for place, value in flips:
        damaged[place] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GDAL's remarks on odd headers
        try:
            pixels, corner = read(bytes(damaged[:length]))
        except InvalidInputError:
            return
    assert (pixels.shape, pixels.dtype.newbyteorder("=")) == ((120, 120), "uint16")
    assert isinstance(corner, Georeference)


@example(band=0, flips=[(175, 114)], length=None)  # keys that would lie beyond the end
@given(
    band=st.integers(0, len(BANDS) - 1),  # not its bytes, which would be too long to be told
    flips=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=8),
    length=st.none() | st.integers(0, 40_000),
)
def test_what_alike_files_teach_is_what_each_says_itself(
    band: int, flips: list[tuple[int, int]], length: int | None
) -> None:
    changed = bytearray(BANDS[band])
    for place, value in flips:
        changed[place] = value
    file = bytes(changed[:length])
    alike = geotiff_module._read_alike(file, (120, 120), "uint16")
    if not flips and length is None and band == 0:
        assert alike is not None
    if alike is not None:
        pixels, corner = geotiff_module._read_plain(file, (120, 120), np.dtype("uint16"))
        np.testing.assert_array_equal(alike[0], pixels)
        assert alike[1] == corner or np.isnan(corner[1:]).any()


@given(data=st.binary(max_size=400) | st.binary(max_size=400).map(lambda b: b"II*\0" + b))
def test_bytes_that_are_no_geotiff_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        read(data)


@pytest.mark.parametrize(
    ("tag", "value"), [(256, 2**31), (257, 2**32 - 1), (277, 60_000), (258, 64), (339, 3)]
)
def test_a_header_that_claims_another_form_is_refused_before_anything_is_allocated(
    tag: int, value: int
) -> None:
    with pytest.raises(InvalidInputError, match="expected"):
        read(with_tag(geotiff(DN), tag, value))


def test_a_tile_of_billions_of_pixels_is_refused() -> None:
    data = geotiff(DN, tiled=True, blockxsize=64, blockysize=64)
    for tag in (322, 323):
        data = with_tag(data, tag, 2**30)
    with pytest.raises(InvalidInputError):
        read(data)


def test_a_strip_that_inflates_without_end_is_cut_off() -> None:
    bomb = geotiff(np.zeros((6000, 6000), np.uint16), compress="deflate", blockysize=6000)
    for tag in (256, 257, 278):
        bomb = with_tag(bomb, tag, 120)
    with pytest.raises(InvalidInputError, match="does not decompress to its 28800 bytes"):
        read(bomb)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (DN[:60, :60], "is 60x60 px, expected 120x120 px"),
        (DN.astype(np.int16), "holds int16, expected uint16"),
        (DB, "holds float32, expected uint16"),
    ],
)
@pytest.mark.parametrize("form", ["plain", "lzw"])
def test_another_shape_or_dtype_is_named(pixels: NDArray[Any], reason: str, form: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        read(geotiff(pixels, **FORMS[form]))


def test_a_file_without_georeference_is_refused() -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, DN)
    with pytest.raises(InvalidInputError, match="has no georeference"):
        read(file.getvalue())


def test_sentinel_1_is_not_read_as_integers() -> None:
    pixels, _ = read(geotiff(DB), "float32")
    assert len(np.unique(pixels)) == len(np.unique(DB)) > 14_000


@pytest.mark.samples
def test_every_real_file_equals_what_rasterio_reads(samples: Path) -> None:
    files = sorted(samples.rglob("*.tif*"))
    assert files
    for file in files:
        with rasterio.open(file) as dataset:
            expected, transform = dataset.read(1), dataset.transform
            epsg = dataset.crs.to_epsg()
        pixels, corner = read_geotiff(
            file.read_bytes(), shape=expected.shape, dtype=str(expected.dtype)
        )
        assert pixels.dtype == expected.dtype
        assert pixels.tobytes() == expected.tobytes(), file
        assert corner == (epsg, transform.c, transform.f, transform.a)
