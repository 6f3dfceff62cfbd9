"""Look-alikes: from the embedding of a patch to its nearest neighbors.

``neighbors`` answers one question. For many, make the index once: ``VectorIndex.of(cube)``, or
``ivf.IvfIndex.of`` where an answer in a millisecond counts more than one that is surely complete.
``evaluate`` says how good the answers are, by the labels they share with their query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.retrieval.distances import METRICS, Metric, distances
from bigearth_cube.retrieval.index import (
    Nearest,
    Origin,
    VectorIndex,
    asking_model,
    others,
    query_vector,
    the_model,
)
from bigearth_cube.retrieval.scores import RetrievalScores, evaluate
from bigearth_cube.search import Selection

if TYPE_CHECKING:
    from bigearth_cube.retrieval.ivf import IvfIndex

__all__ = [
    "METRICS",
    "Metric",
    "Nearest",
    "Neighbor",
    "Origin",
    "RetrievalScores",
    "VectorIndex",
    "distances",
    "evaluate",
    "neighbors",
]


@dataclass(frozen=True, slots=True)
class Neighbor:
    """One look-alike.

    Attributes
    ----------
    id
        Name of the patch.
    row
        Row in the cube.
    score
        Distance to the query; 0 is the same vector, smaller is more alike.
    """

    id: str
    row: int
    score: float


def neighbors(
    cube: Cube,
    patch_id: str,
    *,
    model: str | None = None,
    query_model: str | None = None,
    k: int = 10,
    metric: Metric = "chi2",
    among: Selection | None = None,
    index: VectorIndex | IvfIndex | None = None,
) -> list[Neighbor]:
    """Find the patches whose embeddings are nearest to a patch's, nearest first.

    Parameters
    ----------
    cube
        A cube with embeddings.
    patch_id
        The query; it is not among its own neighbors.
    model
        Name under which the embeddings were stored; may be None where the cube has one model,
        or an index is given.
    query_model
        Embeddings that the query's vector is taken from, where they are others of the same space:
        those of its Sentinel-1 view, say, to find answers by their Sentinel-2 views.
    k
        How many, 1 to 10,000; fewer come where there are fewer.
    metric
        ``"chi2"``: sum of (x - y)^2 / (x + y), for features that are never negative, as the
        BigEarthNet papers use it. ``"cosine"``: one minus the cosine. ``"euclidean"``.
        ``"hamming"``: number of features that are above zero in one of the two only.
    among
        Patches that may be found, e.g. ``cube.search(filter=…)``; all if None.
    index
        Made of the cube before; read from the cube if None.

    Raises
    ------
    InvalidInputError
        If k is out of range, chi2 is asked of negative features, no model is named and the cube
        has several, the two models are of different spaces, or index or selection are of another
        cube; or, with another query model, if the vectors were written anew since the index was made.
    NotFoundError
        If the cube lacks the patch or a model, or the query has no embedding.
    """
    row = cube.row_of(patch_id)
    if index is None:
        name = the_model(cube, model)
        asking_model(cube, name, query_model)  # refuses before 300 MB are read
        index = VectorIndex.of(cube, name)
    origin = index.origin
    if (origin.cube_id, origin.release) != (cube.id, cube.release.name):
        raise InvalidInputError(
            f"the index is of release {origin.release!r} of {origin.cube_id!r}, the cube is at "
            f"release {cube.release.name!r} of {cube.id!r}; make it anew"
        )
    rows = None if among is None else _rows_of(cube, among)
    vector_F = query_vector(cube, index, query_model, row)
    found = others(index, row, vector_F, k, metric=metric, among=rows)
    near, distances = (values.tolist() for values in found)
    names = names_of(cube, near)
    return [Neighbor(names[at], at, far) for at, far in zip(near, distances, strict=True)]


def names_of(cube: Cube, rows: list[int]) -> dict[int, str]:
    """Names of the patches in some rows of a cube."""
    there = cube.items["bec:row"].to_numpy()
    order = np.argsort(there, kind="stable")
    at = order[np.searchsorted(there, rows, sorter=order)]
    return dict(zip(rows, cube.items["id"].take(at).to_pylist(), strict=True))


def _rows_of(cube: Cube, among: Selection) -> NDArray[np.int64]:
    if (among.cube_id, among.release) != (cube.id, cube.release.name):
        raise InvalidInputError(
            f"the selection is of release {among.release!r} of {among.cube_id!r}, the cube is at "
            f"release {cube.release.name!r} of {cube.id!r}; search again"
        )
    return among.rows
