"""Features that tell classes apart beat chance, and queries are no answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.retrieval import distances, evaluate
from bigearth_cube.search import Selection
from training.cli import main
from training.retrieve import as_text, retrieval_rows


@pytest.fixture(scope="module")
def embedded(learnable_url: str, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """The learnable cube with embeddings that are the labels themselves."""
    url = tmp_path_factory.mktemp("retrieve") / "cube"
    shutil.copytree(learnable_url, url)
    cube = open_cube(str(url))
    vectors = np.full((cube.n_rows, 19), np.nan, np.float32)
    vectors[cube.rows] = cube.labels("label_19")
    cube.write_embeddings("oracle", vectors)
    return open_cube(str(url))


def test_labels_and_spectra_that_show_them_beat_chance(embedded: Cube) -> None:
    train, test = embedded.search(split="train"), embedded.search(split="test")
    chance, bands, oracle = retrieval_rows(embedded, queries=test, answers=train, k=3)
    assert (chance.features, bands.features, oracle.features) == (
        "random features",
        "band statistics",
        "oracle",
    )
    # Every class of this cube has its own spectrum, so band statistics know it too.
    assert min(oracle.scores.ndcg, bands.scores.ndcg) > 0.95
    assert chance.scores.ndcg < 0.6
    assert chance.scores.precision < 0.7 * min(oracle.scores.precision, bands.scores.precision)
    text = as_text([chance, bands, oracle])
    assert len({len(line) for line in text.splitlines()}) == 1


@pytest.fixture(scope="module")
def two_sensors(paired_url: str, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """The cube of pairs with embeddings of two sensors: labels, and labels with some noise."""
    url = tmp_path_factory.mktemp("sensors") / "cube"
    shutil.copytree(paired_url, url)
    cube = open_cube(str(url))
    there = cube.rows[cube.column("s1/r10m/present")[cube.rows]]
    vectors = np.full((cube.n_rows, 19), np.nan, np.float32)
    vectors[there] = cube.labels("label_19", there)
    noise = np.random.default_rng(0).random(vectors.shape).astype(np.float32)
    for name, values, groups in (
        ("oracle-s2", vectors, ["s2/r10m", "s2/r20m", "s2/r60m"]),
        ("oracle-s1", vectors + noise / 4, ["s1/r10m"]),
        ("other-s1", vectors, ["s1/r10m"]),
    ):
        about = {"space": name[:-3], "groups": groups}
        open_cube(str(url)).write_embeddings(name, values, about)
    return open_cube(str(url))


def halves(cube: Cube) -> tuple[Selection, Selection]:
    """Queries and answers with both views."""
    ids = cube.search().ids.filter(cube.column("s1/r10m/present")[cube.search().rows].tolist())
    return cube.search(ids=ids[::2].to_pylist()), cube.search(ids=ids[1::2].to_pylist())


def test_sensors_are_searched_each_way_and_alone_beside_their_baselines(two_sensors: Cube) -> None:
    asks, found = halves(two_sensors)
    names = {"model": "oracle-s2", "query_model": "oracle-s1"}
    rows = retrieval_rows(two_sensors, queries=asks, answers=found, k=3, **names)
    assert [row.features for row in rows] == [
        "random features",
        "band statistics, S1 to S2",
        "band statistics, S2 to S1",
        "band statistics, S2",
        "band statistics, S1",
        "oracle-s1 to oracle-s2",
        "oracle-s2 to oracle-s1",
        "oracle-s2",
        "oracle-s1",
    ]
    scores = {row.features: row.scores.ndcg for row in rows}
    assert scores["oracle-s2"] > 0.95  # labels find their like
    assert min(scores[row.features] for row in rows[5:]) > 1.3 * scores["random features"]
    # Each is what a plain scan of the two models' vectors gives.
    vectors = [two_sensors.embeddings(name) for name in ("oracle-s1", "oracle-s2")]
    order = [
        np.argsort(distances(vectors[1][found.rows], vectors[0][row]), kind="stable")[:3]
        for row in asks.rows
    ]
    labels = [two_sensors.labels("label_19", s.rows) for s in (asks, found)]
    assert rows[5].scores == evaluate(labels[0], np.array(order), labels[1])


def test_band_statistics_of_another_sensor_are_mapped_by_ridge_regression(
    two_sensors: Cube,
) -> None:
    asks, found = halves(two_sensors)
    names = {"model": "oracle-s2", "query_model": "oracle-s1"}
    rows = retrieval_rows(two_sensors, queries=asks, answers=found, k=3, **names)
    of_sensor = {}
    for group in ("s1/r10m", "s2/r10m", "s2/r20m", "s2/r60m"):
        variable = "backscatter" if group == "s1/r10m" else "reflectance"
        for side, chosen in (("asks", asks), ("found", found)):
            at = np.searchsorted(two_sensors.rows, chosen.rows)
            pixels = two_sensors.tree[group][variable].isel(patch=at).values.astype(np.float64)
            of_sensor[group, side] = (pixels.mean((2, 3)), pixels.std((2, 3), ddof=1))

    def table(groups: tuple[str, ...], side: str) -> np.ndarray:
        of_groups = [of_sensor[group, side] for group in groups]
        return np.hstack([m for m, _ in of_groups] + [s for _, s in of_groups])

    s1, s2 = ("s1/r10m",), ("s2/r10m", "s2/r20m", "s2/r60m")
    scale = {g: (table(g, "found").mean(0), table(g, "found").std(0)) for g in (s1, s2)}
    x, y, asked = (
        (table(g, side) - scale[g][0]) / scale[g][1]
        for g, side in ((s1, "found"), (s2, "found"), (s1, "asks"))
    )
    # In closed form, the intercept by centered columns (these are).
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
    order = [np.argsort(((y - q) ** 2).sum(1), kind="stable")[:3] for q in asked @ weights]
    labels = [two_sensors.labels("label_19", s.rows) for s in (asks, found)]
    expected = evaluate(labels[0], np.array(order), labels[1])
    assert rows[1].features == "band statistics, S1 to S2"
    assert rows[1].scores.map == pytest.approx(expected.map, abs=0.02)


def test_sensors_of_different_spaces_or_without_a_view_are_refused(two_sensors: Cube) -> None:
    asks, found = halves(two_sensors)
    with pytest.raises(InvalidInputError, match="are of different spaces"):
        retrieval_rows(
            two_sensors, queries=asks, answers=found, model="oracle-s2", query_model="other-s1"
        )
    every = two_sensors.search(split="train"), two_sensors.search(split="test")
    lacking = sum((~two_sensors.column("s1/r10m/present")[s.rows]).sum() for s in every)
    assert lacking
    with pytest.raises(
        InvalidInputError, match=r"no embedding of model.*give selections of patches"
    ):
        retrieval_rows(
            two_sensors,
            queries=every[0],
            answers=every[1],
            model="oracle-s2",
            query_model="oracle-s1",
        )


def test_queries_must_not_be_answers(embedded: Cube) -> None:
    train = embedded.search(split="train")
    with pytest.raises(InvalidInputError, match="48 patches are queries and answers"):
        retrieval_rows(embedded, queries=train, answers=embedded.search())
    with pytest.raises(InvalidInputError, match="the selection of answers is empty"):
        retrieval_rows(embedded, queries=train, answers=embedded.search(ids=[]))


def test_the_command_prints_the_table(
    embedded: Cube, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedded.search(split="validation").save(str(tmp_path / "queries.parquet"))
    chosen = ["--queries-selection", str(tmp_path / "queries.parquet"), "-k", "2"]
    main(["retrieve", embedded.storage.url, *chosen, "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["n_queries"] for row in rows] == [24, 24, 24]
    main(["retrieve", embedded.storage.url, *chosen])
    printed = capsys.readouterr().out
    assert "| oracle " in printed
    assert "24 queries, 2 answers each" in printed
