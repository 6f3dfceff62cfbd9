"""Features that tell classes apart beat chance, and queries are no answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
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
