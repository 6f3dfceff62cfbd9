"""Distances between embeddings, exact, and the matrix product that bounds each from below.

Every distance here is at least a squared Euclidean distance between transformed vectors, so one
matrix product tells which vectors cannot be among the nearest. For chi-square the transform is
the square root: with H = sum (sqrt x - sqrt y)^2, H <= chi-square <= 2 H, term by term, because
(x - y)^2 / (x + y) = (sqrt x - sqrt y)^2 (sqrt x + sqrt y)^2 / (x + y).

Axes: N vectors, Q queries, F features.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError

Metric = Literal["chi2", "cosine", "euclidean", "hamming"]
METRICS: Final[tuple[str, ...]] = get_args(Metric)
_BLOCK_ROWS: Final = 4_096  # keeps the temporaries of a scan in the processor's cache


def check_metric(metric: str) -> None:
    """Refuse a metric that is not known.

    Raises
    ------
    InvalidInputError
        If it is none of ``METRICS``.
    """
    if metric not in METRICS:
        raise InvalidInputError(f"unknown metric {metric!r}; choose one of: {', '.join(METRICS)}")


def check_features(vectors_NF: NDArray[np.float32], metric: str) -> None:
    """Refuse vectors that a metric is not defined on.

    Raises
    ------
    InvalidInputError
        If a feature is not finite, or chi2 is asked of negative ones.
    """
    # The sum of finite float32 numbers is finite in float64: one pass without a temporary.
    if not np.isfinite(np.sum(vectors_NF, dtype=np.float64)):
        raise InvalidInputError("a feature is not finite; expected numbers")
    if metric == "chi2" and vectors_NF.size and vectors_NF.min() < 0:
        raise InvalidInputError(
            "chi2 needs features that are never negative; take metric 'cosine' or 'euclidean'"
        )


def distances(
    vectors_NF: NDArray[np.float32], query_F: NDArray[np.float32], metric: Metric = "chi2"
) -> NDArray[np.float64]:
    """Return the distance of every vector to the query.

    Parameters
    ----------
    vectors_NF
        (n, dim).
    query_F
        (dim,).
    metric
        ``"chi2"``: sum of (x - y)^2 / (x + y), for features that are never negative, as the
        BigEarthNet papers use it. ``"cosine"``: one minus the cosine. ``"euclidean"``.
        ``"hamming"``: number of features that are above zero in one of the two only.

    Raises
    ------
    InvalidInputError
        If the metric is unknown, a feature is not finite, or chi2 is asked of negative features.

    Examples
    --------
    >>> distances(np.float32([[1, 0], [0, 1]]), np.float32([1, 0])).tolist()
    [0.0, 2.0]
    """
    check_metric(metric)
    check_features(vectors_NF, metric)
    check_features(query_F[None], metric)
    found = np.empty(len(vectors_NF))
    for start in range(0, len(vectors_NF), _BLOCK_ROWS):
        block = vectors_NF[start : start + _BLOCK_ROWS]
        found[start : start + len(block)] = pairwise(block, query_F[None], metric)
    return as_distances(found, metric)


def pairwise(
    x_NF: NDArray[np.float32], y_NF: NDArray[np.float32], metric: str
) -> NDArray[np.float64]:
    """Compare vectors pair by pair, in float64.

    What comes back sorts as the distance does: for ``euclidean`` it is the square.
    """
    x, y = x_NF.astype(np.float64), y_NF.astype(np.float64)
    if metric == "hamming":
        return np.asarray(((x > 0) != (y > 0)).sum(axis=1), np.float64)
    if metric == "cosine":
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        dots = np.einsum("nf,nf->n", x, np.broadcast_to(y, x.shape))
        return np.asarray(1 - np.divide(dots, norms, out=np.zeros(len(x)), where=norms > 0))
    difference = x - y
    difference *= difference
    if metric == "chi2":
        total = x + y
        total[total == 0] = 1  # where both are 0 they do not differ
        difference /= total
    return np.asarray(difference.sum(axis=1))


def as_distances(sortable: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """Turn what ``pairwise`` gives into distances."""
    return np.sqrt(sortable) if metric == "euclidean" else sortable


class Bound:
    """Lower bounds of what ``pairwise`` gives, by one matrix product in float32.

    A bound is ``offset(x) + offset(y) - scale(x) * (t(x) @ s(y))``, already lowered by what
    float32 may round away, so that a vector whose bound is above the k-th best is out for sure.

    Parameters
    ----------
    vectors_NF
        The vectors, none of them not finite.
    metric
        One of ``METRICS`` but ``hamming``.
    """

    def __init__(self, vectors_NF: NDArray[np.float32], metric: str) -> None:
        self.metric = metric
        n, dim = vectors_NF.shape
        # A dot product of dim terms is off by less than dim * 2^-24 |x| |y| <= dim * 2^-25
        # (|x|^2 + |y|^2); twice that, and 16 for the other roundings, is taken off.
        self._kept = 1 - (dim + 16) * 2.0**-23
        self._offset_N = np.empty(n, np.float32)
        self._scale_N = np.empty(n, np.float32) if metric == "cosine" else None
        for start in range(0, n, _BLOCK_ROWS):
            block = vectors_NF[start : start + _BLOCK_ROWS]
            to = slice(start, start + len(block))
            self._offset_N[to] = self._offsets(block)
            if self._scale_N is not None:
                norms = np.linalg.norm(block, axis=1)
                self._scale_N[to] = np.divide(1, norms, out=np.zeros(len(block)), where=norms > 0)

    def of_queries(
        self, queries_QF: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Make queries ready: s(y), (q, dim) float32, and offset(y), (q,) float64."""
        offsets_Q = self._offsets(queries_QF)
        if self.metric == "chi2":
            ready_QF = 2 * np.sqrt(queries_QF)
        elif self.metric == "cosine":
            norms = np.linalg.norm(queries_QF, axis=1, keepdims=True)
            ready_QF = np.divide(queries_QF, norms, out=np.zeros_like(queries_QF), where=norms > 0)
        else:
            ready_QF = 2 * queries_QF
        return ready_QF, offsets_Q

    def without_query_offset(
        self,
        ready_QF: NDArray[np.float32],
        block_NF: NDArray[np.float32],
        at: slice | NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Bounds (q, n) of a block to every query, less offset(y).

        Parameters
        ----------
        ready_QF
            From ``of_queries``.
        block_NF
            Vectors of the index.
        at
            Where they stand in it.
        """
        products_QN = ready_QF @ (np.sqrt(block_NF) if self.metric == "chi2" else block_NF).T
        if self._scale_N is not None:
            products_QN *= self._scale_N[at]
        return np.subtract(self._offset_N[at], products_QN, out=products_QN)

    def _offsets(self, vectors_NF: NDArray[np.float32]) -> NDArray[np.float64]:
        if self.metric == "cosine":  # half the squared distance of vectors of length 1, or 0
            squares = 0.5 * (vectors_NF != 0).any(axis=1)
        elif self.metric == "chi2":
            squares = vectors_NF.sum(axis=1, dtype=np.float64)
        else:
            squares = np.square(vectors_NF, dtype=np.float64).sum(axis=1)
        return np.asarray(squares * self._kept, np.float64)
