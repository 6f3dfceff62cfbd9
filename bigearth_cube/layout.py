"""The hierarchy of a cube as Zarr v3 metadata documents: pure data, no storage.

A cube is published by one PUT: the root document carries the metadata of every group and array
(consolidated) and the list of releases. So the whole hierarchy is composed here as documents,
and growing a cube is an edit of their ``shape``.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import (
    CLASSES_43,
    GROUPS,
    NAMES_19,
    NODATA_MAP,
    NOMENCLATURES,
    Archive,
    Group,
)
from bigearth_cube.shards import Profile, checksum, zarr_codecs

Documents = dict[str, dict[str, Any]]
"""Path in the hierarchy to its Zarr document; the root is not among them."""

FORMAT_VERSION = 1
CHUNK_ROWS = 64
COLUMN_CHUNK_ROWS = 65_536
MODEL_CHUNK_ROWS = 8_192
MODEL_ARRAYS: Mapping[str, str] = {"embeddings": "vector", "predictions": "score"}
"""Groups of what models say of the patches, ``<kind>/<model>``, and the array in each."""
SMALL_ARCHIVE = 20_000
_UNSEALED = "00000000"
_SEAL = re.compile(rb'"crc32c": "[0-9a-f]{8}"')
ROW_ORDER = ("split", "flagged", "tile", "col//8", "row//8", "col", "row")

# Root columns: name -> (Zarr dtype, fill value). `acquired` holds CF seconds.
COLUMNS: Mapping[str, tuple[str, Any]] = {
    "id": ("string", ""),
    "tile": ("string", ""),
    "place": ("string", ""),
    "country": ("string", ""),
    "season": ("string", ""),
    "split": ("string", ""),
    "acquired": ("int64", 0),
    "flagged_snow": ("bool", False),
    "flagged_cloud_or_shadow": ("bool", False),
    "has_labels": ("bool", False),
    "epsg": ("int32", 0),
    "ulx": ("int32", 0),
    "uly": ("int32", 0),
}
# Columns of one group, beside its pixels: whether the row has a view, and whose.
GROUP_COLUMNS: Mapping[str, Mapping[str, tuple[str, Any]]] = {
    "s1/r10m": {"id": ("string", ""), "acquired": ("int64", 0), "present": ("bool", False)},
    "reference/r10m": {"present": ("bool", False)},
}
LABELS: Mapping[str, tuple[str, ...]] = {"v1": ("label_43", "label_19"), "v2": ("label_19",)}
_TIME = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
_DTYPES = {"string": "O", "bool": "bool", "uint8": "uint8", "int32": "int32", "int64": "int64"}


@dataclass(frozen=True, slots=True)
class CubeLayout:
    """How a cube is cut into objects; fixed when it is made.

    Attributes
    ----------
    archive
        ``"v1"`` or ``"v2"``: nomenclature and statistics.
    groups
        Paths of the pixel groups.
    shard_rows, chunk_rows
        Patches in one object and in one read.
    profile
        ``"default"`` (zstd) or ``"fast"`` (lz4).
    """

    archive: Archive
    groups: tuple[str, ...]
    shard_rows: int
    profile: Profile = "default"
    chunk_rows: int = CHUNK_ROWS

    def __post_init__(self) -> None:
        unknown = [path for path in self.groups if path not in GROUPS]
        if unknown:
            raise InvalidInputError(
                f"unknown group {unknown[0]!r}; choose from: {', '.join(GROUPS)}"
            )
        if self.shard_rows % self.chunk_rows:
            raise InvalidInputError(
                f"a shard of {self.shard_rows} rows is not made of whole chunks of "
                f"{self.chunk_rows}"
            )

    def padded(self, n_rows: int) -> int:
        """Rows rounded up to whole shards: a release begins on a shard boundary."""
        return -(-n_rows // self.shard_rows) * self.shard_rows

    def to_json(self) -> dict[str, Any]:
        """Return the layout as it stands in the root attributes."""
        return {**asdict(self), "groups": list(self.groups), "row_order": list(ROW_ORDER)}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> CubeLayout:
        """Read what ``to_json`` wrote."""
        return CubeLayout(
            archive=document["archive"],
            groups=tuple(document["groups"]),
            shard_rows=document["shard_rows"],
            profile=document["profile"],
            chunk_rows=document["chunk_rows"],
        )


def shard_rows_for(n_patches: int) -> int:
    """Shard length: 1,024 patches, or 256 for archives under 20,000.

    Examples
    --------
    >>> shard_rows_for(549_488), shard_rows_for(44)
    (1024, 256)
    """
    return 1024 if n_patches >= SMALL_ARCHIVE else 256


def hierarchy(layout: CubeLayout, n_rows: int) -> Documents:
    """Compose every document below the root for a cube of ``n_rows`` rows, padding included."""
    documents: Documents = {}
    for name, (dtype, fill) in COLUMNS.items():
        attributes = _TIME if name == "acquired" else {}
        documents[name] = _column(n_rows, dtype, fill, attributes=attributes)
    for name in LABELS[layout.archive]:
        documents[name] = label_document(n_rows, name)
        documents[class_axis(name)] = _names(class_axis(name), NOMENCLATURES[name])
    for path in layout.groups:
        group = GROUPS[path]
        documents.setdefault(path.split("/")[0], _group({}))
        columns = GROUP_COLUMNS.get(path, {})
        documents[path] = _group({"coordinates": " ".join(columns)} if columns else {})
        documents[f"{path}/{group.array}"] = _pixels(layout, group, n_rows)
        if group.axis:
            documents[f"{path}/{group.axis}"] = _names(group.axis, group.bands)
        for name, (dtype, fill) in columns.items():
            attributes = _TIME if name == "acquired" else {}
            documents[f"{path}/{name}"] = _column(n_rows, dtype, fill, attributes=attributes)
    return documents


def axis_values(documents: Documents) -> dict[str, list[str]]:
    """Names to store in each one-chunk string array that labels an axis."""
    values: dict[str, list[str]] = {}
    for path in documents:
        parent, _, name = path.rpartition("/")
        if parent in GROUPS and name == GROUPS[parent].axis:
            values[path] = list(GROUPS[parent].bands)
        elif path.startswith("class_"):
            values[path] = list(NOMENCLATURES[path.replace("class", "label")])
    return values


def resized(documents: Documents, n_rows: int) -> Documents:
    """Give every array over ``patch`` the length ``n_rows``; a DataTree opens no other way."""
    grown = copy.deepcopy(documents)
    for document in grown.values():
        if (document.get("dimension_names") or [None])[0] == "patch":
            document["shape"][0] = n_rows
    return grown


def without_groups(documents: Documents, groups: Collection[str]) -> Documents:
    """Leave out groups and everything in them, and a parent that has none left."""
    gone = tuple(f"{group}/" for group in groups)
    kept = {p: d for p, d in documents.items() if not f"{p}/".startswith(gone)}
    parents = {group.split("/")[0] for group in groups}
    left = {path.split("/")[0] for path in kept if "/" in path}
    return {p: d for p, d in kept.items() if p not in parents or p in left}


def model_documents(
    kind: str, model: str, n_rows: int, axis: tuple[str, int], attributes: Mapping[str, Any]
) -> Documents:
    """Documents of what a model says of every patch: float32, NaN where it says nothing.

    Parameters
    ----------
    kind
        Key of `MODEL_ARRAYS`.
    model
        Name of the model.
    n_rows
        Length of the patch axis.
    axis
        Name and length of the other axis.
    attributes
        Of the group.
    """
    name, length = axis
    path = f"{kind}/{model}"
    values = _array(
        [n_rows, length],
        [MODEL_CHUNK_ROWS, length],
        "float32",
        "NaN",
        zarr_codecs("float32", "default"),
        ["patch", name],
        {},
    )
    return {
        kind: _group({}),
        path: _group(dict(attributes)),
        f"{path}/{MODEL_ARRAYS[kind]}": values,
    }


def restated_documents(release: str, names: Iterable[str], n_rows: int) -> Documents:
    """Documents of ``labels/<release>/<name>``: root columns as a release states them anew."""
    path = f"labels/{release}"
    documents: Documents = {"labels": _group({}), path: _group({})}
    for name in names:
        if name in NOMENCLATURES:
            documents[f"{path}/{name}"] = label_document(n_rows, name)
        else:
            documents[f"{path}/{name}"] = _column(n_rows, *COLUMNS[name])
    return documents


def label_document(n_rows: int, name: str) -> dict[str, Any]:
    """Document of a label array, (patch, class) uint8."""
    n_classes = len(NOMENCLATURES[name])
    return _column(n_rows, "uint8", 0, tail=n_classes, axis=class_axis(name))


def root_document(attributes: Mapping[str, Any], documents: Documents) -> bytes:
    """Root document with every other one inside: the object whose PUT publishes a release.

    It carries the CRC-32C of itself, taken with zeros in that place: a record of it elsewhere
    would have to be written at the same moment.
    """
    root = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {**attributes, "crc32c": _UNSEALED},
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": {path: documents[path] for path in sorted(documents)},
        },
    }
    data = to_bytes(root)
    return data.replace(_seal(_UNSEALED), _seal(f"{checksum(data):08x}"), 1)


def is_whole_root(data: bytes) -> bool:
    """Whether a root document is what was written.

    Examples
    --------
    >>> root = root_document({"id": "some"}, {})
    >>> is_whole_root(root), is_whole_root(root.replace(b"some", b"sone"))
    (True, False)
    """
    found = _SEAL.search(data)
    if found is None:
        return False
    unsealed = data.replace(found[0], _seal(_UNSEALED), 1)
    return found[0] == _seal(f"{checksum(unsealed):08x}")


def _seal(crc32c: str) -> bytes:
    return b'"crc32c": "%s"' % crc32c.encode()


def root_attributes(cube_id: str, layout: CubeLayout, releases: Sequence[Any]) -> dict[str, Any]:
    """Attributes of the root: what a reader without this package needs to understand the cube."""
    nomenclature: dict[str, Any] = {"label_19": list(NAMES_19)}
    if "label_43" in LABELS[layout.archive]:
        nomenclature["label_43"] = [{"clc_code": c.code, "name": c.name} for c in CLASSES_43]
    return {
        "id": cube_id,
        "archive": layout.archive,
        "format_version": FORMAT_VERSION,
        "coordinates": " ".join(COLUMNS),
        "nomenclature": nomenclature,
        "scale": {"s2": 0.0001, "s1": 1.0},
        "nodata": {"s2": 0, "s1": "NaN", "reference": NODATA_MAP},
        "layout": layout.to_json(),
        "releases": list(releases),
        "license": "CDLA-Permissive-1.0",
        "citation": (
            "Sumbul et al., BigEarthNet, IGARSS 2019"
            if layout.archive == "v1"
            else "Clasen et al., reBEN: Refined BigEarthNet, arXiv 2407.03653"
        ),
    }


def to_bytes(document: Any) -> bytes:
    """JSON as stored: the same document is always the same bytes."""
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


def column_dtype(zarr_dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype of a column; strings are objects."""
    return np.dtype(_DTYPES[zarr_dtype])


