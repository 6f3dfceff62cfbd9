"""Look-alikes: from the embedding of a patch to its nearest neighbors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError

Metric = Literal["chi2", "cosine"]
_BLOCK_ROWS = 16_384  # keeps the temporaries of a scan in the processor's cache


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
    cube: Cube, patch_id: str, *, model: str, k: int = 10, metric: Metric = "chi2"
) -> list[Neighbor]:
    """Find the patches whose embeddings are nearest to a patch's, nearest first.

    Parameters
    ----------
    cube
        A cube with embeddings of ``model``.
    patch_id
        The query; it is not among its own neighbors.
    model
        Name under which the embeddings were stored.
    k
        How many; fewer come where the cube has fewer.
    metric
        ``"chi2"``: sum of (x - y)^2 / (x + y), for features that are never negative, as the
        BigEarthNet papers use it; ``"cosine"``: one minus the cosine.

    Raises
    ------
    InvalidInputError
        If k is below 1, the query has no embedding, or chi2 is asked of negative features.
    NotFoundError
        If the cube lacks the patch or the model.
    """
    if k < 1:
        raise InvalidInputError(f"k is {k}, expected at least 1")
    row = cube.row_of(patch_id)
    vectors = cube.embeddings(model)
    if np.isnan(vectors[row]).any():
        raise InvalidInputError(f"patch {patch_id!r} has no embedding of model {model!r}")
    rows = cube.rows[~np.isnan(vectors[cube.rows, 0])]
    rows = rows[rows != row]
    scores = distances(vectors[rows], vectors[row], metric)
    # Ties are broken by row, so that the same question has the same answer everywhere.
    nearest = np.lexsort((rows, scores))[:k]
    names: dict[int, str] = dict(
        zip(cube.items["bec:row"].to_pylist(), cube.items["id"].to_pylist(), strict=True)
    )
    return [Neighbor(names[int(rows[i])], int(rows[i]), float(scores[i])) for i in nearest]


def distances(
    vectors: NDArray[np.float32], query: NDArray[np.float32], metric: Metric = "chi2"
) -> NDArray[np.float64]:
    """Return the distance of every vector to the query.

    Parameters
    ----------
    vectors
        (n, dim).
    query
        (dim,).
    metric
        See ``neighbors``.

    Raises
    ------
    InvalidInputError
        If the metric is unknown, or chi2 is asked of negative features.

    Examples
    --------
    >>> distances(np.float32([[1, 0], [0, 1]]), np.float32([1, 0])).tolist()
    [0.0, 2.0]
    """
    if metric not in get_args(Metric):
        raise InvalidInputError(
            f"unknown metric {metric!r}; choose one of: {', '.join(get_args(Metric))}"
        )
    scores = np.empty(len(vectors))
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS].astype(np.float64)
        scores[start : start + len(block)] = (
            _chi2(block, query) if metric == "chi2" else _cosine(block, query)
        )
    return scores


def _chi2(block: NDArray[np.float64], query: NDArray[np.float32]) -> NDArray[np.float64]:
    if (block < 0).any() or (query < 0).any():
        raise InvalidInputError("chi2 needs features that are never negative; take metric 'cosine'")
    total = block + query
    # Where both are 0 they do not differ.
    terms = np.divide((block - query) ** 2, total, out=np.zeros_like(block), where=total > 0)
    return np.asarray(terms.sum(axis=1))


def _cosine(block: NDArray[np.float64], query: NDArray[np.float32]) -> NDArray[np.float64]:
    norms = np.linalg.norm(block, axis=1) * np.linalg.norm(query)
    dots = block @ query.astype(np.float64)
    return np.asarray(1.0 - np.divide(dots, norms, out=np.zeros(len(block)), where=norms > 0))
