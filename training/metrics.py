"""Multi-label metrics as BigEarthNet's papers report them, gathered batch by batch.

Definitions equal scikit-learn's, degenerate input included (``zero_division=0``). Memory does not
grow with the number of patches, but for average precision, which needs every score; the best
threshold is found in a stream too.

Axes: B row of a batch, N row of everything seen, C class, T threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigearth_cube.errors import InvalidInputError

Floats = NDArray[np.float64]

BETAS: Final = {"f1": 1.0, "f2": 2.0, "f0.5": 0.5}
AVERAGES: Final = ("sample", "micro", "macro")
THRESHOLDS: Final = tuple(i / 100 for i in range(5, 96))
_BLOCK_ROWS: Final = 2048  # pairs of classes are compared for so many rows at once


class MultiLabelMetrics:
    """Precision, recall and F by sample, micro and macro average, and ranking metrics.

    Parameters
    ----------
    n_classes
        Length of the class axis.
    threshold
        A class is predicted where its score is at least this.
    keep_scores
        Whether scores are kept for average precision, which is left out otherwise.

    Raises
    ------
    InvalidInputError
        If there is no class.

    Examples
    --------
    >>> metrics = MultiLabelMetrics(3)
    >>> metrics.update(np.array([[0.9, 0.6, 0.1]]), np.array([[1, 0, 0]]))
    >>> metrics.compute()["sample_precision"], metrics.compute()["sample_recall"]
    (0.5, 1.0)
    """

    def __init__(self, n_classes: int, threshold: float = 0.5, *, keep_scores: bool = True) -> None:
        if n_classes < 1:
            raise InvalidInputError(f"metrics over {n_classes} classes; expected at least 1")
        self.threshold = threshold
        self.keeps_scores = keep_scores
        self.n_rows = 0
        self._sums: dict[str, float] = {}
        self._true_positives_C = np.zeros(n_classes)
        self._predicted_C = np.zeros(n_classes)
        self._relevant_C = np.zeros(n_classes)
        self._scores_BC: list[NDArray[np.float32]] = []
        self._labels_BC: list[NDArray[np.bool_]] = []

    def update(self, scores_BC: NDArray[np.floating], labels_BC: NDArray[np.generic]) -> None:
        """Add a batch.

        Parameters
        ----------
        scores_BC
            Score of each class, higher is likelier.
        labels_BC
            True where the class is present; bool, or 0 and 1.

        Raises
        ------
        InvalidInputError
            If shapes disagree or a score is not a number.
        """
        expected = (len(scores_BC), len(self._relevant_C))
        if scores_BC.shape != expected or labels_BC.shape != expected:
            raise InvalidInputError(
                f"scores {scores_BC.shape} and labels {labels_BC.shape}; expected {expected}"
            )
        if not np.isfinite(scores_BC).all():
            raise InvalidInputError("a score is not a finite number")
        scores_BC, hot_BC = scores_BC.astype(np.float32), labels_BC.astype(bool)
        if self.keeps_scores:
            self._scores_BC.append(scores_BC)
            self._labels_BC.append(hot_BC)
        for start in range(0, len(scores_BC), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            self._add(scores_BC[block], hot_BC[block])

    def _add(self, scores_BC: NDArray[np.float32], labels_BC: NDArray[np.bool_]) -> None:
        self.n_rows += len(scores_BC)
        predicted_BC = scores_BC >= self.threshold
        hits_BC = predicted_BC & labels_BC
        self._true_positives_C += hits_BC.sum(0)
        self._predicted_C += predicted_BC.sum(0)
        self._relevant_C += labels_BC.sum(0)

        for name, values in self._by_sample(predicted_BC, labels_BC, hits_BC):
            self._sums[name] = self._sums.get(name, 0.0) + float(values.sum())
        for name, values in _by_rank(scores_BC, labels_BC):
            self._sums[name] = self._sums.get(name, 0.0) + float(values.sum())

    @staticmethod
    def _by_sample(
        predicted_BC: NDArray[np.bool_], labels_BC: NDArray[np.bool_], hits_BC: NDArray[np.bool_]
    ) -> Iterator[tuple[str, Floats]]:
        """Name and one value a sample."""
        for name, values in _precision_recall_f(
            hits_BC.sum(1), predicted_BC.sum(1), labels_BC.sum(1)
        ):
            yield f"sample_{name}", values
        yield "sample_accuracy", _ratio(hits_BC.sum(1), (predicted_BC | labels_BC).sum(1))
        yield "subset_accuracy", (predicted_BC == labels_BC).all(1).astype(np.float64)
        yield "hamming_loss", (predicted_BC != labels_BC).mean(1)

    def compute(self) -> dict[str, float]:
        """Every metric of what was added, each named with its averaging.

        Returns
        -------
        dict
            ``{sample,micro,macro}_{precision,recall,f1,f2,f0.5}``, ``sample_accuracy`` (Jaccard),
            ``subset_accuracy``, ``hamming_loss``, ``one_error``, ``coverage``, ``ranking_loss``,
            ``lrap``, ``ap_macro`` and ``ap_micro`` (where scores are kept); `averaging` says how
            each is averaged. A ratio without denominator is 0, as is the
            average precision of a class that no sample has, as in scikit-learn; torchmetrics leaves
            such a class out of the average.

        Raises
        ------
        InvalidInputError
            If nothing was added.
        """
        if not self.n_rows:
            raise InvalidInputError("no patch to evaluate; the selection is empty")
        values = {name: total / self.n_rows for name, total in self._sums.items()}
        counts = self._true_positives_C, self._predicted_C, self._relevant_C
        for name, value in _precision_recall_f(*(c.sum() for c in counts)):
            values[f"micro_{name}"] = float(value)
        for name, value_C in _precision_recall_f(*counts):
            values[f"macro_{name}"] = float(value_C.mean())
        if not self.keeps_scores:
            return values
        scores_NC, labels_NC = np.concatenate(self._scores_BC), np.concatenate(self._labels_BC)
        values["ap_macro"] = float(np.mean(self.average_precision_C()))
        values["ap_micro"] = average_precision(scores_NC.ravel(), labels_NC.ravel())
        return values

    def average_precision_C(self) -> Floats:
        """Average precision of each class; scores must be kept."""
        scores_NC, labels_NC = np.concatenate(self._scores_BC), np.concatenate(self._labels_BC)
        return np.array(
            [average_precision(s, y) for s, y in zip(scores_NC.T, labels_NC.T, strict=True)]
        )

    def per_class(self) -> dict[str, Floats]:
        """``precision``, ``recall``, ``f1``, ``f2``, ``f0.5`` and ``n`` (patches) of each class."""
        counts = self._true_positives_C, self._predicted_C, self._relevant_C
        return {**dict(_precision_recall_f(*counts)), "n": self._relevant_C.copy()}


def _ratio(part: ArrayLike, whole: ArrayLike) -> Floats:
    """Divide; 0 where the denominator is 0."""
    denominator = np.asarray(whole, np.float64)
    return np.divide(part, denominator, out=np.zeros_like(denominator), where=denominator > 0)


def _precision_recall_f(
    true_positives: ArrayLike, predicted: ArrayLike, relevant: ArrayLike
) -> Iterator[tuple[str, Floats]]:
    """Precision, recall and the F's of counts of any shape, each with its name."""
    yield "precision", _ratio(true_positives, predicted)
    yield "recall", _ratio(true_positives, relevant)
    for name, beta in BETAS.items():
        # (1 + b^2) P R / (b^2 P + R), multiplied out so that only one denominator can be 0
        weighted = beta**2 * np.asarray(relevant, np.float64) + np.asarray(predicted, np.float64)
        yield name, _ratio((1 + beta**2) * np.asarray(true_positives, np.float64), weighted)


