"""The order of rows: exact coverage, the same batches for every world size, whole chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.plan import PADDING, OrderSpec, blocks_of, epoch_order

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
    shuffle=st.sampled_from(["pool", "none"]),
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


@given(rows=selections, spec=specs, start=st.floats(0, 1))
def test_blocks_bring_every_chunk_once_before_it_is_needed(
    rows: NDArray[np.int64], spec: OrderSpec, start: float
) -> None:
    order = epoch_order(rows, spec, 0)
    if order.n_batches == 0:
        return
    first = int(start * (order.n_batches - 1))
    blocks = blocks_of(order, spec.chunk_rows, 8, first)
    brought = [chunk for block in blocks for chunk in block.chunks]
    assert len(set(brought)) == len(brought)
    need = {}
    last = {}
    for index in range(first, order.n_batches):
        for row in order.batch(index):
            if row != PADDING:
                need.setdefault(int(row) // spec.chunk_rows, index)
                last[int(row) // spec.chunk_rows] = index
    assert set(brought) == set(need)
    for block in blocks:
        assert block.first_batch == min(need[c] for c in block.chunks)
        assert list(block.last_batch) == [last[c] for c in block.chunks]


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
