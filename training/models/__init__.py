"""The networks, by the name that recipes and checkpoints use.

Every network takes DN as the cube stores them, group by group, and normalizes them itself, so
that a checkpoint needs no recollection of how its input was prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import STATISTICS
from training.models.layers import Network
from training.models.tb_cnn import TBCNN

__all__ = ["MODELS", "Network", "build"]


Statistics = Mapping[str, tuple[float, float]]
MODELS: Final[dict[str, Callable[[int, Statistics], Network]]] = {"tb-cnn": TBCNN}


def build(name: str, n_classes: int, archive: str) -> Network:
    """Build a network with fresh weights, drawn from torch's default generator.

    Parameters
    ----------
    name
        Key of `MODELS`.
    n_classes
        Length of its output; at least 1.
    archive
        ``"v1"`` or ``"v2"``: whose published band statistics normalize its input.

    Raises
    ------
    InvalidInputError
        If a name is unknown or there is no class.
    """
    if name not in MODELS:
        raise InvalidInputError(f"unknown model {name!r}; choose one of: {', '.join(MODELS)}")
    if archive not in STATISTICS:
        raise InvalidInputError(f"unknown archive {archive!r}; choose one of: v1, v2")
    if n_classes < 1:
        raise InvalidInputError(f"a network of {n_classes} classes; expected at least 1")
    return MODELS[name](n_classes, STATISTICS[archive])
