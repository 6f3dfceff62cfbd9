"""Zarr v3 pixel arrays as bytes: encode a shard, find a chunk in it, decode a chunk.

The subset of the Zarr v3 specification that cubes are written in: a regular grid over the
patch axis, C order, little endian, at most one compressor (blosc or zstd), optionally followed
by crc32c, sharded (``sharding_indexed``, index at the end, with crc32c) or not. What is written
here equals what zarr-python writes, byte for byte; what is read here decodes straight into the
caller's buffer. Pure functions over bytes: no storage, no threads.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import blosc2
import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import zstandard
from awscrt import checksums
from numpy.typing import NDArray

from bigearth_cube.errors import CubeIntegrityError, InvalidInputError

Profile = Literal["default", "fast"]
_COMPRESSORS: dict[str, tuple[str, int]] = {"default": ("zstd", 5), "fast": ("lz4", 5)}
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_CRC_BYTES = 4
_MISSING = 2**64 - 1

# Workers encode one shard a thread; blosc's own threads would also make the bytes depend on
# which block ends first (zarr-python sets the same switch).
numcodecs.blosc.use_threads = False
# Chunks are decoded by python-blosc2: numcodecs' c-blosc has no AVX-512 and no AVX2. Other Python
# threads go on meanwhile.
blosc2.set_releasegil(True)


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """How one pixel array lies in objects.

    Attributes
    ----------
    path
        Place of the array in the hierarchy, e.g. ``"s2/r10m/reflectance"``.
    n_rows
        Length of the patch axis.
    patch_shape
        Shape of one patch.
    dtype
        Little-endian numpy dtype, e.g. ``"uint16"``.
    chunk_rows, shard_rows
        Patches in a chunk (what is decoded at once) and in a shard (one object). They are
        equal where the array is not sharded.
    sharded
        Whether objects are shards with an index.
    compressor
        Zarr codec document of the one compressor, or None.
    checksum
        Whether crc32c follows the compressor.
    fill_value
        What a chunk that does not exist holds.
    """

    path: str
    n_rows: int
    patch_shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    shard_rows: int
    sharded: bool
    compressor: Mapping[str, Any] | None
    checksum: bool
    fill_value: float

    @property
    def patch_bytes(self) -> int:
        """Uncompressed bytes of one patch."""
        return math.prod(self.patch_shape) * np.dtype(self.dtype).itemsize

    @property
    def chunks_per_shard(self) -> int:
        """Chunks in one object."""
        return self.shard_rows // self.chunk_rows

    @property
    def index_bytes(self) -> int:
        """Size of the index at the end of a shard; 0 where the array is not sharded."""
        return 16 * self.chunks_per_shard + _CRC_BYTES if self.sharded else 0

    def key(self, shard: int) -> str:
        """Object that holds shard ``shard``, below the root of the hierarchy."""
        return "/".join([self.path, "c", str(shard), *("0" for _ in self.patch_shape)])


def zarr_codecs(dtype: str, profile: Profile) -> list[dict[str, Any]]:
    """Codec documents of a pixel array: bytes, blosc with bitshuffle, crc32c.

    Blosc has no checksum of its own: of 120 single flipped bits, 120 decoded to wrong pixels
    without an error. The check costs 4 us a patch.

    The profile ``fast`` mixes the bits of eight bytes at a time, whatever the dtype: c-blosc2 has
    AVX-512 and AVX2 for that and not for two bytes. Real Sentinel-2 patches take 1 to 3 % more room
    (5 to 8 % with zstd) and decode in five sixths of the time.

    Raises
    ------
    InvalidInputError
        If the profile is unknown.
    """
    if profile not in _COMPRESSORS:
        raise InvalidInputError(
            f"unknown profile {profile!r}; choose one of: {', '.join(_COMPRESSORS)}"
        )
    cname, clevel = _COMPRESSORS[profile]
    options = {
        "typesize": 8 if profile == "fast" else np.dtype(dtype).itemsize,
        "cname": cname,
        "clevel": clevel,
        "shuffle": "bitshuffle",
        "blocksize": 0,
    }
    return [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "blosc", "configuration": options},
        {"name": "crc32c"},
    ]


def array_layout(path: str, metadata: Mapping[str, Any]) -> ArrayLayout:
    """Read the layout of an array from its Zarr v3 metadata document.

    Raises
    ------
    InvalidInputError
        If the array is stored in a way this module does not read; zarr-python may.
    """
    shape = metadata["shape"]
    _expect(path, metadata["chunk_grid"]["name"] == "regular", "an irregular grid")
    grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    key = metadata["chunk_key_encoding"]
    separator = key.get("configuration", {}).get("separator", "/")
    _expect(path, (key["name"], separator) == ("default", "/"), "names of objects")
    _expect(path, not metadata.get("storage_transformers"), "storage transformers")
    codecs = list(metadata["codecs"])
    sharded = codecs[0]["name"] == "sharding_indexed"
    chunk = grid
    if sharded:
        inner = codecs[0]["configuration"]
        index = [c["name"] for c in inner["index_codecs"]]
        _expect(path, len(codecs) == 1, "codecs around the sharding codec")
        _expect(path, inner.get("index_location", "end") == "end", "index at the start")
        _expect(path, index == ["bytes", "crc32c"], f"index codecs {index}")
        chunk, codecs = inner["chunk_shape"], list(inner["codecs"])
    names = [c["name"] for c in codecs]
    checksum = names[-1] == "crc32c"
    middle = codecs[1 : -1 if checksum else None]
    _expect(path, names[0] == "bytes", f"codecs {names}")
    _expect(path, codecs[0].get("configuration", {}).get("endian", "little") == "little", "endian")
    _expect(path, len(middle) <= 1, f"codecs {names}")
    _expect(path, all(c["name"] in ("blosc", "zstd") for c in middle), f"codecs {names}")
    _expect(path, chunk[1:] == shape[1:] == grid[1:], "chunks across the patch axis only")
    _expect(path, grid[0] % chunk[0] == 0, "shards of whole chunks")
    return replace(
        bare_layout(path, metadata, chunk[0]),
        shard_rows=grid[0],
        sharded=sharded,
        compressor=middle[0] if middle else None,
        checksum=checksum,
    )


def bare_layout(path: str, metadata: Mapping[str, Any], chunk_rows: int) -> ArrayLayout:
    """Return what any array of numbers has, however it is stored: shape, dtype and fill value.

    Raises
    ------
    InvalidInputError
        If its elements are not numbers.
    """
    dtype, shape = metadata["data_type"], metadata["shape"]
    is_number = isinstance(dtype, str) and re.fullmatch(r"u?int(8|16|32|64)|float(32|64)", dtype)
    _expect(path, bool(is_number), f"data type {dtype}")
    return ArrayLayout(
        path=path,
        n_rows=shape[0],
        patch_shape=tuple(shape[1:]),
        dtype=dtype,
        chunk_rows=chunk_rows,
        shard_rows=chunk_rows,
        sharded=False,
        compressor=None,
        checksum=False,
        fill_value=float(metadata["fill_value"]),
    )


def _expect(path: str, condition: bool, what: str) -> None:
    if not condition:
        raise InvalidInputError(f"{path}: unsupported Zarr layout ({what}); open it with zarr")


def join_chunks(layout: ArrayLayout, chunks: Sequence[bytes]) -> bytes:
    """Make a shard of its encoded chunks: the chunks in order, then the index."""
    assert len(chunks) == layout.chunks_per_shard
    index = np.empty((layout.chunks_per_shard, 2), "<u8")
    index[:, 1] = [len(chunk) for chunk in chunks]
    index[:, 0] = np.cumsum(index[:, 1]) - index[:, 1]
    return b"".join([*chunks, _with_crc(index.tobytes())])


def read_index(
    layout: ArrayLayout, tail: bytes, key: str, rows: Sequence[int] = ()
) -> NDArray[np.uint64]:
    """Read the index of a shard from the last ``layout.index_bytes`` of its object.

    Returns
    -------
    ndarray
        (chunks_per_shard, 2): offset and size in bytes of each chunk; see ``chunk_place``.

    Raises
    ------
    CubeIntegrityError
        If it is short, or its checksum fails.
    """
    if len(tail) != layout.index_bytes:
        raise CubeIntegrityError(
            key, f"shard index has {len(tail)} bytes, expected {layout.index_bytes}", rows
        )
    body = _checked(tail, key, rows)
    return np.frombuffer(body, "<u8").reshape(layout.chunks_per_shard, 2).astype(np.uint64)


def chunk_place(
    index: NDArray[np.uint64], at: int, key: str, rows: Sequence[int] = ()
) -> tuple[int, int]:
    """Return offset and size of chunk ``at`` of a shard.

    Raises
    ------
    CubeIntegrityError
        If it is not there. Cubes have none missing: what holds nothing is written too.
    """
    offset, size = index[at].tolist()
    if _MISSING in (offset, size):
        raise CubeIntegrityError(key, "chunk is missing from the shard; every one is written", rows)
    return offset, size


def decode_chunk(
    layout: ArrayLayout, data: Any, out: NDArray[Any], key: str, rows: Sequence[int] = ()
) -> None:
    r"""Check and decode one chunk straight into ``out``.

    Parameters
    ----------
    layout
        Layout of the array.
    data
        Stored bytes of the chunk, any buffer.
    out
        Where it goes: (chunk_rows, \*patch_shape), C-contiguous, writable.
    key, rows
        Named by the error, so that the reader knows what is damaged.

    Raises
    ------
    CubeIntegrityError
        If the checksum fails or the bytes do not decode to exactly one chunk.
    """
    body = _checked(data, key, rows) if layout.checksum else memoryview(data).cast("B")
    # Else reshape would decode into a copy and lose it; blosc2 would write to what is not.
    assert out.flags.c_contiguous
    assert out.flags.writeable
    target = out.reshape(-1).view(np.uint8)
    try:
        if layout.compressor is None:
            _expect_size(len(body), target.nbytes)
            target[:] = np.frombuffer(body, np.uint8)
        elif layout.compressor["name"] == "blosc":
            _check_blosc_size(body, target.nbytes)  # blosc2 writes as much as the header says
            blosc2.decompress2(body, dst=target, nthreads=1)
        else:
            _decompress_zstd(body, target)
    except (RuntimeError, ValueError) as error:
        raise CubeIntegrityError(key, f"chunk does not decode: {error}", rows) from None


def without_checksum(layout: ArrayLayout, data: memoryview) -> memoryview:
    """Return the stored bytes of a chunk less the checksum, where there is one."""
    return data[:-_CRC_BYTES] if layout.checksum else data


def checksum(data: Any) -> int:
    """Return the CRC-32C of a buffer (20 to 40 GB/s with AVX-512), beside other threads."""
    return int(checksums.crc32c(data))


def encode_chunk(layout: ArrayLayout, block: NDArray[Any]) -> bytes:
    r"""Encode one chunk.

    Parameters
    ----------
    layout
        Layout of the array.
    block
        (chunk_rows, \*patch_shape) in its dtype, C-contiguous.
    """
    data: bytes
    if layout.compressor is None:
        data = block.tobytes()
    elif layout.compressor["name"] == "blosc":
        options = layout.compressor["configuration"]
        data = numcodecs.blosc.compress(
            block,
            options["cname"].encode(),
            options["clevel"],
            _SHUFFLES[options["shuffle"]],
            options["blocksize"],
            options["typesize"],
        )
    else:
        data = numcodecs.zstd.compress(block, layout.compressor["configuration"]["level"])
    return _with_crc(data) if layout.checksum else bytes(data)


def _with_crc(data: bytes) -> bytes:
    return bytes(data) + checksum(data).to_bytes(_CRC_BYTES, "little")


def _checked(data: Any, key: str, rows: Sequence[int]) -> memoryview:
    view = memoryview(data).cast("B")
    stored = int.from_bytes(view[-_CRC_BYTES:], "little")
    body = view[:-_CRC_BYTES]
    if len(view) < _CRC_BYTES or checksum(body) != stored:
        raise CubeIntegrityError(key, "checksum does not match: the stored bytes are damaged", rows)
    return body


def _check_blosc_size(body: memoryview, expected: int) -> None:
    # Header of a blosc frame: sizes before and after compression at bytes 4 and 12.
    if len(body) < 16:
        raise ValueError(f"chunk has {len(body)} bytes, a blosc header alone has 16")
    n_bytes, compressed = struct.unpack_from("<4xI4xI", body)
    if compressed != len(body):
        raise ValueError(f"chunk has {len(body)} bytes, its header says {compressed}")
    _expect_size(n_bytes, expected)


def _decompress_zstd(body: memoryview, target: NDArray[np.uint8]) -> None:
    try:
        size = zstandard.frame_content_size(body)
    except zstandard.ZstdError as error:
        raise ValueError(error) from None
    if size >= 0:
        # A shorter frame would leave the rest of the target as it was.
        _expect_size(size, target.nbytes)
        numcodecs.zstd.decompress(body, target)
        return
    # Streaming writers leave the size out of the frame.
    data = numcodecs.zstd.decompress(body)
    _expect_size(len(data), target.nbytes)
    target[:] = np.frombuffer(data, np.uint8)


def _expect_size(found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"chunk holds {found} bytes, expected {expected}")
