"""Evaluation, baselines, the result table and embeddings on a cube that can be learned."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.retrieval import neighbors
from training.baselines import BandTable, band_table, baseline_rows, most_frequent
from training.checkpoint import Checkpoint, load
from training.embed import embed, features
from training.evaluate import evaluate
from training.recipes import recipe
from training.results import TALK_2019, ResultRow, as_text
from training.train import fit


@pytest.fixture(scope="module")
def checkpoint(learnable: Cube, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two epochs of training: enough to be better than nothing."""
    out = str(tmp_path_factory.mktemp("run"))
    config = recipe("tb-cnn-small", "label_19", batch_size=16, epochs=2, augment=False)
    fit(
        learnable,
        config,
        train=learnable.search(split="train"),
        validation=learnable.search(split="validation"),
        out=out,
    )
    return load(out)


@pytest.fixture(scope="module")
def tables(learnable: Cube) -> list[BandTable]:
    return [
        band_table(learnable, learnable.search(split=split), "label_19")
        for split in ("train", "validation", "test")
    ]


def test_an_evaluation_is_what_scikit_learn_says_of_its_predictions(
    learnable: Cube, checkpoint: Checkpoint
) -> None:
    test = learnable.search(split="test")
    result = evaluate(learnable, checkpoint, test)
    np.testing.assert_array_equal(result.predictions.rows, test.rows)
    labels_NC = learnable.labels("label_19", test.rows)
    np.testing.assert_array_equal(result.predictions.labels_NC, labels_NC)
    predicted = result.predictions.scores_NC >= checkpoint.threshold
    expected = f1_score(labels_NC, predicted, average="samples", zero_division=0)
    assert result.row.f1 == pytest.approx(expected)
    assert result.row.origin == "measured"
    figures = json.loads(json.dumps(result.to_dict()))
    assert figures["n_patches"] == len(test)
    assert figures["metrics"]["sample_f1"] == pytest.approx(expected)
    assert list(figures["per_class"]) == list(learnable.class_names("label_19"))
    assert sum(values["n"] for values in figures["per_class"].values()) == labels_NC.sum()


def test_a_threshold_can_be_given_instead_of_the_checkpoints_own(
    learnable: Cube, checkpoint: Checkpoint
) -> None:
    everything = evaluate(learnable, checkpoint, learnable.search(split="test"), threshold=0.0)
    assert everything.row.recall == 1.0


def test_evaluation_scores_a_patch_the_same_in_any_company(
    learnable: Cube, checkpoint: Checkpoint
) -> None:
    config = replace(checkpoint.config, precision="float32")
    plain = replace(checkpoint, config=config)
    test = learnable.search(split="test")
    alone = evaluate(learnable, plain, learnable.search(ids=[test.ids[3].as_py()]))
    together = evaluate(learnable, plain, test)
    np.testing.assert_allclose(
        alone.predictions.scores_NC[0], together.predictions.scores_NC[3], rtol=1e-4
    )


def test_a_checkpoint_of_another_archive_is_refused(
    learnable: Cube, checkpoint: Checkpoint
) -> None:
    other = replace(checkpoint, archive="v1")
    with pytest.raises(InvalidInputError, match="trained on an archive v1 with 19 classes"):
        evaluate(learnable, other, learnable.search(split="test"))
    with pytest.raises(InvalidInputError, match="normalizes as archive v1"):
        embed(learnable, other)


def test_a_band_table_holds_what_numpy_computes(learnable: Cube, tables: list[BandTable]) -> None:
    rows = learnable.search(split="train").rows
    expected_means, expected_stds = [], []
    for path in ("s2/r10m", "s2/r20m", "s2/r60m"):
        pixels = learnable.tree[path]["reflectance"].isel(patch=rows).values.astype(np.float64)
        expected_means.append(pixels.mean(axis=(2, 3)))
        expected_stds.append(pixels.std(axis=(2, 3), ddof=1))
    np.testing.assert_allclose(tables[0].means_NB, np.concatenate(expected_means, 1), rtol=1e-5)
    np.testing.assert_allclose(tables[0].stds_NB, np.concatenate(expected_stds, 1), rtol=1e-4)
    np.testing.assert_array_equal(tables[0].labels_NC, learnable.labels("label_19", rows))


