"""Evaluation, baselines, the result table and embeddings on a cube that can be learned."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from rich.progress import Progress, TaskID
from sklearn.metrics import f1_score

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.retrieval import neighbors
from training import breakdown
from training.baselines import BandTable, band_table, baseline_rows, most_frequent
from training.checkpoint import Checkpoint, load
from training.embed import embed
from training.evaluate import evaluate, save_predictions, store_predictions
from training.metrics import best_threshold
from training.provenance import commit
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
    assert result.origin["commit"] == commit()
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


def test_a_breakdown_is_the_metrics_of_each_group_alone(
    learnable: Cube, checkpoint: Checkpoint
) -> None:
    everything = learnable.search()
    result = evaluate(learnable, checkpoint, everything, by=("season", "tile"))
    predictions = result.predictions
    for key in ("season", "tile"):
        values = learnable.column(key)[predictions.rows]
        assert sum(m["n"] for m in result.breakdown[key].values()) == len(everything)
        for value, metrics in result.breakdown[key].items():
            of_group = values == value
            expected = f1_score(
                predictions.labels_NC[of_group],
                predictions.scores_NC[of_group] >= result.threshold,
                average="samples",
                zero_division=0,
            )
            assert metrics["sample_f1"] == pytest.approx(expected)
    assert "| season" in breakdown.as_text(result.breakdown)
    assert json.loads(json.dumps(result.to_dict()))["breakdown"] == result.breakdown


def test_purity_is_the_share_of_mapped_pixels_of_the_most_frequent_class() -> None:
    codes_BYX = torch.tensor(
        [
            [[111, 112], [112, 312]],  # urban fabric thrice among the 19, twice among the 43
            [[999, 131], [211, 211]],  # 131 has no class of the 19
            [[999, 999], [999, 999]],
        ],
        dtype=torch.uint16,
    )
    by_labels = {
        labels: breakdown.purity_of(codes_BYX, torch.from_numpy(breakdown.classes_of_codes(labels)))
        for labels in ("label_19", "label_43")
    }
    np.testing.assert_allclose(by_labels["label_19"], [3 / 4, 1, np.nan])
    np.testing.assert_allclose(by_labels["label_43"], [2 / 4, 2 / 3, np.nan])


def test_patches_are_grouped_by_the_purity_of_their_reference_map(
    paired: Cube, checkpoint: Checkpoint
) -> None:
    result = evaluate(paired, checkpoint, paired.search(), by=("purity",))
    clc_NYX = paired.tree["reference/r10m"]["clc"].values
    of_three = [np.bincount(np.searchsorted((111, 312, 523), c[c != 999])).max() for c in clc_NYX]
    share = np.array(of_three) / (clc_NYX != 999).sum(axis=(1, 2))
    assert (share < 0.5).all()
    assert {value: m["n"] for value, m in result.breakdown["purity"].items()} == {"below 50 %": 60}


def test_a_breakdown_that_cannot_be_made_is_refused(
    learnable: Cube, checkpoint: Checkpoint
) -> None:
    test = learnable.search(split="test")
    with pytest.raises(InvalidInputError, match="by 'place'; choose from: country, season, tile"):
        evaluate(learnable, checkpoint, test, by=("place",))
    with pytest.raises(InvalidInputError, match="no group 'reference/r10m' here"):
        evaluate(learnable, checkpoint, test, by=("purity",))


def test_a_threshold_tuned_on_validation_is_the_best_one_there(
    learnable: Cube, checkpoint: Checkpoint
) -> None:
    validation, test = learnable.search(split="validation"), learnable.search(split="test")
    there = evaluate(learnable, checkpoint, validation).predictions
    result = evaluate(learnable, checkpoint, test, tune_on=validation)
    assert result.threshold == best_threshold(there.scores_NC, there.labels_NC)[0]
    assert f"tuned on {len(validation)} patches" in result.row.source
    with pytest.raises(InvalidInputError, match="24 patches would choose the threshold"):
        evaluate(learnable, checkpoint, test, tune_on=test)
    with pytest.raises(InvalidInputError, match="choose one way"):
        evaluate(learnable, checkpoint, test, tune_on=validation, threshold=0.2)


def test_predictions_stand_in_the_cube_split_by_split_and_beside_it(
    learnable_url: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    parts = []
    for split in ("validation", "test"):
        cube = open_cube(learnable_url)
        parts.append(evaluate(cube, checkpoint, cube.search(split=split)).predictions)
        store_predictions(cube, checkpoint, parts[-1], name="net")
    cube = open_cube(learnable_url)
    stored = cube.predictions("net")
    for part in parts:
        np.testing.assert_array_equal(stored[part.rows], part.scores_NC)
    assert np.isnan(stored).all(axis=1).sum() == cube.n_rows - 48
    attributes = cube.tree["predictions/net"].attrs
    assert attributes["selection"] == checkpoint.selection
    assert (attributes["recipe"], attributes["seed"]) == ("tb-cnn-small", 42)

    # Of other weights nothing is kept.
    other = {name: values + 1 for name, values in checkpoint.model.items()}
    store_predictions(cube, replace(checkpoint, model=other), parts[-1], name="net")
    scored = ~np.isnan(open_cube(learnable_url).predictions("net")[:, 0])
    np.testing.assert_array_equal(np.flatnonzero(scored), parts[-1].rows)

    save_predictions(cube, checkpoint, parts[0], str(tmp_path / "scores.parquet"))
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table["id"].to_pylist() == cube.search(split="validation").ids.to_pylist()
    assert table.column_names == ["id", "bec:row", *cube.class_names("label_19")]
    np.testing.assert_array_equal(table["Pastures"].to_numpy(), parts[0].scores_NC[:, 4])


class Stopping(Progress):
    """Progress that stops whoever tells it of more rows than that."""

    def __init__(self, n_rows: int) -> None:
        super().__init__(disable=True)
        self.n_left = n_rows

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        self.n_left -= int(advance)
        if self.n_left < 0:
            raise KeyboardInterrupt


def test_embeddings_of_all_patches_stand_in_the_cube_and_the_encoder_makes_them_without_torch(
    learnable_url: str, checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = str(shutil.copytree(learnable_url, tmp_path / "cube"))  # other tests share the cube
    cube = open_cube(url)
    parts = Path(url, "ingest/embeddings/test-net")
    with pytest.raises(KeyboardInterrupt):
        embed(cube, checkpoint, name="test-net", part_rows=40, progress=Stopping(64))
    assert len(list(parts.iterdir())) == 1  # 64 of 96 rows were computed: one part of 40 is whole
    with caplog.at_level(logging.INFO):
        (made,) = embed(cube, checkpoint, name="test-net", part_rows=40)
    assert "1 of 7 parts are there: going on" in caplog.text
    assert (made.name, made.n_patches, made.n_features) == ("test-net", 96, 128)
    cube = open_cube(url)
    vectors = cube.embeddings("test-net")
    assert vectors.shape == (cube.n_rows, 128)
    assert np.isnan(vectors[np.setdiff1d(np.arange(cube.n_rows), cube.rows)]).all()
    assert (vectors[cube.rows] >= 0).all()
    assert cube.tree["embeddings/test-net"].attrs["encoder"] == "embeddings/test-net/encoder.onnx"
    assert cube.storage.list("ingest/embeddings/test-net/") == []

    images = {
        path: cube.tree[path]["reflectance"].isel(patch=slice(0, 5)).values
        for path in ("s2/r10m", "s2/r20m", "s2/r60m")
    }
    with torch.inference_mode():
        tensors = {path: torch.from_numpy(dn) for path, dn in images.items()}
        by_torch = checkpoint.network().features(tensors).numpy()
    session = onnxruntime.InferenceSession(cube.encoder("test-net"))
    assert [(i.name, i.shape[1:], i.type) for i in session.get_inputs()] == [
        ("s2_r10m", [4, 120, 120], "tensor(uint16)"),
        ("s2_r20m", [6, 60, 60], "tensor(uint16)"),
        ("s2_r60m", [2, 20, 20], "tensor(uint16)"),
    ]
    for n in (5, 1):
        fed = {path.replace("/", "_"): dn[:n] for path, dn in images.items()}
        (by_onnx,) = session.run(["embedding"], fed)
        np.testing.assert_allclose(by_onnx, by_torch[:n], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(by_onnx, vectors[cube.rows[:n]], rtol=1e-4, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["bands"])["s2_r10m"] == ["B02", "B03", "B04", "B08"]
    assert (about["archive"], about["weights"]) == ("v2", checkpoint.weights_digest)

    patch_id = cube.items["id"][0].as_py()
    found = neighbors(cube, patch_id, model="test-net", k=3)
    assert len(found) == 3
    assert patch_id not in [neighbor.id for neighbor in found]


def test_a_part_that_is_damaged_or_of_other_weights_is_computed_again(
    learnable: Cube, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    def stopped_in(network: Checkpoint) -> bytes:
        """The first part, once it is there; before the encoder is exported."""
        with pytest.raises(KeyboardInterrupt):
            embed(learnable, network, out=str(tmp_path), part_rows=40, progress=Stopping(64))
        return (tmp_path / "part-000000000.parquet").read_bytes()

    sound = stopped_in(checkpoint)
    for damaged in (sound[:-9], sound[:600] + bytes([sound[600] ^ 4]) + sound[601:]):
        (tmp_path / "part-000000000.parquet").write_bytes(damaged)
        assert stopped_in(checkpoint) == sound
    other = {k: v * 2 if v.is_floating_point() else v for k, v in checkpoint.model.items()}
    assert stopped_in(replace(checkpoint, model=other)) != sound


def test_results_do_not_depend_on_where_torch_was_seeded(
    learnable: Cube, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    one = evaluate(learnable, checkpoint, learnable.search(split="test"))
    torch.manual_seed(2)
    other = evaluate(learnable, checkpoint, learnable.search(split="test"))
    np.testing.assert_array_equal(one.predictions.scores_NC, other.predictions.scores_NC)
