"""How good look-alikes are: queries from one split, answers from another, beside two baselines.

A baseline sees the same patches: random features know nothing of a patch, and band statistics
are means and standard deviations of each band that the model reads, each scaled to mean 0 and
deviation 1. Where queries are of another sensor than answers, theirs are what a ridge regression
makes of them, fitted to both views of the answers.

Axes: Q query, N answer, C class, F feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import S1_GROUP, S2_GROUPS
from bigearth_cube.retrieval import Metric, Origin, RetrievalScores, VectorIndex, evaluate
from bigearth_cube.retrieval.index import asking_model, the_model
from bigearth_cube.search import Selection
from training.baselines import band_table
from training.data import Engine
from training.tables import aligned

N_RANDOM: Final = 128
_COLUMNS: Final = ("precision", "recall", "f1", "f2", "map", "ndcg", "acg", "wap")


@dataclass(frozen=True, slots=True)
class RetrievalRow:
    """One kind of features and what their look-alikes share with the query.

    Attributes
    ----------
    features
        Name of the model, or of the baseline; "A to B" where queries are of A and answers of B.
    metric
        Distance that ranked the answers.
    scores
        Means over the queries.
    """

    features: str
    metric: Metric
    scores: RetrievalScores

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"features": self.features, "metric": self.metric, **self.scores.as_dict()}


def retrieval_rows(
    cube: Cube,
    *,
    queries: Selection,
    answers: Selection,
    model: str | None = None,
    query_model: str | None = None,
    labels: str = "label_19",
    k: int = 10,
    metric: Metric = "chi2",
    seed: int = 0,
    engine: Engine = "threads",
) -> list[RetrievalRow]:
    """Retrieve answers for queries by a model's embeddings and by two baselines.

    Parameters
    ----------
    cube
        A cube with embeddings of ``model``.
    queries, answers
        Who asks, and who may be found; no patch may be in both.
    model
        Name of the embeddings; may be None where the cube has one model.
    query_model
        Embeddings of the queries, where they are others of the same space: those of another sensor.
    labels
        Whose classes count as shared.
    k
        Answers looked at.
    metric
        Distance between the embeddings. Baselines are compared by Euclid.
    seed
        Of the random features.
    engine
        Who reads the pixels for the band statistics.

    Returns
    -------
    list of RetrievalRow
        Random features, band statistics, the model. With ``query_model`` the last two each four
        times: as asked, the other way around, and each model alone.

    Raises
    ------
    InvalidInputError
        If a patch is in both, a selection is empty, a patch has no labels or no embedding, or the
        models are of different spaces.
    NotFoundError
        If the cube lacks a model.
    """
    for name, selection in (("queries", queries), ("answers", answers)):
        if not len(selection):
            raise InvalidInputError(f"the selection of {name} is empty; choose another")
    both = np.intersect1d(queries.rows, answers.rows)
    if len(both):
        raise InvalidInputError(
            f"{len(both)} patches are queries and answers; they would find themselves, so choose "
            f"selections that share none"
        )
    asked_QC, found_NC = (cube.labels(labels, s.rows) for s in (queries, answers))

    def row(
        name: str, by: Metric, query_QF: NDArray[np.float32], answer_NF: NDArray[np.float32]
    ) -> RetrievalRow:
        origin = Origin(cube.id, cube.release.name, name, "")
        index = VectorIndex(answer_NF, np.arange(len(answer_NF)), origin)
        answers_QK = index.nearest(query_QF, k, metric=by).rows_QK
        return RetrievalRow(name, by, evaluate(asked_QC, answers_QK, found_NC))

    found = the_model(cube, model)
    asking = asking_model(cube, found, query_model)
    ways = [(found, found)]
    if asking != found:
        ways = [(asking, found), (found, asking), (found, found), (asking, asking)]
    vectors, statistics, sensors = {}, {}, {}
    for name in dict.fromkeys((asking, found)):
        index, groups = VectorIndex.of(cube, name), _groups_read(cube, name)
        vectors[name] = (_vectors(index, queries), _vectors(index, answers))
        statistics[name] = _band_statistics(cube, queries, answers, labels, engine, groups)
        sensors[name] = _sensors(groups)
    rng = np.random.default_rng(seed)
    random_QF, random_NF = (rng.random((len(s), N_RANDOM), np.float32) for s in (queries, answers))
    rows = [row("random features", "euclidean", random_QF, random_NF)]
    for one, other in ways:
        told = "" if asking == found else f", {_way(sensors[one], sensors[other])}"
        (bands_QF, beside_NF), (_, bands_NF) = statistics[one], statistics[other]
        if one != other:
            bands_QF = Ridge().fit(beside_NF, bands_NF).predict(bands_QF)
        rows.append(row(f"band statistics{told}", "euclidean", bands_QF, bands_NF))
    for one, other in ways:
        rows.append(row(_way(one, other), metric, vectors[one][0], vectors[other][1]))
    return rows


def _vectors(index: VectorIndex, selection: Selection) -> NDArray[np.float32]:
    missing = np.setdiff1d(selection.rows, index.rows_N)
    if len(missing):
        raise InvalidInputError(
            f"{len(missing)} patches have no embedding of model {index.origin.model!r}; embed "
            f"again, or give selections of patches that have the view it reads"
        )
    return np.asarray(index.vectors_NF[np.searchsorted(index.rows_N, selection.rows)])


def _groups_read(cube: Cube, model: str) -> tuple[str, ...]:
    """Return the groups that vectors were made of; those of Sentinel-2 where they do not say."""
    about = cube.documents[f"embeddings/{model}"].get("attributes", {})
    return tuple(about.get("groups", [group.path for group in S2_GROUPS]))


def _sensors(groups: tuple[str, ...]) -> str:
    named = {"S1" if path == S1_GROUP.path else "S2" for path in groups}
    return " and ".join(sorted(named))


def _way(asking: str, found: str) -> str:
    return found if asking == found else f"{asking} to {found}"


def _band_statistics(
    cube: Cube,
    queries: Selection,
    answers: Selection,
    labels: str,
    engine: Engine,
    groups: tuple[str, ...],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    tables = [
        band_table(cube, selection, labels, engine, groups) for selection in (queries, answers)
    ]
    asked_QF, found_NF = (np.concatenate([t.means_NB, t.stds_NB], axis=1) for t in tables)
    center_F, spread_F = found_NF.mean(axis=0), found_NF.std(axis=0) + 1e-6
    return (asked_QF - center_F) / spread_F, (found_NF - center_F) / spread_F


def as_text(rows: Sequence[RetrievalRow]) -> str:
    """Lay rows out as a table of aligned columns, which is Markdown too."""
    head = ("features", "metric", *_COLUMNS)
    cells = [
        (row.features, row.metric, *(f"{getattr(row.scores, name):.3f}" for name in _COLUMNS))
        for row in rows
    ]
    return aligned(head, cells)
