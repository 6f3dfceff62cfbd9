"""Batches against plain numpy, for every engine, and after every kind of stop."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import CubeIntegrityError, InvalidInputError, StorageError
from bigearth_cube.ingest import ingest
from bigearth_cube.loader.assemble import room_needed
from bigearth_cube.loader.batches import Batch, BatchLoader
from bigearth_cube.loader.blocks import BlockReader, Counters, Read
from bigearth_cube.loader.plan import BLOCK_ROWS, OrderSpec, epoch_order, reading_of
from tests.cubes import pixels_of_rows, row_number_cube
from tests.orders import plain_batches
from tests.sources import MemorySource, index_of, pixels_of

ALL = ("s2/r10m", "s2/r20m", "s2/r60m", "s1/r10m", "reference/r10m")
SMALL = ("s2/r60m",)


def delivered(loader: BatchLoader, epoch: int = 0) -> list[tuple[Any, ...]]:
    return [
        (b.rows.copy(), {g: x.copy() for g, x in b.images.items()}, b.labels)
        for b in loader.epoch(epoch)
    ]


@pytest.mark.parametrize("engine", ["threads", "dask"])
@pytest.mark.parametrize(
    "order",
    [
        {},
        {"pool_chunks": 2},
        {"shuffle": "exact"},
        {"shuffle": "exact", "pool_chunks": 2},  # windows that want the same chunks
        {"shuffle": "none"},
        {"weights": "balanced", "pool_chunks": 2},
    ],
    ids=str,
)
def test_every_batch_equals_plain_numpy(
    cube: Cube, dask_client: distributed.Client, engine: str, order: dict[str, Any]
) -> None:
    ids = dict(zip(cube.rows.tolist(), cube.items["id"].to_pylist(), strict=True))
    options: dict[str, Any] = {**order, "engine": dask_client if engine == "dask" else "threads"}
    labels = cube.labels("label_19")
    with BatchLoader(cube, batch_size=50, groups=ALL, **options) as loader:
        batches = delivered(loader)
    assert [len(rows) for rows, _, _ in batches] == [50] * 12
    for rows, images, batch_labels in batches:
        np.testing.assert_array_equal(batch_labels, labels[rows])
        for position in (0, 17, 49):
            patch = pixels_of(index_of(ids[rows[position]]))
            for group, pixels in patch.s2.items():
                np.testing.assert_array_equal(images[group][position], pixels)
            np.testing.assert_array_equal(images["s1/r10m"][position], patch.s1)
            np.testing.assert_array_equal(images["reference/r10m"][position], patch.clc)


def test_both_engines_and_any_number_of_threads_give_the_same_bytes(
    cube: Cube, dask_client: distributed.Client
) -> None:
    results = []
    for options in ({"threads": 1}, {"threads": 16}, {"engine": dask_client}):
        with BatchLoader(cube, batch_size=64, groups=SMALL, seed=3, **options) as loader:  # type: ignore[arg-type]
            results.append(delivered(loader, 2))
    for other in results[1:]:
        for (rows, images, labels), (rows_, images_, labels_) in zip(
            results[0], other, strict=True
        ):
            np.testing.assert_array_equal(rows, rows_)
            np.testing.assert_array_equal(images["s2/r60m"], images_["s2/r60m"])
            np.testing.assert_array_equal(labels, labels_)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_together_deliver_the_global_batches(cube: Cube, world_size: int) -> None:
    sel = cube.search(split="train")
    with BatchLoader(cube, sel, batch_size=24, groups=SMALL) as loader:
        whole = [rows for rows, _, _ in delivered(loader)]
    parts = []
    for rank in range(world_size):
        with BatchLoader(
            cube, sel, batch_size=24, groups=SMALL, rank=rank, world_size=world_size
        ) as loader:
            parts.append([rows for rows, _, _ in delivered(loader)])
    for index, rows in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([p[index] for p in parts]), rows)


@pytest.mark.parametrize("engine", ["threads", "dask"])
@pytest.mark.parametrize("shuffle", ["pool", "exact", "none"])
@pytest.mark.parametrize(("first", "step"), [(0, 1), (1, 3)])
def test_epochs_that_are_read_ahead_are_those_that_are_not(
    cube: Cube, dask_client: distributed.Client, engine: str, shuffle: Any, first: int, step: int
) -> None:
    options: dict[str, Any] = {"engine": dask_client if engine == "dask" else "threads"}
    part: dict[str, Any] = {"first": first, "step": step}
    some = cube.search(ids=cube.items["id"].to_pylist()[::7])
    for selected in (cube.search(), cube.search(split="test"), some):
        with BatchLoader(
            cube, selected, batch_size=48, groups=SMALL, shuffle=shuffle, pool_chunks=2, **options
        ) as loader:
            anew = [copies(loader.epoch(epoch, **part)) for epoch in (0, 1, 5, 2)]
            # The fourth was not announced, and the fifth is what was to follow it.
            ahead = [
                copies(loader.epoch(epoch, then=then, **part))
                for epoch, then in ((0, 1), (1, 5), (5, 3), (2, 0), (0, None))
            ]
        for expected, got in zip([*anew, anew[0]], ahead, strict=True):
            assert_equal(expected, got)


def copies(batches: Iterator[Batch]) -> list[tuple[Any, Any]]:
    return [(batch.rows.copy(), batch.images["s2/r60m"].copy()) for batch in batches]


def assert_equal(expected: list[tuple[Any, Any]], got: list[tuple[Any, Any]]) -> None:
    assert len(expected) == len(got)
    for (rows, pixels), (rows_, pixels_) in zip(expected, got, strict=True):
        np.testing.assert_array_equal(rows, rows_)
        np.testing.assert_array_equal(pixels, pixels_)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Read]:
    """What is read, as it is begun."""
    begun: list[Read] = []
    fetch = BlockReader.fetch

    def noted(reader: BlockReader, read: Read, *others: Any) -> Counters:
        begun.append(read)
        return fetch(reader, read, *others)

    monkeypatch.setattr(BlockReader, "fetch", noted)
    return begun


def test_an_epoch_that_was_announced_is_read_while_the_one_before_is_delivered(
    reads: list[Read], tmp_path: Path
) -> None:
    cube = row_number_cube(str(tmp_path), 6000)
    with BatchLoader(cube, batch_size=64, groups=SMALL, labels=None, pool_chunks=8) as loader:
        for _ in loader.epoch(0):
            pass
        n_reads, of_one = len(reads), loader.counters.requests
        reads.clear()
        for index, _ in enumerate(loader.epoch(0, then=1)):
            if index == loader.n_batches - 6:  # the thread cannot be farther than three ahead
                deadline = time.monotonic() + 10
                while len(reads) <= n_reads and time.monotonic() < deadline:
                    time.sleep(0.01)
        assert len(reads) > n_reads
        told = loader.counters.requests
        assert told < 2 * of_one  # what was read ahead is told with the epoch that it is of
        for _ in loader.epoch(1):
            pass
        assert loader.counters.requests > told
    assert len(reads) < 2.2 * n_reads  # nothing is read twice, and nothing of a third


@pytest.mark.parametrize(("subset", "pool_chunks"), [(3000, 8), (3200, 32)])
def test_epochs_that_need_more_room_than_the_one_before_come_without_a_wrong_pixel(
    tmp_path: Path, subset: int, pool_chunks: int
) -> None:
    cube = row_number_cube(str(tmp_path), 6000)
    for seed in range(4):
        with BatchLoader(
            cube,
            batch_size=128,
            groups=SMALL,
            labels=None,
            subset=subset,  # chunks of more and of fewer than half their rows
            pool_chunks=pool_chunks,
            seed=seed,
        ) as loader:
            for epoch in range(6):
                for batch in loader.epoch(epoch, then=epoch + 1):
                    np.testing.assert_array_equal(
                        batch.images["s2/r60m"], pixels_of_rows(batch.rows)
                    )


def test_what_was_read_ahead_is_used_for_the_batches_it_is_of_alone(cube: Cube) -> None:
    with BatchLoader(cube, batch_size=50, groups=SMALL) as loader:
        expected = copies(loader.epoch(1))
        part = copies(loader.epoch(1, first=1, step=3))
        for _ in loader.epoch(0, then=1):
            pass
        assert_equal(part, copies(loader.epoch(1, first=1, step=3)))
        for _ in loader.epoch(0, then=1):
            pass
        loader.load_state({**loader.state(), "epoch": 1, "batch": 3})
        assert_equal(expected[3:], copies(loader.epoch(1)))
        for _ in loader.epoch(0, then=1):
            pass
        loader.load_state({**loader.state(), "epoch": 1, "batch": 0})
        assert_equal(expected, copies(loader.epoch(1)))


def test_a_rank_whose_part_is_padding_alone_gets_it(cube: Cube) -> None:
    five = cube.search(ids=cube.items["id"].to_pylist()[:5])
    with BatchLoader(
        cube, five, batch_size=8, groups=SMALL, last="pad", rank=7, world_size=8
    ) as loader:
        (batch,) = loader.epoch(0)
        assert batch.rows.tolist() == [-1]
        assert not batch.images["s2/r60m"].any()


def test_what_fails_ahead_fails_in_its_own_epoch(
    cube: Cube, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_reads, most, fetch = 0, 10**9, BlockReader.fetch

    def failing(reader: BlockReader, read: Read, *others: Any) -> Counters:
        nonlocal n_reads
        n_reads += 1
        if n_reads > most:
            raise CubeIntegrityError("some/key", "damaged")
        return fetch(reader, read, *others)

    monkeypatch.setattr(BlockReader, "fetch", failing)
    with BatchLoader(cube, batch_size=50, groups=SMALL) as loader:
        expected = copies(loader.epoch(0))
        n_reads, most = 0, n_reads
        assert_equal(expected, copies(loader.epoch(0, then=1)))
        with pytest.raises(CubeIntegrityError, match="some/key"):
            list(loader.epoch(1))
        most = 10**9
        assert_equal(expected, copies(loader.epoch(0)))
        with pytest.raises(InvalidInputError, match="epoch 0, then -1"):
            next(loader.epoch(0, then=-1))


def test_what_cannot_be_prepared_ahead_fails_in_its_own_epoch(
    cube: Cube, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_of = BatchLoader.order

    def failing(loader: BatchLoader, epoch: int) -> Any:
        if epoch == 1:
            raise StorageError("the scheduler is gone")
        return order_of(loader, epoch)

    monkeypatch.setattr(BatchLoader, "order", failing)
    with BatchLoader(cube, batch_size=50, groups=SMALL) as loader:
        assert len(copies(loader.epoch(0, then=1))) == loader.n_batches
        with pytest.raises(StorageError, match="the scheduler is gone"):
            list(loader.epoch(1))


def test_an_epoch_left_early_is_not_followed(cube: Cube) -> None:
    with BatchLoader(cube, batch_size=50, groups=SMALL) as loader:
        expected = copies(loader.epoch(1))
        for _ in loader.epoch(0, then=1):
            break
        assert "bec-assemble" not in {thread.name for thread in threading.enumerate()}
        assert_equal(expected, copies(loader.epoch(1)))


@pytest.mark.parametrize("stops", [(1,), (3, 5, 6), (2, 4, 9)])
def test_a_resumed_epoch_goes_on_as_if_never_stopped(
    cube: Cube, dask_client: distributed.Client, stops: tuple[int, ...]
) -> None:
    def make(engine: Any = "threads") -> BatchLoader:
        return BatchLoader(cube, batch_size=50, groups=SMALL, seed=4, engine=engine)

    with make() as loader:
        expected = [rows for rows, _, _ in delivered(loader, 1)]
    got: list[np.ndarray] = []
    state: dict[str, Any] | None = None
    for stop in [*stops, 99]:
        with make(dask_client if len(got) % 2 else "threads") as loader:
            if state is not None:
                loader.load_state(state)
            for batch in loader.epoch(1):
                got.append(batch.rows.copy())
                state = loader.state()
                if len(got) == stop:
                    break
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("engine", ["threads", "dask"])
@pytest.mark.parametrize("shuffle", ["pool", "exact"])
def test_drawn_rows_of_a_subset_come_with_their_own_pixels_and_labels(
    cube: Cube, dask_client: distributed.Client, engine: str, shuffle: Any
) -> None:
    chosen: Any = dask_client if engine == "dask" else "threads"
    weights = np.arange(600.0)
    options: dict[str, Any] = {"subset": 200, "weights": weights, "shuffle": shuffle}
    ids, labels = cube.items["id"].to_pylist(), cube.labels("label_19")
    with BatchLoader(cube, batch_size=32, groups=SMALL, seed=2, engine=chosen, **options) as loader:
        batches = delivered(loader)
        state = loader.state()
    rows = np.concatenate([rows for rows, _, _ in batches])
    assert len(rows) == 200
    assert len(np.unique(rows)) < 200  # drawn with replacement
    subset = np.sort(np.random.default_rng([2, 1, 0]).choice(600, 200, replace=False))
    assert set(rows) <= set(subset)
    for rows, images, batch_labels in batches:
        np.testing.assert_array_equal(batch_labels, labels[rows])
        expected = [pixels_of(index_of(ids[row])).s2["s2/r60m"] for row in rows]
        np.testing.assert_array_equal(images["s2/r60m"], np.stack(expected))
    options["weights"] = weights[::-1]
    with (
        BatchLoader(cube, batch_size=32, groups=SMALL, seed=2, **options) as loader,
        pytest.raises(InvalidInputError, match="state was saved with weights"),
    ):
        loader.load_state(state)


def test_a_state_of_another_order_or_selection_is_refused(cube: Cube) -> None:
    with BatchLoader(cube, batch_size=50, groups=SMALL) as loader:
        state = loader.state()
    with (
        BatchLoader(cube, batch_size=64, groups=SMALL) as loader,
        pytest.raises(InvalidInputError, match="batch_size 50, this loader has 64"),
    ):
        loader.load_state(state)
    test = cube.search(split="test")
    with (
        BatchLoader(cube, test, batch_size=50, groups=SMALL) as loader,
        pytest.raises(InvalidInputError, match="selection"),
    ):
        loader.load_state(state)


@pytest.mark.parametrize(("n_rows", "batch_size"), [(1, 8), (5, 64), (70, 3), (70, 500)])
def test_selections_smaller_than_a_chunk_or_a_batch_work(
    cube: Cube, n_rows: int, batch_size: int
) -> None:
    ids = cube.items["id"].to_pylist()[10 : 10 + n_rows]
    sel = cube.search(ids=ids)
    with BatchLoader(cube, sel, batch_size=batch_size, groups=SMALL) as loader:
        rows = np.concatenate([rows for rows, _, _ in delivered(loader)])
    np.testing.assert_array_equal(np.sort(rows), sel.rows)


def test_a_padded_batch_says_which_rows_are_not(cube: Cube) -> None:
    sel = cube.search(ids=cube.items["id"].to_pylist()[:5])
    with BatchLoader(cube, sel, batch_size=8, groups=SMALL, last="pad") as loader:
        ((rows, images, labels),) = delivered(loader)
    assert (rows == -1).sum() == 3
    assert not images["s2/r60m"][rows == -1].any()
    assert not labels[rows == -1].any()


def test_a_whole_epoch_asks_for_every_needed_byte_once(cube: Cube) -> None:
    with BatchLoader(cube, batch_size=64, groups=SMALL, shuffle="none") as loader:
        delivered(loader)
        counters = loader.counters
    layout = cube.pixel_layout("s2/r60m")
    stored = [cube.storage.size(f"cube.zarr/{layout.key(shard)}") for shard in range(3)]
    # Three shards of four chunks; the last chunks of the third are padding and never asked for.
    assert counters.requests <= 4
    assert stored[0] + stored[1] < counters.bytes <= sum(stored)
    assert counters.patches == 600


def test_counters_add_up_and_keep_the_most_that_was_in_flight() -> None:
    names = [field.name for field in dataclasses.fields(Counters)]
    less = {name: 10 + i for i, name in enumerate(names)}
    more = {name: 100 * (i + 1) for i, name in enumerate(names)}
    both = {name: less[name] + more[name] for name in names} | {"in_flight": more["in_flight"]}
    for first, second in ((less, more), (more, less)):
        total = Counters(**first)
        total.add(Counters(**second))
        assert dataclasses.asdict(total) == both


def test_leaving_an_epoch_early_stops_its_threads(cube: Cube) -> None:
    with BatchLoader(cube, batch_size=8, groups=SMALL) as loader:
        for _ in range(3):
            for _ in loader.epoch(0):
                break
        names = {thread.name for thread in threading.enumerate()}
        assert "bec-assemble" not in names
    assert not any(t.name.startswith("bec-") for t in threading.enumerate())


@pytest.mark.parametrize("engine", ["threads", "dask"])
def test_damage_ends_the_epoch_and_names_object_and_rows(
    cube_url: str, tmp_path: Path, dask_client: distributed.Client, engine: str
) -> None:
    shutil.copytree(cube_url, tmp_path / "own")
    cube = open_cube(str(tmp_path / "own"))
    key = cube.pixel_layout("s2/r60m").key(1)
    path = tmp_path / "own" / "cube.zarr" / key
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[5_000] ^= 1
    for content, reason in (
        (bytes(damaged), "checksum"),
        (sound[:-9], "index|checksum"),
        (None, "missing"),
    ):
        path.unlink() if content is None else path.write_bytes(content)
        options: dict[str, Any] = {"engine": dask_client if engine == "dask" else "threads"}
        with (
            BatchLoader(cube, batch_size=64, groups=SMALL, **options) as loader,
            pytest.raises(CubeIntegrityError, match=reason) as caught,
        ):
            delivered(loader)
        assert caught.value.key == key


def test_rows_of_a_release_that_lacks_a_group_read_as_fill(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    url = str(tmp_path)
    ingest(MemorySource(40, with_views=False), url, client=dask_client)
    ingest(MemorySource(40, first=40), url, client=dask_client)
    cube = open_cube(url)
    assert [r.arrays[-1] for r in cube.releases] == ["s2/r60m", "reference/r10m"]
    with BatchLoader(cube, batch_size=16, groups=("s1/r10m",)) as loader:
        for rows, images, _ in delivered(loader):
            for row, pixels in zip(rows, images["s1/r10m"], strict=True):
                assert np.isnan(pixels).all() == (row < 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": ()}, "no groups"),
        ({"groups": ("s2/r15m",)}, "no group 's2/r15m'"),
        ({"labels": "label_43"}, "no labels 'label_43'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"engine": "dask"}, "unknown engine 'dask'; expected 'threads' or a Dask client"),
        ({"threads": 0}, "threads is 0, expected at least 1"),
        ({"subset": 601}, r"subset is 601, expected 1\.\.600"),
        ({"weights": [1.0, 2.0]}, r"shape \(2,\), expected one for each of 600"),
        ({"weights": "balanced", "labels": None}, "'balanced' together with labels"),
        ({"weights": "even"}, "weights 'even'"),
        ({"world_size": 3}, "does not divide 8 lanes; choose one of: 1, 2, 4, 8"),
    ],
)
def test_what_cannot_be_delivered_is_refused_at_once(
    cube: Cube, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        BatchLoader(cube, **{"batch_size": 8, **arguments})


def test_rows_without_labels_come_without_labels_only(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    url = str(tmp_path)
    ingest(MemorySource(30, unlabeled=frozenset({3, 4})), url, client=dask_client)
    cube = open_cube(url)
    with pytest.raises(InvalidInputError, match="2 of 30 rows have no labels"):
        BatchLoader(cube, batch_size=8)
    with BatchLoader(cube, batch_size=8, groups=SMALL, labels=None) as loader:
        batches = delivered(loader)
    assert sum(len(rows) for rows, _, _ in batches) == 30
    assert {labels for _, _, labels in batches} == {None}


def test_a_selection_of_another_cube_or_an_empty_one_is_refused(
    cube: Cube, tmp_path: Path, dask_client: distributed.Client
) -> None:
    ingest(MemorySource(10), str(tmp_path), client=dask_client, cube_id="other")
    foreign = open_cube(str(tmp_path)).search()
    with pytest.raises(InvalidInputError, match="of cube 'other'"):
        BatchLoader(cube, foreign, batch_size=8)
    with pytest.raises(InvalidInputError, match="selection is empty"):
        BatchLoader(cube, cube.search(ids=["none"]), batch_size=8)


def test_a_selection_whose_rows_hold_other_patches_is_refused(cube: Cube) -> None:
    right = cube.search(split="train")
    changed = dataclasses.replace(right, rows=right.rows + 1)
    with pytest.raises(InvalidInputError, match=r"row 1 is .* in the cube and .* search again"):
        BatchLoader(cube, changed, batch_size=8)


def rows_held(rows: np.ndarray, spec: OrderSpec, block_rows: int = BLOCK_ROWS) -> int:
    order = epoch_order(rows, spec, 0)
    reading = reading_of(order, 64, window_rows=spec.window_rows, block_rows=block_rows)
    n_slots, n_rows = room_needed(reading.blocks, 64)
    return n_slots * 64 + n_rows


def test_memory_is_the_pool_and_not_the_selection() -> None:
    rows = np.arange(400 * 64)
    held = {
        pool_chunks: rows_held(
            rows, OrderSpec(batch_size=64, chunk_rows=64, pool_chunks=pool_chunks)
        )
        for pool_chunks in (8, 32)
    }
    # The pool of each of 8 lanes, the one that follows it, and what is fetched ahead.
    assert held[8] < held[32] < 2 * 32 * 64 + 8 * BLOCK_ROWS < len(rows)
    assert rows_held(rows, OrderSpec(64, 64, shuffle="none")) <= 6 * BLOCK_ROWS
    # Larger blocks, as of Dask workers of this process, need half a block more.
    assert rows_held(rows, OrderSpec(64, 64), 2 * BLOCK_ROWS) <= held[32] + BLOCK_ROWS


@pytest.mark.parametrize("shuffle", ["pool", "exact"])
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_memory_does_not_grow_with_a_selection_however_sparse(shuffle: Any, share: float) -> None:
    held = []
    for n_rows in (400_000, 1_600_000):
        rows = np.flatnonzero(np.random.default_rng(0).random(n_rows) < share)
        held.append(rows_held(rows, OrderSpec(512, 64, shuffle=shuffle)))
    # Two pools of 32 chunks, two batches, and what is fetched ahead, by slots and by rows.
    assert max(held) <= 2 * 32 * 64 + 2 * 512 + 8 * BLOCK_ROWS
    assert held[1] <= 1.1 * held[0] + BLOCK_ROWS


def test_every_epoch_begins_anew_and_a_loaded_state_counts_once(cube: Cube) -> None:
    with BatchLoader(cube, batch_size=64, groups=SMALL) as loader:
        whole = [rows for rows, _, _ in delivered(loader)]
        left = loader.epoch(0)
        next(left)
        left.close()  # type: ignore[attr-defined]
        again = [batch.rows.copy() for batch in loader.epoch(0)]
        state = {**loader.state(), "epoch": 0, "batch": 3}
        loader.load_state(state)
        resumed = [batch.rows.copy() for batch in loader.epoch(0)]
        after = [batch.rows.copy() for batch in loader.epoch(0)]
    for found, expected in ((again, whole), (resumed, whole[3:]), (after, whole)):
        np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))


def test_an_epoch_ends_when_another_begins(cube: Cube) -> None:
    with BatchLoader(cube, batch_size=8, groups=SMALL) as loader:
        first, second = loader.epoch(0), loader.epoch(1)
        next(first)
        rows = next(second).rows
        np.testing.assert_array_equal(rows, loader.order(1).batch(0))
        with pytest.raises(InvalidInputError, match="another epoch of this loader has begun"):
            next(first)
        assert len(list(second)) == loader.n_batches - 1


def test_no_read_outlives_an_epoch_that_failed(cube: Cube, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, running, most = BlockReader.fetch, [0], [0]

    def slow_or_refused(self: BlockReader, read: Read, *rest: Any) -> Counters:
        if read.group == "s2/r60m":
            raise StorageError("refused")
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.3)
        running[0] -= 1
        return fetch(self, read, *rest)

    monkeypatch.setattr(BlockReader, "fetch", slow_or_refused)
    with BatchLoader(cube, batch_size=64, groups=("s2/r20m", "s2/r60m")) as loader:
        with pytest.raises(StorageError, match="refused"):
            next(iter(loader.epoch(0)))
        assert most[0] > 0
        assert running[0] == 0


@pytest.fixture(scope="module")
def rows_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cube of 700 patches that hold their row numbers."""
    url = str(tmp_path_factory.mktemp("rows"))
    row_number_cube(url, 700)
    return url