def _by_rank(
    scores_BC: NDArray[np.float32], labels_BC: NDArray[np.bool_]
) -> Iterator[tuple[str, Floats]]:
    """Name and one value a sample of the metrics that need no threshold; ties count against."""
    n_classes = scores_BC.shape[1]
    n_relevant = labels_BC.sum(1)
    top = labels_BC[np.arange(len(labels_BC)), scores_BC.argmax(1)]
    yield "one_error", 1.0 - top

    # at_least[b, c, d]: class d scores at least as high as class c
    at_least_BCC = scores_BC[:, None, :] >= scores_BC[:, :, None]
    rank_BC = at_least_BCC.sum(2)
    relevant_rank_BC = (at_least_BCC & labels_BC[:, None, :]).sum(2)
    yield "coverage", np.where(labels_BC, rank_BC, 0).max(1).astype(np.float64)

    irrelevant_above_BC = np.where(labels_BC, rank_BC - relevant_rank_BC, 0)
    pairs = n_relevant * (n_classes - n_relevant)
    yield "ranking_loss", _ratio(irrelevant_above_BC.sum(1), pairs)

    precision_BC = np.where(labels_BC, relevant_rank_BC / rank_BC, 0.0)
    lrap = _ratio(precision_BC.sum(1), n_relevant)
    yield "lrap", np.where((n_relevant == 0) | (n_relevant == n_classes), 1.0, lrap)


