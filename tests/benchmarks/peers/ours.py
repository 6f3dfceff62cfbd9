"""Our loader as a contender: every server, profile and engine; and the ceiling of its own work."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import distributed
import numpy as np
import torch

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.loader.batches import S2, BatchLoader
from bigearth_cube.shards import ArrayLayout, decode_chunk, read_index
from bigearth_cube.torch_batches import TorchBatches
from bigearth_cube.writer import ZARR
from tests.benchmarks.inputs import BUCKET, PROFILES
from tests.benchmarks.peers.contender import (
    BATCH_SIZE,
    CHUNK_ROWS,
    Batch,
    Opener,
    Setting,
    serve,
)

SERVERS = ("nginx", "rgw", "local", "proxy", "proxy50")
CLUSTERS: Mapping[str, dict[str, Any]] = {
    "in process": {"n_workers": 1, "threads_per_worker": 2, "processes": False},
    "processes": {"n_workers": 2, "threads_per_worker": 1, "processes": True},
}
Cluster = Literal["in process", "processes"]
_CEILING_WINDOW = 32
_CACHE_BYTES = 8 << 30


class Loaded:
    """Batches of a loader as tensors that share its memory, as training takes them."""

    turn = 1

    def __init__(self, loader: BatchLoader) -> None:
        self._loader = loader

    def epoch(self, epoch: int) -> Iterator[Batch]:
        for batch in self._loader.epoch(epoch, then=epoch + 1):
            images = {g.removeprefix("s2/"): torch.from_numpy(x) for g, x in batch.images.items()}
            yield {"rows": torch.from_numpy(batch.rows), **images}


class Copied:
    """Batches of ``TorchBatches``, whose tensors are the caller's."""

    turn = 1

    def __init__(self, batches: TorchBatches) -> None:
        self._batches = batches

    def epoch(self, epoch: int) -> Iterator[Batch]:
        self._batches.set_epoch(epoch)
        for item in self._batches:
            images = {group.removeprefix("s2/"): x for group, x in item["images"].items()}
            yield {"rows": item["rows"], **images}


def cube_at(setting: Setting, server: str, profile: str) -> Cube:
    """Open the cube of a profile on a server."""
    if server == "local":
        return open_cube(str(setting.folder / BUCKET / profile))
    return open_cube(f"s3://{BUCKET}/{profile}", storage_options=setting.storage[server])


@contextmanager
def ours(
    setting: Setting, server: str, profile: str, cluster: Cluster | None = None, **options: Any
) -> Iterator[Loaded]:
    """Load with the defaults of ``BatchLoader``, in threads or on Dask workers."""
    with ExitStack() as stack:
        if cluster is not None:
            options["engine"] = stack.enter_context(_client(cluster))
        loader = BatchLoader(
            cube_at(setting, server, profile), batch_size=BATCH_SIZE, labels=None, **options
        )
        yield Loaded(stack.enter_context(loader))


@contextmanager
def copied(setting: Setting, server: str, profile: str) -> Iterator[Copied]:
    """Load through the torch dataset, in this process."""
    cube = cube_at(setting, server, profile)
    yield Copied(TorchBatches(cube, batch_size=BATCH_SIZE, labels=None))


@contextmanager
def _client(cluster: Cluster) -> Iterator[distributed.Client]:
    with (
        distributed.LocalCluster(dashboard_address=None, **CLUSTERS[cluster]) as local,
        distributed.Client(local) as client,
    ):
        yield client


