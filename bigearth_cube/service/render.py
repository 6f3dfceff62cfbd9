"""Rows as items: JSON joined from ready pieces, and tables.

Nearly all of an item is the same for every item of a cube, so it is written once, by
``stac.items``, with marks where items differ. What differs comes from the columns: a value that
few items do not share (country, tile, label set) is turned into JSON once, numbers by orjson all
at a time. No item is ever a Python dict.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from bigearth_cube import stac
from bigearth_cube.item_index import ItemIndex, Places
from bigearth_cube.items_table import RELATIVE, STAC_VERSION, ZARR_TYPE
from bigearth_cube.nomenclature import GROUPS
from bigearth_cube.service.shelf import Served

PARQUET_TYPE: Final = "application/vnd.apache.parquet"
ARROW_TYPE: Final = "application/vnd.apache.arrow.stream"
THUMBNAIL: Final = "thumbnail.png"

_NOT_PROPERTIES: Final = frozenset(("id", "geometry", "bbox", "assets", "collection", "datetime"))
_MARK: Final = re.compile(rb'"<<(\w+)>>"|<<(\w+)>>')
_SLOTS: Final = ("id", "quoted_id", "ring", "bbox", "properties", "west", "north")
_MOST_NAMES: Final = 64  # of a list column that fits into bit sets

_Fragments = Callable[[Places], list[bytes]]


class ItemWriter:
    """Write items of one cube.

    Parameters
    ----------
    served
        The cube.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        # One for each host name the service is called by; a stranger may call it by many.
        self._template = functools.lru_cache(maxsize=64)(self._new_template)

    @functools.cached_property
    def _columns(self) -> _Columns:
        return _Columns(self._served.index)

    def features(self, places: Places, base_url: str) -> list[bytes]:
        """Write whole Items, a JSON object each, in the order of the places.

        Parameters
        ----------
        places
            Rows of the cube's index.
        base_url
            What hrefs of the API begin with; ends with a slash.
        """
        if not len(places):
            return []
        columns = self._columns
        ids = columns.texts("id", places)
        written = {
            "id": [orjson.dumps(name) for name in ids],
            "quoted_id": [quote(name, safe="").encode() for name in ids],
            "ring": columns.rings(places),
            "bbox": columns.boxes(places),
            "properties": columns.properties(places),
        }
        written["west"], written["north"] = columns.corners(places)
        rows = zip(*(written[slot] for slot in _SLOTS), strict=True)
        codes = self._served.presence[1][places].tolist()
        return [self._template(base_url, code)(row) for code, row in zip(codes, rows, strict=True)]

    def _new_template(self, base_url: str, code: int) -> Callable[[tuple[bytes, ...]], bytes]:
        """Make what fills the slots of the items that have the same groups."""
        item = item_of(self._served, code)
        base = f"{base_url}collections/{quote(self._served.name, safe='')}"
        item["id"], item["bbox"], item["properties"] = "<<id>>", "<<bbox>>", "<<properties>>"
        item["geometry"]["coordinates"] = "<<ring>>"
        for path, asset in item["assets"].items():
            resolution_m = GROUPS[path].resolution_m
            asset["proj:transform"] = [resolution_m, 0, "<<west>>", 0, -resolution_m, "<<north>>"]
        own = f"{base}/items/<<quoted_id>>"
        if item["assets"]:
            item["assets"]["thumbnail"] = {
                "href": f"{own}/{THUMBNAIL}",
                "title": "True color",
                "type": "image/png",
                "roles": ["thumbnail"],
            }
        item["links"] = [
            {"rel": "self", "href": own, "type": "application/geo+json"},
            {"rel": "parent", "href": base, "type": "application/json"},
            {"rel": "collection", "href": base, "type": "application/json"},
            {"rel": "root", "href": base_url, "type": "application/json"},
            *(link for link in item["links"] if link["rel"] != "collection"),
        ]
        written = orjson.dumps(item).replace(b"%", b"%%")
        order = [(quoted or bare).decode() for quoted, bare in _MARK.findall(written)]
        pick = operator.itemgetter(*(_SLOTS.index(name) for name in order))
        pieces = _MARK.sub(b"%b", written)
        return lambda row: pieces % pick(row)


