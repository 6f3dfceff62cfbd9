"""The networks, by the name that recipes and checkpoints use.

Every network takes DN as the cube stores them, group by group, and normalizes them itself, so
that a checkpoint needs no recollection of how its input was prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import STATISTICS
from training.models.backbones import BACKBONES, TIMM, timm_network
from training.models.layers import Network
from training.models.stacked import RGB, S2_ALL, Statistics, s_cnn
from training.models.tb_cnn import S1_S2, TBCNN
from training.models.two_views import TwoViews

__all__ = ["MODELS", "Network", "build"]

MODELS: Final[dict[str, Callable[[int, Statistics], Network]]] = {
    "tb-cnn": TBCNN,
    "tb-cnn-mm": partial(TBCNN, groups=S1_S2),
    "tb-cnn-contrastive": TwoViews,
    "s-cnn-rgb": partial(s_cnn, RGB),
    "s-cnn-all": partial(s_cnn, S2_ALL),
    **BACKBONES,
}


def build(name: str, n_classes: int, archive: str) -> Network:
    """Build a network with fresh weights, drawn from torch's default generator.

    Parameters
    ----------
    name
        Key of `MODELS`, or ``timm:NAME`` for a model of timm.
    n_classes
        Length of its output; at least 1.
    archive
        ``"v1"`` or ``"v2"``: whose published band statistics normalize its input.

    Raises
    ------
    InvalidInputError
        If a name is unknown, there is no class, or timm is asked for and cannot be imported.
    """
    if name not in MODELS and not name.startswith(TIMM):
        raise InvalidInputError(
            f"unknown model {name!r}; choose one of: {', '.join(MODELS)}, {TIMM}NAME"
        )
    if archive not in STATISTICS:
        raise InvalidInputError(f"unknown archive {archive!r}; choose one of: v1, v2")
    if n_classes < 1:
        raise InvalidInputError(f"a network of {n_classes} classes; expected at least 1")
    if name not in MODELS:
        return timm_network(name, n_classes, STATISTICS[archive])
    return MODELS[name](n_classes, STATISTICS[archive])