def class_axis(name: str) -> str:
    """Name of the axis of a label array, at the root."""
    return name.replace("label", "class")


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _array(
    shape: Iterable[int],
    chunk: Iterable[int],
    dtype: str,
    fill: Any,
    codecs: list[dict[str, Any]],
    dims: Sequence[str],
    attributes: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": dict(attributes),
        "dimension_names": list(dims),
        "storage_transformers": [],
    }


def _pixels(layout: CubeLayout, group: Group, n_rows: int) -> dict[str, Any]:
    index: list[dict[str, Any]] = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "crc32c"},
    ]
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [layout.chunk_rows, *group.patch_shape],
            "codecs": zarr_codecs(group.dtype, layout.profile),
            "index_codecs": index,
            "index_location": "end",
        },
    }
    fill = "NaN" if np.isnan(group.fill_value) else 0
    dims = ["patch", *([group.axis] if group.axis else []), "y", "x"]
    units = {"s2": "reflectance x 10000", "s1": "dB", "reference": "CLC level-3 code"}
    return _array(
        [n_rows, *group.patch_shape],
        [layout.shard_rows, *group.patch_shape],
        group.dtype,
        fill,
        [sharding],
        dims,
        {"units": units[group.path.split("/")[0]], "resolution_m": group.resolution_m},
    )


def _column(
    n_rows: int,
    dtype: str,
    fill: Any,
    *,
    attributes: Mapping[str, Any] | None = None,
    tail: int | None = None,
    axis: str = "",
    chunk_rows: int = COLUMN_CHUNK_ROWS,
) -> dict[str, Any]:
    serializer: dict[str, Any] = {"name": "bytes"}  # one byte has no order
    if dtype == "string":
        serializer = {"name": "vlen-utf8"}
    elif column_dtype(dtype).itemsize > 1:
        serializer["configuration"] = {"endian": "little"}
    zstd = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
    codecs = [serializer, zstd, {"name": "crc32c"}]
    more = [] if tail is None else [tail]
    dims = ["patch", *([axis] if axis else [])]
    return _array([n_rows, *more], [chunk_rows, *more], dtype, fill, codecs, dims, attributes or {})


def _names(axis: str, names: Sequence[str]) -> dict[str, Any]:
    document = _column(len(names), "string", "", chunk_rows=len(names))
    document["dimension_names"] = [axis]
    return document
