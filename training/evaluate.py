"""Measure a checkpoint on some rows of a cube, in one pass over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.search import Selection
from bigearth_cube.storage import Storage, StorageOptions, normalized_url
from training.breakdown import Breakdown
from training.checkpoint import Checkpoint
from training.data import Engine, default_device, evaluation_loader
from training.metrics import MultiLabelMetrics, ThresholdSearch, averaging
from training.models import Network
from training.predict import Predictions, ScoredBatch, gathered, scored_batches
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
    origin
        Recipe, commit, seed and selection that the checkpoint was trained with, and the digest of the
        selection that was measured.
    breakdown
        Key to value to metrics, as ``Breakdown.compute`` gives them.
    """

    row: ResultRow
    threshold: float
    per_class: Mapping[str, Mapping[str, float]]
    predictions: Predictions
    origin: Mapping[str, Any] = field(default_factory=dict)
    breakdown: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All figures, but not the predictions, as plain values."""
        return {
            "model": self.row.model,
            "data": self.row.data,
            **self.origin,
            "n_patches": len(self.predictions.rows),
            "threshold": self.threshold,
            "loss": self.predictions.loss,
            "metrics": dict(self.row.metrics),
            "averaging": {name: averaging(name) for name in self.row.metrics},
            "per_class": {name: dict(values) for name, values in self.per_class.items()},
            "breakdown": {
                key: {value: dict(metrics) for value, metrics in values.items()}
                for key, values in self.breakdown.items()
            },
        }


def evaluate(
    cube: Cube,
    checkpoint: Checkpoint,
    selection: Selection,
    *,
    data: str | None = None,
    threshold: float | None = None,
    tune_on: Selection | None = None,
    by: Sequence[str] = (),
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
    tune_on
        Rows to choose the threshold on, instead; none of those that are measured.
    by
        Break the metrics down by these: ``"country"``, ``"season"``, ``"tile"``, ``"purity"``.
    engine
        ``"threads"``, or a Dask client to load with.
    device
        The first GPU where there is one, else the CPU.

    Raises
    ------
    InvalidInputError
        If the cube has other classes or statistics than the checkpoint; the selection is
        empty, has rows without labels, or shares rows with ``tune_on``; both ways to a threshold
        are given; or a breakdown is unknown, or by purity of a cube without reference maps.
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
    chosen = "given" if threshold is not None else "the checkpoint's"
    if tune_on is not None:
        if threshold is not None:
            raise InvalidInputError("a threshold is given and one is to be tuned; choose one way")
        _refuse_shared(tune_on, selection)
        search = ThresholdSearch()
        for batch in _scored(cube, tune_on, checkpoint, network, (), engine, device):
            search.update(batch.scores_BC, batch.labels_BC)
        threshold, chosen = search.best()[0], f"tuned on {len(tune_on)} patches"
    threshold = checkpoint.threshold if threshold is None else threshold

    metrics = MultiLabelMetrics(len(checkpoint.class_names), threshold)
    breakdown = Breakdown(cube, by, config.labels, threshold)

    def measured() -> Iterator[ScoredBatch]:
        for batch in _scored(
            cube, selection, checkpoint, network, breakdown.groups, engine, device
        ):
            metrics.update(batch.scores_BC, batch.labels_BC)
            breakdown.update(batch)
            yield batch

    predictions = gathered(measured())
    columns = {**metrics.per_class(), "ap": metrics.average_precision_C()}
    per_class = {
        name: {column: float(values[c]) for column, values in columns.items()}
        for c, name in enumerate(checkpoint.class_names)
    }
    row = ResultRow.measured(
        config.recipe,
        data or f"{cube.id} {cube.release.name}: {len(selection)} patches",
        metrics.compute(),
        f"epoch {checkpoint.epoch}, threshold {threshold:.2f} ({chosen})",
    )
    origin = {
        "recipe": config.recipe,
        "commit": checkpoint.commit,
        "seed": config.seed,
        "trained_on": checkpoint.selection,
        "selection": selection.digest,
    }
    return Evaluation(row, threshold, per_class, predictions, origin, breakdown.compute())


def store_predictions(
    cube: Cube, checkpoint: Checkpoint, predictions: Predictions, *, name: str | None = None
) -> None:
    """Write scores into the cube, as ``predictions/<name>/score``.

    Rows that the same weights scored before keep their scores, so splits may come one by one.

    Parameters
    ----------
    cube
        Where the patches are and the scores go.
    checkpoint
        Whose scores.
    predictions
        Of some rows.
    name
        That of the recipe where it is None.

    Raises
    ------
    InvalidInputError
        If the name is malformed, the cube has a newer release, or another writer holds it.
    StorageError
        If storage refuses or cannot be reached.
    """
    name = name or checkpoint.config.recipe
    about = {**about_checkpoint(checkpoint), "threshold": checkpoint.threshold}
    scores = np.full((cube.n_rows, len(checkpoint.class_names)), np.nan, np.float32)
    if name in cube.predicted:
        before = cube.documents[f"predictions/{name}"]["attributes"]
        if before.get("weights") == about["weights"]:
            scores = cube.predictions(name)
    scores[predictions.rows] = predictions.scores_NC
    cube.write_predictions(name, scores, checkpoint.config.labels, about)


def save_predictions(
    cube: Cube,
    checkpoint: Checkpoint,
    predictions: Predictions,
    url: str,
    storage_options: StorageOptions | None = None,
) -> None:
    """Write scores beside the cube: one parquet file, a row a patch, a column a class.

    Parameters
    ----------
    cube, checkpoint, predictions
        As in `store_predictions`.
    url
        Path or URL of the file.
    storage_options
        As for a cube.

    Raises
    ------
    StorageError
        If storage refuses or cannot be reached.
    """
    chosen = Selection.of(cube.index, predictions.rows, cube_id=cube.id, release=cube.release.name)
    columns: dict[str, Any] = {"id": chosen.ids, "bec:row": predictions.rows}
    columns |= dict(zip(checkpoint.class_names, predictions.scores_NC.T.copy(), strict=True))
    table = pa.table(columns).replace_schema_metadata(
        {
            name: str(value)
            for name, value in about_checkpoint(checkpoint).items()
            if value is not None
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    folder, _, key = normalized_url(url).rpartition("/")
    Storage(folder or "/", storage_options).write(key, sink.getvalue().to_pybytes())


def about_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Say of what a model was made, to stand beside what it says of patches."""
    return {
        "recipe": checkpoint.config.recipe,
        "commit": checkpoint.commit,
        "seed": checkpoint.config.seed,
        "trained_on": checkpoint.cube_id,
        "selection": checkpoint.selection,
        "epoch": checkpoint.epoch,
        "weights": checkpoint.weights_digest,
    }


def _scored(
    cube: Cube,
    selection: Selection,
    checkpoint: Checkpoint,
    network: Network,
    more_groups: tuple[str, ...],
    engine: Engine,
    device: torch.device,
) -> Iterator[ScoredBatch]:
    config = checkpoint.config
    groups = (*network.groups, *more_groups)
    with evaluation_loader(cube, selection, groups, config.labels, engine) as loader:
        yield from scored_batches(network, loader, config.precision, device)


def _refuse_shared(tune_on: Selection, selection: Selection) -> None:
    shared = np.intersect1d(tune_on.rows, selection.rows)
    if len(shared):
        raise InvalidInputError(
            f"{len(shared)} patches would choose the threshold that they are measured with; "
            f"tune it on others"
        )
