"""TorchBatches against BatchLoader, in this process and under every way to start workers."""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.storage import Storage
from bigearth_cube.torch_batches import TorchBatches

OPTIONS: dict[str, Any] = {"batch_size": 64, "groups": ("s2/r60m",), "seed": 3}


def expected(cube: Cube, epoch: int, first: int = 0) -> list[tuple[Any, ...]]:
    with BatchLoader(cube, **OPTIONS) as loader:
        batches = [
            (b.rows.copy(), b.images["s2/r60m"].copy(), b.labels) for b in loader.epoch(epoch)
        ]
    return batches[first:]


def assert_same(items: list[dict[str, Any]], batches: list[tuple[Any, ...]]) -> None:
    assert len(items) == len(batches)
    for item, (rows, pixels, labels) in zip(items, batches, strict=True):
        np.testing.assert_array_equal(item["rows"].numpy(), rows)
        assert item["images"]["s2/r60m"].dtype == torch.uint16
        np.testing.assert_array_equal(item["images"]["s2/r60m"].numpy(), pixels)
        np.testing.assert_array_equal(item["labels"].numpy(), labels)


def test_batches_are_those_of_the_loader_and_belong_to_the_caller(cube: Cube) -> None:
    dataset = TorchBatches(cube, **OPTIONS)
    assert len(dataset) == 10
    assert_same(list(dataset), expected(cube, 0))
    dataset.set_epoch(2, 4)
    assert_same(list(dataset), expected(cube, 2, 4))
    dataset.set_epoch(1, 10)
    assert list(dataset) == []


@pytest.mark.parametrize(("context", "workers"), [("spawn", 1), ("forkserver", 2)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # with one core
def test_workers_deliver_the_same_order_epoch_after_epoch(
    cube: Cube, context: str, workers: int
) -> None:
    dataset = TorchBatches(cube, **OPTIONS)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=True,
    )
    for epoch, first in ((0, 0), (1, 5)):
        dataset.set_epoch(epoch, first)
        # A first batch that is skipped makes the epoch shorter than the dataset says.
        assert_same(list(loader), expected(cube, epoch, first))


def test_a_forked_worker_is_told_instead_of_hanging(cube: Cube) -> None:
    loader = DataLoader(
        TorchBatches(cube, **OPTIONS),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="fork",
        timeout=60,
    )
    with pytest.raises(InvalidInputError, match=r"was forked after .* start it by spawn or fork"):
        next(iter(loader))


def test_a_loader_and_a_storage_say_that_they_were_forked(
    cube: Cube, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BatchLoader(cube, **OPTIONS) as loader:
        next(iter(loader.epoch(0)))
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(InvalidInputError, match="after the loader was made"):
                next(iter(loader.epoch(0)))
            with pytest.raises(InvalidInputError, match="was opened"):
                Storage(cube.url).size("cube.zarr/zarr.json")


def test_it_travels_without_what_it_has_opened(cube: Cube) -> None:
    assert_same(list(pickle.loads(pickle.dumps(TorchBatches(cube, **OPTIONS)))), expected(cube, 0))


def test_what_the_loader_refuses_is_refused_at_once(cube: Cube) -> None:
    with pytest.raises(InvalidInputError, match="batch_size is 0"):
        TorchBatches(cube, batch_size=0)
    with pytest.raises(InvalidInputError, match="use BatchLoader for an engine"):
        TorchBatches(cube, batch_size=8, engine="threads")
    with pytest.raises(InvalidInputError, match=r"a batch of 0\.\.10"):
        TorchBatches(cube, **OPTIONS).set_epoch(0, 11)