def average_precision(scores_N: NDArray[np.floating], labels_N: NDArray[np.bool_]) -> float:
    """Area under precision against recall, as steps at the distinct scores; 0 without positives.

    Examples
    --------
    >>> average_precision(np.array([0.9, 0.8, 0.1]), np.array([True, False, True])) == (1 + 2/3) / 2
    True
    """
    n_positive = int(labels_N.sum())
    if not n_positive:
        return 0.0
    order = np.argsort(-scores_N, kind="stable")
    hits = np.cumsum(labels_N[order])
    last_of_tie = np.append(np.diff(scores_N[order]) != 0, True)
    hits, ranks = hits[last_of_tie], np.flatnonzero(last_of_tie) + 1
    return float(np.sum(np.diff(hits, prepend=0) * (hits / ranks)) / n_positive)


class ThresholdSearch:
    """Find the one threshold over all classes with the highest sample-averaged F1, in a stream.

    One number rather than one a class: rare classes have too few validation patches to choose
    by, and a single number is what a reader can apply to published scores.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self._f1_T = np.zeros(len(THRESHOLDS))

    def update(self, scores_BC: NDArray[np.floating], labels_BC: NDArray[np.generic]) -> None:
        """Add a batch.

        Parameters
        ----------
        scores_BC
            Scores in 0..1.
        labels_BC
            True, or 1, where the class is present.
        """
        self.n_rows += len(scores_BC)
        for i, threshold in enumerate(THRESHOLDS):
            self._f1_T[i] += _f1_of_rows(scores_BC >= threshold, labels_BC).sum()

    def best(self) -> tuple[float, float]:
        """Return the threshold, of the hundredths from .05 to .95 the lowest among equals; its F1.

        Raises
        ------
        InvalidInputError
            If there is no row.
        """
        if not self.n_rows:
            raise InvalidInputError("no patch to choose a threshold on; the selection is empty")
        best = int(np.argmax(self._f1_T))
        return THRESHOLDS[best], float(self._f1_T[best] / self.n_rows)


def best_threshold(
    scores_NC: NDArray[np.floating], labels_NC: NDArray[np.generic]
) -> tuple[float, float]:
    """Find the threshold of scores that are at hand; see `ThresholdSearch`.

    Raises
    ------
    InvalidInputError
        If there is no row.
    """
    search = ThresholdSearch()
    search.update(scores_NC, labels_NC)
    return search.best()


def sample_f1(predicted_NC: NDArray[np.bool_], labels_NC: NDArray[np.generic]) -> float:
    """F1 of each patch, averaged; 0 for a patch with neither labels nor predictions."""
    return float(_f1_of_rows(predicted_NC, labels_NC).mean())


def _f1_of_rows(predicted_NC: NDArray[np.bool_], labels_NC: NDArray[np.generic]) -> Floats:
    true_NC = labels_NC.astype(bool)
    hits = (predicted_NC & true_NC).sum(1)
    return _ratio(2 * hits, predicted_NC.sum(1) + true_NC.sum(1))


def averaging(metric: str) -> str:
    """Say how a metric of `MultiLabelMetrics.compute` is averaged.

    Examples
    --------
    >>> averaging("micro_f2"), averaging("ap_macro"), averaging("one_error")
    ('micro', 'macro', 'sample')
    """
    named = [average for average in AVERAGES if average in metric.split("_")]
    return named[0] if named else "sample"
