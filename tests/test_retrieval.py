"""Neighbors against a plain scan."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.retrieval import distances, neighbors


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


def test_neighbors_are_those_of_a_plain_scan(embedded: Cube) -> None:
    vectors = embedded.embeddings("relu").astype(float)
    ids = embedded.items["id"].to_pylist()
    query = vectors[30]
    scan = []
    for row in range(600):
        if row == 30:
            continue
        total = vectors[row] + query
        kept = total > 0
        score = ((vectors[row] - query)[kept] ** 2 / total[kept]).sum()
        scan.append((score, row))
    expected = sorted(scan)[:7]
    found = neighbors(embedded, ids[30], model="relu", k=7)
    assert [n.row for n in found] == [row for _, row in expected]
    assert [n.id for n in found] == [ids[row] for _, row in expected]
    np.testing.assert_allclose([n.score for n in found], [s for s, _ in expected])


def test_chi2_refuses_negative_features_and_cosine_takes_them(embedded: Cube) -> None:
    patch_id = embedded.items["id"][0].as_py()
    with pytest.raises(InvalidInputError, match="take metric 'cosine'"):
        neighbors(embedded, patch_id, model="signed")
    found = neighbors(embedded, patch_id, model="signed", metric="cosine", k=3)
    assert [n.score for n in found] == sorted(n.score for n in found)


@given(st.integers(0, 99))
def test_a_vector_is_at_distance_zero_from_itself_and_distance_is_symmetric(seed: int) -> None:
    a, b = np.random.default_rng(seed).random((2, 5), np.float32)
    for metric in ("chi2", "cosine"):
        assert abs(distances(a[None], a, metric)[0]) < 1e-6  # type: ignore[arg-type]
        there = distances(a[None], b, metric)  # type: ignore[arg-type]
        np.testing.assert_allclose(there, distances(b[None], a, metric), atol=1e-7)  # type: ignore[arg-type]


def test_what_cannot_be_asked_is_refused(embedded: Cube) -> None:
    patch_id = embedded.items["id"][0].as_py()
    with pytest.raises(NotFoundError, match="no patch 'nope'"):
        neighbors(embedded, "nope", model="relu")
    with pytest.raises(NotFoundError, match="it has: relu, signed"):
        neighbors(embedded, patch_id, model="other")
    with pytest.raises(InvalidInputError, match="k is 0"):
        neighbors(embedded, patch_id, model="relu", k=0)
    with pytest.raises(InvalidInputError, match="unknown metric 'l3'"):
        neighbors(embedded, patch_id, model="relu", metric="l3")  # type: ignore[arg-type]
    assert len(neighbors(embedded, patch_id, model="relu", k=5_000)) == 599
