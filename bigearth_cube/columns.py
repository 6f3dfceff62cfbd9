"""Whole columns of a cube, as one release saw them: what came later reads as fill."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.errors import CubeIntegrityError, InvalidInputError, NotFoundError
from bigearth_cube.layout import GROUP_COLUMNS, MODEL_ARRAYS, Documents, to_bytes
from bigearth_cube.nomenclature import GROUPS
from bigearth_cube.release import Release, filled_runs, restated
from bigearth_cube.storage import Storage
from bigearth_cube.writer import ROOT, ZARR


def read_column(
    storage: Storage, documents: Documents, releases: Sequence[Release], path: str
) -> NDArray[Any]:
    """Read a column, what newer releases state of older rows in place of what was written.

    Parameters
    ----------
    storage
        The cube's prefix.
    documents
        Metadata of its groups and arrays.
    releases
        All of them up to the one that is meant, oldest first.
    path
        E.g. ``"epsg"`` or ``"s1/r10m/present"``.

    Returns
    -------
    numpy.ndarray
        A value a row, padding included.

    Raises
    ------
    InvalidInputError
        If there is no such array.
    CubeIntegrityError
        If a part of it is missing or damaged.
    StorageError
        If storage refuses or cannot be reached.
    """
    values = read_stored(storage, documents, releases, path)
    stated = restated(releases, path)
    if stated is not None:
        anew, stop = stated
        values[:stop] = read_stored(storage, documents, releases, anew)[:stop]
    group, _, name = path.rpartition("/")
    if name in GROUP_COLUMNS.get(group, {}):
        # A later release may have added views; to this one they are not there.
        absent = np.ones(len(values), bool)
        for start, stop in filled_runs(releases, group):
            absent[start:stop] = False
        _, values[absent] = GROUP_COLUMNS[group][name]
    return values


def read_stored(
    storage: Storage,
    documents: Documents,
    releases: Sequence[Release],
    path: str,
    rows: slice = slice(None),
) -> NDArray[Any]:
    """Read some rows of an array as they were written, shape (row, ...) as it is stored.

    A chunk that was written and is not there is refused: it would read as fill. Parameters and
    errors are those of ``read_column``; ``rows`` has no step.
    """
    import zarr
    from zarr.buffer.cpu import Buffer

    document = documents.get(path)
    if document is None or document["node_type"] != "array":
        raise InvalidInputError(f"no array {path!r} in the cube")
    n_rows = min(document["shape"][0], releases[-1].stop)
    chunk_rows = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    first, stop, _ = rows.indices(n_rows)
    tail = "/0" * (len(document["shape"]) - 1)
    chunks = range(first // chunk_rows, -(-stop // chunk_rows))
    keys = [f"{ZARR}/{path}/c/{chunk}{tail}" for chunk in chunks]
    first_written, last_written = _written(documents, releases, path)

    def read(numbered: tuple[int, str]) -> bytes | None:
        chunk, key = numbered
        try:
            return storage.read(key)
        except NotFoundError:
            if (chunk + 1) * chunk_rows <= first_written or chunk * chunk_rows >= last_written:
                return None
            raise CubeIntegrityError(
                key, "object is missing; it was written with the release"
            ) from None

    with ThreadPoolExecutor(8) as pool:
        data = dict(zip(keys, pool.map(read, zip(chunks, keys, strict=True)), strict=True))
    # zarr-python fills what is missing and raises bare errors: it gets what was read.
    found = {f"{ZARR}/{path}/{ROOT}": to_bytes(document)}
    found |= {key: chunk for key, chunk in data.items() if chunk is not None}
    store = zarr.storage.MemoryStore({key: Buffer.from_bytes(b) for key, b in found.items()})
    array: Any = zarr.open_array(store=store, path=f"{ZARR}/{path}", mode="r")
    try:
        return np.asarray(array[first:stop])
    except (ValueError, RuntimeError) as error:
        raise CubeIntegrityError(f"{ZARR}/{path}", f"cannot be decoded ({error})") from None


def _written(documents: Documents, releases: Sequence[Release], path: str) -> tuple[float, float]:
    """Run of rows in which a column was written; the others read as fill."""
    group = path.rpartition("/")[0]
    if group.split("/")[0] in MODEL_ARRAYS:
        return math.inf, math.inf  # of rows of a later release no model has said anything yet
    if group.startswith("labels/"):
        return 0, next(r.stop for r in releases if group == f"labels/{r.name}")
    if group not in GROUPS or documents[path]["dimension_names"] != ["patch"]:
        return 0, math.inf
    return min((start for start, _ in filled_runs(releases, group)), default=0), math.inf
