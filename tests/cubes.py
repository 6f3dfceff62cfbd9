"""Cubes of any length in a second: the 60 m bands alone, made of their row numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.layout import CubeLayout, hierarchy
from bigearth_cube.release import Release, runs_of
from bigearth_cube.shards import ArrayLayout, encode_chunk, join_chunks
from bigearth_cube.storage import Storage
from bigearth_cube.writer import CubeWriter

GROUP = "s2/r60m"


def pixels_of_rows(rows: NDArray[np.int64]) -> NDArray[np.uint16]:
    """(n, 2, 20, 20): what those rows of such a cube hold, a ramp that begins at the row."""
    ramp = np.arange(2 * 20 * 20, dtype=np.int64).reshape(2, 20, 20)
    return ((rows[:, None, None, None] * 7 + ramp) % 60_013).astype(np.uint16)


def encode_shard(layout: ArrayLayout, block: NDArray[Any]) -> bytes:
    """Encode the patches of one shard, padding included."""
    chunks = np.split(block, layout.chunks_per_shard)
    return join_chunks(layout, [encode_chunk(layout, chunk) for chunk in chunks])


def row_number_cube(url: str, n_patches: int, *, shard_rows: int = 256) -> Cube:
    """Write a cube without items, to be loaded with ``labels=None`` and no selection."""
    layout = CubeLayout("v2", (GROUP,), shard_rows, "fast")
    n_rows = layout.padded(n_patches)
    writer = CubeWriter(Storage(url), "rows", layout, hierarchy(layout, n_rows))
    writer.put_documents(writer.documents)
    for shard in range(n_rows // shard_rows):
        rows = np.arange(shard * shard_rows, (shard + 1) * shard_rows)
        writer.put_shard(
            GROUP, shard, encode_shard(writer.pixel_layout(GROUP), pixels_of_rows(rows))
        )
    runs = runs_of(np.arange(n_patches))
    writer.publish([Release("r1", 0, n_rows, runs, (GROUP,), (), "rows", "", "rows")])
    return open_cube(url)