class Ceiling:
    """Decode and gather alone: stored bytes lie in memory, two threads share all the work.

    Windows of chunks are decoded while batches are gathered out of the window before; nothing is
    fetched, planned or handed over.
    """

    turn = 1

    def __init__(self, setting: Setting, profile: str) -> None:
        cube = cube_at(setting, "local", profile)
        storage = cube.storage.child(ZARR)
        self._layouts = {group: cube.pixel_layout(group) for group in S2}
        self._stored = {
            group: _chunks_of(layout, storage, setting.n_patches)
            for group, layout in self._layouts.items()
        }
        self._n_patches = setting.n_patches
        self._arenas = [self._room(_CEILING_WINDOW * CHUNK_ROWS) for _ in range(2)]
        self._outs = [self._room(BATCH_SIZE) for _ in range(_CEILING_WINDOW)]
        self.threads = ThreadPoolExecutor(2)

    def _room(self, n_rows: int) -> dict[str, np.ndarray[Any, Any]]:
        return {
            group: np.empty((n_rows, *layout.patch_shape), layout.dtype)
            for group, layout in self._layouts.items()
        }

    def epoch(self, epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng(epoch)
        chunks = rng.permutation(-(-self._n_patches // CHUNK_ROWS))
        windows = [chunks[i : i + _CEILING_WINDOW] for i in range(0, len(chunks), _CEILING_WINDOW)]
        decoding = self._decode(windows[0], self._arenas[0])
        for index, window in enumerate(windows):
            _finish(decoding)
            arena = self._arenas[index % 2]
            rows = (window[:, None] * CHUNK_ROWS + np.arange(CHUNK_ROWS)).reshape(-1)
            mixed = rng.permutation(np.flatnonzero(rows < self._n_patches))
            batches = np.split(mixed, range(BATCH_SIZE, len(mixed), BATCH_SIZE))
            gathering = [
                self.threads.submit(_gather, arena, at, out)
                for at, out in zip(batches, self._outs, strict=False)
            ]
            if index + 1 < len(windows):
                decoding = self._decode(windows[index + 1], self._arenas[(index + 1) % 2])
            for at, out, gathered in zip(batches, self._outs, gathering, strict=False):
                gathered.result()
                images = {
                    group.removeprefix("s2/"): torch.from_numpy(x[: len(at)])
                    for group, x in out.items()
                }
                yield {"rows": torch.from_numpy(rows[at]), **images}

    def _decode(
        self, window: np.ndarray[Any, Any], arena: Mapping[str, np.ndarray[Any, Any]]
    ) -> list[Future[Any]]:
        return [
            self.threads.submit(
                decode_chunk,
                layout,
                self._stored[group][int(chunk)],
                arena[group][slot * CHUNK_ROWS : (slot + 1) * CHUNK_ROWS],
                group,
                (0, 0),
            )
            for slot, chunk in enumerate(window)
            for group, layout in self._layouts.items()
        ]


def _chunks_of(layout: ArrayLayout, storage: Any, n_patches: int) -> list[memoryview]:
    chunks = []
    for shard in range(-(-n_patches // (CHUNK_ROWS * layout.chunks_per_shard))):
        data = storage.read(layout.key(shard))
        index = read_index(layout, data[-layout.index_bytes :], layout.key(shard))
        chunks += [memoryview(data)[int(o) : int(o) + int(n)] for o, n in index]
    return chunks


def _gather(
    arena: Mapping[str, np.ndarray[Any, Any]],
    at: np.ndarray[Any, Any],
    out: Mapping[str, np.ndarray[Any, Any]],
) -> None:
    for group, target in out.items():
        np.take(arena[group], at, axis=0, out=target[: len(at)], mode="clip")


def _finish(futures: list[Future[Any]]) -> None:
    for future in wait(futures).done:
        future.result()


@contextmanager
def ceiling(setting: Setting, profile: str) -> Iterator[Ceiling]:
    """Open the ceiling of a profile."""
    contender = Ceiling(setting, profile)
    try:
        yield contender
    finally:
        contender.threads.shutdown()


def openers() -> dict[str, Opener]:
    """All contenders of this module, by name."""
    found: dict[str, Opener] = {}
    for profile in PROFILES:
        for server in SERVERS:
            found[f"ours {server} {profile}"] = functools.partial(
                ours, server=server, profile=profile
            )
        found[f"ours cached {profile}"] = functools.partial(
            ours, server="rgw", profile=profile, cache_bytes=_CACHE_BYTES
        )
        for cluster in CLUSTERS:
            found[f"dask {cluster} {profile}"] = functools.partial(
                ours, server="nginx", profile=profile, cluster=cluster
            )
        found[f"torch nginx {profile}"] = functools.partial(copied, server="nginx", profile=profile)
        found[f"ceiling {profile}"] = functools.partial(ceiling, profile=profile)
    return found


if __name__ == "__main__":
    sys.exit(serve(openers()))