@pytest.mark.parametrize("engine", ["threads", "dask"])
@pytest.mark.parametrize("threads", [1, 4, 16])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_resumed_at_any_points_ranks_deliver_the_order_told_in_plain_numpy(
    rows_url: str, dask_client: distributed.Client, world_size: int, threads: int, engine: str
) -> None:
    cube, batch_size = open_cube(rows_url), 60
    rng = np.random.default_rng([world_size, threads, engine == "dask"])
    seed, epoch = int(rng.integers(100)), int(rng.integers(5))
    expected = plain_batches(list(range(700)), batch_size, seed, epoch, pool_chunks=8)
    stops = [*sorted(rng.choice(np.arange(1, len(expected)), 3, replace=False)), len(expected)]
    per_rank, state, first = 8 // world_size, None, 0
    for stop in stops:
        states = []
        for rank in range(world_size):
            with BatchLoader(
                cube,
                batch_size=batch_size,
                groups=SMALL,
                labels=None,
                seed=seed,
                pool_chunks=8,
                rank=rank,
                world_size=world_size,
                threads=threads,
                engine=dask_client if engine == "dask" else "threads",
            ) as loader:
                if state is not None:
                    loader.load_state(state)
                batches = loader.epoch(epoch)
                for index in range(first, stop):
                    batch = next(batches)
                    lanes = expected[index][rank * per_rank : (rank + 1) * per_rank]
                    assert batch.rows.tolist() == [row for lane in lanes for row in lane]
                    np.testing.assert_array_equal(
                        batch.images["s2/r60m"], pixels_of_rows(batch.rows)
                    )
                states.append(loader.state())
                if stop == len(expected):
                    assert next(batches, None) is None
        assert all(other == states[0] for other in states)
        state, first = states[0], stop


