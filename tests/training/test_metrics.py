"""Metrics against scikit-learn, on random and on degenerate input."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn import metrics as sk

from bigearth_cube.errors import InvalidInputError
from training.metrics import (
    AVERAGES,
    BETAS,
    THRESHOLDS,
    MultiLabelMetrics,
    ThresholdSearch,
    averaging,
    best_threshold,
    sample_f1,
)

Scores = NDArray[np.float32]
Labels = NDArray[np.uint8]


def measured(scores_NC: Scores, labels_NC: Labels, step: int = 7) -> dict[str, float]:
    metrics = MultiLabelMetrics(scores_NC.shape[1])
    for start in range(0, len(scores_NC), step):
        metrics.update(scores_NC[start : start + step], labels_NC[start : start + step])
    return metrics.compute()


def of_scikit_learn(scores_NC: Scores, labels_NC: Labels) -> dict[str, float]:
    predicted_NC = (scores_NC >= 0.5).astype(int)
    values = {}
    for average in AVERAGES:
        args = {"average": average.replace("sample", "samples"), "zero_division": 0}
        values[f"{average}_precision"] = sk.precision_score(labels_NC, predicted_NC, **args)
        values[f"{average}_recall"] = sk.recall_score(labels_NC, predicted_NC, **args)
        for name, beta in BETAS.items():
            values[f"{average}_{name}"] = sk.fbeta_score(labels_NC, predicted_NC, beta=beta, **args)
    values["sample_accuracy"] = sk.jaccard_score(
        labels_NC, predicted_NC, average="samples", zero_division=0
    )
    values["subset_accuracy"] = sk.accuracy_score(labels_NC, predicted_NC)
    values["hamming_loss"] = sk.hamming_loss(labels_NC, predicted_NC)
    values["coverage"] = sk.coverage_error(labels_NC, scores_NC)
    values["ranking_loss"] = sk.label_ranking_loss(labels_NC, scores_NC)
    values["lrap"] = sk.label_ranking_average_precision_score(labels_NC, scores_NC)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No positive class found")
        values["ap_macro"] = sk.average_precision_score(labels_NC, scores_NC, average="macro")
        values["ap_micro"] = sk.average_precision_score(labels_NC, scores_NC, average="micro")
    return values


def check(scores_NC: Scores, labels_NC: Labels) -> None:
    ours, theirs = measured(scores_NC, labels_NC), of_scikit_learn(scores_NC, labels_NC)
    assert set(ours) == {*theirs, "one_error"}
    assert {k: ours[k] for k in theirs} == pytest.approx(theirs, abs=1e-9)


@st.composite
def scored(draw: st.DrawFn) -> tuple[Scores, Labels]:
    shape = draw(st.tuples(st.integers(1, 12), st.integers(2, 5)))
    few = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])  # so that ties are common
    return (
        draw(hnp.arrays(np.float32, shape, elements=few)),
        draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 1))),
    )


@given(scored())
@settings(max_examples=150)
def test_every_metric_equals_scikit_learns_with_ties_and_empty_rows(
    scores_and_labels: tuple[Scores, Labels],
) -> None:
    check(*scores_and_labels)


@pytest.mark.parametrize("n_classes", [19, 43])
def test_every_metric_equals_scikit_learns_on_a_full_nomenclature(n_classes: int) -> None:
    rng = np.random.default_rng(0)
    scores_NC = rng.random((3000, n_classes), np.float32)
    check(scores_NC, (rng.random(scores_NC.shape) < scores_NC * 0.3).astype(np.uint8))


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("score", [0.0, 1.0])
def test_every_metric_equals_scikit_learns_where_all_labels_are_alike(
    value: int, score: float
) -> None:
    check(np.full((4, 3), score, np.float32), np.full((4, 3), value, np.uint8))


def test_one_class_alone_is_measured_by_threshold_and_by_precision() -> None:
    values = measured(np.array([[0.9], [0.2], [0.6]], np.float32), np.array([[1], [1], [0]]))
    assert values["micro_precision"] == 0.5
    assert values["micro_recall"] == 0.5
    assert values["ap_micro"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["lrap"] == 1


@given(scored(), st.integers(1, 5))
@settings(max_examples=50)
def test_batches_of_any_size_give_the_same_values(
    scores_and_labels: tuple[Scores, Labels], step: int
) -> None:
    assert measured(*scores_and_labels, step=step) == pytest.approx(
        measured(*scores_and_labels, step=100)
    )


def test_one_error_is_the_share_of_patches_whose_first_class_is_absent() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.3], [0.6, 0.5]], np.float32)
    assert measured(scores, np.array([[1, 0], [1, 0], [0, 0]]))["one_error"] == pytest.approx(2 / 3)


def test_sample_f1_lies_below_the_harmonic_mean_of_precision_and_recall() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random((500, 19), np.float32)
    values = measured(scores, (rng.random(scores.shape) < scores * 0.4).astype(np.uint8))
    p, r = values["sample_precision"], values["sample_recall"]
    assert values["sample_f1"] < 2 * p * r / (p + r)
    assert values["micro_f1"] == pytest.approx(
        2
        * values["micro_precision"]
        * values["micro_recall"]
        / (values["micro_precision"] + values["micro_recall"])
    )


def test_per_class_values_average_to_the_macro_ones() -> None:
    rng = np.random.default_rng(2)
    metrics = MultiLabelMetrics(6, threshold=0.3)
    metrics.update(rng.random((80, 6), np.float32), rng.integers(0, 2, (80, 6)))
    values, per_class = metrics.compute(), metrics.per_class()
    assert values["macro_f2"] == pytest.approx(per_class["f2"].mean())
    assert values["ap_macro"] == pytest.approx(metrics.average_precision_C().mean())
    assert per_class["n"].sum() == metrics._labels_BC[0].sum()


@given(scored())
@settings(max_examples=50)
def test_no_threshold_beats_the_best_one(scores_and_labels: tuple[Scores, Labels]) -> None:
    scores, labels = scores_and_labels
    threshold, f1 = best_threshold(scores, labels)
    assert f1 == sample_f1(scores >= threshold, labels)
    assert all(sample_f1(scores >= t, labels) <= f1 for t in THRESHOLDS)


@given(scored(), st.integers(1, 5))
@settings(max_examples=50)
def test_the_best_threshold_is_the_same_in_a_stream(
    scores_and_labels: tuple[Scores, Labels], step: int
) -> None:
    scores, labels = scores_and_labels
    search = ThresholdSearch()
    for start in range(0, len(scores), step):
        search.update(scores[start : start + step], labels[start : start + step])
    threshold, f1 = search.best()
    assert f1 == pytest.approx(best_threshold(scores, labels)[1])
    assert sample_f1(scores >= threshold, labels) == pytest.approx(f1)


def test_without_kept_scores_all_but_average_precision_is_the_same_in_fixed_memory() -> None:
    rng = np.random.default_rng(3)
    kept, not_kept = MultiLabelMetrics(6), MultiLabelMetrics(6, keep_scores=False)
    for _ in range(5):
        scores, labels = rng.random((40, 6), np.float32), rng.integers(0, 2, (40, 6))
        kept.update(scores, labels)
        not_kept.update(scores, labels)
    every = kept.compute()
    assert not_kept.compute() == {k: v for k, v in every.items() if not k.startswith("ap_")}
    assert not_kept._scores_BC == []


def test_every_metric_says_how_it_is_averaged() -> None:
    rng = np.random.default_rng(4)
    said: dict[str, set[str]] = {}
    for name in measured(rng.random((9, 4), np.float32), rng.integers(0, 2, (9, 4))):
        said.setdefault(averaging(name), set()).add(name)
    assert said["micro"] == {"ap_micro", *(f"micro_{m}" for m in ("precision", "recall", *BETAS))}
    assert said["macro"] == {"ap_macro", *(f"macro_{m}" for m in ("precision", "recall", *BETAS))}
    assert {"one_error", "coverage", "ranking_loss", "lrap", "hamming_loss"} < said["sample"]


def test_bad_input_is_refused() -> None:
    metrics = MultiLabelMetrics(3)
    with pytest.raises(InvalidInputError, match="empty"):
        metrics.compute()
    with pytest.raises(InvalidInputError, match="expected \\(2, 3\\)"):
        metrics.update(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(InvalidInputError, match="finite"):
        metrics.update(np.full((2, 3), np.nan), np.zeros((2, 3)))
    with pytest.raises(InvalidInputError, match="empty"):
        best_threshold(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(InvalidInputError, match="at least 1"):
        MultiLabelMetrics(0)
