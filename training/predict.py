"""Scores of a network for the rows of a cube; used by validation, evaluation and embedding.

Axes: B row of a batch, N row of everything seen, C class, F feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bigearth_cube.loader.batches import BatchLoader
from training.config import Precision
from training.data import autocast, tensor_batches
from training.feed import Feed
from training.metrics import best_threshold, sample_f1
from training.models import Network


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a network says about some rows.

    Attributes
    ----------
    rows
        Rows of the cube, increasing.
    scores_NC
        float32 in 0..1.
    labels_NC
        uint8, 0 or 1.
    loss
        Binary cross-entropy, mean over rows and classes.
    """

    rows: NDArray[np.int64]
    scores_NC: NDArray[np.float32]
    labels_NC: NDArray[np.uint8]
    loss: float

    def f1(self, *, tune: bool) -> tuple[float, float]:
        """Threshold and sample-averaged F1: the best threshold, or .5."""
        if tune:
            return best_threshold(self.scores_NC, self.labels_NC)
        return 0.5, sample_f1(self.scores_NC >= 0.5, self.labels_NC)


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """What a network says about one batch.

    Attributes
    ----------
    rows
        Rows of the cube.
    scores_BC
        float32 in 0..1.
    labels_BC
        uint8, 0 or 1.
    loss_sum
        Binary cross-entropy, summed over rows and classes.
    images
        What the loader delivered, valid until the next batch is asked for.
    """

    rows: NDArray[np.int64]
    scores_BC: NDArray[np.float32]
    labels_BC: NDArray[np.uint8]
    loss_sum: float
    images: Mapping[str, Tensor]


def scored_batches(
    network: Network, loader: BatchLoader | Feed, precision: Precision, device: torch.device
) -> Iterator[ScoredBatch]:
    """Score every row of a loader that does not shuffle, once, batch by batch."""
    network.eval()
    for batch in tensor_batches(loader, 0, device):
        with torch.inference_mode():
            with autocast(precision, device):
                logits_BC = network(batch.images)
            logits_BC = logits_BC.float()
            loss = F.binary_cross_entropy_with_logits(logits_BC, batch.labels_BC, reduction="sum")
            scores_BC = logits_BC.sigmoid().cpu().numpy()
        labels_BC = batch.labels_BC.cpu().numpy().astype(np.uint8)
        yield ScoredBatch(batch.rows.copy(), scores_BC, labels_BC, loss.item(), batch.images)


def predict(
    network: Network, loader: BatchLoader | Feed, precision: Precision, device: torch.device
) -> Predictions:
    """Score every row of a loader that does not shuffle, once, and keep the scores."""
    return gathered(scored_batches(network, loader, precision, device))


def gathered(batches: Iterable[ScoredBatch]) -> Predictions:
    """Put scored batches together."""
    kept = [(b.rows, b.scores_BC, b.labels_BC, b.loss_sum) for b in batches]
    rows, scores, labels, losses = zip(*kept, strict=True)
    scores_NC = np.concatenate(scores)
    return Predictions(
        np.concatenate(rows),
        scores_NC,
        np.concatenate(labels),
        sum(losses) / max(1, scores_NC.size),
    )
