"""Loading from local files, as people do: GeoTIFFs, LMDB, WebDataset."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lmdb
import numpy as np
import rasterio
import safetensors.numpy
import torch
import webdataset
from rasterio.enums import Resampling
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.peers.contender import (
    ALL_BANDS,
    BANDS,
    BATCH_SIZE,
    Batch,
    Setting,
    expected,
    serve,
)

WORKERS = 2


class Loading:
    """A DataLoader as a contender; workers live as long as it."""

    def __init__(self, loader: Any, turn: int) -> None:
        self._loader, self.turn = loader, turn

    def epoch(self, epoch: int) -> Iterator[Batch]:
        del epoch  # torch's own random state moves on by itself
        yield from self._loader


def data_loader(dataset: Dataset[Any], workers: int = WORKERS) -> Loading:
    """Shuffle and batch with torch's DataLoader."""
    workers_alive = {"persistent_workers": True, "multiprocessing_context": "fork"}
    loader = DataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        **(workers_alive if workers else {}),  # type: ignore[arg-type]
    )
    return Loading(loader, max(1, workers))


class GeoTiffs(Dataset[dict[str, Any]]):
    """Twelve files a patch, each read at 120x120 by rasterio: what TorchGeo 0.8 does."""

    def __init__(self, setting: Setting) -> None:
        self._files = json.loads((setting.folder / "files.json").read_text())

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> dict[str, Any]:
        bands = []
        for path in self._files[row]:
            with rasterio.open(path) as file:
                bands.append(
                    file.read(
                        indexes=1,
                        out_shape=(120, 120),
                        out_dtype="int32",
                        resampling=Resampling.bilinear,
                    )
                )
        return {"rows": row, "image": torch.from_numpy(np.stack(bands)).float()}


@contextmanager
def geotiffs(setting: Setting) -> Iterator[Loading]:
    """Two workers, as TorchGeo's examples have."""
    yield data_loader(GeoTiffs(setting))


class Lmdb(Dataset[dict[str, Any]]):
    """Tensors of a patch as one safetensors value of an LMDB, which each worker opens anew."""

    def __init__(self, setting: Setting, name: str) -> None:
        self._path, self._n_patches = str(setting.folder / name), setting.n_patches
        self._reading: Any = None

    def __len__(self) -> int:
        return self._n_patches

    def _load(self, row: int) -> dict[str, np.ndarray[Any, Any]]:
        if self._reading is None:
            options = {"readonly": True, "lock": False, "meminit": False, "readahead": True}
            self._reading = lmdb.open(self._path, **options).begin()
        return safetensors.numpy.load(self._reading.get(_key(row)))  # type: ignore[no-any-return]


class ResizedLmdb(Lmdb):
    """A tensor a band, all as float32 at 120x120: what ConfigILM 0.7 does by default."""

    def __getitem__(self, row: int) -> dict[str, Any]:
        bands = self._load(row)
        return {"rows": row, "image": torch.stack([_resized(bands[name]) for name in ALL_BANDS])}


class RawLmdb(Lmdb):
    """A tensor a group, as stored; a batch is filled row by row into its own memory."""

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        batch = {
            group: np.empty((len(rows), len(bands), *(_side(group),) * 2), np.uint16)
            for group, bands in BANDS.items()
        }
        for position, row in enumerate(rows):
            for group, pixels in self._load(row).items():
                batch[group][position] = pixels
        images = {group: torch.from_numpy(pixels) for group, pixels in batch.items()}
        return {"rows": torch.tensor(rows), **images}


@contextmanager
def resized_lmdb(setting: Setting) -> Iterator[Loading]:
    """Two workers."""
    yield data_loader(ResizedLmdb(setting, "bands.lmdb"))


@contextmanager
def raw_lmdb(setting: Setting, workers: int) -> Iterator[Loading]:
    """In this process, or in two workers."""
    dataset = RawLmdb(setting, "groups.lmdb")
    loading = data_loader(dataset, workers)
    loading._loader.collate_fn = _as_is
    yield loading


def _as_is(batch: Any) -> Any:
    return batch


@contextmanager
def web_dataset(setting: Setting) -> Iterator[Loading]:
    """Shards of 256 patches, drawn at random and mixed in a buffer, in two workers."""
    shards = [str(path) for path in sorted((setting.folder / "webdataset").glob("*.tar"))]
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0, empty_check=False)
        .shuffle(1000, initial=500)
        .decode()
        .to_tuple("__key__", *(f"{group}.npy" for group in BANDS))
        .batched(BATCH_SIZE, collation_fn=_collate, partial=True)
    )
    loader = webdataset.WebLoader(
        dataset,
        batch_size=None,
        num_workers=WORKERS,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    yield Loading(loader, WORKERS)


def _collate(samples: list[tuple[Any, ...]]) -> Batch:
    keys, *images = zip(*samples, strict=True)
    batch = {g: torch.from_numpy(np.stack(x)) for g, x in zip(BANDS, images, strict=True)}
    return {"rows": torch.tensor([int(key) for key in keys]), **batch}


def prepare(setting: Setting) -> None:
    """Write each format from the raw arrays."""
    raw = {group: expected(setting, group) for group in BANDS}
    tensors = {
        "bands.lmdb": lambda row: {
            band: raw[group][row, index]
            for group, bands in BANDS.items()
            for index, band in enumerate(bands)
        },
        "groups.lmdb": lambda row: {group: raw[group][row] for group in BANDS},
    }
    for name, tensors_of in tensors.items():
        with lmdb.open(str(setting.folder / name), map_size=1 << 36) as database:
            for first in range(0, setting.n_patches, BATCH_SIZE):
                with database.begin(write=True) as writing:
                    for row in range(first, min(first + BATCH_SIZE, setting.n_patches)):
                        writing.put(_key(row), safetensors.numpy.save(tensors_of(row)))
    folder = setting.folder / "webdataset"
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=BATCH_SIZE, verbose=0) as shards:
        for row in range(setting.n_patches):
            arrays = {f"{group}.npy": raw[group][row] for group in BANDS}
            shards.write({"__key__": f"{row:08d}", **arrays})


def _key(row: int) -> bytes:
    return f"{row:08d}".encode()


def _side(group: str) -> int:
    return 1200 // int(group[1:3])


def _resized(pixels: np.ndarray[Any, Any]) -> Tensor:
    band = torch.from_numpy(pixels.astype(np.float32))
    if band.shape == (120, 120):
        return band
    return torch.nn.functional.interpolate(band[None, None], (120, 120), mode="nearest")[0, 0]


OPENERS = {
    "geotiffs": geotiffs,
    "lmdb resized": resized_lmdb,
    "lmdb raw": lambda setting: raw_lmdb(setting, WORKERS),
    "lmdb raw in process": lambda setting: raw_lmdb(setting, 0),
    "webdataset": web_dataset,
}

if __name__ == "__main__":
    sys.exit(serve(OPENERS, prepare))
