"""Look-alikes of a patch of the cube, of another cube, or of one that is in no cube."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.errors import CubeIntegrityError, InvalidInputError, NotFoundError
from bigearth_cube.item_index import Places
from bigearth_cube.nomenclature import GROUPS
from bigearth_cube.retrieval.distances import Metric, check_metric
from bigearth_cube.retrieval.index import (
    MAX_K,
    VectorIndex,
    asking_model,
    others,
    query_vector,
    the_model,
)
from bigearth_cube.search import Question
from bigearth_cube.service.shelf import Served

ANY: Final = Question()
_MODELS_KEPT: Final = 2  # vectors of a whole archive are 300 MB a model
_INPUTS: Final = {path.replace("/", "_"): path for path in GROUPS}

# Who asks may not make the service open what they like: bands come as numbers, items by name.
Bands = Mapping[str, Any]


class NoEncoderError(NotFoundError):
    """The model's vectors are there, but not what made them (HTTP 409)."""


class LookAlikes:
    """Nearest patches of one cube, by the embeddings stored in it; safe between threads.

    Parameters
    ----------
    served
        The cube.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._lock = threading.Lock()
        self._vectors = functools.lru_cache(_MODELS_KEPT)(self._read_vectors)
        self._encoder = functools.lru_cache(_MODELS_KEPT)(self._read_encoder)

    def models(self) -> list[dict[str, Any]]:
        """Describe the models whose embeddings the cube has."""
        documents, described = self._served.cube.documents, []
        for name in self._served.cube.embedded:
            about = documents[f"embeddings/{name}"].get("attributes", {})
            features = documents[f"embeddings/{name}/vector"]["shape"][1]
            # Models of one space may ask each other.
            space = {"space": about["space"]} if "space" in about else {}
            described.append(
                {"name": name, "features": features, "encoder": "encoder" in about, **space}
            )
        return described

    def of_patch(
        self,
        place: int,
        *,
        k: int = 10,
        model: str | None = None,
        query_model: str | None = None,
        metric: Metric = "chi2",
        among: Question = ANY,
    ) -> tuple[Places, NDArray[np.float64]]:
        """Find the patches that look most like one of the cube, which is not among them.

        Parameters
        ----------
        place
            Row of the cube's index.
        k
            How many, 1 to 10,000; fewer come where there are fewer.
        model
            Whose embeddings; may be None where the cube has one model.
        query_model
            Whose embeddings the query is of, where they are others of the same space.
        metric
            See ``retrieval.distances``.
        among
            What may be found.

        Returns
        -------
        tuple
            Places and distances, nearest first.

        Raises
        ------
        NotFoundError
            If the cube lacks a model, or the patch has no embedding of it.
        InvalidInputError
            If k or the metric is out of range, the model is to be named, or the two models are of
            different spaces.
        CubeIntegrityError
            If what holds the vectors is missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        self._check(k, metric)
        name = the_model(self._served.cube, model)
        asking_model(self._served.cube, name, query_model)  # refuses before 300 MB are read
        row = int(self._served.index.rows[place])
        vectors = self._of_model(name)
        vector = query_vector(self._served.cube, vectors, query_model, row)
        allowed = self._allowed(among)
        rows, distances = others(vectors, row, vector, k, metric=metric, among=allowed)
        return self._places(rows), distances

    def of_pixels(
        self,
        pixels: Mapping[str, NDArray[Any]],
        *,
        k: int = 10,
        model: str | None = None,
        query_model: str | None = None,
        metric: Metric = "chi2",
        among: Question = ANY,
    ) -> tuple[Places, NDArray[np.float64]]:
        """Find the patches that look most like one that is given by its pixels.

        Parameters
        ----------
        pixels
            Pixels by group, as a cube stores them; those that the model reads are enough. It is
            the query's model that reads them, where one is named.
        k, model, query_model, metric, among
            As in ``of_patch``.

        Raises
        ------
        NoEncoderError
            If the model's encoder is not beside its vectors.
        NotFoundError
            If the cube lacks the model.
        InvalidInputError
            If pixels that the model reads are missing; or as in ``of_patch``.
        CubeIntegrityError
            If vectors or encoder are missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        self._check(k, metric)
        name = the_model(self._served.cube, model)
        vector = self._encode(asking_model(self._served.cube, name, query_model), pixels)
        allowed = self._allowed(among)
        found = self._of_model(name).nearest(vector[None], k, metric=metric, among=allowed)
        there = found.rows_QK[0] >= 0
        return self._places(found.rows_QK[0][there]), found.distances_QK[0][there]

    def groups_read(self, model: str | None, query_model: str | None = None) -> tuple[str, ...]:
        """Return the groups that are read of a query: by its own model, where one is named.

        Raises
        ------
        NoEncoderError
            If the model's encoder is not beside its vectors.
        NotFoundError
            If the cube lacks the model.
        InvalidInputError
            If the model is to be named, or the two are of different spaces.
        CubeIntegrityError
            If the encoder cannot be read.
        """
        name = the_model(self._served.cube, model)
        session = self._encoder(asking_model(self._served.cube, name, query_model))
        return tuple(_INPUTS[given.name] for given in session.get_inputs())

    def _check(self, k: int, metric: str) -> None:
        check_metric(metric)
        if not 1 <= k <= MAX_K:
            raise InvalidInputError(f"k is {k}, expected 1 to {MAX_K:,}")

    def _of_model(self, model: str | None) -> VectorIndex:
        with self._lock:  # two requests must not read the same 300 MB side by side
            return self._vectors(the_model(self._served.cube, model))

    def _read_vectors(self, model: str) -> VectorIndex:
        return VectorIndex.of(self._served.cube, model)

    def _allowed(self, among: Question) -> NDArray[np.int64] | None:
        index = self._served.index
        return None if among == ANY else index.rows[among.places(index)]

    def _places(self, rows: NDArray[np.int64]) -> Places:
        places = [self._served.index.place_of_row(row) for row in rows.tolist()]
        return np.array([place for place in places if place is not None], np.int32)

    def _encode(self, model: str, pixels: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        session = self._encoder(model)
        given = {}
        for asked in session.get_inputs():
            group = GROUPS[_INPUTS[asked.name]]
            if group.path not in pixels:
                raise InvalidInputError(
                    f"model {model!r} reads {group.path}; give {', '.join(group.bands)} too"
                )
            given[asked.name] = np.ascontiguousarray(pixels[group.path], group.dtype)[None]
        vector: NDArray[np.float32] = np.asarray(session.run(None, given)[0], np.float32)[0]
        if not np.isfinite(vector).all():
            raise InvalidInputError(f"model {model!r} has no finite embedding of these pixels")
        return vector

    def _read_encoder(self, model: str) -> Any:
        import onnxruntime  # 0.2 s that only a posted patch needs

        key = f"embeddings/{model}/encoder.onnx"
        try:
            data = self._served.cube.storage.read(key)
        except NotFoundError:
            raise NoEncoderError(
                f"embeddings {model!r} came without their encoder, so only patches of this cube "
                f"can be asked about; embed the cube again to have it"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        state = onnxruntime.capi.onnxruntime_pybind11_state
        faults = (state.Fail, state.InvalidProtobuf, state.InvalidGraph, state.NotImplemented)
        try:
            session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
        except faults as error:
            raise CubeIntegrityError(key, f"no ONNX model ({str(error)[:200]})") from None
        known = all(given.name in _INPUTS for given in session.get_inputs())
        if not known:
            names = ", ".join(given.name for given in session.get_inputs())
            raise CubeIntegrityError(key, f"reads {names}; expected some of {', '.join(_INPUTS)}")
        return session


def pixels_of(bands: Bands) -> dict[str, NDArray[Any]]:
    """Check posted bands and stack them as a cube stores them.

    Parameters
    ----------
    bands
        Values by band, e.g. ``{"B02": [[…], …], …}``: rows of numbers, or one list of them. DN of
        optical bands, dB of ``VV`` and ``VH``. A group is complete or absent.

    Returns
    -------
    dict
        Pixels by group: (band, y, x).

    Raises
    ------
    InvalidInputError
        If a band is unknown, misshapen, out of range, or one of its group is missing.
    """
    known = {band: group for group in GROUPS.values() for band in group.bands}
    unknown = next((name for name in bands if name not in known), None)
    if unknown is not None:
        raise InvalidInputError(f"no band {unknown!r:.60}; choose from: {', '.join(known)}")
    if not bands:
        raise InvalidInputError(f"no bands; give the bands of a patch: {', '.join(known)}")
    found = {}
    for group in GROUPS.values():
        given = [name for name in group.bands if name in bands]
        if given and len(given) < len(group.bands):
            lacking = next(name for name in group.bands if name not in bands)
            raise InvalidInputError(f"band {lacking} is missing; {given[0]} came without it")
        if given:
            stacked = [_band(name, bands[name], group.size_px, group.dtype) for name in given]
            found[group.path] = np.stack(stacked)
    return found


def _band(name: str, values: Any, size_px: int, dtype: str) -> NDArray[Any]:
    try:
        band = np.asarray(values)
    except ValueError:  # rows of several lengths
        band = np.empty(0, object)
    is_square = band.shape in ((size_px, size_px), (size_px**2,))
    if band.dtype.kind not in "iuf" or not is_square:
        raise InvalidInputError(
            f"{name} is no {size_px} x {size_px} numbers; expected that many rows of that many"
        )
    if not np.isfinite(band).all():
        raise InvalidInputError(f"{name} has a value that is not finite; fill it, or leave it out")
    if dtype == "uint16" and (band.min() < 0 or band.max() > 65_535):
        raise InvalidInputError(
            f"{name} has values from {band.min():g} to {band.max():g}; expected DN, 0 to 65535"
        )
    if dtype == "uint16" and (band % 1).any():
        found = band[band % 1 != 0][0]
        raise InvalidInputError(f"{name} has {found:g}; expected DN, which are whole numbers")
    return band.reshape(size_px, size_px).astype(dtype)
