"""Nearest of 590,326 vectors of 128 features, beside plain numpy and faiss, which both are exact.

The vectors are those of a net after ReLU: 12 hidden numbers a patch, mixed, with noise, and cut
at zero. Where vectors are uniformly random instead, all distances are alike and the bound of
chi-square rules nothing out: a scan with it then costs as much as one without.
"""

from __future__ import annotations

import resource
from typing import Any

import faiss
import numpy as np
import pytest

from bigearth_cube.retrieval import Metric, Origin, VectorIndex, distances
from bigearth_cube.retrieval.ivf import IvfIndex

N, DIM, K = 590_326, 128, 10
_BLOCK = 20_000


@pytest.fixture(scope="module")
def index() -> VectorIndex:
    """The vectors, made block by block."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(12, DIM)).astype(np.float32)
    vectors = np.empty((N, DIM), np.float32)
    for start in range(0, N, _BLOCK):
        block = vectors[start : start + _BLOCK]
        hidden = rng.normal(size=(len(block), 12)).astype(np.float32)
        noise = 0.3 * rng.standard_normal((len(block), DIM), np.float32)
        np.maximum(hidden @ mixing + noise - 1, 0, out=block)
    return VectorIndex(vectors, np.arange(N), Origin("bench", "r1", "bench", ""))


def note(benchmark: Any, n_queries: int) -> None:
    benchmark.extra_info["ms_a_query"] = round(benchmark.stats.stats.median / n_queries * 1e3, 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    benchmark.extra_info["peak_mb_so_far"] = round(peak)


@pytest.mark.parametrize("n_queries", [1, 64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "chi2", "hamming"])
def test_exact(benchmark: Any, index: VectorIndex, metric: Metric, n_queries: int) -> None:
    benchmark.group = f"{n_queries} at a time, {metric}"
    queries = index.vectors_NF[1_000 : 1_000 + n_queries]
    benchmark.pedantic(lambda: index.nearest(queries, K, metric=metric), rounds=7, warmup_rounds=1)
    note(benchmark, n_queries)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "chi2"])
def test_plain_numpy(benchmark: Any, index: VectorIndex, metric: Metric) -> None:
    benchmark.group = f"1 at a time, {metric}"
    query = index.vectors_NF[1_000]

    def scan() -> Any:
        return np.argsort(distances(index.vectors_NF, query, metric))[:K]

    benchmark.pedantic(scan, rounds=3, warmup_rounds=1)
    note(benchmark, 1)


@pytest.mark.parametrize("n_queries", [1, 64])
def test_faiss_flat(benchmark: Any, index: VectorIndex, n_queries: int) -> None:
    benchmark.group = f"{n_queries} at a time, euclidean"
    flat = faiss.IndexFlatL2(DIM)
    flat.add(index.vectors_NF)
    queries = index.vectors_NF[1_000 : 1_000 + n_queries]
    benchmark.pedantic(lambda: flat.search(queries, K), rounds=7, warmup_rounds=1)
    note(benchmark, n_queries)


@pytest.mark.parametrize("metric", ["chi2", "cosine"])
def test_inverted_file(benchmark: Any, index: VectorIndex, metric: Metric) -> None:
    benchmark.group = f"1 at a time, {metric}"
    fast = IvfIndex.of(index, metric)
    query = index.vectors_NF[1_000:1_001]
    benchmark.pedantic(lambda: fast.nearest(query, K), rounds=50, warmup_rounds=1)
    benchmark.extra_info["recall"] = round(fast.recall, 4)
    note(benchmark, 1)


def test_building_an_inverted_file(benchmark: Any, index: VectorIndex) -> None:
    benchmark.group = "build"
    benchmark.pedantic(lambda: IvfIndex.of(index, "chi2"), rounds=1)
