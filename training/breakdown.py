"""Metrics by country, season, tile or purity: where a network is right, and where it is not.

Axes: B row of a batch, C class, Y and X pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import CLASSES_43, MAP_GROUP, NOMENCLATURES
from training.metrics import MultiLabelMetrics
from training.predict import ScoredBatch
from training.tables import aligned, figure

Key = Literal["country", "season", "tile", "purity"]
KEYS: Final[tuple[Key, ...]] = get_args(Key)
PURITY_EDGES: Final = (0.5, 0.75, 0.95)
PURITY_NAMES: Final = ("below 50 %", "50 to 75 %", "75 to 95 %", "95 % and more", "no map")
_CODES: Final = 1000


class Breakdown:
    """Metrics of groups of patches, gathered batch by batch.

    Average precision is left out: it would keep every score once more for each key.

    Parameters
    ----------
    cube
        Where the patches are.
    keys
        What to group by. ``"purity"`` is the share of a patch's mapped pixels that have its most
        frequent class, so the batches must bring `MAP_GROUP`.
    labels
        Label array whose classes count.
    threshold
        As in ``MultiLabelMetrics``.

    Raises
    ------
    InvalidInputError
        If a key is unknown, or purity is asked of a cube without reference maps.
    """

    def __init__(self, cube: Cube, keys: Sequence[str], labels: str, threshold: float) -> None:
        unknown = [key for key in keys if key not in KEYS]
        if unknown:
            raise InvalidInputError(
                f"no breakdown by {unknown[0]!r}; choose from: {', '.join(KEYS)}"
            )
        if "purity" in keys:
            cube.pixel_layout(MAP_GROUP.path)
        self.groups = (MAP_GROUP.path,) if "purity" in keys else ()
        self._threshold, self._n_classes = threshold, len(NOMENCLATURES[labels])
        self._metrics: dict[str, dict[str, MultiLabelMetrics]] = {key: {} for key in keys}
        self._values = {key: _values_of(cube, key, labels) for key in keys}

    def update(self, batch: ScoredBatch) -> None:
        """Add a batch."""
        for key, metrics in self._metrics.items():
            values_B = self._values[key](batch)
            for value in sorted(set(values_B.tolist())):
                chosen = values_B == value
                if value not in metrics:
                    metrics[value] = MultiLabelMetrics(
                        self._n_classes, self._threshold, keep_scores=False
                    )
                metrics[value].update(batch.scores_BC[chosen], batch.labels_BC[chosen])

    def compute(self) -> dict[str, dict[str, dict[str, float]]]:
        """Key to value to every metric, and ``n``, the patches; values in order."""
        return {
            key: {
                value: {"n": float(metrics[value].n_rows), **metrics[value].compute()}
                for value in sorted(metrics, key=_order(key))
            }
            for key, metrics in self._metrics.items()
        }


def purity_of(codes_BYX: Tensor, class_of_code: Tensor) -> NDArray[np.float64]:
    """Share of a patch's mapped pixels that have its most frequent class; NaN without any.

    Parameters
    ----------
    codes_BYX
        Codes of CORINE, level 3.
    class_of_code
        (1000,) int64: class of a code, -1 where it has none.
    """
    classes_BP = class_of_code[codes_BYX.to(torch.int64).clamp_(max=_CODES - 1)].flatten(1)
    n_classes = int(class_of_code.max()) + 1
    rows = torch.arange(len(classes_BP), device=classes_BP.device)[:, None] * (n_classes + 1)
    counts = torch.bincount(
        (classes_BP + 1 + rows).flatten(), minlength=rows.numel() * (n_classes + 1)
    )
    counts_BC = counts.view(-1, n_classes + 1)[:, 1:].double()
    return np.asarray((counts_BC.amax(1) / counts_BC.sum(1)).cpu().numpy())


def classes_of_codes(labels: str) -> NDArray[np.int64]:
    """Return the class of each map code as `purity_of` takes it."""
    names = NOMENCLATURES[labels]
    classes = np.full(_CODES, -1, np.int64)
    for land_cover in CLASSES_43:
        name = land_cover.name if labels == "label_43" else land_cover.name_19
        if name:
            classes[land_cover.code] = names.index(name)
    return classes


def _values_of(cube: Cube, key: str, labels: str) -> Callable[[ScoredBatch], NDArray[np.object_]]:
    if key != "purity":
        column = cube.column(key).astype(object)
        return lambda batch: np.asarray(column[batch.rows])
    class_of_code = torch.from_numpy(classes_of_codes(labels))
    names = np.array(PURITY_NAMES, dtype=object)

    def purities(batch: ScoredBatch) -> NDArray[np.object_]:
        codes_BYX = batch.images[MAP_GROUP.path]
        purity_B = purity_of(codes_BYX, class_of_code.to(codes_BYX.device))
        places = np.digitize(purity_B, PURITY_EDGES)
        return np.asarray(names[np.where(np.isnan(purity_B), len(PURITY_NAMES) - 1, places)])

    return purities


def _order(key: str) -> Callable[[str], tuple[int, str]]:
    if key == "purity":
        return lambda value: (PURITY_NAMES.index(value), value)
    return lambda value: (0, value)


def as_text(breakdown: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Lay a breakdown out as one table: precision, recall and F averaged by sample."""
    columns = ("sample_precision", "sample_recall", "sample_f1", "sample_f2")
    lines = [
        (key, value, f"{metrics['n']:,.0f}", *(figure(metrics[name]) for name in columns))
        for key, values in breakdown.items()
        for value, metrics in values.items()
    ]
    return aligned(("by", "value", "patches", "P", "R", "F1", "F2"), lines, range(2, 7))