_PEAK = """
import sys
from bigearth_cube.cube import open_cube
from bigearth_cube.loader.batches import BatchLoader

with BatchLoader(
    open_cube(sys.argv[1]), batch_size=256, groups=["s2/r60m"], labels=None
) as loader:
    assert sum(len(batch.rows) for batch in loader.epoch(0)) == int(sys.argv[2])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_ten_times_the_rows_is_within_a_tenth(tmp_path: Path) -> None:
    peaks = []
    for n_patches in (10_000, 100_000):
        url = tmp_path / str(n_patches)
        row_number_cube(str(url), n_patches, shard_rows=1024)
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(url), str(n_patches)],
            check=True,
            capture_output=True,
            text=True,
        )
        peaks.append(int(done.stdout))
    assert peaks[1] <= 1.1 * peaks[0], peaks


def test_a_closed_loader_refuses_to_go_on_instead_of_waiting_for_ever(cube: Cube) -> None:
    loader = BatchLoader(cube, batch_size=64, groups=("s2/r60m",))
    batches = loader.epoch(0)
    next(batches)
    loader.close()
    with pytest.raises(InvalidInputError, match="the loader is closed"):
        next(batches)
    with pytest.raises(InvalidInputError, match="the loader is closed"):
        next(loader.epoch(1))
