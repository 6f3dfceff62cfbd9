"""Networks that see every band at 10 m: the coarser ones are upsampled on the device.

Nothing upsampled is ever stored or moved: 24 times the bytes of a 60 m band, made where they are
used. S-CNN, the single-branch network that TB-CNN was compared with, is the smallest of them.

Axes: B row of a batch, C band (or channel inside a network), Y and X pixel, F feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bigearth_cube.nomenclature import GROUPS, MAP_GROUP, S1_GROUP
from training.models.layers import (
    BandNormalize,
    ByteDropout,
    ConvBlock,
    DenseBlock,
    Network,
    dense,
)

Bands = Mapping[str, tuple[str, ...]]
Statistics = Mapping[str, tuple[float, float]]

SIZE_PX: Final = MAP_GROUP.size_px
"""Side of a patch at 10 m."""
RGB: Final[Bands] = {"s2/r10m": ("B04", "B03", "B02")}
S1: Final[Bands] = {"s1/r10m": S1_GROUP.bands}
S2: Final[Bands] = {
    "s2/r10m": (*RGB["s2/r10m"], "B08"),
    "s2/r20m": ("B05", "B06", "B07", "B8A", "B11", "B12"),
}
"""Red, green and blue first, as weights of photographs expect them; 60 m bands are left out, as
in BigEarthNet-MM and reBEN."""
S2_ALL: Final[Bands] = {**S2, "s2/r60m": ("B01", "B09")}
INPUTS: Final[Mapping[str, Bands]] = {"s1": S1, "s2": S2, "s1-s2": {**S2, **S1}}


class StackedBands(nn.Module):
    """Normalize the bands of several groups and stack them on the grid of 10 m.

    Coarser groups are upsampled by bicubic convolution (a = -.75, pixel centers aligned), after
    they were normalized, which is the same as before.

    Parameters
    ----------
    bands
        Group to the names of the bands wanted of it, in order.
    statistics
        Band name to (mean, standard deviation), in DN or dB.
    size_px
        Side of what comes out, where it is not 120: the whole stack is then scaled bilinearly.
    """

    def __init__(self, bands: Bands, statistics: Statistics, size_px: int = SIZE_PX) -> None:
        super().__init__()
        self.groups = tuple(bands)
        self.n_bands = sum(map(len, bands.values()))
        self.size_px = size_px
        self.normalize = nn.ModuleList(
            BandNormalize(GROUPS[path].bands, wanted, statistics) for path, wanted in bands.items()
        )

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """Stack: float32 (B, n_bands, size_px, size_px), groups in the order given."""
        parts = []
        for path, normalize in zip(self.groups, self.normalize, strict=True):
            x_BCYX = normalize(images[path])
            if GROUPS[path].size_px != SIZE_PX:
                x_BCYX = F.interpolate(x_BCYX, size=(SIZE_PX, SIZE_PX), mode="bicubic")
            parts.append(x_BCYX)
        stacked_BCYX = torch.cat(parts, dim=1)
        if self.size_px == SIZE_PX:
            return stacked_BCYX
        return F.interpolate(stacked_BCYX, size=(self.size_px, self.size_px), mode="bilinear")


class StackedNetwork(Network):
    """A network over stacked bands: trunk, then head.

    Parameters
    ----------
    bands
        What the trunk sees.
    trunk
        From the stack to features_BF.
    head
        From features to logits; ends in a fully connected layer.
    n_features
        Length of what the trunk gives.
    """

    def __init__(
        self, bands: StackedBands, trunk: nn.Module, head: nn.Module, n_features: int
    ) -> None:
        super().__init__()
        self.groups = bands.groups
        self.n_features = n_features
        self.bands = bands
        self.trunk = trunk
        self.head = head

    def features(self, images: Mapping[str, Tensor]) -> Tensor:
        """Describe each patch by one vector: features_BF."""
        features_BF: Tensor = self.trunk(self.bands(images))
        return features_BF


def s_cnn(bands: Bands, n_classes: int, statistics: Statistics) -> StackedNetwork:
    """Build S-CNN: three convolutions (32 of 5x5, 32 of 5x5, 64 of 3x3), each with a max-pool.

    That much is stated of the network of the 2019 paper, and that one fully connected layer comes
    before the output. Its 128 features, batch norm and the drop rates are those of TB-CNN.
    """
    stack = StackedBands(bands, statistics)
    n_features, side_px = 128, SIZE_PX // 8
    trunk = nn.Sequential(
        ConvBlock(stack.n_bands, 32, kernel_size=5, pool=True, dropout=0.25),
        ConvBlock(32, 32, kernel_size=5, pool=True, dropout=0.25),
        ConvBlock(32, 64, kernel_size=3, pool=True, dropout=0.25),
        nn.Flatten(),
        DenseBlock(64 * side_px**2, n_features),
    )
    head = nn.Sequential(ByteDropout(0.5), dense(n_features, n_classes))
    return StackedNetwork(stack, trunk, head, n_features)
