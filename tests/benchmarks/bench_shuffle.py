"""How well a pool mixes: what batches of the official v2 table hold, and what is learned from them.

Beside each pool stands an exact shuffle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import fbeta_score
from torch import nn

from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.ingest import ingest
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.loader.plan import OrderSpec, epoch_order
from bigearth_cube.nomenclature import STATISTICS
from bigearth_cube.search import Selection
from training.metrics import best_threshold
from training.models.tb_cnn import TBCNN

BATCH = 512
N_LEARNED, LEARNED_BATCH, POOL_CHUNKS = 5_120, 64, 4  # 20 pools of 4 chunks of 64 rows
GROUP, SEEDS, EPOCHS = "s2/r60m", (0, 1, 2, 3, 4, 5), 6


def say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Show what the table of times has no column for."""
    with capsys.disabled():
        print(f"\n{text}")  # noqa: T201


@pytest.fixture(scope="module")
def table(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """A cube of the official lists, without pixels."""
    url = str(tmp_path_factory.mktemp("table"))
    ingest(sorted(map(str, (samples / "metadata").glob("*.parquet"))), url, metadata_only=True)
    return open_cube(url)


@pytest.mark.benchmark(group="order 549,488 rows, batches of 512")
@pytest.mark.parametrize(
    ("shuffle", "pool_chunks"),
    [("pool", 1), ("pool", 8), ("pool", 32), ("pool", 128), ("exact", 32)],
)
def test_what_a_batch_holds(
    benchmark: Any, capsys: pytest.CaptureFixture[str], table: Cube, shuffle: Any, pool_chunks: int
) -> None:
    _, tile = np.unique(table.column("tile")[table.rows].astype("U80"), return_inverse=True)
    labels = table.labels("label_19").astype(np.int32)
    spec = OrderSpec(BATCH, table.layout.chunk_rows, shuffle=shuffle, pool_chunks=pool_chunks)
    order = benchmark.pedantic(lambda: epoch_order(table.rows, spec, 0), rounds=3)
    at = np.searchsorted(table.rows, order.rows)
    n_full = len(at) // BATCH
    batches = at[: n_full * BATCH].reshape(n_full, BATCH)
    n_tiles = [len(np.unique(tile[batch])) for batch in batches]
    shares = np.stack([labels[batch].mean(axis=0) for batch in batches])
    # Half the sum over classes: what share of labels a batch would have to exchange.
    whole = labels.mean(axis=0)
    distance = np.abs(shares - whole).sum(axis=1) / 2 / whole.sum()
    result = {
        "tiles_a_batch": round(float(np.mean(n_tiles)), 1),
        "label_distance": round(float(distance.mean()), 4),
        "rows": len(order.rows),
    }
    benchmark.extra_info.update(result)
    say(capsys, f"{shuffle} {pool_chunks}: {result}")


def test_the_rows_are_the_official_ones(table: Cube) -> None:
    assert table.n_patches == 549_488


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """A synthetic cube that has enough patches outside the test split."""
    folder = tmp_path_factory.mktemp("learned")
    write_archive(folder / "archive", archive="v2", n_patches=8_000, seed=0)
    ingest([str(folder / "archive" / "BigEarthNet-S2"), *lists_in(folder)], str(folder / "cube"))
    return open_cube(str(folder / "cube"))


def lists_in(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / "archive").glob("*.parquet"))


@pytest.mark.benchmark(group="6 epochs of 5,120 patches, the 60 m branch of TB-CNN")
@pytest.mark.parametrize("rate", ["falls", "stays"])
def test_what_is_learned(
    benchmark: Any, capsys: pytest.CaptureFixture[str], learned: Cube, rate: str
) -> None:
    others = learned.search(filter="\"bec:split\" <> 'test'").ids.to_pylist()
    train, test = learned.search(ids=others[:N_LEARNED]), learned.search(split="test")
    assert len(train) == N_LEARNED
    f2: dict[str, list[float]] = {"pool": [], "exact": []}

    def learn_all() -> None:
        for seed in SEEDS:
            for shuffle, figures in f2.items():
                figures.append(f2_of(learned, train, test, shuffle, seed, rate))

    benchmark.pedantic(learn_all, rounds=1)
    apart = np.subtract(f2["pool"], f2["exact"])
    noise = float(np.std(f2["exact"], ddof=1))
    result: dict[str, Any] = {name: [round(x, 4) for x in values] for name, values in f2.items()}
    result |= {"apart": round(float(apart.mean()), 4), "spread_of_exact": round(noise, 4)}
    benchmark.extra_info.update(result)
    say(capsys, f"F2 where the rate {rate}, seeds {SEEDS}: {result}")


def f2_of(
    cube: Cube, train: Selection, test: Selection, shuffle: Any, seed: int, rate: str
) -> float:
    """Train from one seed; F2 of the test patches, by the threshold that suits the trained ones.

    A rate that falls does so along a cosine, as in the recipes of the project's own; that of the
    published ones stays.
    """
    torch.manual_seed(seed)
    network = TBCNN(19, STATISTICS["v2"], (GROUP,))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    n_steps = EPOCHS * -(-len(train) // LEARNED_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    with BatchLoader(
        cube,
        train,
        batch_size=LEARNED_BATCH,
        groups=[GROUP],
        shuffle=shuffle,
        pool_chunks=POOL_CHUNKS,
        seed=seed,
    ) as loader:
        for epoch in range(EPOCHS):
            for batch in loader.epoch(epoch):
                assert batch.labels is not None
                logits_BC = network({GROUP: torch.from_numpy(batch.images[GROUP])})
                truth_BC = torch.from_numpy(batch.labels).float()
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(logits_BC, truth_BC).backward()
                optimizer.step()
                if rate == "falls":
                    schedule.step()
    network.eval()
    threshold, _ = best_threshold(*scored(cube, train, network))
    scores_NC, truth_NC = scored(cube, test, network)
    predicted_NC = scores_NC >= threshold
    return float(fbeta_score(truth_NC, predicted_NC, beta=2, average="samples", zero_division=0))


def scored(cube: Cube, selection: Selection, network: TBCNN) -> tuple[Any, Any]:
    scores, truth = [], []
    with (
        BatchLoader(cube, selection, batch_size=256, groups=[GROUP], shuffle="none") as loader,
        torch.inference_mode(),
    ):
        for batch in loader.epoch(0):
            assert batch.labels is not None
            logits_BC = network({GROUP: torch.from_numpy(batch.images[GROUP])})
            scores.append(logits_BC.sigmoid().numpy())
            truth.append(batch.labels.copy())
    return np.concatenate(scores), np.concatenate(truth)
