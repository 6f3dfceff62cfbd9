"""General readers of the same cube from S3: zarr-python, xarray with dask, xbatcher."""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import dask
import numpy as np
import torch
import xarray as xr
import xbatcher
import zarr
from obstore.store import S3Store
from zarr.storage import ObjectStore

from bigearth_cube.loader.plan import OrderSpec, epoch_order, reading_of
from tests.benchmarks.inputs import BUCKET
from tests.benchmarks.peers.contender import (
    BANDS,
    BATCH_SIZE,
    CHUNK_ROWS,
    Batch,
    Opener,
    Setting,
    serve,
)

PROFILE = "fast"
_READS_IN_FLIGHT = 16
_XBATCHER_ROWS = 1024


def store_of(setting: Setting, server: str) -> ObjectStore[Any]:
    """Open the cube's Zarr hierarchy by obstore, whose requests cost the least."""
    options = setting.storage[server]
    keys: dict[str, Any] = {"skip_signature": True}
    if "key" in options:
        keys = {"access_key_id": options["key"], "secret_access_key": options["secret"]}
    store = S3Store(
        BUCKET,
        prefix=f"{PROFILE}/cube.zarr",
        endpoint=options["endpoint_url"],
        region="us-east-1",
        client_options={"allow_http": True},
        **keys,
    )
    return ObjectStore(store, read_only=True)


class ZarrBlocks:
    """Whole chunks by zarr-python in threads, in the order of our loader, gathered into batches."""

    turn = 1

    def __init__(self, setting: Setting, server: str, threads: ThreadPoolExecutor) -> None:
        root: Any = zarr.open_group(store_of(setting, server), mode="r", use_consolidated=True)
        self._arrays = {group: root[f"s2/{group}/reflectance"] for group in BANDS}
        self._rows = np.arange(setting.n_patches)
        self._threads = threads
        self._spec = OrderSpec(batch_size=BATCH_SIZE, chunk_rows=CHUNK_ROWS)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        order = epoch_order(self._rows, self._spec, epoch)
        blocks = deque(reading_of(order, CHUNK_ROWS).blocks)
        chunks: dict[int, dict[str, Future[Any]]] = {}
        last_needed: dict[int, int] = {}
        for index in range(order.n_batches):
            # As our loader: what this batch needs, and two blocks ahead.
            while blocks and (blocks[0].first_batch <= index or len(chunks) < 64):
                block = blocks.popleft()
                for chunk, last in zip(block.chunks.tolist(), block.last_batch, strict=True):
                    last_needed[chunk] = int(last)
                    chunks[chunk] = {
                        group: self._threads.submit(self._read, group, chunk) for group in BANDS
                    }
            rows = order.batch(index)
            batch = {
                group: np.empty((len(rows), *array.shape[1:]), array.dtype)
                for group, array in self._arrays.items()
            }
            of_chunk = rows // CHUNK_ROWS
            for chunk in np.unique(of_chunk).tolist():
                at = np.flatnonzero(of_chunk == chunk)
                for group, pixels in chunks[chunk].items():
                    batch[group][at] = pixels.result()[rows[at] - chunk * CHUNK_ROWS]
                if last_needed[chunk] == index:
                    del chunks[chunk]
            images = {group: torch.from_numpy(pixels) for group, pixels in batch.items()}
            yield {"rows": torch.from_numpy(rows), **images}

    def _read(self, group: str, chunk: int) -> Any:
        return self._arrays[group][chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]


@contextmanager
def zarr_blocks(setting: Setting, server: str) -> Iterator[ZarrBlocks]:
    """Keep as many reads in flight as are fastest here."""
    with ThreadPoolExecutor(_READS_IN_FLIGHT) as threads:
        yield ZarrBlocks(setting, server, threads)


def lazy_dataset(setting: Setting, server: str, chunks: Any) -> xr.Dataset:
    """Open all three groups as one Dataset, the axes of each named after it."""
    tree = xr.open_datatree(
        store_of(setting, server),  # type: ignore[arg-type]
        engine="zarr",
        chunks=chunks,
        consolidated=True,
    )
    parts = []
    for group in BANDS:
        pixels = tree[f"s2/{group}/reflectance"].reset_coords(drop=True).rename(group)
        parts.append(pixels.rename({d: f"{d}_{group}" for d in pixels.dims if d != "patch"}))
    dataset = xr.merge(parts, compat="override", join="override")
    return dataset.drop_vars(list(dataset.coords)).isel(patch=slice(setting.n_patches))


class XarrayIsel:
    """Random rows by ``isel`` and dask's threads, a batch at a time; a true permutation."""

    turn = 1

    def __init__(self, setting: Setting, server: str) -> None:
        self._dataset = lazy_dataset(setting, server, {})

    def epoch(self, epoch: int) -> Iterator[Batch]:
        order = np.random.default_rng(epoch).permutation(self._dataset.sizes["patch"])
        for first in range(0, len(order), BATCH_SIZE):
            # Sorted, as dask advises: a chunk is then cut once for all its rows.
            rows = np.sort(order[first : first + BATCH_SIZE])
            (loaded,) = dask.compute(self._dataset.isel(patch=rows))
            images = {group: torch.from_numpy(loaded[group].values) for group in BANDS}
            yield {"rows": torch.from_numpy(rows), **images}


@contextmanager
def xarray_isel(setting: Setting, server: str) -> Iterator[XarrayIsel]:
    """Use dask's default scheduler for arrays."""
    yield XarrayIsel(setting, server)


class Xbatcher:
    """Blocks of xbatcher in random order, the rows of each mixed before they become batches."""

    def __init__(self, setting: Setting, server: str, block_rows: int) -> None:
        self.turn = block_rows // BATCH_SIZE
        dataset = lazy_dataset(setting, server, None)
        dataset["row"] = ("patch", np.arange(dataset.sizes["patch"]))
        sizes = dict(dataset.sizes) | {"patch": min(block_rows, setting.n_patches)}
        self._blocks = xbatcher.BatchGenerator(dataset, input_dims=sizes, preload_batch=False)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng(epoch)
        for index in rng.permutation(len(self._blocks)):
            block = self._blocks[int(index)].load()
            arrays = {group: block[group].values for group in BANDS}
            rows = block["row"].values
            order = rng.permutation(len(rows))
            for first in range(0, len(order), BATCH_SIZE):
                at = order[first : first + BATCH_SIZE]
                images = {g: torch.from_numpy(np.take(x, at, axis=0)) for g, x in arrays.items()}
                yield {"rows": torch.from_numpy(rows[at]), **images}


@contextmanager
def xbatches(setting: Setting, server: str) -> Iterator[Xbatcher]:
    """Let a block be a batch, as its documentation has it."""
    yield Xbatcher(setting, server, BATCH_SIZE)


@contextmanager
def xbatcher_blocks(setting: Setting, server: str) -> Iterator[Xbatcher]:
    """Let a block be a whole shard, which it reads as fast as any."""
    yield Xbatcher(setting, server, _XBATCHER_ROWS)


OPENERS: dict[str, Opener] = {
    f"{name} {server}": functools.partial(opener, server=server)
    for server in ("nginx", "rgw")
    for name, opener in (
        ("zarr", zarr_blocks),
        ("xarray", xarray_isel),
        ("xbatcher", xbatches),
        ("xbatcher blocks", xbatcher_blocks),
    )
}

if __name__ == "__main__":
    sys.exit(serve(OPENERS))
