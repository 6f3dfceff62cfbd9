"""The vectors of one model, and their nearest neighbors found exactly.

One matrix product bounds all distances from below; the few vectors whose bound does not rule
them out are compared in float64. So the answer is that of a plain scan, at the price of reading
the vectors once.

Axes: N vectors, Q queries, F features, K neighbors.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.retrieval.distances import (
    Bound,
    Metric,
    as_distances,
    check_features,
    check_metric,
    pairwise,
)

if TYPE_CHECKING:
    from bigearth_cube.retrieval.ivf import IvfIndex

MAX_K: Final = 10_000
# Measured at 590,326 x 128 on 2 cores: more rows leave the cache, fewer cost calls. The square
# roots of chi2 are as large as the block itself.
_BLOCK_ROWS: Final = {"chi2": 8_192, "cosine": 16_384, "euclidean": 16_384, "hamming": 8_192}
_PAIRS: Final = 16_384  # compared at a time: 16 MB at 128 features
_FORMAT: Final = "bigearth_cube vectors 1"
# A scan divides the vectors over the cores itself, so BLAS gets one thread. Its setting is the
# process's, so two scans must not change it at once.
_SCANNING: Final = threading.Lock()
_Blocks = Iterator[tuple[slice | NDArray[np.int64], NDArray[np.int64]]]
_Scan = Callable[[_Blocks], None]


@dataclass(frozen=True, slots=True)
class Origin:
    """What an index was made of.

    Attributes
    ----------
    cube_id, release
        The cube and its release.
    model
        Name of the embeddings.
    digest
        SHA-256 of their attributes and of the checksums of their chunks, hexadecimal.
    """

    cube_id: str
    release: str
    model: str
    digest: str


class Nearest(NamedTuple):
    """Neighbors of each query, nearest first; ties in the order of the rows.

    Attributes
    ----------
    rows_QK
        int64 rows of the cube; -1 where there are fewer than k.
    distances_QK
        float64; infinite where there are fewer than k.
    """

    rows_QK: NDArray[np.int64]
    distances_QK: NDArray[np.float64]


class VectorIndex:
    """Vectors of one model over one release of a cube, ready for questions.

    Parameters
    ----------
    vectors_NF
        (n, dim) float32, all finite; may be a memory map.
    rows_N
        (n,) int64, increasing: their rows in the cube.
    origin
        What they are vectors of.
    """

    def __init__(
        self, vectors_NF: NDArray[np.float32], rows_N: NDArray[np.int64], origin: Origin
    ) -> None:
        self.vectors_NF = vectors_NF
        self.rows_N = rows_N
        self.origin = origin
        self._bounds: dict[str, Bound] = {}

    @classmethod
    def of(cls, cube: Cube, model: str | None = None) -> VectorIndex:
        """Read the vectors of one model from a cube; patches without one are left out.

        Parameters
        ----------
        cube
            A cube with embeddings.
        model
            Name under which they were stored; may be None where the cube has one model.

        Raises
        ------
        NotFoundError
            If the cube lacks the model, or has none.
        InvalidInputError
            If no model is named and the cube has several.
        CubeIntegrityError
            If a part of the vectors is missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        name = the_model(cube, model)
        vectors = cube.embeddings(name)
        rows = cube.rows[~np.isnan(vectors[cube.rows, 0])]
        if len(rows) != len(vectors):
            vectors = vectors[rows]
        return cls(vectors, rows, origin_of(cube, name))

    def __len__(self) -> int:
        return len(self.rows_N)

    def vector_of(self, row: int) -> NDArray[np.float32]:
        """Return the vector, (dim,), of one row of the cube.

        Raises
        ------
        NotFoundError
            If the row has none.
        """
        at = int(np.searchsorted(self.rows_N, row))
        if at == len(self) or self.rows_N[at] != row:
            raise NotFoundError(f"row {row} has no embedding of model {self.origin.model!r}")
        return np.asarray(self.vectors_NF[at])

    def nearest(
        self,
        queries_QF: NDArray[np.float32],
        k: int = 10,
        *,
        metric: Metric = "chi2",
        among: NDArray[np.int64] | None = None,
    ) -> Nearest:
        """Find the k nearest vectors of each query: exactly those a plain scan finds.

        Parameters
        ----------
        queries_QF
            (q, dim) float32. Many at once cost a tenth of one at a time.
        k
            How many; 1 to 10,000.
        metric
            See ``distances``.
        among
            Rows of the cube that may be found; all if None.

        Raises
        ------
        InvalidInputError
            If k, the metric or the shape or values of the queries are not as described.
        """
        return self.scan(self.checked(queries_QF, k, metric), k, metric, among)

    def scan(
        self,
        queries_QF: NDArray[np.float32],
        k: int,
        metric: Metric,
        among: NDArray[np.int64] | None,
    ) -> Nearest:
        """Answer as ``nearest``, of queries that ``checked`` returned; k is not bounded."""
        chosen = None if among is None else np.flatnonzero(np.isin(self.rows_N, among))
        if metric == "hamming":
            best = self._nearest_codes(queries_QF, k, chosen)
        else:
            best = self._nearest_bounded(queries_QF, k, metric, chosen)
        places_QK, sortable_QK = best.places_QK, best.sortable_QK
        rows_QK = np.where(places_QK >= 0, self.rows_N[places_QK], -1) if len(self) else places_QK
        return Nearest(rows_QK, as_distances(sortable_QK, metric))

    def checked(self, queries_QF: NDArray[np.float32], k: int, metric: str) -> NDArray[np.float32]:
        """Return the queries as (q, dim) float32, once everything asked makes sense.

        Raises
        ------
        InvalidInputError
            As in ``nearest``.
        """
        check_metric(metric)
        if not 1 <= k <= MAX_K:
            raise InvalidInputError(f"k is {k}, expected 1 to {MAX_K:,}")
        queries = np.ascontiguousarray(np.atleast_2d(queries_QF), np.float32)
        dim = self.vectors_NF.shape[1]
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise InvalidInputError(
                f"queries are {np.shape(queries_QF)}, expected (q, {dim}) as the vectors of model "
                f"{self.origin.model!r}"
            )
        check_features(queries, metric)
        return queries

    def _nearest_bounded(
        self, queries_QF: NDArray[np.float32], k: int, metric: str, chosen: NDArray[np.int64] | None
    ) -> _Best:
        bound = self._bound(metric)
        ready_QF, offsets_Q = bound.of_queries(queries_QF)
        best = _Best(len(queries_QF), k)

        def offer(query_of: NDArray[np.int64], places: NDArray[np.int64]) -> None:
            for start in range(0, len(places), _PAIRS):
                some = slice(start, start + _PAIRS)
                vectors = self.vectors_NF[places[some]]
                sortable = pairwise(vectors, queries_QF[query_of[some]], metric)
                best.add(query_of[some], places[some], sortable)

        def scan(blocks: _Blocks) -> None:
            for at, places in blocks:
                lower_QN = bound.without_query_offset(ready_QF, self.vectors_NF[at], at)

                def possible() -> NDArray[np.bool_]:
                    limit_Q = np.nextafter((best.worst_Q - offsets_Q).astype(np.float32), np.inf)
                    return lower_QN <= limit_Q[:, None]  # noqa: B023  # called in this turn only

                hits_QN = possible()
                few = min(2 * k, len(places))
                if np.count_nonzero(hits_QN) > 4 * few * len(queries_QF):
                    # So many are possible because little is known: look at the likeliest first.
                    likely_QK = np.argpartition(lower_QN, few - 1, axis=1)[:, :few]
                    query_of = np.repeat(np.arange(len(queries_QF)), few)
                    offer(query_of, places[likely_QK.ravel()])
                    np.put_along_axis(lower_QN, likely_QK, np.inf, axis=1)
                    hits_QN = possible() & np.isfinite(lower_QN)
                query_of, hit = np.nonzero(hits_QN)
                if len(hit):
                    offer(query_of, places[hit])

        self._over_cores(scan, chosen, _BLOCK_ROWS[metric])
        return best

    def _nearest_codes(
        self, queries_QF: NDArray[np.float32], k: int, chosen: NDArray[np.int64] | None
    ) -> _Best:
        codes_NW, asked_QW = self._codes, _sign_codes(queries_QF)
        places = np.arange(len(self)) if chosen is None else chosen
        best = _Best(len(queries_QF), k)
        kept = min(k, len(places))
        for query, asked_W in enumerate(asked_QW if kept else ()):
            codes = codes_NW if chosen is None else codes_NW[chosen]
            counts = np.bitwise_count(codes ^ asked_W).sum(axis=1, dtype=np.int64)
            # One number sorts by distance, then by row.
            order = counts * len(self) + places
            first = places[np.argpartition(order, kept - 1)[:kept]]
            sortable = pairwise(self.vectors_NF[first], queries_QF[query : query + 1], "hamming")
            best.add(np.full(kept, query), first, sortable)
        return best

    @functools.cached_property
    def _codes(self) -> NDArray[np.uint64]:
        return _sign_codes(self.vectors_NF)

    def _bound(self, metric: str) -> Bound:
        if metric not in self._bounds:
            check_features(self.vectors_NF, metric)
            self._bounds[metric] = Bound(self.vectors_NF, metric)
        return self._bounds[metric]

    def _over_cores(self, scan: _Scan, chosen: NDArray[np.int64] | None, block_rows: int) -> None:
        """Give each core every n-th block of the vectors chosen."""
        n_rows = len(self) if chosen is None else len(chosen)
        starts = range(0, n_rows, block_rows)
        n_threads = max(1, min(len(os.sched_getaffinity(0)), len(starts)))

        def blocks(thread: int) -> _Blocks:
            for start in starts[thread::n_threads]:
                end = min(start + block_rows, n_rows)
                if chosen is None:
                    yield slice(start, end), np.arange(start, end)
                else:
                    yield chosen[start:end], chosen[start:end]

        with _SCANNING, _blas().limit(limits=1, user_api="blas"):
            if n_threads == 1:
                scan(blocks(0))
                return
            with ThreadPoolExecutor(n_threads) as pool:
                for done in [pool.submit(scan, blocks(thread)) for thread in range(n_threads)]:
                    done.result()

    def save(self, folder: str | Path) -> None:
        """Keep the vectors in a local folder, from where ``load`` maps them into memory."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        about = path / "index.json"
        about.unlink(missing_ok=True)  # what a killed run leaves is no index
        for name, array in (("vectors.npy", self.vectors_NF), ("rows.npy", self.rows_N)):
            # Others may have the old file mapped: it is replaced, not written over.
            with (path / f"{name}.part").open("wb") as file:
                np.save(file, array)
            (path / f"{name}.part").replace(path / name)
        part = path / "index.json.part"
        part.write_text(json.dumps({"format": _FORMAT, **asdict(self.origin)}, indent=1))
        part.replace(about)

    @classmethod
    def load(cls, folder: str | Path, cube: Cube, model: str | None = None) -> VectorIndex:
        """Map the vectors of a folder into memory, once they are those of the cube.

        Parameters
        ----------
        folder
            Where ``save`` wrote.
        cube
            The cube that will be asked about.
        model
            As in ``of``.

        Raises
        ------
        NotFoundError
            If the folder holds no index, or the cube no such model.
        InvalidInputError
            If it is the index of another cube, release or model, or of older vectors.
        """
        path = Path(folder)
        expected = origin_of(cube, the_model(cube, model))
        try:
            about = json.loads((path / "index.json").read_text())
            origin = Origin(**{field: about[field] for field in asdict(expected)})
            known = about["format"] == _FORMAT
        except FileNotFoundError:
            raise NotFoundError(f"no index in {folder}; VectorIndex.save writes one") from None
        except (ValueError, KeyError, TypeError):
            known, origin = False, expected
        if not known:
            raise InvalidInputError(
                f"{path / 'index.json'} is none that VectorIndex.save wrote; remove the folder"
            )
        if origin != expected:
            differing = [f for f in asdict(origin) if getattr(origin, f) != getattr(expected, f)]
            said = "; ".join(
                f"{f} {getattr(origin, f)!r}, expected {getattr(expected, f)!r}" for f in differing
            )
            raise InvalidInputError(
                f"the index in {folder} is of other vectors: {said}; remove the folder or name "
                f"another"
            )
        vectors = np.load(path / "vectors.npy", mmap_mode="r")
        return cls(vectors, np.load(path / "rows.npy"), origin)


class _Best:
    """The k best of every query so far; several threads add to it."""

    def __init__(self, n_queries: int, k: int) -> None:
        self.places_QK = np.full((n_queries, k), -1, np.int64)
        self.sortable_QK = np.full((n_queries, k), np.inf)
        self._lock = threading.Lock()

    @property
    def worst_Q(self) -> NDArray[np.float64]:
        """What a vector must not be above to come in."""
        return self.sortable_QK[:, -1]

    def add(
        self,
        query_of: NDArray[np.int64],
        places: NDArray[np.int64],
        sortable: NDArray[np.float64],
    ) -> None:
        """Take in pairs, each at most once: query, place of the vector, how they compare."""
        k = self.places_QK.shape[1]
        with self._lock:
            queries = np.unique(query_of)
            all_queries = np.concatenate((np.repeat(queries, k), query_of))
            all_places = np.concatenate((self.places_QK[queries].ravel(), places))
            all_sortable = np.concatenate((self.sortable_QK[queries].ravel(), sortable))
            order = np.lexsort((all_places, all_sortable, all_queries))
            firsts = np.searchsorted(all_queries[order], queries)
            chosen = order[firsts[:, None] + np.arange(k)]
            self.places_QK[queries] = all_places[chosen]
            self.sortable_QK[queries] = all_sortable[chosen]


def the_model(cube: Cube, model: str | None) -> str:
    """Return the model named, or the only one that the cube has vectors of.

    Raises
    ------
    NotFoundError
        If the cube lacks the model, or has none.
    InvalidInputError
        If no model is named and the cube has several.
    """
    there = cube.embedded
    if model is None and len(there) > 1:
        raise InvalidInputError(
            f"cube {cube.id!r} has embeddings of several models; choose one of: {', '.join(there)}"
        )
    if not there or (model is not None and model not in there):
        if not there:
            raise NotFoundError(
                f"no embeddings in cube {cube.id!r}; write them with "
                f"'python -m training embed CUBE --checkpoint RUN'"
            )
        wanted = "no embeddings" if model is None else f"no embeddings {model!r}"
        raise NotFoundError(f"{wanted} in cube {cube.id!r}; it has: {', '.join(there)}")
    return model or there[0]


def asking_model(cube: Cube, model: str, query_model: str | None) -> str:
    """Return the model whose vectors are the queries: ``model`` itself if none is named.

    Parameters
    ----------
    cube
        A cube with embeddings of both.
    model
        Whose vectors are the answers.
    query_model
        Whose vectors are the queries, of the same space: of another encoder of one checkpoint,
        such as that of Sentinel-1.

    Raises
    ------
    NotFoundError
        If the cube lacks the query's model.
    InvalidInputError
        If the two are of different spaces, or do not say of which they are.
    """
    if query_model is None or query_model == model:
        return model
    the_model(cube, query_model)
    spaces = {
        name: cube.documents[f"embeddings/{name}"].get("attributes", {}).get("space")
        for name in (query_model, model)
    }
    silent = [name for name, space in spaces.items() if space is None]
    if silent:
        raise InvalidInputError(
            f"embeddings {silent[0]!r} do not say of which space they are, so {query_model!r} and "
            f"{model!r} cannot be compared; write them again with 'python -m training embed'"
        )
    if spaces[query_model] != spaces[model]:
        said = " and ".join(f"{name!r} (space {str(spaces[name])[:12]})" for name in spaces)
        raise InvalidInputError(
            f"embeddings {said} are of different spaces: a distance between them means nothing; "
            f"choose two that one checkpoint gave"
        )
    return query_model


def query_vector(
    cube: Cube, index: VectorIndex | IvfIndex, query_model: str | None, row: int
) -> NDArray[np.float32]:
    """Return the vector, (dim,), that the patch of a row asks an index with.

    That of the index itself, or, of another model of its space, the stored one, at the price of one
    chunk.

    Raises
    ------
    NotFoundError
        If the cube lacks the query's model, or the row has no vector.
    InvalidInputError
        If the models are of different spaces, or the vectors of the index are no longer those of
        the cube: another checkpoint may have made the query's.
    CubeIntegrityError
        If the chunk is damaged.
    StorageError
        If storage refuses or cannot be reached.
    """
    model = index.origin.model
    asking = asking_model(cube, model, query_model)
    if asking == model:
        return index.vector_of(row)
    if origin_of(cube, model) != index.origin:
        raise InvalidInputError(
            f"embeddings {model!r} were written anew since they were read, so a query of {asking!r} "
            f"may be of another space; open the cube and make the index anew"
        )
    vector: NDArray[np.float32] = cube.embeddings(asking, slice(row, row + 1))[0]
    if np.isnan(vector[0]):
        raise NotFoundError(f"row {row} has no embedding of model {asking!r}")
    return vector


def others(
    index: VectorIndex | IvfIndex,
    row: int,
    vector_F: NDArray[np.float32],
    k: int,
    *,
    metric: Metric,
    among: NDArray[np.int64] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the k rows nearest to the vector of a row, which is not among them.

    Parameters
    ----------
    index
        What is asked.
    row
        The row of the cube that is left out.
    vector_F
        Its vector, (dim,) float32, by whichever model asks.
    k, metric, among
        As for ``VectorIndex.nearest``.

    Returns
    -------
    tuple
        Rows of the cube, int64, and distances, float64, both (at most k,), nearest first.

    Raises
    ------
    InvalidInputError
        As in ``VectorIndex.nearest``.
    """
    query_QF = index.checked(vector_F, k, metric)
    # One more than asked: the query finds itself, unless others are as near and come before it.
    found = index.scan(query_QF, k + 1, metric, among)
    is_other = ~np.isin(found.rows_QK[0], (row, -1))
    return found.rows_QK[0][is_other][:k], found.distances_QK[0][is_other][:k]


def origin_of(cube: Cube, model: str) -> Origin:
    """Say what the vectors of a model in a cube are, at the price of one request."""
    attributes = cube.documents[f"embeddings/{model}"].get("attributes", {})
    said = json.dumps(attributes, sort_keys=True, default=str).encode()
    stored = cube.storage.read(f"ingest/embeddings/{model}.json")
    digest = hashlib.sha256(said + b"\n" + stored).hexdigest()
    return Origin(cube.id, cube.release.name, model, digest)


@functools.cache
def _blas() -> ThreadpoolController:
    # Looking for the libraries takes milliseconds; numpy's is loaded by now.
    return ThreadpoolController()


def _sign_codes(vectors_NF: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Pack which features are above zero into words of 64 bits."""
    n, dim = vectors_NF.shape
    padded = np.zeros((n, -(-dim // 64) * 8), np.uint8)
    for start in range(0, n, _BLOCK_ROWS["hamming"]):
        bits = np.packbits(vectors_NF[start : start + _BLOCK_ROWS["hamming"]] > 0, axis=1)
        padded[start : start + len(bits), : bits.shape[1]] = bits
    return padded.view(np.uint64)
