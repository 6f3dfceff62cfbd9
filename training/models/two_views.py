"""An encoder for each sensor, whose features lie in one space.

So a Sentinel-1 view can be the query and Sentinel-2 views the answers, and the other way around.
Each encoder is built like TB-CNN: a branch for each resolution of its sensor, and a layer that
fuses them; one head scores the features of both.

Axes: B row of a batch, V view, C class, F feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from training.models.layers import Encoder, Network, PerView
from training.models.tb_cnn import N_FEATURES, S1_S2, S2, FusedBranches, head

S1: Final = ("s1/r10m",)


class TwoViews(Network):
    """TB-CNN twice, for Sentinel-2 and for Sentinel-1, with one head.

    Parameters
    ----------
    n_classes
        Length of the output.
    statistics
        Band name to (mean, standard deviation) in DN or dB, of the archive it is trained on.
    """

    n_features = N_FEATURES

    def __init__(self, n_classes: int, statistics: Mapping[str, tuple[float, float]]) -> None:
        super().__init__()
        self.groups = S1_S2
        self.s2 = FusedBranches(statistics, S2)
        self.s1 = FusedBranches(statistics, S1)
        self.head = head(n_classes)

    def features(self, images: Mapping[str, Tensor]) -> Tensor:
        """Average the features of both views: features_BF, never negative; F = 128."""
        return (self.s2.features(images) + self.s1.features(images)) / 2

    def outputs(self, images: Mapping[str, Tensor]) -> PerView:
        """Score each view by itself; the features are those that the head sees."""
        features = [view.features(images) for view in (self.s2, self.s1)]
        logits = [self.head(features_BF) for features_BF in features]
        return PerView(torch.stack(logits, dim=1), torch.stack(features, dim=1))

    def encoders(self) -> dict[str, Encoder]:
        """Return an encoder for each view and one for both; see `embedded`."""
        read = {"-s2": (self.s2,), "-s1": (self.s1,), "-s1-s2": (self.s2, self.s1)}
        return {
            suffix: Encoder(
                nn.ModuleList(views),
                tuple(path for view in views for path in view.groups),
                N_FEATURES,
                partial(embedded, views),
            )
            for suffix, views in read.items()
        }


def embedded(views: tuple[FusedBranches, ...], images: Mapping[str, Tensor]) -> Tensor:
    """Describe each patch by one vector of the space that all views share: vectors_BF.

    The features of each view are scaled to length 1, added, scaled again and squared. So a vector
    is never negative, its sum is 1, and the chi-square distance of two is one to two times 2 - 2c
    (see ``retrieval.distances``), c being the cosine that training draws near or apart.
    """
    of_each = [nn.functional.normalize(view.features(images)) for view in views]
    return nn.functional.normalize(torch.stack(of_each).sum(dim=0)).square()