def test_baselines_stand_in_order_and_regression_sees_the_spectra(tables: list[BandTable]) -> None:
    rows = baseline_rows(*tables, data="synthetic")
    assert [row.model.split(",")[0].split(" ")[0] for row in rows] == [
        "most",
        "logistic",
        "logistic",
    ]
    frequent, means, both = (row.f1 for row in rows)
    assert frequent is not None
    assert means is not None
    assert both is not None
    assert means > frequent + 0.1
    assert both > frequent + 0.1


def test_the_number_of_frequent_classes_is_chosen_on_validation() -> None:
    train = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], np.uint8)
    two_each = np.array([[1, 1, 0], [1, 1, 0]], np.uint8)
    one_each = np.array([[1, 0, 0]], np.uint8)
    assert most_frequent(train, two_each, one_each, "x").model == "most frequent 2 classes"
    row = most_frequent(train, one_each, two_each, "x")
    assert row.model == "most frequent 1 class"
    assert (row.precision, row.recall) == (1.0, 0.5)


def test_the_talks_rows_are_as_published_and_marked_so() -> None:
    by_name = {row.model: row for row in TALK_2019}
    assert (by_name["TB-CNN"].recall, by_name["TB-CNN"].f1, by_name["TB-CNN"].f2) == (
        0.7062,
        0.6519,
        0.6763,
    )
    assert all(row.origin == "published" for row in TALK_2019)
    assert all(row.data.startswith("real") for row in TALK_2019)
    assert all(row.precision is None for row in TALK_2019)


def test_the_text_table_is_aligned_and_a_row_is_plain_values() -> None:
    metrics = {f"sample_{n}": 0.5 for n in ("precision", "recall", "f1", "f2")}
    rows = [*TALK_2019, ResultRow.measured("ours", "synthetic: v2", metrics)]
    lines = as_text(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "measured" in lines[-1]
    assert ".500" in lines[-1]
    assert json.loads(json.dumps(rows[-1].to_dict()))["metrics"] == metrics


def test_embeddings_of_all_patches_stand_in_the_cube_and_find_the_patch_itself(
    learnable_url: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    url = str(shutil.copytree(learnable_url, tmp_path / "cube"))  # other tests share the cube
    cube = open_cube(url)
    vectors = embed(cube, checkpoint, name="test-net")
    assert vectors.shape == (cube.n_rows, 128)
    padding = np.setdiff1d(np.arange(cube.n_rows), cube.rows)
    assert np.isnan(vectors[padding]).all()
    assert (vectors[cube.rows] >= 0).all()
    stored = open_cube(url).embeddings("test-net")
    np.testing.assert_array_equal(stored, vectors)

    patch_id = cube.items["id"][0].as_py()
    found = neighbors(open_cube(url), patch_id, model="test-net", k=3)
    assert len(found) == 3
    assert patch_id not in [neighbor.id for neighbor in found]


def test_features_are_those_of_the_network(learnable: Cube, checkpoint: Checkpoint) -> None:
    plain = replace(checkpoint, config=replace(checkpoint.config, precision="float32"))
    cube_rows = learnable.rows[:5]
    images = {
        path: torch.from_numpy(learnable.tree[path]["reflectance"].isel(patch=slice(0, 5)).values)
        for path in ("s2/r10m", "s2/r20m", "s2/r60m")
    }
    with torch.inference_mode():
        expected = plain.network().features(images).numpy()
    found = features(learnable, plain, None)[cube_rows]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_results_do_not_depend_on_where_torch_was_seeded(
    learnable: Cube, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    one = evaluate(learnable, checkpoint, learnable.search(split="test"))
    torch.manual_seed(2)
    other = evaluate(learnable, checkpoint, learnable.search(split="test"))
    np.testing.assert_array_equal(one.predictions.scores_NC, other.predictions.scores_NC)
