"""What a score must beat: the most frequent classes, and a regression that sees no texture.

Axes: N row, B band, C class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from bigearth_cube.cube import Cube
from bigearth_cube.nomenclature import S2_GROUPS
from bigearth_cube.search import Selection
from training.data import Engine, evaluation_loader
from training.metrics import MultiLabelMetrics, best_threshold, sample_f1
from training.results import ResultRow

_S2 = tuple(group.path for group in S2_GROUPS)


@dataclass(frozen=True, slots=True)
class BandTable:
    """Patches without their texture: two numbers a band.

    Attributes
    ----------
    means_NB, stds_NB
        Of all pixels of a band, DN (dB of Sentinel-1), group by group.
    labels_NC
        uint8, 0 or 1.
    """

    means_NB: NDArray[np.float32]
    stds_NB: NDArray[np.float32]
    labels_NC: NDArray[np.uint8]


def band_table(
    cube: Cube,
    selection: Selection,
    labels: str,
    engine: Engine = "threads",
    groups: tuple[str, ...] = _S2,
) -> BandTable:
    """Read patches and reduce each band of each to its mean and standard deviation.

    Raises
    ------
    InvalidInputError
        If the selection is empty or has rows without those labels or without a view asked for.
    """
    means, stds, truth = [], [], []
    with evaluation_loader(cube, selection, groups, labels, engine) as loader:
        for batch in loader.epoch(0):
            pairs = [
                torch.std_mean(torch.from_numpy(batch.images[path]).float(), dim=(2, 3))
                for path in groups
            ]
            stds.append(torch.cat([std for std, _ in pairs], 1).numpy())
            means.append(torch.cat([mean for _, mean in pairs], 1).numpy())
            assert batch.labels is not None
            truth.append(batch.labels.copy())
    return BandTable(np.concatenate(means), np.concatenate(stds), np.concatenate(truth))


def baseline_rows(
    train: BandTable, validation: BandTable, test: BandTable, data: str
) -> list[ResultRow]:
    """Fit the baselines on train, choose on validation, measure on test.

    Parameters
    ----------
    train, validation, test
        Patches of each split.
    data
        What ``test`` is, for the table.

    Returns
    -------
    list of ResultRow
        Most frequent classes (their number chosen on validation), and logistic regressions on
        per-band means and on means and standard deviations (one threshold, chosen on
        validation).
    """
    return [
        most_frequent(train.labels_NC, validation.labels_NC, test.labels_NC, data),
        _regression("logistic regression, band means", train, validation, test, data, stds=False),
        _regression(
            "logistic regression, means and deviations", train, validation, test, data, stds=True
        ),
    ]


def most_frequent(
    train_NC: NDArray[np.uint8],
    validation_NC: NDArray[np.uint8],
    test_NC: NDArray[np.uint8],
    data: str,
) -> ResultRow:
    """Predict the k most frequent training classes for every patch, k chosen on validation."""
    n_classes = train_NC.shape[1]
    order = np.argsort(-train_NC.sum(0, dtype=np.int64), kind="stable")

    def guess(k: int, n: int) -> NDArray[np.bool_]:
        return np.broadcast_to(np.isin(np.arange(n_classes), order[:k]), (n, n_classes))

    scores = [
        sample_f1(guess(k, len(validation_NC)), validation_NC) for k in range(1, n_classes + 1)
    ]
    best_k = int(np.argmax(scores)) + 1
    metrics = MultiLabelMetrics(n_classes)
    metrics.update(guess(best_k, len(test_NC)).astype(np.float32), test_NC)
    plural = "class" if best_k == 1 else "classes"
    return ResultRow.measured(
        f"most frequent {best_k} {plural}",
        data,
        metrics.compute(),
        "number of classes chosen on validation",
    )


def _regression(
    name: str,
    train: BandTable,
    validation: BandTable,
    test: BandTable,
    data: str,
    *,
    stds: bool,
) -> ResultRow:
    def inputs(table: BandTable) -> NDArray[np.float32]:
        return np.concatenate([table.means_NB, table.stds_NB], 1) if stds else table.means_NB

    center, spread = inputs(train).mean(0), inputs(train).std(0) + 1e-6
    scaled = [(inputs(table) - center) / spread for table in (train, validation, test)]
    n_classes = train.labels_NC.shape[1]
    validation_NC = np.empty((len(scaled[1]), n_classes))
    test_NC = np.empty((len(scaled[2]), n_classes))
    for c in range(n_classes):
        truth = train.labels_NC[:, c]
        if truth.min() == truth.max():  # nothing to tell apart
            validation_NC[:, c] = test_NC[:, c] = truth[0]
            continue
        model = LogisticRegression(max_iter=2000).fit(scaled[0], truth)
        validation_NC[:, c] = model.predict_proba(scaled[1])[:, 1]
        test_NC[:, c] = model.predict_proba(scaled[2])[:, 1]
    threshold, _ = best_threshold(validation_NC, validation.labels_NC)
    metrics = MultiLabelMetrics(n_classes, threshold)
    metrics.update(test_NC, test.labels_NC)
    return ResultRow.measured(
        name, data, metrics.compute(), f"threshold {threshold:.2f}, chosen on validation"
    )