def item_of(served: Served, code: int) -> dict[str, Any]:
    """Make an Item, by ``stac.items``, of any row of a cube, with the groups of a code."""
    row = served.index.table.slice(0, 1).drop_columns(["assets"])
    links = [
        {"rel": "collection", "href": f"{RELATIVE}collection.json", "type": stac.JSON_TYPE},
        {"rel": "store", "href": f"{RELATIVE}cube.zarr", "type": ZARR_TYPE},
    ]
    paths = served.presence[0][code]
    assets = {path: {"href": f"{RELATIVE}cube.zarr/{path}"} for path in paths}
    stated = {"type": "Feature", "stac_version": STAC_VERSION, "links": links, "assets": assets}
    for name, value in stated.items():
        row = row.append_column(name, pa.array([value]))
    item = stac.items(row, cube_url=served.url)[0]
    return dict(orjson.loads(orjson.dumps(item)))  # a copy: bands and classes are shared


# --- columns -----------------------------------------------------------------------------------


class _Columns:
    """Pieces of JSON of the columns of an index."""

    def __init__(self, index: ItemIndex) -> None:
        self._index = index
        names = [n for n in index.table.column_names if n not in _NOT_PROPERTIES]
        self._datetime = _of_times(index, "datetime")
        self._fragments = [_fragments(index, name) for name in names]

    def properties(self, places: Places) -> list[bytes]:
        """Write the properties of each item; what is unknown is left out."""
        parts = [self._datetime(places), *(fragments(places) for fragments in self._fragments)]
        return [b"{" + b"".join(row)[1:] + b"}" for row in zip(*parts, strict=True)]

    def texts(self, name: str, places: Places) -> list[str]:
        """Return texts as they are."""
        texts: list[str] = self._index.column(name).take(pa.array(places)).to_pylist()
        return texts

    def rings(self, places: Places) -> list[bytes]:
        """Write the coordinates of each footprint."""
        wkb = self._index.column("geometry").take(pa.array(places))
        shapes = shapely.from_wkb(wkb.to_numpy(zero_copy_only=False))
        return _arrays(shapely.get_coordinates(shapes).reshape(len(places), 1, -1, 2), b"]]],[[[")

    def boxes(self, places: Places) -> list[bytes]:
        """Write the bounds of each footprint, degrees."""
        return _arrays(np.stack([edge[places] for edge in self._index.bounds], axis=1), b"],[")

    def corners(self, places: Places) -> tuple[list[bytes], list[bytes]]:
        """Write west and north of each patch, meters in its UTM zone."""
        flat = pc.list_flatten(self._index.column("proj:bbox").take(pa.array(places)))
        boxes = flat.to_numpy().reshape(-1, 4)
        return _numbers(boxes[:, 0]), _numbers(boxes[:, 3])


def _fragments(index: ItemIndex, name: str) -> _Fragments:
    kind = index.table.schema.field(name).type
    if pa.types.is_null(kind) or index.column(name).null_count == len(index):
        return lambda places: [b""] * len(places)
    if pa.types.is_string(kind):
        return _of_texts(index, name)
    if pa.types.is_boolean(kind):
        return _of_booleans(index, name)
    if pa.types.is_timestamp(kind):
        return _of_times(index, name)
    if pa.types.is_list(kind):
        return _of_lists(index, name)
    return _of_numbers(index, name)


def _opening(name: str) -> bytes:
    return b"," + orjson.dumps(name) + b":"


def _of_texts(index: ItemIndex, name: str) -> _Fragments:
    opening = _opening(name)
    coded = index.codes(name)
    if coded is None:
        column = index.column(name)

        def each(places: Places) -> list[bytes]:
            texts = column.take(pa.array(places)).to_pylist()
            return [b"" if t is None else opening + orjson.dumps(t) for t in texts]

        return each
    written = [opening + orjson.dumps(value) for value in coded[0].to_pylist()]
    return _by_code([*written, b""], coded[1])


def _by_code(written: list[bytes], codes: Any) -> _Fragments:
    pieces = np.array(written, object)

    def each(places: Places) -> list[bytes]:
        chosen: list[bytes] = pieces[codes[places]].tolist()
        return chosen

    return each


def _of_booleans(index: ItemIndex, name: str) -> _Fragments:
    values, unknown = index.values(name)
    codes = values.astype(np.uint8)
    if unknown is not None:
        codes[unknown] = 2
    opening = _opening(name)
    return _by_code([opening + b"false", opening + b"true", b""], codes)


