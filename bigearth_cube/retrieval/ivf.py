"""The nearest neighbors in about a millisecond, nearly all of them: an inverted file of faiss.

faiss sorts the vectors into cells and looks into those nearest to the query, in codes of 8 bits
a feature; what it finds is compared again, exactly. Every metric is Euclidean there: of unit
vectors for cosine, of square roots for chi-square.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.retrieval.distances import Metric, as_distances, check_features, pairwise
from bigearth_cube.retrieval.index import Nearest, Origin, VectorIndex

RECALL: Final = 0.98
_N_TRAINED: Final = 65_536
_N_PROBED: Final = 128  # queries that recall is measured on
_BLOCK_ROWS: Final = 65_536


@dataclass(frozen=True)
class IvfIndex:
    """Cells of vectors for one metric.

    Attributes
    ----------
    exact
        The vectors themselves.
    metric
        The only metric it answers: ``chi2``, ``cosine`` or ``euclidean``.
    recall
        Share of the true 10 nearest that it found, measured on 128 of the vectors when it was
        made.
    n_probed
        Cells that it looks into.
    """

    exact: VectorIndex
    metric: Metric
    recall: float
    n_probed: int
    _cells: Any

    @classmethod
    def of(
        cls, exact: VectorIndex, metric: Metric = "chi2", *, recall: float = RECALL, seed: int = 0
    ) -> IvfIndex:
        """Sort the vectors of an index into cells.

        Parameters
        ----------
        exact
            The vectors.
        metric
            ``chi2``, ``cosine`` or ``euclidean``.
        recall
            As many cells are looked into as this needs, measured; up to 1.
        seed
            Which vectors the cells are drawn around, and which recall is measured on.

        Raises
        ------
        InvalidInputError
            If the metric has no such index, recall is out of range, chi2 is asked of negative
            features, or there are no vectors.
        """
        if metric not in ("chi2", "cosine", "euclidean"):
            raise InvalidInputError(
                f"no inverted file for metric {metric!r}; choose one of: chi2, cosine, euclidean"
            )
        if not 0 < recall <= 1:
            raise InvalidInputError(f"recall is {recall}, expected above 0 and up to 1")
        if not len(exact):
            raise InvalidInputError("there are no vectors to make an index of")
        check_features(exact.vectors_NF, metric)
        rng = np.random.default_rng(seed)
        n, dim = exact.vectors_NF.shape
        # faiss wants 39 vectors a cell to train on.
        n_trained = min(n, _N_TRAINED)
        n_cells = max(1, min(2 ** round(math.log2(4 * math.sqrt(n))), 1024, n_trained // 39))
        cells = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatL2(dim), dim, n_cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2
        )
        cells.cp.seed = seed + 1
        drawn = np.sort(rng.choice(n, n_trained, replace=False))
        cells.train(_euclidean(exact.vectors_NF[drawn], metric))
        for start in range(0, n, _BLOCK_ROWS):
            cells.add(_euclidean(exact.vectors_NF[start : start + _BLOCK_ROWS], metric))
        n_probed, measured = _enough(exact, cells, metric, recall, rng)
        return cls(exact, metric, measured, n_probed, cells)

    @property
    def origin(self) -> Origin:
        """What it was made of."""
        return self.exact.origin

    def __len__(self) -> int:
        return len(self.exact)

    def vector_of(self, row: int) -> NDArray[np.float32]:
        """Return the vector, (dim,), of one row of the cube.

        Raises
        ------
        NotFoundError
            If the row has none.
        """
        return self.exact.vector_of(row)

    def nearest(
        self,
        queries_QF: NDArray[np.float32],
        k: int = 10,
        *,
        metric: Metric | None = None,
        among: NDArray[np.int64] | None = None,
    ) -> Nearest:
        """Find nearly all of the k nearest vectors of each query; their distances are exact.

        Parameters
        ----------
        queries_QF, k, among
            As for ``VectorIndex.nearest``.
        metric
            That of the index, or None.

        Raises
        ------
        InvalidInputError
            As for ``VectorIndex.nearest``, or if the metric is another.
        """
        return self.scan(self.checked(queries_QF, k, metric), k, self.metric, among)

    def checked(
        self, queries_QF: NDArray[np.float32], k: int, metric: str | None
    ) -> NDArray[np.float32]:
        """Return the queries as (q, dim) float32, once everything asked makes sense.

        Raises
        ------
        InvalidInputError
            As in ``nearest``.
        """
        if metric not in (None, self.metric):
            raise InvalidInputError(
                f"the index answers metric {self.metric!r}, not {metric!r}; make one for that"
            )
        return self.exact.checked(queries_QF, k, self.metric)

    def scan(
        self,
        queries_QF: NDArray[np.float32],
        k: int,
        metric: Metric,
        among: NDArray[np.int64] | None,
    ) -> Nearest:
        """Answer as ``nearest``, of queries that ``checked`` returned; k is not bounded."""
        n_probed = self.n_probed
        if among is not None:
            # Fewer of each cell may be found, so more cells are needed; where most are, a scan
            # of the few that may be found costs less than the cells.
            n_probed *= math.ceil(len(self) / max(1, len(among)))
            if n_probed > self._cells.nlist // 4:
                return self.exact.scan(queries_QF, k, metric, among)
        return _nearest(self.exact, self._cells, queries_QF, k, metric, n_probed, among)

    def save(self, folder: str | Path) -> None:
        """Keep vectors and cells in a local folder."""
        path = Path(folder)
        self.exact.save(path)
        about = {"metric": self.metric, "recall": self.recall, "n_probed": self.n_probed}
        faiss.write_index(self._cells, str(path / f"{self.metric}.faiss"))
        (path / f"{self.metric}.json").write_text(json.dumps(about))

    @classmethod
    def load(
        cls, folder: str | Path, cube: Cube, metric: Metric = "chi2", model: str | None = None
    ) -> IvfIndex:
        """Read what ``save`` wrote, once it is of the vectors of the cube.

        Raises
        ------
        NotFoundError
            If the folder holds no such index, or the cube no such model.
        InvalidInputError
            If it is the index of another cube, release or model, or of older vectors.
        """
        exact = VectorIndex.load(folder, cube, model)
        path = Path(folder)
        try:
            about = json.loads((path / f"{metric}.json").read_text())
        except FileNotFoundError:
            raise NotFoundError(f"no cells for metric {metric!r} in {folder}") from None
        cells = faiss.read_index(str(path / f"{metric}.faiss"))
        return cls(exact, about["metric"], about["recall"], about["n_probed"], cells)


def _enough(
    exact: VectorIndex, cells: Any, metric: Metric, recall: float, rng: np.random.Generator
) -> tuple[int, float]:
    """Find how many cells a recall needs; returns that and the recall measured."""
    k = min(10, len(exact))
    probes = np.sort(rng.choice(len(exact), min(_N_PROBED, len(exact)), replace=False))
    queries = np.ascontiguousarray(exact.vectors_NF[probes])
    true = exact.nearest(queries, k, metric=metric)
    n_probed = 1
    while True:
        found = _nearest(exact, cells, queries, k, metric, n_probed, None)
        # By distance, so that a tie broken the other way is no miss.
        reached = found.distances_QK <= true.distances_QK[:, -1:] * (1 + 1e-12)
        measured = float(reached.mean())
        if measured >= recall or n_probed >= cells.nlist:
            return n_probed, measured
        n_probed = min(2 * n_probed, cells.nlist)


def _nearest(
    exact: VectorIndex,
    cells: Any,
    queries_QF: NDArray[np.float32],
    k: int,
    metric: Metric,
    n_probed: int,
    among: NDArray[np.int64] | None,
) -> Nearest:
    # The codes are coarse and chi-square is not quite Euclidean: more are fetched than asked.
    n_fetched = min(max(8 * k, 64), len(exact))
    chosen = None
    if among is not None:
        inside = np.isin(exact.rows_N, among)
        bits = np.packbits(inside, bitorder="little")
        chosen = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]
    # What faiss adds to its classes when it is loaded, its types do not know.
    parameters = faiss.SearchParametersIVF(nprobe=n_probed, sel=chosen)  # type: ignore[call-arg]
    _, places_QK = cells.search(_euclidean(queries_QF, metric), n_fetched, params=parameters)
    rows_QK = np.full((len(queries_QF), k), -1, np.int64)
    distances_QK = np.full((len(queries_QF), k), np.inf)
    for query, fetched in enumerate(places_QK):
        places = fetched[fetched >= 0]
        vectors = exact.vectors_NF[places]
        sortable = pairwise(vectors, queries_QF[query : query + 1], metric)
        order = np.lexsort((places, sortable))[:k]
        rows_QK[query, : len(order)] = exact.rows_N[places[order]]
        distances_QK[query, : len(order)] = as_distances(sortable[order], metric)
    return Nearest(rows_QK, distances_QK)


def _euclidean(vectors_NF: NDArray[np.float32], metric: str) -> NDArray[np.float32]:
    """Transform vectors so that the nearest by a metric are about the nearest by Euclid."""
    if metric == "chi2":
        return np.asarray(np.sqrt(vectors_NF), np.float32)
    if metric == "cosine":
        norms = np.linalg.norm(vectors_NF, axis=1, keepdims=True)
        unit_NF = np.zeros(vectors_NF.shape, np.float32)
        np.divide(vectors_NF, norms, out=unit_NF, where=norms > 0)
        return unit_NF
    return np.ascontiguousarray(vectors_NF, np.float32)
