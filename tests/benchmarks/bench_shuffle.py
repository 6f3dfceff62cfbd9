"""How well a pool mixes: batches of the official v2 table beside those of an exact shuffle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.ingest import ingest
from bigearth_cube.loader.plan import OrderSpec, epoch_order

pytestmark = pytest.mark.benchmark(group="order 549,488 rows, batches of 512")
BATCH = 512


@pytest.fixture(scope="module")
def table(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """A cube of the official lists, without pixels."""
    url = str(tmp_path_factory.mktemp("table"))
    ingest(sorted(map(str, (samples / "metadata").glob("*.parquet"))), url, metadata_only=True)
    return open_cube(url)


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
    with capsys.disabled():
        print(f"\n{shuffle} {pool_chunks}: {result}")  # noqa: T201


def test_the_rows_are_the_official_ones(table: Cube) -> None:
    assert table.n_patches == 549_488
