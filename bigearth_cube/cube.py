"""A cube on storage: open it with one request, look into it, select, verify."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigearth_cube import columns, pending
from bigearth_cube import layout as layouts
from bigearth_cube import search as searching
from bigearth_cube.counts import Counts, count_patches
from bigearth_cube.errors import (
    CubeIntegrityError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from bigearth_cube.item_index import ItemIndex
from bigearth_cube.items_store import read_columns, read_items
from bigearth_cube.layout import CubeLayout, Documents
from bigearth_cube.lock import lock
from bigearth_cube.nomenclature import (
    GROUPS,
    NOMENCLATURES,
    Archive,
)
from bigearth_cube.release import Release, StoredObject, current_tables, filled_runs, patch_rows
from bigearth_cube.shards import ArrayLayout, array_layout, checksum
from bigearth_cube.storage import Storage, StorageOptions
from bigearth_cube.writer import ROOT, ZARR, CubeWriter

if TYPE_CHECKING:
    import xarray as xr


class RowValues(Protocol):
    """Values row by row: an array, or whatever gives a slice of rows as one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, and values of each."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Read some rows."""


@dataclass(frozen=True, repr=False)
class Cube:
    """An opened cube, as one release saw it. Make it with ``open_cube``.

    Attributes
    ----------
    storage
        The cube's prefix.
    attributes
        Root attributes.
    documents
        Metadata of every group and array.
    release
        The release it was opened at.
    releases
        All releases up to it, oldest first.
    root
        The root document as it was read.
    """

    storage: Storage
    attributes: Mapping[str, Any]
    documents: Documents
    release: Release
    releases: tuple[Release, ...]
    root: bytes

    def __repr__(self) -> str:
        return f"<Cube {self.id} {self.release.name}, {self.n_patches:,} patches, {self.url}>"

    @property
    def id(self) -> str:
        """Name of the cube: its STAC collection."""
        return str(self.attributes["id"])

    @property
    def archive(self) -> Archive:
        """``"v1"`` or ``"v2"``: which nomenclature and statistics are its own."""
        return self.layout.archive

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.storage.url

    @functools.cached_property
    def layout(self) -> CubeLayout:
        """How it is cut into objects."""
        return CubeLayout.from_json(self.attributes["layout"])

    @property
    def n_rows(self) -> int:
        """Length of the patch axis, padding included."""
        return self.release.stop

    @property
    def n_patches(self) -> int:
        """Patches in it."""
        return sum(r.n_patches for r in self.releases)

    @property
    def has_pixels(self) -> bool:
        """Whether it holds pixels; one made from lists alone has items and columns only."""
        return bool(self.layout.groups)

    @functools.cached_property
    def rows(self) -> NDArray[np.int64]:
        """Rows that hold a patch, increasing."""
        return patch_rows(self.releases)

    def class_names(self, labels: str = "label_19") -> tuple[str, ...]:
        """Return class names of a label array, in the order of its columns.

        Raises
        ------
        InvalidInputError
            If the cube has no such labels.
        """
        if labels not in self.documents or labels not in NOMENCLATURES:
            have = [name for name in NOMENCLATURES if name in self.documents]
            raise InvalidInputError(f"no labels {labels!r} here; choose from: {', '.join(have)}")
        return NOMENCLATURES[labels]

    def pixel_layout(self, group: str) -> ArrayLayout:
        """Return how the pixel array of a group is stored.

        Raises
        ------
        InvalidInputError
            If the cube has no such group, or no pixels at all.
        """
        if not self.has_pixels:
            raise InvalidInputError(
                f"cube {self.id!r} has no pixels: it was made from lists alone; ingest an archive "
                f"into a cube of its own"
            )
        if group not in GROUPS or group not in self.documents:
            have = [path for path in GROUPS if path in self.documents]
            raise InvalidInputError(f"no group {group!r} here; choose from: {', '.join(have)}")
        path = f"{group}/{GROUPS[group].array}"
        return array_layout(path, self.documents[path])

    def filled(self, group: str) -> list[tuple[int, int]]:
        """Return half-open runs of rows whose shards of ``group`` were written."""
        return filled_runs(self.releases, group)

    @functools.cached_property
    def tree(self) -> xr.DataTree:
        """All groups as an xarray.DataTree, lazily, without padding.

        Every group carries the root's columns (id, labels' presence, place, time, corner) and
        ``row``, the index in the stored arrays, as coordinates along ``patch``.
        """
        from bigearth_cube.tree import open_tree  # xarray takes longer to import than this to open

        return open_tree(self.storage, self.root, self.documents, self.releases)

    @functools.cached_property
    def items(self) -> pa.Table:
        """The items table, a row a patch, with ``bec:row`` as its place in the arrays.

        Raises
        ------
        CubeIntegrityError
            If a part of it is missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        return read_items(self.storage, current_tables(self.releases))

    def read_items(self, without: Collection[str]) -> pa.Table:
        """Read the items table anew, without some columns: half of it repeats one description.

        Parameters
        ----------
        without
            Names of columns or of fields of ``assets``, e.g. ``"links"``, ``"href"``.

        Returns
        -------
        pyarrow.Table
            Each column in one chunk, as an index wants it.

        Raises
        ------
        CubeIntegrityError
            If a part of it is missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        return read_columns(self.storage, current_tables(self.releases), without)

    def search(self, **query: Any) -> searching.Selection:
        """Select patches; see ``bigearth_cube.search.search`` for the query.

        Raises
        ------
        InvalidInputError
            If the query is malformed or names an unknown property.
        """
        rows = searching.search(self.index, **query)
        return searching.Selection.of(
            self.index, rows, cube_id=self.id, release=self.release.name, query=query
        )

    @functools.cached_property
    def index(self) -> ItemIndex:
        """Columns of the items table as search wants them, made once."""
        return ItemIndex(self.items)

    def column(self, path: str) -> NDArray[Any]:
        """Return a whole column, e.g. ``"epsg"`` or ``"s1/r10m/present"``, padding included.

        What a release learned of older rows (``labels/<release>/…``) stands in for the column at
        the root, as far as this release knows it.

        Raises
        ------
        InvalidInputError
            If the cube has no such array.
        CubeIntegrityError
            If a part of it is missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        return columns.read_column(self.storage, self.documents, self.releases, path)

    def labels(self, name: str, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Return the labels of some rows, multi-hot.

        Parameters
        ----------
        name
            ``"label_19"``, or ``"label_43"`` in a v1 cube.
        rows
            Row indices; all patches where it is None.

        Returns
        -------
        ndarray
            (n_rows, n_classes) uint8.

        Raises
        ------
        InvalidInputError
            If the cube has no such labels, or some of the rows have none: an unknown label is
            not "no class".
        """
        self.class_names(name)
        rows = self.rows if rows is None else np.asarray(rows)
        unknown = int((~self._cached_column("has_labels")[rows]).sum())
        if unknown:
            raise InvalidInputError(
                f"{unknown} of {len(rows)} rows have no labels; leave them out, or ask for "
                f"labels=None"
            )
        return np.asarray(self._cached_column(name)[rows], np.uint8)

    def _cached_column(self, path: str) -> NDArray[Any]:
        cache: dict[str, NDArray[Any]] = self.__dict__.setdefault("_columns", {})
        if path not in cache:
            cache[path] = self.column(path)
        return cache[path]

    def row_of(self, patch_id: str) -> int:
        """Return the row of a patch.

        Raises
        ------
        NotFoundError
            If the cube has no such patch.
        """
        found = np.flatnonzero(self.items["id"].to_numpy(zero_copy_only=False) == patch_id)
        if not len(found):
            raise NotFoundError(f"no patch {patch_id!r} in cube {self.id!r}")
        return int(self.items["bec:row"][int(found[0])].as_py())

    def patch(self, patch_id: str) -> xr.DataTree:
        """Return one patch with x, y and CRS on every group, lazily.

        Raises
        ------
        NotFoundError
            If the cube has no such patch.
        """
        from bigearth_cube.tree import patch_of

        return patch_of(self.tree, int(np.searchsorted(self.rows, self.row_of(patch_id))))

    def counts(self) -> Counts:
        """Count patches by split, season, country, flag and 19-class label, in published order.

        See ``bigearth_cube.counts.count_patches`` for the form.

        Raises
        ------
        CubeIntegrityError
            If a part of the items table is missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        return count_patches(self.items)

    def recorded_objects(self) -> list[StoredObject]:
        """Return every object as it was written last, sorted by key.

        Raises
        ------
        CubeIntegrityError
            If a record of what was written is missing or damaged.
        StorageError
            If storage refuses or cannot be reached.
        """
        recorded: dict[str, StoredObject] = {}
        keys = [f"ingest/{release.name}/objects.json" for release in self.releases]
        keys += [
            f"ingest/{kind}/{model}.json"
            for kind in layouts.MODEL_ARRAYS
            for model in self._models(kind)
        ]
        for key in keys:
            try:
                for entry in json.loads(self.storage.read(key)):
                    recorded[entry["key"]] = StoredObject(**entry)
            except (NotFoundError, ValueError, TypeError, KeyError) as error:
                raise CubeIntegrityError(key, f"no record of written objects ({error})") from None
        # Releases and models both rewrite these: the last writer's stand in the root.
        for path, document in self.documents.items():
            key = f"{ZARR}/{path}/{ROOT}"
            recorded[key] = StoredObject.of(key, layouts.to_bytes(document))
        root = f"{ZARR}/{ROOT}"
        recorded[root] = StoredObject.of(root, self.root)
        return [recorded[key] for key in sorted(recorded)]

    def verify(
        self, objects: Sequence[StoredObject]
    ) -> Iterator[tuple[int, CubeIntegrityError | None]]:
        """Re-read objects; yield how many are done, and what is wrong with the last one.

        An object that an unfinished ingest has written over is whole, if it is so written.

        Raises
        ------
        StorageError
            If storage refuses or cannot be reached.
        """
        next_release = f"r{len(self.releases) + 1}"
        may_be = set(pending.noted(self.storage, next_release))
        for done, stored in enumerate(objects, 1):
            reason = _fault(self.storage, stored, may_be)
            is_root = stored.key == f"{ZARR}/{ROOT}"
            if reason is None and is_root and not layouts.is_whole_root(self.root):
                reason = "checksum within it is not that of the rest"
            rows = () if reason is None else self._rows_in(stored.key)
            yield done, None if reason is None else CubeIntegrityError(stored.key, reason, rows)

    def patches_in(self, rows: Sequence[int]) -> list[str]:
        """Return the ids of the patches from the first to the last of ``rows``, as a fault has them.

        None where the items table that would say so cannot be read itself.
        """
        if not rows:
            return []
        try:
            ids, at = self.items["id"], self.items["bec:row"].to_numpy()
        except CubeIntegrityError:
            return []
        within = np.flatnonzero((at >= rows[0]) & (at <= rows[-1]))
        return [str(patch_id) for patch_id in ids.take(within).to_pylist()]

    def _rows_in(self, key: str) -> tuple[int, ...]:
        """First and last row that an object of an array holds."""
        path, _, chunk = key.removeprefix(f"{ZARR}/").partition("/c/")
        document = self.documents.get(path, {})
        if not chunk or document["dimension_names"][0] != "patch":
            return ()
        n_rows = document["chunk_grid"]["configuration"]["chunk_shape"][0]
        first = int(chunk.split("/")[0]) * n_rows
        return first, min(first + n_rows, self.n_rows) - 1

    def write_embeddings(
        self,
        model: str,
        vectors: RowValues,
        attributes: Mapping[str, Any] | None = None,
        *,
        encoder: bytes | None = None,
    ) -> None:
        """Store a vector for every row as ``embeddings/<model>/vector``, replacing older ones.

        Open the cube again to see them.

        Parameters
        ----------
        model
            Name of the model; letters, digits, ``.``, ``_`` and ``-``.
        vectors
            (n_rows, dim) float32, padding rows NaN; read a slice of rows at a time, so it may be
            larger than memory.
        attributes
            Stored on the group, e.g. the checkpoint's digest.
        encoder
            What makes such a vector of a patch, as ONNX; stored as
            ``embeddings/<model>/encoder.onnx`` below the cube.

        Raises
        ------
        InvalidInputError
            If the name or the shape is not as described, this is not the newest release of the
            cube, or another writer holds it or takes it over.
        StorageError
            If storage refuses or cannot be reached.
        """
        beside = {} if encoder is None else {encoder_key(model): encoder}
        self._write_model("embeddings", model, vectors, "dim", attributes or {}, beside)

    def write_predictions(
        self,
        model: str,
        scores: RowValues,
        labels: str,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Store the score of every class of every row as ``predictions/<model>/score``.

        Open the cube again to see them.

        Parameters
        ----------
        model, attributes
            As in ``write_embeddings``.
        scores
            (n_rows, n_classes) float32, NaN where nothing was predicted.
        labels
            Label array whose classes they are, e.g. ``"label_19"``.

        Raises
        ------
        InvalidInputError
            As in ``write_embeddings``, or if the cube has no such labels.
        StorageError
            If storage refuses or cannot be reached.
        """
        n_classes = len(self.class_names(labels))
        if scores.shape[1:] != (n_classes,):
            raise InvalidInputError(
                f"scores are {scores.shape}, expected ({self.n_rows}, {n_classes}) for {labels}"
            )
        about = {**(attributes or {}), "labels": labels}
        self._write_model("predictions", model, scores, layouts.class_axis(labels), about, {})

    def _write_model(
        self,
        kind: str,
        model: str,
        values: RowValues,
        axis: str,
        attributes: Mapping[str, Any],
        beside: Mapping[str, bytes],
    ) -> None:
        if not model or not all(c.isalnum() or c in "._-" for c in model):
            raise InvalidInputError(f"model name {model!r} has other characters than A-Z 0-9 . _ -")
        if len(values.shape) != 2 or values.shape[0] != self.n_rows:
            raise InvalidInputError(
                f"{layouts.MODEL_ARRAYS[kind]}s are {values.shape}, expected ({self.n_rows}, "
                f"{axis}): one for every row"
            )
        length = values.shape[1]
        new = layouts.model_documents(kind, model, self.n_rows, (axis, length), attributes)
        with lock(self.storage) as held:
            # Others may have published since this cube was opened.
            now = open_cube(self.storage.url, self.storage.options)
            if now.release != self.release:
                raise InvalidInputError(
                    f"the {layouts.MODEL_ARRAYS[kind]}s are of release {self.release.name!r}, the "
                    f"cube is at {now.release.name!r}; open it anew and make them again"
                )
            writer = CubeWriter(self.storage, self.id, self.layout, {**now.documents, **new})
            written = writer.put_documents(new)
            path = f"{kind}/{model}/{layouts.MODEL_ARRAYS[kind]}"
            for start in range(0, self.n_rows, layouts.MODEL_CHUNK_ROWS):
                part = np.asarray(values[start : start + layouts.MODEL_CHUNK_ROWS], np.float32)
                written += writer.write_column(path, start, part)
            for key, data in beside.items():
                self.storage.write(key, data)
                written.append(StoredObject.of(key, data))
            writer.record(f"ingest/{kind}/{model}.json", written)
            held.confirm()
            writer.publish(now.releases)

    def _models(self, kind: str) -> tuple[str, ...]:
        paths = [path.split("/") for path in self.documents if path.startswith(f"{kind}/")]
        return tuple(sorted({parts[1] for parts in paths}))

    @property
    def embedded(self) -> tuple[str, ...]:
        """Names of the models whose embeddings it has."""
        return self._models("embeddings")

    @property
    def predicted(self) -> tuple[str, ...]:
        """Names of the models whose predictions it has."""
        return self._models("predictions")

    def embeddings(self, model: str, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Return the vectors of every row, (n_rows, dim) float32; NaN where there is none.

        Parameters
        ----------
        model
            Name of the embeddings.
        rows
            Rows wanted, without a step; no others are read but those of the same chunks.

        Raises
        ------
        InvalidInputError
            If rows have a step.
        NotFoundError
            If the cube has none of that model.
        """
        if rows.step not in (None, 1):
            raise InvalidInputError(f"rows {rows} have a step; expected a start and a stop alone")
        return self._of_model("embeddings", model, rows)

    def predictions(self, model: str) -> NDArray[np.float32]:
        """Return the scores of every row, (n_rows, n_classes) float32; NaN where there is none.

        Raises
        ------
        NotFoundError
            If the cube has none of that model.
        """
        return self._of_model("predictions", model)

    def _of_model(self, kind: str, model: str, rows: slice = slice(None)) -> NDArray[np.float32]:
        there = self._models(kind)
        if model not in there:
            raise NotFoundError(
                f"no {kind} {model!r} in cube {self.id!r}; it has: {', '.join(there) or 'none'}"
            )
        path = f"{kind}/{model}/{layouts.MODEL_ARRAYS[kind]}"
        stored = columns.read_stored(self.storage, self.documents, self.releases, path, rows)
        return np.asarray(stored, np.float32)

    def encoder(self, model: str) -> bytes:
        """Return what made the vectors of a model, as ONNX: patches in DN in, vectors out.

        Raises
        ------
        NotFoundError
            If the cube has no embeddings of that model, or they came without an encoder.
        StorageError
            If storage refuses or cannot be reached.
        """
        if model not in self.embedded:
            raise NotFoundError(
                f"no embeddings {model!r} in cube {self.id!r}; "
                f"it has: {', '.join(self.embedded) or 'none'}"
            )
        return self.storage.read(encoder_key(model))


def encoder_key(model: str) -> str:
    """Place of a model's encoder below the cube."""
    return f"embeddings/{model}/encoder.onnx"


def open_cube(
    url: str, storage_options: StorageOptions | None = None, *, release: str | None = None
) -> Cube:
    """Open a cube with one request; everything else is read when it is asked for.

    Parameters
    ----------
    url
        Prefix of the cube, e.g. ``s3://bucket/bigearthnet-v2``.
    storage_options
        fsspec's names; see ``Storage``.
    release
        Name of an older release; the newest where it is None.

    Raises
    ------
    NotFoundError
        If there is no cube, or no such release.
    StorageError
        If storage refuses or cannot be reached.
    CubeIntegrityError
        If the root document cannot be read.
    InvalidInputError
        If another version of this package made it, in a format this one does not know.

    Examples
    --------
    >>> open_cube("memory://nowhere")
    Traceback (most recent call last):
    ...
    bigearth_cube.errors.NotFoundError: no cube at memory://nowhere: ...
    """
    storage = Storage(url, storage_options)
    try:
        data = storage.read(f"{ZARR}/{ROOT}")
    except NotFoundError:
        storage.check_bucket()
        if _has_begun(storage):
            raise NotFoundError(
                f"no cube at {storage.url} yet: an ingest began and has not ended; run the same "
                f"command again to go on, or undo it with 'bec give-up'"
            ) from None
        raise NotFoundError(
            f"no cube at {storage.url}: expected {ZARR}/{ROOT} below it; "
            f"check the URL, or make a cube with 'bec ingest'"
        ) from None
    try:
        root = json.loads(data)
        attributes = root["attributes"]
        version = attributes["format_version"]
        documents = root["consolidated_metadata"]["metadata"]
        releases = tuple(Release.from_json(r) for r in attributes["releases"])
    except (ValueError, KeyError, TypeError) as error:
        raise CubeIntegrityError(
            f"{ZARR}/{ROOT}", f"not the root document of a cube ({error!r})"
        ) from None
    if version != layouts.FORMAT_VERSION:
        raise InvalidInputError(
            f"{storage.url} is a cube of format {version}, this package reads "
            f"{layouts.FORMAT_VERSION}; install the version that made it, or a newer one"
        )
    names = [r.name for r in releases]
    if release is not None and release not in names:
        raise NotFoundError(f"no release {release!r}; the cube has: {', '.join(names)}")
    if release is None or release == names[-1]:
        return Cube(storage, attributes, documents, releases[-1], releases, data)
    until = releases[: names.index(release) + 1]
    layout = CubeLayout.from_json(attributes["layout"])
    filled = {group for r in until for group in (*r.arrays, *(path for path, *_ in r.late))}
    later = set(layout.groups) - filled
    layout = replace(layout, groups=tuple(g for g in layout.groups if g not in later))
    attributes = {**attributes, "layout": layout.to_json()}
    later |= {f"labels/{r.name}" for r in releases[len(until) :] if r.label_arrays}
    documents = layouts.resized(layouts.without_groups(documents, later), until[-1].stop)
    return Cube(storage, attributes, documents, until[-1], until, data)


def _has_begun(storage: Storage) -> bool:
    """Whether a first ingest has begun; no server need answer more than GET for this advice."""
    try:
        storage.read("ingest/r1/plan.json")
    except (NotFoundError, StorageError):
        return False
    return True


def _fault(storage: Storage, stored: StoredObject, may_be: Collection[StoredObject]) -> str | None:
    try:
        data = storage.read(stored.key)
    except NotFoundError:
        return "object is missing"
    if StoredObject.of(stored.key, data) in may_be:
        return None
    if len(data) != stored.size:
        return f"object has {len(data)} bytes, expected {stored.size}"
    return None if checksum(data) == stored.crc32c else "checksum is not that of what was written"
