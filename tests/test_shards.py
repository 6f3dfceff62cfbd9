"""Shards against zarr-python, and against damage."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc
from zarr.storage import MemoryStore

from bigearth_cube.errors import CubeIntegrityError, InvalidInputError
from bigearth_cube.layout import CubeLayout, hierarchy, root_attributes, root_document
from bigearth_cube.shards import (
    ArrayLayout,
    array_layout,
    chunk_place,
    decode_chunk,
    encode_chunk,
    read_index,
    zarr_codecs,
)
from tests.cubes import encode_shard

PATH = "s2/r60m/reflectance"


def small_layout(profile: Any = "default") -> tuple[ArrayLayout, dict[str, Any]]:
    cube = CubeLayout("v2", ("s2/r60m",), 256, profile)
    document = hierarchy(cube, 512)[PATH]
    return array_layout(PATH, document), document


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5_000, (256, 2, 20, 20)).astype(np.uint16)


@pytest.mark.parametrize("profile", ["default", "fast"])
def test_a_shard_equals_the_one_zarr_python_writes_byte_for_byte(
    profile: str, pixels: np.ndarray
) -> None:
    layout, document = small_layout(profile)
    store = MemoryStore()
    array = zarr.open_array(_with_document(store, document), mode="r+")
    array[256:] = pixels
    expected = store._store_dict["c/1/0/0/0"].to_bytes()
    assert encode_shard(layout, pixels) == expected


def _with_document(store: MemoryStore, document: dict[str, Any]) -> MemoryStore:
    from zarr.core.buffer import default_buffer_prototype

    buffer = default_buffer_prototype().buffer.from_bytes(json.dumps(document).encode())
    store._store_dict["zarr.json"] = buffer
    return store


@pytest.mark.parametrize("profile", ["default", "fast"])
def test_every_chunk_decodes_to_the_pixels_it_was_made_of(profile: str, pixels: np.ndarray) -> None:
    layout, _ = small_layout(profile)
    data = encode_shard(layout, pixels)
    index = read_index(layout, data[-layout.index_bytes :], "key")
    out = np.empty((64, 2, 20, 20), np.uint16)
    for chunk, (offset, size) in enumerate(index.astype(int)):
        decode_chunk(layout, data[offset : offset + size], out, "key")
        np.testing.assert_array_equal(out, pixels[chunk * 64 : (chunk + 1) * 64])


@pytest.mark.parametrize("typesize", [1, 2, 4, 8])
@pytest.mark.parametrize("shuffle", ["noshuffle", "shuffle", "bitshuffle"])
@pytest.mark.parametrize("cname", ["lz4", "zstd", "blosclz", "zlib"])
@pytest.mark.parametrize("highest", [1, 5_000, 65_536])  # alike, usual, and stored as they are
def test_whatever_blosc_a_cube_was_written_with_is_read(
    highest: int, cname: str, shuffle: str, typesize: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, highest, (64, 2, 20, 20)).astype(np.uint16)
    codec = Blosc(cname, 5, getattr(Blosc, shuffle.upper()), typesize=typesize)
    options = {"cname": cname, "clevel": 5, "shuffle": shuffle, "blocksize": 0}
    options |= {"typesize": typesize}
    compressor = {"name": "blosc", "configuration": options}
    layout = replace(small_layout()[0], compressor=compressor, checksum=False)
    stored, out = codec.encode(pixels), np.empty((64, 2, 20, 20), np.uint16)
    assert encode_chunk(layout, pixels) == stored
    decode_chunk(layout, memoryview(bytearray(stored)), out, "key")
    np.testing.assert_array_equal(out, pixels)


@given(position=st.integers(0, 10**9), bit=st.integers(0, 7))
@settings(max_examples=200)
def test_a_flipped_bit_anywhere_in_a_shard_is_found(position: int, bit: int) -> None:
    layout, _ = small_layout()
    pixels = np.random.default_rng(1).integers(0, 5_000, (256, 2, 20, 20)).astype(np.uint16)
    data = bytearray(encode_shard(layout, pixels))
    data[position % len(data)] ^= 1 << bit
    out = np.empty((64, 2, 20, 20), np.uint16)

    def read_all() -> None:
        index = read_index(layout, bytes(data[-layout.index_bytes :]), "key")
        for offset, size in index.astype(int):
            decode_chunk(layout, data[offset : offset + size], out, "key", (0, 63))

    with pytest.raises(CubeIntegrityError, match="key"):
        read_all()


@given(n_bytes=st.integers(0, 2_000))
@settings(max_examples=50)
def test_a_truncated_chunk_is_found_with_or_without_checksum(n_bytes: int) -> None:
    layout, _ = small_layout()
    pixels = np.random.default_rng(2).integers(0, 5_000, (256, 2, 20, 20)).astype(np.uint16)
    data = encode_shard(layout, pixels)
    index = read_index(layout, data[-layout.index_bytes :], "key").astype(int)
    out = np.empty((64, 2, 20, 20), np.uint16)
    short = data[: min(n_bytes, index[0, 1] - 5)]
    for checksum in (True, False):
        with pytest.raises(CubeIntegrityError, match="key"):
            decode_chunk(replace(layout, checksum=checksum), short, out, "key")


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("profile", ["default", "fast"])
@pytest.mark.parametrize("n_rows", [32, 63, 65, 128])
def test_a_chunk_of_other_size_is_refused_and_nothing_beyond_its_place_is_written(
    n_rows: int, profile: str, checksum: bool, pixels: np.ndarray
) -> None:
    layout = replace(small_layout(profile)[0], checksum=checksum)
    other = encode_chunk(layout, pixels[:n_rows])
    arena = np.full((192, 2, 20, 20), 65_535, np.uint16)
    with pytest.raises(CubeIntegrityError, match=f"chunk holds {n_rows * 1600} bytes"):
        decode_chunk(layout, other, arena[64:128], "key", (0, 63))
    assert (arena == 65_535).all()


def test_a_missing_chunk_in_a_shard_is_an_error_and_not_fill(pixels: np.ndarray) -> None:
    layout, document = small_layout()
    store = _with_document(MemoryStore(), document)
    array = zarr.open_array(store, mode="r+")
    array[:64] = pixels[:64]  # zarr-python leaves the other chunks out
    data = store._store_dict["c/0/0/0/0"].to_bytes()
    index = read_index(layout, data[-layout.index_bytes :], "key")
    assert chunk_place(index, 0, "key")[0] == 0
    with pytest.raises(CubeIntegrityError, match="key, rows 64 to 127: chunk is missing"):
        chunk_place(index, 1, "key", (64, 127))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda d: d["codecs"][0]["configuration"].update(index_location="start"), "start"),
        (lambda d: d["codecs"].append({"name": "crc32c"}), "codecs around"),
        (
            lambda d: d["codecs"][0]["configuration"]["codecs"].insert(0, {"name": "transpose"}),
            "codecs",
        ),
        (
            lambda d: d["codecs"][0]["configuration"]["chunk_shape"].__setitem__(2, 10),
            "patch axis",
        ),
    ],
)
def test_a_layout_we_do_not_read_is_refused_by_name(change: Any, what: str) -> None:
    _, document = small_layout()
    document = json.loads(json.dumps(document))
    change(document)
    with pytest.raises(InvalidInputError, match=f"{PATH}.*{what}"):
        array_layout(PATH, document)


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="default, fast"):
        zarr_codecs("uint16", "best")  # type: ignore[arg-type]


def test_root_document_equals_what_zarr_python_consolidates() -> None:
    layout = CubeLayout("v1", ("s2/r10m", "s2/r60m", "s1/r10m"), 256)
    documents = hierarchy(layout, 512)
    attributes = root_attributes("x", layout, [])
    store = MemoryStore()
    from zarr.core.buffer import default_buffer_prototype

    make = default_buffer_prototype().buffer.from_bytes
    bare = json.loads(root_document(attributes, {}))
    del bare["consolidated_metadata"]
    store._store_dict["zarr.json"] = make(json.dumps(bare).encode())
    for path, document in documents.items():
        store._store_dict[f"{path}/zarr.json"] = make(json.dumps(document).encode())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")
        zarr.consolidate_metadata(store)
    theirs = json.loads(store._store_dict["zarr.json"].to_bytes())["consolidated_metadata"]
    ours = json.loads(root_document(attributes, documents))["consolidated_metadata"]
    assert ours["metadata"].keys() == theirs["metadata"].keys()
    for path, document in ours["metadata"].items():
        assert _plain(theirs["metadata"][path]) == _plain(document), path


def _plain(document: dict[str, Any]) -> Any:
    """Without what zarr-python adds: empty configurations and a nested (empty) consolidation."""
    text = {k: v for k, v in document.items() if k != "consolidated_metadata"}
    return json.loads(json.dumps(text).replace(', "configuration": {}', ""))
