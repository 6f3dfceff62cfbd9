"""The order of rows: exact coverage, the same batches for every world size, whole chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.plan import (
    PADDING,
    OrderSpec,
    balanced_weights,
    checked_weights,
    epoch_order,
    reading_of,
    subset_of,
)
from tests.orders import plain_batches

selections = st.builds(
    lambda n, keep, seed: np.flatnonzero(np.random.default_rng(seed).random(n) < keep),
    st.integers(1, 3_000),
    st.sampled_from([0.01, 0.3, 1.0]),
    st.integers(0, 99),
)
specs = st.builds(
    OrderSpec,
    batch_size=st.sampled_from([1, 3, 8, 16, 50, 256]),
    chunk_rows=st.sampled_from([8, 64]),
    seed=st.integers(0, 9),
    shuffle=st.sampled_from(["pool", "exact", "none"]),
    pool_chunks=st.sampled_from([1, 8, 32]),
    last=st.sampled_from(["short", "join", "drop", "pad"]),
)


@given(rows=selections, spec=specs, epoch=st.integers(0, 3))
def test_each_row_comes_exactly_once(rows: NDArray[np.int64], spec: OrderSpec, epoch: int) -> None:
    order = epoch_order(rows, spec, epoch)
    delivered = order.rows[order.rows != PADDING]
    assert order.n_batches == spec.n_batches(len(rows))
    assert len(np.unique(delivered)) == len(delivered)
    if spec.last == "drop":
        assert len(delivered) == len(rows) // spec.batch_size * spec.batch_size
        assert set(delivered) <= set(rows)
    else:
        np.testing.assert_array_equal(np.sort(delivered), rows)


@given(rows=selections, spec=specs, epoch=st.integers(0, 3))
def test_every_batch_but_the_last_is_full(
    rows: NDArray[np.int64], spec: OrderSpec, epoch: int
) -> None:
    sizes = np.diff(epoch_order(rows, spec, epoch).offsets)
    assert (sizes[:-1] == spec.batch_size).all()
    if spec.last in ("pad", "drop"):
        assert (sizes == spec.batch_size).all()
    if spec.last == "join" and len(sizes) > 1:
        assert sizes[-1] > 1 or spec.batch_size == 1


@given(rows=selections, spec=specs, world_size=st.sampled_from([2, 4, 8]))
def test_global_batches_do_not_depend_on_the_world_size(
    rows: NDArray[np.int64], spec: OrderSpec, world_size: int
) -> None:
    if spec.lanes % world_size:
        return
    whole = epoch_order(rows, spec, 0)
    ranks = [
        epoch_order(rows, spec, 0, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for index in range(whole.n_batches):
        parts = np.concatenate([rank.batch(index) for rank in ranks])
        np.testing.assert_array_equal(parts, whole.batch(index))


@given(n_chunks=st.integers(8, 60), seed=st.integers(0, 20))
@settings(max_examples=30)
def test_only_the_tail_chunks_are_read_by_two_ranks(n_chunks: int, seed: int) -> None:
    rows = np.arange(n_chunks * 64)
    spec = OrderSpec(64, 64, seed=seed)
    n_even = min(n_chunks // 8 * 64 // 8, spec.n_batches(len(rows)))  # batches before the tail
    seen: list[set[int]] = []
    for rank in range(4):
        order = epoch_order(rows, spec, 0, rank=rank, world_size=4)
        seen.append(set(order.rows[: int(order.offsets[n_even])] // 64))
    for a in range(4):
        for b in range(a):
            assert not seen[a] & seen[b]


def test_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    rows = np.arange(1_000)
    spec = OrderSpec(64, 64, seed=1)
    same = epoch_order(rows, spec, 3).rows
    np.testing.assert_array_equal(same, epoch_order(rows, spec, 3).rows)
    assert (same != epoch_order(rows, spec, 4).rows).any()
    assert (same != epoch_order(rows, OrderSpec(64, 64, seed=2), 3).rows).any()


def test_the_order_of_an_epoch_is_fixed_for_ever() -> None:
    # A checkpoint of an older version must find its place: these numbers never change.
    order = epoch_order(np.arange(0, 2_000, 3), OrderSpec(16, 64, seed=5), 1)
    assert order.rows[:8].tolist() == [669, 1683, 1239, 780, 1053, 765, 1293, 1758]


def test_without_shuffle_rows_come_in_order() -> None:
    rows = np.array([3, 5, 8, 70, 71])
    order = epoch_order(rows, OrderSpec(2, 64, shuffle="none"), 7)
    assert [order.batch(i).tolist() for i in range(3)] == [[3, 5], [8, 70], [71]]


def test_a_batch_mixes_many_chunks() -> None:
    rows = np.arange(64 * 64)
    order = epoch_order(rows, OrderSpec(256, 64, pool_chunks=32), 0)
    per_batch = [len(np.unique(order.batch(i) // 64)) for i in range(order.n_batches)]
    assert min(per_batch) >= 30


@example(
    rows=np.arange(600),
    spec=OrderSpec(48, 64, shuffle="exact", pool_chunks=2),
    start=0.0,
    block_rows=512,
)
@given(rows=selections, spec=specs, start=st.floats(0, 1), block_rows=st.sampled_from([1, 64, 512]))
def test_a_reading_brings_every_row_before_it_is_needed_and_keeps_it_so_long(
    rows: NDArray[np.int64], spec: OrderSpec, start: float, block_rows: int
) -> None:
    order = epoch_order(rows, spec, 0)
    if order.n_batches == 0:
        return
    first = int(start * (order.n_batches - 1))
    reading = reading_of(
        order, spec.chunk_rows, start=first, window_rows=spec.window_rows, block_rows=block_rows
    )
    blocks = reading.blocks
    brought = np.concatenate([np.empty(0, np.int64), *[block.rows for block in blocks]])
    expected = order.rows[order.offsets[first] :]
    real = expected != PADDING
    np.testing.assert_array_equal(brought[reading.source[real]], expected[real])
    assert set(brought) == set(expected[real])
    assert [block.first_batch for block in blocks] == sorted(b.first_batch for b in blocks)
    # Of each chunk that was read: between which batches its rows are asked for.
    chunk_of = np.repeat(
        np.arange(sum(len(block.chunks) for block in blocks)),
        np.concatenate([np.empty(0, np.int64), *[np.diff(block.offsets) for block in blocks]]),
    )
    batch_of = np.repeat(np.arange(order.n_batches), np.diff(order.offsets))[order.offsets[first] :]
    asked: dict[int, set[int]] = {}
    for place, batch in zip(reading.source[real], batch_of[real], strict=True):
        asked.setdefault(int(chunk_of[place]), set()).add(int(batch))
    visit = 0
    for block in blocks:
        assert len(block.chunks) == 1 or len(block.rows) <= block_rows
        assert len(block.chunks) == len(set(block.chunks.tolist()))  # it is read by its number
        for i, chunk in enumerate(block.chunks):
            part = block.rows[block.offsets[i] : block.offsets[i + 1]]
            assert set(part // spec.chunk_rows) == {chunk}
            assert (np.diff(part) > 0).all()
            assert min(asked[visit]) >= block.first_batch
            assert max(asked[visit]) == block.last_batch[i]
            visit += 1
        assert min(min(asked[v]) for v in range(visit - len(block.chunks), visit)) == (
            block.first_batch
        )


@given(rows=selections, spec=specs)
def test_every_chunk_is_read_once_unless_the_shuffle_is_exact(
    rows: NDArray[np.int64], spec: OrderSpec
) -> None:
    order = epoch_order(rows, spec, 0)
    if order.n_batches == 0:
        return
    reading = reading_of(order, spec.chunk_rows, window_rows=spec.window_rows)
    chunks = np.concatenate([np.empty(0, np.int64), *[block.chunks for block in reading.blocks]])
    needed = np.unique(order.rows[order.rows != PADDING] // spec.chunk_rows)
    assert set(chunks) == set(needed)
    if spec.shuffle == "exact":
        assert len(chunks) <= (order.rows != PADDING).sum()
    else:
        assert len(chunks) == len(needed)


def test_an_exact_shuffle_is_numpys_permutation() -> None:
    rows = np.arange(0, 3_000, 7)
    order = epoch_order(rows, OrderSpec(16, 64, seed=5, shuffle="exact"), 2)
    np.testing.assert_array_equal(order.rows, np.random.default_rng([5, 2]).permutation(rows))


@given(rows=selections, spec=specs, seed=st.integers(0, 99), world_size=st.sampled_from([2, 4, 8]))
def test_drawn_rows_are_numpys_draw_for_every_world_size(
    rows: NDArray[np.int64], spec: OrderSpec, seed: int, world_size: int
) -> None:
    if spec.lanes % world_size or not len(rows):
        return
    chances = checked_weights(np.random.default_rng(seed).random(len(rows)), len(rows))
    whole = epoch_order(rows, spec, 3, chances=chances)
    drawn = np.random.default_rng([spec.seed, 2, 3]).choice(rows, len(rows), p=chances)
    delivered = whole.rows[whole.rows != PADDING]
    if spec.last == "drop":
        assert not set(delivered) - set(drawn)
    else:
        np.testing.assert_array_equal(np.sort(delivered), np.sort(drawn))
    ranks = [
        epoch_order(rows, spec, 3, rank=rank, world_size=world_size, chances=chances)
        for rank in range(world_size)
    ]
    for index in range(whole.n_batches):
        parts = np.concatenate([rank.batch(index) for rank in ranks])
        np.testing.assert_array_equal(parts, whole.batch(index))
    reading = reading_of(whole, spec.chunk_rows, window_rows=spec.window_rows)
    if reading.blocks:
        brought = np.concatenate([block.rows for block in reading.blocks])
        real = whole.rows != PADDING
        np.testing.assert_array_equal(brought[reading.source[real]], whole.rows[real])


def test_balanced_weights_draw_rare_classes_as_often_as_common_ones() -> None:
    labels = np.zeros((10_000, 3), np.uint8)
    labels[:9_000, 0] = labels[9_000:9_900, 1] = labels[9_900:, 2] = 1
    chances = checked_weights(balanced_weights(labels), len(labels))
    order = epoch_order(np.arange(10_000), OrderSpec(100, 64), 0, chances=chances)
    np.testing.assert_allclose(labels[order.rows].mean(axis=0), 1 / 3, atol=0.02)


@given(n_rows=st.integers(1, 500), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_a_subset_has_its_size_and_each_row_once(n_rows: int, share: float, seed: int) -> None:
    subset = max(1, int(share * n_rows))
    kept = subset_of(n_rows, subset, seed)
    assert len(kept) == len(set(kept)) == subset
    assert (np.diff(kept) > 0).all()
    assert 0 <= kept[0] <= kept[-1] < n_rows


@pytest.mark.parametrize("subset", [0, -1, 11])
def test_a_subset_that_cannot_be_is_refused(subset: int) -> None:
    with pytest.raises(InvalidInputError, match=r"expected 1\.\.10"):
        subset_of(10, subset, 0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], r"shape \(2,\), expected one for each of 3"),
        ([1, -1, 0], "negative or not finite"),
        ([1, np.nan, 0], "negative or not finite"),
        ([0, 0, 0], "every weight is 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        checked_weights(weights, 3)


@pytest.mark.parametrize(("world_size", "rank"), [(3, 0), (0, 0), (16, 0), (2, 2), (2, -1)])
def test_a_world_that_does_not_fit_is_refused(world_size: int, rank: int) -> None:
    with pytest.raises(InvalidInputError, match=r"choose one of: 1, 2, 4, 8|expected 0\.\.1"):
        epoch_order(np.arange(10), OrderSpec(8, 64), 0, rank=rank, world_size=world_size)


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"pool_chunks": 0}, {"shuffle": "random"}, {"last": "keep"}],
)
def test_an_order_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"batch_size": 8, "chunk_rows": 64, **wrong}
    with pytest.raises(InvalidInputError):
        OrderSpec(**arguments)  # type: ignore[arg-type]


@given(
    rows=selections,
    batch_size=st.sampled_from([8, 13, 50, 256]),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 9),
    pool_chunks=st.sampled_from([8, 32]),
)
@settings(max_examples=50)
def test_the_order_is_that_told_row_by_row(
    rows: NDArray[np.int64], batch_size: int, seed: int, epoch: int, pool_chunks: int
) -> None:
    spec = OrderSpec(batch_size, 64, seed=seed, pool_chunks=pool_chunks)
    plain = plain_batches(rows.tolist(), batch_size, seed, epoch, pool_chunks)
    for rank in range(8):
        order = epoch_order(rows, spec, epoch, rank=rank, world_size=8)
        assert [order.batch(i).tolist() for i in range(order.n_batches)] == [
            parts[rank] for parts in plain
        ]
