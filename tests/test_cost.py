"""What a training will ask of storage is what its loader then asks."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bigearth_cube.cli import main
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader import batches
from bigearth_cube.loader.cost import Traffic, plan_training
from bigearth_cube.prices import prices_of
from tests.cubes import GROUP, row_number_cube


def asked_for(loader: batches.BatchLoader, epoch: int) -> Traffic:
    before = loader.counters
    for _ in loader.epoch(epoch):
        pass
    after = loader.counters
    return Traffic(after.requests - before.requests, after.bytes - before.bytes)


@pytest.mark.parametrize("shuffle", ["pool", "exact", "none"])
@pytest.mark.parametrize("split", [None, "train"])
def test_a_plan_is_what_the_loader_then_asks(cube: Cube, split: str | None, shuffle: str) -> None:
    selection = None if split is None else cube.search(split=split)
    said = plan_training(cube, selection, batch_size=32, epochs=2, shuffle=shuffle)  # type: ignore[arg-type]
    with batches.BatchLoader(cube, selection, batch_size=32, shuffle=shuffle) as loader:  # type: ignore[arg-type]
        assert (said.patches, said.batches) == (len(loader.rows), loader.n_batches)
        assert said.first == asked_for(loader, 0)
        assert said.later == asked_for(loader, 1)
    assert said.total == Traffic(
        said.first.requests + said.later.requests, said.first.bytes + said.later.bytes
    )


def test_a_scattered_selection_asks_for_an_index_and_a_chunk(cube: Cube) -> None:
    selection = cube.search(ids=cube.search().ids[::300].to_pylist())
    said = plan_training(cube, selection, batch_size=2, groups=["s2/r60m"])
    with batches.BatchLoader(cube, selection, batch_size=2, groups=["s2/r60m"]) as loader:
        assert said.first == asked_for(loader, 0)


def test_bytes_are_near_where_only_some_shards_are_looked_at(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    cube = row_number_cube(str(tmp_path_factory.mktemp("rows")), 64 * 64, shard_rows=128)
    said = plan_training(cube, batch_size=64, groups=[GROUP])
    with batches.BatchLoader(cube, batch_size=64, groups=[GROUP], labels=None) as loader:
        asked = asked_for(loader, 0)
    assert said.first.requests == asked.requests
    assert said.first.bytes == pytest.approx(asked.bytes, rel=0.02)


def test_an_epoch_within_the_region_costs_its_requests_alone(cube: Cube) -> None:
    said = plan_training(cube, batch_size=32, epochs=100, bucket_region="eu-central-1")
    prices = prices_of("eu-central-1")
    assert (said.region, said.warning, said.dollars_of_transfer) == ("eu-central-1", None, 0)
    assert said.dollars == pytest.approx(said.total.requests / 1000 * prices.gets_1000)
    assert said.total.requests == said.first.requests + 99 * said.later.requests
    assert said.dollars_an_epoch == pytest.approx(said.dollars / 100)


@pytest.mark.parametrize(
    ("region", "dollars_a_gb", "word"),
    [("eu-west-1", 0.02, "eu-west-1"), ("outside", 0.09, "internet")],
)
def test_compute_elsewhere_is_warned_of_and_pays_for_every_byte(
    cube: Cube, region: str, dollars_a_gb: float, word: str
) -> None:
    said = plan_training(cube, batch_size=32, epochs=3, region=region)
    assert said.warning is not None
    assert word in said.warning
    assert said.dollars_of_transfer == pytest.approx(said.total.bytes / 1e9 * dollars_a_gb)


def test_patches_that_stay_in_memory_are_read_once(cube: Cube) -> None:
    read = plan_training(cube, batch_size=32, epochs=100, region="outside")
    kept = plan_training(cube, batch_size=32, epochs=100, region="outside", kept=True)
    assert (kept.first, kept.later) == (read.first, Traffic(0, 0))
    assert kept.total == kept.first
    assert kept.dollars == pytest.approx(
        kept.first.requests / 1e3 * 4e-4 + kept.first.bytes / 1e9 * 0.09
    )
    with batches.BatchLoader(cube, batch_size=32) as loader:
        batch = next(iter(loader.epoch(0)))
        a_patch = sum(image[0].nbytes for image in batch.images.values())
    assert kept.memory_bytes == read.memory_bytes == a_patch * kept.patches
    assert kept.warning is not None
    assert "the first epoch is paid" in kept.warning


def test_prices_of_two_regions_are_of_one_kind() -> None:
    """No price list is at hand here: a slip of a digit would show against the other region."""
    one, other = (asdict(prices_of(region)) for region in ("us-east-1", "eu-central-1"))
    machines = [prices.pop("machine_hour") for prices in (one, other)]
    assert machines[0].keys() == machines[1].keys()
    pairs = [(one[k], other[k]) for k in one if k != "region"]
    pairs += [(machines[0][k], machines[1][k]) for k in machines[0]]
    assert all(0.6 < a / b < 1.6 for a, b in pairs)
    for prices in (one, other):
        assert 5 < prices["puts_1000"] / prices["gets_1000"] < 20
        assert prices["gb_to_region"] < prices["gb_month"] < prices["gb_to_internet"]
        assert 0.001 < prices["puts_1000"] < 0.01


def test_what_cannot_be_planned_is_refused(cube: Cube) -> None:
    for region in ("nowhere-9", "europe", "eu-central-1a"):
        with pytest.raises(InvalidInputError, match=f"region is '{region}'; expected one as AWS"):
            plan_training(cube, batch_size=32, region=region)
    with pytest.raises(InvalidInputError, match=r"no prices of region 'mars'.*us-east-1"):
        plan_training(cube, batch_size=32, bucket_region="mars")
    with pytest.raises(InvalidInputError, match="epochs is 0"):
        plan_training(cube, batch_size=32, epochs=0)
    with pytest.raises(InvalidInputError, match="batch_size is 0"):
        plan_training(cube, batch_size=0)


def test_the_command_says_it_in_lines_and_as_json(
    cube_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["plan-training", cube_url, "--split", "train", "--epochs", "5", "--region", "outside"]
    main(asked)
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()] == [
        *("patches", "epoch", "memory", "in", "requests", "transfer", "dollars")
    ]
    assert told.err.startswith("bec: compute outside AWS")
    main([*asked, "--kept", "--json"])
    found = json.loads(capsys.readouterr().out)
    opened = open_cube(cube_url)
    said = plan_training(
        opened, opened.search(split="train"), batch_size=256, epochs=5, region="outside", kept=True
    )
    assert found["dollars"] == pytest.approx(said.dollars)
    assert found["total"] == {"requests": said.total.requests, "bytes": said.total.bytes}