def _of_times(index: ItemIndex, name: str) -> _Fragments:
    values, unknown = index.values(name)
    opening = _opening(name)

    @functools.lru_cache(maxsize=4096)
    def written(micros: int) -> bytes:
        text = str(np.datetime64(micros, "us").astype("datetime64[s]"))
        return opening + b'"' + text.encode() + b'Z"'

    def each(places: Places) -> list[bytes]:
        texts = [written(micros) for micros in values[places].tolist()]
        return texts if unknown is None else _blank(texts, unknown[places])

    return each


def _of_numbers(index: ItemIndex, name: str) -> _Fragments:
    values, unknown = index.values(name)
    opening = _opening(name)

    def each(places: Places) -> list[bytes]:
        texts = [opening + number for number in _numbers(values[places])]
        return texts if unknown is None else _blank(texts, unknown[places])

    return each


def _blank(texts: list[bytes], unknown: Any) -> list[bytes]:
    return [b"" if lacks else text for text, lacks in zip(texts, unknown.tolist(), strict=True)]


def _of_lists(index: ItemIndex, name: str) -> _Fragments:
    opening = _opening(name)
    column = index.column(name)
    if pa.types.is_floating(column.type.value_type):

        def numbers(places: Places) -> list[bytes]:
            lists = column.take(pa.array(places))
            values = pc.list_flatten(lists).to_numpy()
            if lists.null_count or len(values) % len(lists) or _lengths_differ(lists):
                return _each_list(lists, opening)
            return [opening + w for w in _arrays(values.reshape(len(lists), -1), b"],[")]

        return numbers
    values = pc.list_flatten(column.slice(0, 65_536))
    if pc.count_distinct(values).as_py() > _MOST_NAMES:
        return lambda places: _each_list(column.take(pa.array(places)), opening)
    # Few sets occur, so each is written once, as the first row that has it does.
    _, members, unknown = index.sets(name)
    seen, first, codes = np.unique(members, return_index=True, return_inverse=True)
    written = _each_list(column.take(pa.array(first)), opening)
    if unknown is not None:
        known = np.flatnonzero(~unknown)
        if len(known) and (members == 0)[known].any():  # an empty set is not an unknown one
            empty = int(np.searchsorted(seen, 0))
            written[empty] = opening + b"[]"
        codes = np.where(unknown, len(written), codes)
    kind = np.uint16 if len(written) < 65_535 else np.uint32
    return _by_code([*written, b""], codes.astype(kind))


def _lengths_differ(lists: pa.Array) -> bool:
    lengths = pc.list_value_length(lists)
    return bool(pc.count_distinct(lengths).as_py() > 1)


def _each_list(lists: pa.Array, opening: bytes) -> list[bytes]:
    return [b"" if v is None else opening + orjson.dumps(v) for v in lists.to_pylist()]


def _numbers(values: Any) -> list[bytes]:
    return _split(
        orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY), b","
    )


def _arrays(values: Any, between: bytes) -> list[bytes]:
    """Write each first-axis element of an array as JSON."""
    whole = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)
    cut = len(between) // 2
    opening, closing = between[cut + 1 :], between[:cut]
    return [opening + part + closing for part in whole[cut + 1 : -cut - 1].split(between)]


def _split(whole: bytes, between: bytes) -> list[bytes]:
    return whole[1:-1].split(between)


# --- tables ------------------------------------------------------------------------------------


def table_of(served: Served, places: Places) -> pa.Table:
    """Make the stac-geoparquet table of some places, with absolute hrefs.

    Parameters
    ----------
    served
        The cube.
    places
        Rows of its index, in the order wanted.
    """
    index, at = served.index, pa.array(places)
    columns = {name: index.column(name).take(at) for name in index.table.column_names}
    items = [item_of(served, code) for code in range(len(served.presence[0]))]
    which = pa.array(served.presence[1][places].astype(np.int32))
    stored = pa.struct(
        {
            "href": pa.string(),
            "title": pa.string(),
            "type": pa.string(),
            "roles": pa.list_(pa.string()),
        }
    )
    paths = [path for path in GROUPS if any(path in item["assets"] for item in items)]
    kind = pa.struct(dict.fromkeys(paths, stored))
    kept = {
        "assets": pa.array([item["assets"] for item in items], kind),
        "links": pa.array([[x for x in i["links"] if x["rel"] != "collection"] for i in items]),
    }
    if not paths:
        del kept["assets"], columns["assets"]  # parquet has no struct without fields
    for name in ("type", "stac_version", "stac_extensions"):
        kept[name] = pa.array([item[name] for item in items])
    columns |= {name: values.take(which) for name, values in kept.items()}
    return pa.table(columns, metadata=index.table.schema.metadata)
