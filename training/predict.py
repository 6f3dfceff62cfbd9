"""Scores of a network for the rows of a cube; used by validation, evaluation and embedding.

Axes: B row of a batch, N row of everything seen, C class, F feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from bigearth_cube.loader.batches import BatchLoader
from training.config import Precision
from training.data import autocast, tensor_batches
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


@torch.inference_mode()
def predict(
    network: Network, loader: BatchLoader, precision: Precision, device: torch.device
) -> Predictions:
    """Score every row of a loader that does not shuffle, once."""
    network.eval()
    rows, scores, labels, loss = [], [], [], 0.0
    for batch in tensor_batches(loader, 0, device):
        with autocast(precision, device):
            logits_BC = network(batch.images)
        logits_BC = logits_BC.float()
        loss += F.binary_cross_entropy_with_logits(
            logits_BC, batch.labels_BC, reduction="sum"
        ).item()
        rows.append(batch.rows.copy())
        scores.append(logits_BC.sigmoid().cpu().numpy())
        labels.append(batch.labels_BC.cpu().numpy().astype(np.uint8))
    scores_NC = np.concatenate(scores)
    return Predictions(
        np.concatenate(rows), scores_NC, np.concatenate(labels), loss / scores_NC.size
    )
