"""Where patches are kept changes how fast they come, never which come when."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bigearth_cube.cube import Cube
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.loader.plan import Shuffle
from training.feed import Cache, Feed, ahead, choose_tier, free_bytes

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
GROUPS = ("s2/r60m", "s2/r20m")


@pytest.fixture(params=["pool", "exact"])
def loader(learnable: Cube, request: pytest.FixtureRequest) -> Iterator[BatchLoader]:
    shuffle: Shuffle = request.param
    train = learnable.search(split="train")
    with BatchLoader(
        learnable, train, batch_size=18, groups=GROUPS, shuffle=shuffle, last="join"
    ) as made:
        yield made


def delivered(feed: Feed, epoch: int) -> list[tuple[np.ndarray, ...]]:
    """Everything in the batches of an epoch, in order."""
    return [
        (
            batch.rows.copy(),
            *(batch.images[group].numpy().copy() for group in GROUPS),
            batch.labels_BC.numpy().copy(),
            np.array([batch.part.start, batch.part.stop, batch.n_rows]),
        )
        for batch in feed.epoch(epoch)
    ]


def assert_equal(
    found: list[tuple[np.ndarray, ...]], expected: list[tuple[np.ndarray, ...]]
) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cache", ["host", "device", "auto"])
def test_every_tier_delivers_the_same_batches_and_asks_storage_once(
    cache: Cache, loader: BatchLoader
) -> None:
    plain = [delivered(Feed(loader, CPU), epoch) for epoch in range(3)]
    kept = Feed(loader, CPU, cache=cache)
    assert_equal(delivered(kept, 0), plain[0])
    n_requests = loader.counters.requests
    for epoch in (1, 2, 0):
        assert_equal(delivered(kept, epoch), plain[epoch])
    assert loader.counters.requests == n_requests
    assert kept.tier == ("host" if cache == "auto" else cache)  # a CPU has no memory of its own
    assert not np.array_equal(plain[0][0][0], plain[1][0][0])


def test_what_was_read_in_part_is_read_again_until_all_is_kept(loader: BatchLoader) -> None:
    plain = [delivered(Feed(loader, CPU), epoch) for epoch in range(3)]
    feed = Feed(loader, CPU, cache="host")
    feed.load_state(feed.state(0, 1))
    assert_equal(delivered(feed, 0), plain[0][1:])
    n_requests = loader.counters.requests
    assert_equal(delivered(feed, 1), plain[1])
    assert loader.counters.requests > n_requests
    n_requests = loader.counters.requests
    assert_equal(delivered(feed, 2), plain[2])
    assert loader.counters.requests == n_requests


def test_the_next_best_memory_is_taken_by_what_is_free_and_the_reason_is_told() -> None:
    def free(gpu: int, host: int | None) -> dict[str, object]:
        return {"free": lambda device: gpu if device == GPU else host}

    def chosen(wanted: Cache, device: torch.device, **options: object) -> tuple[str, str]:
        return choose_tier(wanted, 60 * 10**9, device, **options)  # type: ignore[arg-type]

    gb = 10**9
    assert chosen("auto", GPU, **free(100 * gb, 500 * gb))[0] == "device"
    tier, why = chosen("auto", GPU, **free(79 * gb, 100 * gb))
    assert tier == "host"
    assert why == (
        "60.00 GB, and of the device 59.25 GB may be taken; "
        "60.00 GB, and of the host 75.00 GB may be taken"
    )
    assert chosen("device", CPU, **free(0, 100 * gb))[0] == "device"
    assert chosen("host", GPU, **free(100 * gb, 70 * gb))[0] == "none"
    assert chosen("host", CPU, sharers=2, **free(0, 100 * gb))[0] == "none"
    assert chosen("auto", CPU, **free(0, None)) == (
        "none",
        "how much memory of the host is free is not known",
    )
    assert chosen("none", GPU, **free(100 * gb, 100 * gb)) == ("none", "as asked")


def test_free_memory_is_measured() -> None:
    found = free_bytes(CPU)
    assert found is not None
    assert 2**20 < found < 2**50


def test_a_cache_that_does_not_fit_streams_and_says_why(
    loader: BatchLoader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = [delivered(Feed(loader, CPU), epoch) for epoch in range(2)]
    monkeypatch.setattr("training.feed.free_bytes", lambda _: 1000)
    caplog.set_level("INFO", "training")
    feed = Feed(loader, CPU, cache="device", name="training patches")
    assert_equal(delivered(feed, 0), plain[0])
    assert_equal(delivered(feed, 1), plain[1])
    assert feed.tier == "none"
    assert caplog.messages[0].startswith("training patches stay in storage alone: 0.00 GB, and")
    assert_equal(delivered(feed, 1), plain[1])


def test_a_generator_runs_ahead_in_a_thread_and_hands_over_what_it_raises() -> None:
    def numbers(n: int) -> Iterator[int]:
        yield from range(n)
        if n == 3:
            raise ValueError("broken")

    assert list(ahead(numbers(5))) == [0, 1, 2, 3, 4]  # type: ignore[arg-type]
    running = ahead(numbers(3))  # type: ignore[arg-type]
    assert [next(running) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(running)
    left = ahead(numbers(100))  # type: ignore[arg-type]
    next(left)
    left.close()
    assert [t.name for t in threading.enumerate() if t.name == "bec-ahead"] == []
