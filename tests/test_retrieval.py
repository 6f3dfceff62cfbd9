"""Neighbors and their scores against plain scans."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bigearth_cube import layout
from bigearth_cube.cli import main
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.retrieval import (
    Metric,
    Origin,
    VectorIndex,
    distances,
    evaluate,
    neighbors,
)
from bigearth_cube.retrieval import index as retrieval_index
from bigearth_cube.retrieval.distances import pairwise
from bigearth_cube.retrieval.ivf import IvfIndex

METRICS: tuple[Metric, ...] = get_args(Metric)
ORIGIN = Origin("cube", "1", "model", "digest")


@pytest.fixture(scope="module")
def embedded(cube_url: str, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """The cube with embeddings of two models; one of them with negative features."""
    url = tmp_path_factory.mktemp("embedded") / "cube"
    shutil.copytree(cube_url, url)
    cube = open_cube(str(url))
    rng = np.random.default_rng(0)
    vectors = np.full((cube.n_rows, 16), np.nan, np.float32)
    vectors[cube.rows] = np.maximum(rng.normal(size=(600, 16)), 0)
    cube.write_embeddings("relu", vectors)
    open_cube(str(url)).write_embeddings("signed", vectors - 1)
    return open_cube(str(url))


def scan(
    vectors_NF: NDArray[np.float32], query_F: NDArray[np.float32], metric: Metric
) -> list[float]:
    """The distances, a vector and a feature at a time."""
    found = []
    for vector_F in vectors_NF.astype(float):
        x, y = vector_F, query_F.astype(float)
        if metric == "chi2":
            found.append(sum((a - b) ** 2 / (a + b) for a, b in zip(x, y, strict=True) if a + b))
        elif metric == "euclidean":
            found.append(float(np.sqrt(((x - y) ** 2).sum())))
        elif metric == "hamming":
            found.append(float(sum((a > 0) != (b > 0) for a, b in zip(x, y, strict=True))))
        else:
            norms = np.sqrt((x**2).sum() * (y**2).sum())
            found.append(1 - (x * y).sum() / norms if norms else 1.0)
    return found


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_those_of_their_formula(metric: Metric) -> None:
    vectors = np.maximum(np.random.default_rng(0).normal(size=(40, 7)), 0).astype(np.float32)
    vectors[3] = 0
    for query in (vectors[0], vectors[3]):
        np.testing.assert_allclose(
            distances(vectors, query, metric), scan(vectors, query, metric), atol=1e-12
        )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("spread", ["clusters", "ties", "uniform", "one outlier"])
def test_the_index_finds_exactly_what_a_plain_scan_finds(metric: Metric, spread: str) -> None:
    rng = np.random.default_rng(1)
    n, dim = 20_000, 24  # several blocks for every thread
    if spread == "clusters":
        centers = rng.gamma(0.5, 1, (50, dim))
        vectors = np.maximum(centers[rng.integers(0, 50, n)] + rng.normal(0, 0.05, (n, dim)), 0)
    elif spread == "ties":
        vectors = rng.integers(0, 2, (n, dim)) * rng.integers(0, 2, (n, 1))
    else:
        vectors = rng.random((n, dim))
    if spread == "one outlier":
        vectors[7] = 1e9
    index = VectorIndex(vectors.astype(np.float32), np.arange(n) * 3 + 1, ORIGIN)
    queries = index.vectors_NF[[0, 7, 19_999]] + np.float32(0.001)
    among = index.rows_N[rng.random(n) < 0.1]
    for chosen in (None, among):
        found = index.nearest(queries, 12, metric=metric, among=chosen)
        for query, query_F in enumerate(queries):
            true = pairwise(index.vectors_NF, query_F[None], metric)
            allowed = (
                np.arange(n) if chosen is None else np.flatnonzero(np.isin(index.rows_N, among))
            )
            order = allowed[np.lexsort((allowed, true[allowed]))[:12]]
            np.testing.assert_array_equal(found.rows_QK[query], index.rows_N[order])
            scores = distances(index.vectors_NF[order], query_F, metric)
            np.testing.assert_array_equal(found.distances_QK[query], scores)


@given(st.integers(0, 10_000), st.sampled_from(METRICS), st.integers(1, 9), st.integers(0, 6))
def test_many_queries_are_answered_as_one_at_a_time(
    seed: int, metric: Metric, k: int, n: int
) -> None:
    vectors = np.random.default_rng(seed).random((n, 3), np.float32)
    index = VectorIndex(vectors, np.arange(n), ORIGIN)
    queries = np.random.default_rng(seed + 1).random((4, 3), np.float32)
    together = index.nearest(queries, k, metric=metric)
    assert together.rows_QK.shape == (4, k)
    for query, query_F in enumerate(queries):
        alone = index.nearest(query_F, k, metric=metric)
        np.testing.assert_array_equal(alone.rows_QK[0], together.rows_QK[query])
        assert (alone.rows_QK[0] >= 0).sum() == min(k, n)
        assert np.isfinite(alone.distances_QK[0]).sum() == min(k, n)


def test_neighbors_are_those_of_a_plain_scan(embedded: Cube) -> None:
    vectors = embedded.embeddings("relu")
    ids = embedded.items["id"].to_pylist()
    ranked = sorted(
        (score, row)
        for row, score in enumerate(scan(vectors[:600], vectors[30], "chi2"))
        if row != 30
    )
    found = neighbors(embedded, ids[30], model="relu", k=7)
    assert [n.row for n in found] == [row for _, row in ranked[:7]]
    assert [n.id for n in found] == [ids[row] for _, row in ranked[:7]]
    np.testing.assert_allclose([n.score for n in found], [score for score, _ in ranked[:7]])


def test_a_query_is_never_its_own_neighbor_even_among_its_doubles(
    cube_url: str, tmp_path: Path
) -> None:
    shutil.copytree(cube_url, tmp_path / "cube")
    cube = open_cube(str(tmp_path / "cube"))
    vectors = np.full((cube.n_rows, 4), np.nan, np.float32)
    vectors[cube.rows] = 1
    cube.write_embeddings("same", vectors)
    cube = open_cube(str(tmp_path / "cube"))
    for place in (0, 30, 599):
        found = neighbors(cube, cube.items["id"][place].as_py(), k=5)
        assert len(found) == 5
        assert cube.items["bec:row"][place].as_py() not in [n.row for n in found]


def test_a_filter_applies_inside_the_search(embedded: Cube) -> None:
    patch_id = embedded.items["id"][0].as_py()
    train = embedded.search(split="train")
    found = neighbors(embedded, patch_id, model="relu", k=9, among=train)
    every = neighbors(embedded, patch_id, model="relu", k=599)
    assert found == [n for n in every if n.row in set(train.rows.tolist())][:9]
    assert len(neighbors(embedded, patch_id, model="relu", among=embedded.search(ids=[]))) == 0


def test_the_model_is_needed_where_there_are_several(embedded: Cube, cube: Cube) -> None:
    patch_id = embedded.items["id"][0].as_py()
    with pytest.raises(InvalidInputError, match="several models; choose one of: relu, signed"):
        neighbors(embedded, patch_id)
    with pytest.raises(NotFoundError, match=r"no embeddings in cube .*; write them with"):
        neighbors(cube, patch_id)


@pytest.fixture(scope="module")
def spaces(embedded: Cube, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """The cube with embeddings of two sensors of one space, and others of another space."""
    url = tmp_path_factory.mktemp("spaces") / "cube"
    shutil.copytree(embedded.storage.url, url)
    rng = np.random.default_rng(1)
    for name, space in (("net-s2", "aa" * 32), ("net-s1", "aa" * 32), ("other-s1", "bb" * 32)):
        cube = open_cube(str(url))
        vectors = np.full((cube.n_rows, 16), np.nan, np.float32)
        vectors[cube.rows] = np.maximum(rng.normal(size=(600, 16)), 0)
        if name == "net-s1":
            vectors[cube.rows[7]] = np.nan  # a patch without this view
        cube.write_embeddings(name, vectors, {"space": space})
    return open_cube(str(url))


@pytest.mark.parametrize("metric", METRICS)
def test_queries_of_one_sensor_find_what_a_plain_scan_of_the_other_finds(
    spaces: Cube, metric: Metric
) -> None:
    asked, found_NF = spaces.embeddings("net-s1"), spaces.embeddings("net-s2")
    ids = dict(
        zip(spaces.items["bec:row"].to_pylist(), spaces.items["id"].to_pylist(), strict=True)
    )
    row = int(spaces.rows[11])
    far = dict(
        zip(spaces.rows.tolist(), scan(found_NF[spaces.rows], asked[row], metric), strict=True)
    )
    del far[row]  # its own view of the other sensor is no look-alike
    found = neighbors(spaces, ids[row], model="net-s2", query_model="net-s1", k=9, metric=metric)
    assert [n.row for n in found] == sorted(far, key=lambda r: (round(far[r], 12), r))[:9]
    index = VectorIndex.of(spaces, "net-s2")
    same = neighbors(spaces, ids[row], query_model="net-s1", k=9, metric=metric, index=index)
    assert same == found
    itself = neighbors(spaces, ids[row], model="net-s2", query_model="net-s2", k=9, metric=metric)
    assert itself == neighbors(spaces, ids[row], model="net-s2", k=9, metric=metric)
    assert itself != found


def test_models_of_different_spaces_or_of_none_are_not_compared(
    spaces: Cube, capsys: pytest.CaptureFixture[str]
) -> None:
    patch_id = spaces.items["id"][0].as_py()
    refused = {
        "other-s1": r"'other-s1' \(space bbbbbbbbbbbb\) and 'net-s2' \(space aaaaaaaaaaaa\) are of "
        r"different spaces: .*; choose two that one checkpoint gave",
        "relu": "embeddings 'relu' do not say of which space they are.*; write them again",
    }
    for query_model, said in refused.items():
        with pytest.raises(InvalidInputError, match=said):
            neighbors(spaces, patch_id, model="net-s2", query_model=query_model)
    with pytest.raises(NotFoundError, match="no embeddings 'none' in cube"):
        neighbors(spaces, patch_id, model="net-s2", query_model="none")
    with pytest.raises(InvalidInputError, match="choose one of: net-s1, net-s2, other-s1, relu"):
        neighbors(spaces, patch_id, query_model="net-s1")
    without = spaces.items["id"].to_pylist()[
        spaces.items["bec:row"].to_pylist().index(int(spaces.rows[7]))
    ]
    with pytest.raises(NotFoundError, match="has no embedding of model 'net-s1'"):
        neighbors(spaces, without, model="net-s2", query_model="net-s1")
    assert len(neighbors(spaces, without, model="net-s2")) == 10
    ask = ["similar", spaces.storage.url, "--patch", patch_id, "--model", "net-s2", "--json"]
    main([*ask, "--query-model", "net-s1"])
    found = json.loads(capsys.readouterr().out)
    expected = neighbors(spaces, patch_id, model="net-s2", query_model="net-s1")
    assert [n["id"] for n in found] == [n.id for n in expected]
    with pytest.raises(SystemExit) as ended:
        main([*ask, "--query-model", "other-s1"])
    assert ended.value.code == 2
    assert "are of different spaces" in capsys.readouterr().err


def test_vectors_written_anew_are_not_asked_by_those_of_another_checkpoint(
    spaces: Cube, tmp_path: Path
) -> None:
    shutil.copytree(spaces.storage.url, tmp_path / "cube")
    before = open_cube(str(tmp_path / "cube"))
    patch_id, index = before.items["id"][0].as_py(), VectorIndex.of(before, "net-s2")
    neighbors(before, patch_id, query_model="net-s1", index=index)
    for name in ("net-s2", "net-s1"):
        cube = open_cube(before.url)
        cube.write_embeddings(name, 2 * cube.embeddings(name), {"space": "cc" * 32})
    for cube in (before, open_cube(before.url)):
        with pytest.raises(InvalidInputError, match="'net-s2' were written anew since"):
            neighbors(cube, patch_id, query_model="net-s1", index=index)
        assert neighbors(cube, patch_id, index=index)


def test_fast_search_is_refused_of_queries_that_its_recall_is_not_of(
    spaces: Cube, capsys: pytest.CaptureFixture[str]
) -> None:
    patch_id = spaces.items["id"][0].as_py()
    ask = ["similar", spaces.storage.url, "--patch", patch_id, "--model", "net-s2", "--fast"]
    with pytest.raises(SystemExit) as ended:
        main([*ask, "--query-model", "net-s1"])
    assert ended.value.code == 2
    assert "recall measured on queries of 'net-s2', not of 'net-s1'" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [slice(0, 10, 2), slice(None, None, -1)])
def test_vectors_of_every_other_row_are_refused(spaces: Cube, rows: slice) -> None:
    with pytest.raises(InvalidInputError, match="have a step"):
        spaces.embeddings("net-s2", rows)


@pytest.mark.parametrize("rows", [slice(-3, None), slice(5, 5), slice(7, 3), slice(2, 10**9)])
def test_vectors_of_rows_are_those_of_a_numpy_slice(spaces: Cube, rows: slice) -> None:
    whole = spaces.embeddings("net-s2")
    np.testing.assert_array_equal(spaces.embeddings("net-s2", rows), whole[rows])


def test_of_a_slice_of_the_vectors_only_its_chunks_are_read(
    spaces: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MODEL_CHUNK_ROWS", 100)
    shutil.copytree(spaces.storage.url, tmp_path / "cube")
    cube = open_cube(str(tmp_path / "cube"))
    vectors = np.random.default_rng(0).random((cube.n_rows, 3), np.float32)
    cube.write_embeddings("chunked", vectors)
    cube, read = open_cube(cube.storage.url), []
    storage_read = cube.storage.read

    def noted(key: str) -> bytes:
        read.append(key.rpartition("/c/")[2])
        return storage_read(key)

    monkeypatch.setattr(cube.storage, "read", noted)
    for rows, chunks in (
        (slice(250, 251), ["2/0"]),
        (slice(199, 201), ["1/0", "2/0"]),
        (slice(100, 200), ["1/0"]),
        (slice(None), [f"{n}/0" for n in range(-(-cube.n_rows // 100))]),
    ):
        np.testing.assert_array_equal(cube.embeddings("chunked", rows), vectors[rows])
        assert sorted(read, key=lambda key: int(key[:-2])) == chunks
        read.clear()


def test_chi2_refuses_negative_features_and_cosine_takes_them(embedded: Cube) -> None:
    patch_id = embedded.items["id"][0].as_py()
    with pytest.raises(InvalidInputError, match="take metric 'cosine'"):
        neighbors(embedded, patch_id, model="signed")
    found = neighbors(embedded, patch_id, model="signed", metric="cosine", k=3)
    assert [n.score for n in found] == sorted(n.score for n in found)


@given(st.integers(0, 99))
def test_a_vector_is_at_distance_zero_from_itself_and_distance_is_symmetric(seed: int) -> None:
    a, b = np.random.default_rng(seed).random((2, 5), np.float32)
    for metric in METRICS:
        assert abs(distances(a[None], a, metric)[0]) < 1e-6
        there = distances(a[None], b, metric)
        np.testing.assert_allclose(there, distances(b[None], a, metric), atol=1e-7)


def test_what_cannot_be_asked_is_refused(embedded: Cube) -> None:
    patch_id = embedded.items["id"][0].as_py()
    with pytest.raises(NotFoundError, match="no patch 'nope'"):
        neighbors(embedded, "nope", model="relu")
    with pytest.raises(NotFoundError, match="it has: relu, signed"):
        neighbors(embedded, patch_id, model="other")
    for k in (0, 1_000_000):
        with pytest.raises(InvalidInputError, match=f"k is {k}, expected 1 to 10,000"):
            neighbors(embedded, patch_id, model="relu", k=k)
    with pytest.raises(InvalidInputError, match="unknown metric 'l3'"):
        neighbors(embedded, patch_id, model="relu", metric="l3")  # type: ignore[arg-type]
    assert len(neighbors(embedded, patch_id, model="relu", k=5_000)) == 599
    index = VectorIndex.of(embedded, "relu")
    with pytest.raises(InvalidInputError, match=r"queries are \(3,\), expected \(q, 16\)"):
        index.nearest(np.zeros(3, np.float32))
    with pytest.raises(InvalidInputError, match="a feature is not finite"):
        index.nearest(np.full(16, np.nan, np.float32))
    with pytest.raises(NotFoundError, match="row 600 has no embedding"):
        index.vector_of(600)


@pytest.mark.parametrize("kind", ["all", "cells"])
def test_the_largest_k_gives_as_many_and_never_the_query(
    embedded: Cube, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    patch_id = embedded.items["id"][7].as_py()
    exact = VectorIndex.of(embedded, "relu")
    index = exact if kind == "all" else IvfIndex.of(exact, recall=1)
    nearest = neighbors(embedded, patch_id, k=100, index=exact)[:20]
    monkeypatch.setattr(retrieval_index, "MAX_K", 20)
    assert neighbors(embedded, patch_id, k=20, index=index) == nearest
    assert patch_id not in {neighbor.id for neighbor in nearest}
    for k in (0, 21):
        with pytest.raises(InvalidInputError, match=f"k is {k}, expected 1 to 20"):
            neighbors(embedded, patch_id, k=k, index=index)


def test_an_index_of_other_vectors_is_refused(
    embedded: Cube, cube_url: str, tmp_path: Path
) -> None:
    index = VectorIndex.of(embedded, "relu")
    index.save(tmp_path / "index")
    patch_id = embedded.items["id"][5].as_py()
    kept = VectorIndex.load(tmp_path / "index", embedded, "relu")
    assert isinstance(kept.vectors_NF, np.memmap)
    assert neighbors(embedded, patch_id, index=kept) == neighbors(embedded, patch_id, index=index)
    with pytest.raises(InvalidInputError, match="model 'relu', expected 'signed'"):
        VectorIndex.load(tmp_path / "index", embedded, "signed")
    # The same model embedded again gives other vectors under the same name.
    shutil.copytree(cube_url, tmp_path / "again")
    again = open_cube(str(tmp_path / "again"))
    vectors = np.full((again.n_rows, 16), np.nan, np.float32)
    vectors[again.rows] = 2
    again.write_embeddings("relu", vectors)
    with pytest.raises(
        InvalidInputError, match=r"is of other vectors: digest '\w+', expected '\w+'"
    ):
        VectorIndex.load(tmp_path / "index", open_cube(str(tmp_path / "again")), "relu")
    with pytest.raises(NotFoundError, match="no index in"):
        VectorIndex.load(tmp_path / "nothing", embedded, "relu")
    (tmp_path / "index" / "index.json").write_text("[]")
    with pytest.raises(InvalidInputError, match=r"none that VectorIndex\.save wrote"):
        VectorIndex.load(tmp_path / "index", embedded, "relu")
    other = VectorIndex(index.vectors_NF, index.rows_N, Origin("else", "1", "relu", ""))
    with pytest.raises(InvalidInputError, match="the index is of release '1' of 'else'"):
        neighbors(embedded, patch_id, index=other)


@pytest.mark.parametrize("metric", ["chi2", "cosine", "euclidean"])
def test_an_inverted_file_keeps_the_recall_it_states(metric: Metric, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    latent = rng.normal(size=(8, 32))
    vectors = np.maximum(rng.normal(size=(8_000, 8)) @ latent, 0).astype(np.float32)
    exact = VectorIndex(vectors, np.arange(8_000) + 5, ORIGIN)
    fast = IvfIndex.of(exact, metric)
    assert fast.recall >= 0.98
    queries = vectors[rng.choice(8_000, 200, replace=False)]
    true, found = exact.nearest(queries, metric=metric), fast.nearest(queries)
    reached = [np.isin(t, f).mean() for t, f in zip(true.rows_QK, found.rows_QK, strict=True)]
    assert np.mean(reached) > 0.95
    same = true.rows_QK == found.rows_QK
    np.testing.assert_array_equal(true.distances_QK[same], found.distances_QK[same])
    again = IvfIndex.of(exact, metric).nearest(queries)
    np.testing.assert_array_equal(again.rows_QK, found.rows_QK)
    for share in (2, 100):  # the rarer are looked for in all vectors
        among = exact.rows_N[exact.rows_N % share == 0]
        true, found = (i.nearest(queries, metric=metric, among=among) for i in (exact, fast))
        assert set(found.rows_QK.ravel() % share) == {0}
        reached = [np.isin(t, f).mean() for t, f in zip(true.rows_QK, found.rows_QK, strict=True)]
        assert np.mean(reached) > 0.95


def test_an_inverted_file_is_kept_and_refuses_other_metrics(embedded: Cube, tmp_path: Path) -> None:
    exact = VectorIndex.of(embedded, "relu")
    fast = IvfIndex.of(exact, "cosine")
    fast.save(tmp_path)
    kept = IvfIndex.load(tmp_path, embedded, "cosine", "relu")
    queries = exact.vectors_NF[:20]
    np.testing.assert_array_equal(kept.nearest(queries).rows_QK, fast.nearest(queries).rows_QK)
    assert (kept.recall, kept.n_probed) == (fast.recall, fast.n_probed)
    with pytest.raises(NotFoundError, match="no cells for metric 'chi2'"):
        IvfIndex.load(tmp_path, embedded, "chi2", "relu")
    with pytest.raises(InvalidInputError, match="answers metric 'cosine', not 'chi2'"):
        kept.nearest(queries, metric="chi2")
    with pytest.raises(InvalidInputError, match="no inverted file for metric 'hamming'"):
        IvfIndex.of(exact, "hamming")


def plain_scores(
    query: NDArray[np.uint8], answers: list[int], labels: NDArray[np.uint8], candidates: list[int]
) -> dict[str, float]:
    """The scores of one query, word by word."""
    shared = [int((query & labels[a]).sum()) if a >= 0 else 0 for a in answers]
    precision = [
        s / labels[a].sum() if a >= 0 and labels[a].any() else 0.0
        for s, a in zip(shared, answers, strict=True)
    ]
    recall = [s / query.sum() for s in shared]

    def f(beta: float) -> float:
        pairs = zip(precision, recall, strict=True)
        return float(
            np.mean([(1 + beta**2) * p * r / (beta**2 * p + r) if p + r else 0 for p, r in pairs])
        )

    right = [rank for rank, s in enumerate(shared, 1) if s]
    hits = [sum(1 for s in shared[:rank] if s) / rank for rank in right]
    gains = [sum(shared[:rank]) / rank for rank in right]
    best = sorted((int((query & labels[c]).sum()) for c in candidates), reverse=True)[
        : len(answers)
    ]

    def dcg(values: list[int]) -> float:
        return sum((2**s - 1) / np.log2(rank + 1) for rank, s in enumerate(values, 1))

    return {
        "precision": float(np.mean(precision)),
        "recall": float(np.mean(recall)),
        "f1": f(1),
        "f2": f(2),
        "map": float(np.mean(hits)) if hits else 0.0,
        "ndcg": dcg(shared) / dcg(best) if dcg(best) else 0.0,
        "acg": float(np.mean(shared)),
        "wap": float(np.mean(gains)) if gains else 0.0,
    }


@given(st.integers(0, 10_000))
def test_scores_are_the_means_of_their_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random((12, 4)) < 0.4).astype(np.uint8)
    queries = (rng.random((3, 4)) < 0.4).astype(np.uint8)
    queries[0, 0] = 1
    candidates = np.flatnonzero(rng.random(12) < 0.8)
    answers = np.stack([rng.permutation(np.r_[candidates, -1, -1, -1])[:3] for _ in queries])
    scores = evaluate(queries, answers, labels, candidates=candidates)
    asked = [q for q in range(3) if queries[q].any()]
    plain = [
        plain_scores(queries[q], answers[q].tolist(), labels, candidates.tolist()) for q in asked
    ]
    assert scores.n_queries == len(asked)
    assert scores.k == 3
    for name in plain[0]:
        assert getattr(scores, name) == pytest.approx(np.mean([p[name] for p in plain])), name


def test_the_best_ranking_scores_one_and_unlabeled_queries_are_refused() -> None:
    labels = np.array(list(itertools.product((0, 1), repeat=3))[1:], np.uint8)
    query = np.ones((1, 3), np.uint8)
    best = np.argsort(-labels.sum(1), kind="stable")[None]
    scores = evaluate(query, best[:, :5], labels)
    assert scores.ndcg == scores.map == scores.precision == 1
    with pytest.raises(InvalidInputError, match="no query has a label"):
        evaluate(np.zeros((1, 3), np.uint8), best, labels)
    with pytest.raises(InvalidInputError, match="query labels are"):
        evaluate(query, best[0], labels)


def test_the_command_filters_keeps_an_index_and_draws(
    embedded: Cube, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, patch_id = embedded.storage.url, embedded.items["id"][0].as_py()
    ask = ["similar", url, "--patch", patch_id, "--model", "relu", "-k", "4", "--json"]
    answers = []
    for more in ([], ["--index", str(tmp_path / "i")], ["--index", str(tmp_path / "i")]):
        main([*ask, "--split", "train", "--plot", str(tmp_path / "alike.png"), *more])
        answers.append(json.loads(capsys.readouterr().out))
    expected = neighbors(
        embedded, patch_id, model="relu", k=4, among=embedded.search(split="train")
    )
    assert answers == [[{"id": n.id, "row": n.row, "score": n.score} for n in expected]] * 3
    assert (tmp_path / "alike.png").read_bytes().startswith(b"\x89PNG")
    main([*ask[:-1], "--fast", "--metric", "cosine", "--index", str(tmp_path / "i")])
    assert re.search(r"recall@10 (0\.9[89]|1\.0)", capsys.readouterr().out)
    with pytest.raises(SystemExit) as ended:
        main([*ask[:4], "--model", "signed", "--index", str(tmp_path / "i")])
    assert ended.value.code == 2
    assert "the index in" in capsys.readouterr().err
