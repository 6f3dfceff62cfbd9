"""Measure a checkpoint on some rows of a cube."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.search import Selection
from training.checkpoint import Checkpoint
from training.data import Engine, default_device, evaluation_loader
from training.metrics import MultiLabelMetrics
from training.predict import Predictions, predict
from training.results import ResultRow


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a checkpoint scored.

    Attributes
    ----------
    row
        For a result table; its ``metrics`` hold every figure.
    threshold
        A class was predicted where its score is at least this.
    per_class
        Class name to precision, recall, F's, average precision and n, the patches that have it.
    predictions
        Scores and labels, row by row.
    """

    row: ResultRow
    threshold: float
    per_class: Mapping[str, Mapping[str, float]]
    predictions: Predictions

    def to_dict(self) -> dict[str, Any]:
        """All figures, but not the predictions, as plain values."""
        return {
            "model": self.row.model,
            "data": self.row.data,
            "n_patches": len(self.predictions.rows),
            "threshold": self.threshold,
            "loss": self.predictions.loss,
            "metrics": dict(self.row.metrics),
            "per_class": {name: dict(values) for name, values in self.per_class.items()},
        }


def evaluate(
    cube: Cube,
    checkpoint: Checkpoint,
    selection: Selection,
    *,
    data: str | None = None,
    threshold: float | None = None,
    engine: Engine = "threads",
    device: torch.device | None = None,
) -> Evaluation:
    """Score some rows and compare with their labels.

    Parameters
    ----------
    cube
        Where the patches are; of the archive that the checkpoint was trained on.
    checkpoint
        What to measure.
    selection
        Rows to measure it on.
    data
        What they are, for the table; the cube and the number of patches where it is None.
    threshold
        Instead of the checkpoint's own.
    engine
        ``"threads"``, or a Dask client to load with.
    device
        The first GPU where there is one, else the CPU.

    Raises
    ------
    InvalidInputError
        If the cube has other classes or statistics than the checkpoint, or the selection is
        empty or has rows without labels.
    """
    config = checkpoint.config
    if (cube.archive, cube.class_names(config.labels)) != (
        checkpoint.archive,
        checkpoint.class_names,
    ):
        raise InvalidInputError(
            f"the checkpoint was trained on an archive {checkpoint.archive} with "
            f"{len(checkpoint.class_names)} classes, this cube is {cube.archive}; "
            f"evaluate it on a cube of that archive"
        )
    device = device or default_device()
    network = checkpoint.network().to(device)
    threshold = checkpoint.threshold if threshold is None else threshold
    with evaluation_loader(cube, selection, network.groups, config.labels, engine) as loader:
        predictions = predict(network, loader, config.precision, device)
    metrics = MultiLabelMetrics(len(checkpoint.class_names), threshold)
    metrics.update(predictions.scores_NC, predictions.labels_NC)
    columns = {**metrics.per_class(), "ap": metrics.average_precision_C()}
    per_class = {
        name: {column: float(values[c]) for column, values in columns.items()}
        for c, name in enumerate(checkpoint.class_names)
    }
    row = ResultRow.measured(
        config.recipe,
        data or f"{cube.id} {cube.release.name}: {len(selection)} patches",
        metrics.compute(),
        f"epoch {checkpoint.epoch}, threshold {threshold:.2f}",
    )
    return Evaluation(row, threshold, per_class, predictions)
