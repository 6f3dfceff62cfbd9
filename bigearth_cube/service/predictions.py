"""What models say of a patch, beside its labels."""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.nomenclature import NOMENCLATURES
from bigearth_cube.service.memory import Memory
from bigearth_cube.service.shelf import Served

_SCORES_BYTES: Final = 128 << 20
"""Scores of 549,488 patches in 43 classes are 95 MB."""


class Predictions:
    """Scores that models left in one cube; safe to share between threads.

    Parameters
    ----------
    served
        The cube.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._scores = Memory(_SCORES_BYTES)

    def of_patch(self, place: int) -> list[dict[str, Any]]:
        """Say what each model says of a patch.

        Parameters
        ----------
        place
            Row of the cube's index.

        Returns
        -------
        list of dict
            ``model``, its ``threshold`` where it has one, and ``scores``: class to score in 0..1,
            highest first. Models that have said nothing of the patch are left out.

        Raises
        ------
        CubeIntegrityError
            If scores are missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        cube, row = self._served.cube, int(self._served.index.rows[place])
        found = []
        for model in cube.predicted:
            scores_NC = self._scores.get(model, functools.partial(cube.predictions, model))
            scores_C: NDArray[np.float32] = scores_NC[row]
            if np.isnan(scores_C).any():
                continue
            about = cube.documents[f"predictions/{model}"]["attributes"]
            names = NOMENCLATURES[about["labels"]]
            scores = {names[c]: round(float(scores_C[c]), 4) for c in np.argsort(-scores_C)}
            entry = {"model": model, "threshold": about.get("threshold"), "scores": scores}
            found.append(entry)
        return found
