"""TB-CNN, the three-branch convolutional network of BigEarthNet's authors.

One branch per resolution, so that nothing is resampled: 5x5 then 3x3 kernels at 10 m, 3x3 at
20 m, 2x2 at 60 m; each ends in 128 features, which a fully connected layer fuses. The layers
follow the authors' released K-BranchCNN code with K = 3, which agrees with every statement about
the network in their 2019 talk. With Sentinel-1 it has a fourth branch, built like the one of the
other bands at 10 m.

Axes: B row of a batch, C band (or channel inside a network), Y and X pixel, F feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from bigearth_cube.nomenclature import GROUPS
from training.models.layers import BandNormalize, ByteDropout, ConvBlock, DenseBlock, Network, dense

N_FEATURES: Final = 128
BRANCH_BANDS: Final = {
    "s2/r10m": ("B04", "B03", "B02", "B08"),
    "s2/r20m": ("B05", "B06", "B07", "B8A", "B11", "B12"),
    "s2/r60m": ("B01", "B09"),
    "s1/r10m": ("VV", "VH"),
}
"""Bands of each branch in the order of the published network, which is not the cube's."""
S2: Final = ("s2/r10m", "s2/r20m", "s2/r60m")
S1_S2: Final = (*S2, "s1/r10m")


def _layers(path: str, n_bands: int) -> tuple[nn.Sequential, int]:
    """Convolutions of one branch, and the length of their flattened output."""
    if path in {"s2/r10m", "s1/r10m"}:
        return nn.Sequential(
            ConvBlock(n_bands, 32, kernel_size=5, pool=True, dropout=0.25),
            ConvBlock(32, 32, kernel_size=5, pool=True, dropout=0.25),
            ConvBlock(32, 64, kernel_size=3, dropout=0.25),
        ), 64 * 30 * 30
    if path == "s2/r20m":
        return nn.Sequential(
            ConvBlock(n_bands, 32, kernel_size=3, pool=True, dropout=0.25),
            ConvBlock(32, 32, kernel_size=3, dropout=0.25),
            ConvBlock(32, 64, kernel_size=3, dropout=0.25),
        ), 64 * 30 * 30
    return nn.Sequential(
        ConvBlock(n_bands, 32, kernel_size=2, dropout=0.25),
        ConvBlock(32, 32, kernel_size=2, dropout=0.25),
        ConvBlock(32, 32, kernel_size=2, dropout=0.25),
    ), 32 * 20 * 20


class Branch(nn.Sequential):
    """One resolution: normalize, three convolutions, 128 features.

    Parameters
    ----------
    path
        Group of the cube it reads, e.g. ``"s2/r20m"``.
    statistics
        Band name to (mean, standard deviation), in DN or dB.
    """

    def __init__(self, path: str, statistics: Mapping[str, tuple[float, float]]) -> None:
        bands = BRANCH_BANDS[path]
        convolutions, n_flat = _layers(path, len(bands))
        super().__init__(
            BandNormalize(GROUPS[path].bands, bands, statistics),
            convolutions,
            nn.Flatten(),
            DenseBlock(n_flat, N_FEATURES),
            ByteDropout(0.5),
        )


class FusedBranches(nn.Module):
    """A branch for each group, and the layer that makes 128 features of all.

    Parameters
    ----------
    statistics
        Band name to (mean, standard deviation) in DN or dB, of the archive it is trained on.
    groups
        What the branches read.
    """

    def __init__(
        self, statistics: Mapping[str, tuple[float, float]], groups: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.groups = groups
        self.branches = nn.ModuleList(Branch(path, statistics) for path in self.groups)
        self.fusion = DenseBlock(len(self.groups) * N_FEATURES, N_FEATURES)

    def features(self, images: Mapping[str, Tensor]) -> Tensor:
        """Fuse the branches: features_BF after ReLU, so never negative; F = 128."""
        branch_BF = [
            branch(images[path]) for path, branch in zip(self.groups, self.branches, strict=True)
        ]
        fused_BF: Tensor = self.fusion(torch.cat(branch_BF, dim=1))
        return fused_BF


def head(n_classes: int) -> nn.Sequential:
    """Make logits_BC of features_BF, with the dropout of the papers before it."""
    return nn.Sequential(ByteDropout(0.25), ByteDropout(0.5), dense(N_FEATURES, n_classes))


class TBCNN(FusedBranches, Network):
    """A branch for each group; of three: 16,526,347 trainable parameters with 43 classes.

    Parameters
    ----------
    n_classes
        Length of the output; 19 make 16,523,251 parameters.
    statistics
        Band name to (mean, standard deviation) in DN or dB, of the archive it is trained on.
    groups
        What the branches read: `S2`, or `S1_S2`.
    """

    n_features = N_FEATURES

    def __init__(
        self,
        n_classes: int,
        statistics: Mapping[str, tuple[float, float]],
        groups: tuple[str, ...] = S2,
    ) -> None:
        super().__init__(statistics, groups)
        self.head = head(n_classes)
