"""How good look-alikes are, by the labels that they share with their query.

Axes: Q queries, K ranks, C classes, N patches that may be found.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class RetrievalScores:
    """Means over the queries, all from 0 to 1 but ``acg`` and ``wap``.

    With s the number of labels that an answer shares with its query:

    Attributes
    ----------
    k
        Answers looked at.
    n_queries
        Queries that have a label; others are left out.
    precision, recall, f1, f2
        Mean over the answers of s over the number of labels of the answer, of s over that of
        the query, and of their F measures.
    map
        Mean average precision at k: an answer is right if s > 0; the precision at each rank
        that is right, averaged over the right ones among the k.
    ndcg
        Normalized discounted cumulative gain: gain 2^s - 1, discount log2(rank + 1), over that
        of the best k of all patches that may be found.
    acg
        Average cumulative gain: mean of s.
    wap
        Weighted average precision: mean of s up to each rank that is right, averaged over those.
    """

    k: int
    n_queries: int
    precision: float
    recall: float
    f1: float
    f2: float
    map: float
    ndcg: float
    acg: float
    wap: float

    def as_dict(self) -> dict[str, float]:
        """Name to figure, as for a table or JSON."""
        return asdict(self)


def evaluate(
    query_labels_QC: NDArray[np.uint8],
    answers_QK: NDArray[np.int64],
    labels_NC: NDArray[np.uint8],
    *,
    candidates: NDArray[np.int64] | None = None,
) -> RetrievalScores:
    """Score ranked answers by the labels they share with their queries.

    Parameters
    ----------
    query_labels_QC
        Labels of the queries, 0 or 1.
    answers_QK
        Ranked answers: index into ``labels_NC``; -1 where there is none, which counts as an
        answer that shares nothing.
    labels_NC
        Labels of the patches, 0 or 1.
    candidates
        Indices that could have been found, for the best ranking that NDCG compares with; all of
        ``labels_NC`` if None.

    Raises
    ------
    InvalidInputError
        If shapes do not fit together, or no query has a label.

    Examples
    --------
    >>> labels = np.array([[1, 0], [1, 1], [0, 1]], np.uint8)
    >>> scores = evaluate(labels[:1], np.array([[1, 2]]), labels, candidates=np.array([1, 2]))
    >>> scores.precision, scores.map, scores.ndcg
    (0.25, 1.0, 1.0)
    """
    n_classes = labels_NC.shape[-1]
    if query_labels_QC.shape != (len(answers_QK), n_classes) or answers_QK.ndim != 2:
        raise InvalidInputError(
            f"query labels are {query_labels_QC.shape} and answers {answers_QK.shape}; expected "
            f"(q, {n_classes}) and (q, k)"
        )
    asked_QC = query_labels_QC.astype(np.float32)
    kept = asked_QC.any(axis=1)
    if not kept.any():
        raise InvalidInputError("no query has a label; there is nothing to share")
    asked_QC, answers_QK = asked_QC[kept], answers_QK[kept]
    k = answers_QK.shape[1]
    there_QK = answers_QK >= 0
    found_QKC = labels_NC[np.where(there_QK, answers_QK, 0)] * there_QK[..., None]
    shared_QK = np.einsum("qkc,qc->qk", found_QKC, asked_QC).astype(np.float64)
    n_found_QK = found_QKC.sum(axis=2, dtype=np.float64)
    n_asked_Q1 = asked_QC.sum(axis=1, keepdims=True).astype(np.float64)
    precision_QK = _ratio(shared_QK, n_found_QK)
    recall_QK = shared_QK / n_asked_Q1
    right_QK = shared_QK > 0
    ranks_K = np.arange(1, k + 1)
    n_right_Q = right_QK.sum(axis=1)
    precision_to_QK = right_QK.cumsum(axis=1) / ranks_K
    gain_to_QK = shared_QK.cumsum(axis=1) / ranks_K
    discounts_K = 1 / np.log2(ranks_K + 1)
    gained_Q = ((2**shared_QK - 1) * discounts_K).sum(axis=1)
    could_find_NC = labels_NC if candidates is None else labels_NC[candidates]
    best_Q = _best_gains(asked_QC, could_find_NC.astype(np.float32), discounts_K)
    return RetrievalScores(
        k=k,
        n_queries=len(asked_QC),
        precision=float(precision_QK.mean()),
        recall=float(recall_QK.mean()),
        f1=float(_f_measure(precision_QK, recall_QK, 1).mean()),
        f2=float(_f_measure(precision_QK, recall_QK, 2).mean()),
        map=float(_ratio((precision_to_QK * right_QK).sum(axis=1), n_right_Q).mean()),
        ndcg=float(_ratio(gained_Q, best_Q).mean()),
        acg=float(shared_QK.mean()),
        wap=float(_ratio((gain_to_QK * right_QK).sum(axis=1), n_right_Q).mean()),
    )


def _best_gains(
    asked_QC: NDArray[np.float32], labels_NC: NDArray[np.float32], discounts_K: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Discounted gain of the best k patches for every query; equal label sets are asked once."""
    sets_UC, which_Q = np.unique(asked_QC, axis=0, return_inverse=True)
    kinds_VC, counts_V = np.unique(labels_NC, axis=0, return_counts=True)
    shared_UV = sets_UC @ kinds_VC.T
    k = len(discounts_K)
    best_U = np.empty(len(sets_UC))
    for u, shared_V in enumerate(shared_UV):
        counts = np.bincount(shared_V.astype(np.int64), weights=counts_V).astype(np.int64)
        levels = np.repeat(np.arange(len(counts))[::-1], np.minimum(counts[::-1], k))[:k]
        best_U[u] = ((2.0**levels - 1) * discounts_K[: len(levels)]).sum()
    return np.asarray(best_U[which_Q.ravel()])


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotient; 0 where the divisor is 0."""
    return np.divide(over, under, out=np.zeros(np.shape(over)), where=under > 0)


def _f_measure(
    precision: NDArray[np.float64], recall: NDArray[np.float64], beta: float
) -> NDArray[np.float64]:
    weight = beta**2
    return _ratio((1 + weight) * precision * recall, weight * precision + recall)
