"""What the loader asks a server for, and what it does when that is slow, refuses or breaks off."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import CubeIntegrityError, StorageError
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.storage import Storage, backends
from tests.cubes import GROUP, pixels_of_rows, row_number_cube
from tests.servers import Fault, FolderServer, serving

N_PATCHES = 4_000
OPTIONS: dict[str, Any] = {"batch_size": 100, "groups": [GROUP], "labels": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    row_number_cube(str(path), N_PATCHES)
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[FolderServer]:
    with serving(folder) as running:
        yield running


@pytest.fixture
def far(server: FolderServer) -> Cube:
    cube = open_cube(server.url)
    server.sent.clear()
    return cube


def rows_delivered(loader: BatchLoader, epoch: int = 0) -> NDArray[np.int64]:
    rows = []
    for batch in loader.epoch(epoch):
        np.testing.assert_array_equal(batch.images[GROUP], pixels_of_rows(batch.rows))
        rows.append(batch.rows.copy())
    return np.concatenate([np.empty(0, np.int64), *rows])


@pytest.mark.parametrize("shuffle", ["none", "pool"])
@pytest.mark.parametrize(("subset", "rank", "world_size"), [(None, 0, 1), (40, 0, 1), (None, 1, 4)])
def test_an_epoch_asks_once_for_each_run_of_chunks_and_for_no_byte_beside_them(
    far: Cube,
    server: FolderServer,
    shuffle: Any,
    subset: int | None,
    rank: int,
    world_size: int,
) -> None:
    with BatchLoader(
        far,
        shuffle=shuffle,
        subset=subset,
        rank=rank,
        world_size=world_size,
        **OPTIONS,
    ) as loader:
        order = loader.order(0).rows
        np.testing.assert_array_equal(rows_delivered(loader), order)
        counters = loader.counters
    layout, per_shard = far.pixel_layout(GROUP), 4
    needed = np.unique(order // 64)
    stored = 0
    for chunk in needed:
        data = (server.folder / "cube.zarr" / layout.key(chunk // per_shard)).read_bytes()
        index = np.frombuffer(data[-layout.index_bytes : -4], "<u8").reshape(-1, 2)
        stored += int(index[chunk % per_shard, 1])
    sent = [(key, start, n) for key, start, n in server.sent if GROUP in key]
    assert sum(n for *_, n in sent) <= 1.05 * stored
    assert (len(sent), sum(n for *_, n in sent)) == (counters.requests, counters.bytes)
    # Runs in the order in which chunks are needed: that of their shards where it is sequential.
    n_shards = len(np.unique(needed // per_shard))
    if shuffle == "none" and world_size == 1 and subset is None:
        assert len(sent) <= n_shards + 1
    else:
        assert len(sent) <= len(needed) + n_shards
    assert len(set(sent)) == len(sent)


def test_a_far_server_is_asked_for_many_chunks_at_once(far: Cube, server: FolderServer) -> None:
    server.delay_s = 0.05
    with BatchLoader(far, threads=1, **OPTIONS) as loader:
        rows_delivered(loader)
        assert loader.counters.in_flight >= 16
    with BatchLoader(far, max_requests=3, **OPTIONS) as loader:
        rows_delivered(loader)
        assert loader.counters.in_flight <= 3


def test_refusals_and_broken_connections_cost_time_and_nothing_else(
    far: Cube, server: FolderServer
) -> None:
    faults: list[Fault] = ["503", "429", "reset", "short"]
    counter = itertools.count()

    def now_and_then(_: str) -> Fault:
        n = next(counter)
        return faults[n // 5 % 4] if n % 5 == 3 else None

    server.fault = now_and_then
    with BatchLoader(far, **OPTIONS) as loader:
        np.testing.assert_array_equal(np.sort(rows_delivered(loader)), np.arange(N_PATCHES))
        counters = loader.counters
    assert set(server.refused) == set(faults)
    assert counters.retries >= sum(server.refused.values()) // 2
    assert counters.requests == len(server.sent) + counters.retries


def test_a_server_that_takes_few_requests_at_once_is_not_asked_for_ever(
    far: Cube, server: FolderServer
) -> None:
    server.most, server.delay_s = 4, 0.005
    with BatchLoader(far, **OPTIONS) as loader:
        for epoch in range(3):
            server.refused.clear()
            np.testing.assert_array_equal(
                np.sort(rows_delivered(loader, epoch)), np.arange(N_PATCHES)
            )
    # 63 chunks an epoch; 64 sent at once would be refused 60 times in the first round alone.
    assert server.refused.get("503", 0) < 30


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_a_server_that_never_answers_is_given_up_within_the_time_that_was_set(
    far: Cube, server: FolderServer, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setitem(backends._RETRY, "retry_timeout", timedelta(seconds=0.5))
    server.fault = lambda key: fault
    with (
        BatchLoader(far, **OPTIONS) as loader,
        pytest.raises(StorageError, match=r"503 Service Unavailable|cannot be reached"),
    ):
        rows_delivered(loader)


def test_what_is_refused_for_good_is_not_asked_again(server: FolderServer) -> None:
    asked = []
    storage = Storage(server.url)
    with pytest.raises(StorageError, match="416"):
        storage.read_range(
            "cube.zarr/zarr.json", 10**9, 10**9 + 5, on_retry=lambda: asked.append(1)
        )
    assert not asked


def test_an_object_cut_short_on_the_server_is_named_with_its_rows(
    tmp_path: Path,
) -> None:
    row_number_cube(str(tmp_path), 200)
    layout = open_cube(str(tmp_path)).pixel_layout(GROUP)
    path = tmp_path / "cube.zarr" / layout.key(0)
    sound = path.read_bytes()
    with serving(tmp_path) as server:
        cube = open_cube(server.url)
        with BatchLoader(cube, shuffle="none", subset=70, **OPTIONS) as loader:
            first = next(iter(loader.epoch(0)))
            assert len(first.rows)
        for content, message in (
            (sound[: len(sound) // 2], "checksum|index"),
            (b"", "index|short"),
            (None, "missing"),
            (sound[:100] + bytes([sound[100] ^ 1]) + sound[101:], "rows 0 to 63.*checksum"),
        ):
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
            with (
                BatchLoader(cube, shuffle="none", **OPTIONS) as loader,
                pytest.raises(CubeIntegrityError, match=message) as caught,
            ):
                rows_delivered(loader)
            assert caught.value.key == layout.key(0)
            assert caught.value.rows
