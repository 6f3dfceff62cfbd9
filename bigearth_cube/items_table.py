"""The items table: one row a patch, as stac-geoparquet 1.1.

What all items share (bands, wavelengths, classes) stands once, in ``asset_definitions``, and not
in the rows. Hrefs are relative to the table's file, so that a cube may be moved or mirrored.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
from numpy.typing import NDArray

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import (
    CLASSES_43,
    GROUPS,
    MAP_GROUP,
    NAMES_19,
    NAMES_43,
    NODATA_MAP,
    PATCH_M,
    POLARIZATIONS,
    S1_GROUP,
    S2_BANDS,
    S2_GROUPS,
    Archive,
    Group,
    labels_43_to_19,
    season_of,
)

if TYPE_CHECKING:
    from bigearth_cube.archive.base import PatchRecord

STAC_VERSION: Final = "1.1.0"
BEC_SCHEMA: Final = "https://bigearth-cube.github.io/bec/v1.0.0/schema.json"
ZARR_TYPE: Final = "application/vnd.zarr; version=3"
RELATIVE: Final = "../"
"""From a table's file to the cube: what its hrefs begin with."""

_VERSIONS: Final = {
    "classification": "v1.1.0",
    "datacube": "v2.3.0",
    "eo": "v2.0.0",
    "file": "v2.1.0",
    "grid": "v1.1.0",
    "mlm": "v1.5.2",
    "projection": "v2.0.0",
    "raster": "v2.0.0",
    "sar": "v1.3.0",
    "scientific": "v1.0.0",
    "table": "v1.2.0",
    "version": "v1.2.0",
    "zarr": "v1.1.0",
}
_PLATFORMS: Final = {f"S2{unit}": f"sentinel-2{unit.lower()}" for unit in "ABCD"}
_ROW_GROUP: Final = 65_536
# 1e-7 degrees is 1.1 cm of latitude: far below a pixel, and neighbors keep common corners.
_DECIMALS: Final = 7
_WKB_POLYGON: Final = np.dtype(
    [
        ("little_endian", "u1"),
        ("type", "<u4"),
        ("n_rings", "<u4"),
        ("n_points", "<u4"),
        ("xy", "<f8", (5, 2)),
    ]
)
_LINKS: Final = pa.list_(pa.struct({"rel": pa.string(), "href": pa.string(), "type": pa.string()}))
_ASSET: Final = pa.struct(
    {
        "href": pa.string(),
        "type": pa.string(),
        "roles": pa.list_(pa.string()),
        "zarr:node_type": pa.string(),
        "zarr:zarr_format": pa.int64(),
    }
)


def extension_urls(*names: str) -> list[str]:
    """Name the schemas of STAC extensions at the versions used here, ``bec`` included.

    Examples
    --------
    >>> extension_urls("grid")
    ['https://stac-extensions.github.io/grid/v1.1.0/schema.json']
    """
    return [
        BEC_SCHEMA
        if name == "bec"
        else f"https://stac-extensions.github.io/{name}/{_VERSIONS[name]}/schema.json"
        for name in names
    ]


def footprints(
    epsg: NDArray[np.int64], ulx: NDArray[np.int64], uly: NDArray[np.int64]
) -> tuple[pa.Array, NDArray[np.float64]]:
    """WGS84 polygons of patches: the four UTM corners, transformed.

    A straight line between them leaves the edge of the UTM square by less than 0.1 m, so no
    points are added along it.

    Parameters
    ----------
    epsg, ulx, uly
        UTM zone and upper-left corner in meters, shape (patch,).

    Returns
    -------
    tuple
        Arrow array of WKB polygons, counterclockwise from the lower left; and bounds, shape
        (patch, 4) as west, south, east, north in degrees.
    """
    dx = np.array([0, PATCH_M, PATCH_M, 0, 0])
    dy = np.array([-PATCH_M, -PATCH_M, 0, 0, -PATCH_M])
    polygons = np.zeros(len(epsg), _WKB_POLYGON)
    polygons["little_endian"], polygons["type"] = 1, 3
    polygons["n_rings"], polygons["n_points"] = 1, 5
    for zone in np.unique(epsg):
        of_zone = epsg == zone
        lon, lat = _to_wgs84(int(zone)).transform(
            ulx[of_zone, None] + dx[:4], uly[of_zone, None] + dy[:4]
        )
        corners = np.stack([lon, lat], axis=-1).round(_DECIMALS)
        polygons["xy"][of_zone] = corners[:, [0, 1, 2, 3, 0]]
    xy = polygons["xy"]
    bounds = np.concatenate([xy.min(axis=1), xy.max(axis=1)], axis=1)
    offsets = np.arange(len(polygons) + 1, dtype=np.int32) * polygons.itemsize
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(polygons)]
    return pa.Array.from_buffers(pa.binary(), len(polygons), buffers), bounds


@functools.cache
def _to_wgs84(epsg: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)


def items_table(
    records: Sequence[PatchRecord],
    rows: NDArray[np.int64],
    *,
    collection: str,
    archive: Archive,
    present: Mapping[str, NDArray[np.bool_]] | None = None,
) -> pa.Table:
    """Make the stac-geoparquet table of patches, one row each.

    Parameters
    ----------
    records
        The patches.
    rows
        Index of each along the patch axis of the cube, int64, shape (patch,).
    collection
        Id of the collection, which is the cube's id.
    archive
        Nomenclature of the records' labels.
    present
        For ``"s1/r10m"`` and ``"reference/r10m"``: whether the cube holds the group's pixels,
        shape (patch,). By default, whether the record names the files.

    Returns
    -------
    pyarrow.Table
        In the order of ``records``, with geo metadata in the schema. Unknown is null.

    Raises
    ------
    InvalidInputError
        If lengths differ or a label is not in the nomenclature.

    Examples
    --------
    >>> from bigearth_cube.archive import PatchRecord
    >>> when = datetime(2017, 6, 13, 10, 10, 31, tzinfo=UTC)
    >>> record = PatchRecord("a_6_57", "t", "33UUP", 6, 57, when, 32633, 307200, 5331600)
    >>> table = items_table([record], np.array([5]), collection="mine", archive="v2")
    >>> table["bec:row"].to_pylist(), table["bec:season"].to_pylist()
    ([5], ['summer'])
    """
    n_patches = len(records)
    if len(rows) != n_patches:
        raise InvalidInputError(f"found {len(rows)} rows for {n_patches} records; expected as many")
    epsg = np.array([r.epsg for r in records], np.int64)
    ulx = np.array([r.ulx for r in records], np.int64)
    uly = np.array([r.uly for r in records], np.int64)
    wkb, bounds = footprints(epsg, ulx, uly)
    acquired = np.array(
        [r.acquired.astimezone(UTC).replace(tzinfo=None) for r in records], "datetime64[us]"
    )
    month = acquired.astype("datetime64[M]").astype(np.int64) % 12
    seasons = pa.array([season_of(datetime(2000, m, 1)) for m in range(1, 13)])
    projected = np.stack([ulx, uly - PATCH_M, ulx + PATCH_M, uly], axis=1).astype(np.float64)
    columns: dict[str, Any] = {
        "id": _strings(r.id for r in records),
        # Optional in the format, but readers that make items do not add it.
        "type": _same("Feature", pa.string(), n_patches),
        "stac_version": _same(STAC_VERSION, pa.string(), n_patches),
        "stac_extensions": _same(
            extension_urls("projection", "grid", "zarr", "bec"), pa.list_(pa.string()), n_patches
        ),
        "geometry": wkb,
        "bbox": pa.StructArray.from_arrays(
            [pa.array(bounds[:, i]) for i in range(4)], ["xmin", "ymin", "xmax", "ymax"]
        ),
        "links": _same(_stored_links(), _LINKS, n_patches),
        "assets": _asset_column(records, present or {}),
        "collection": _same(collection, pa.string(), n_patches),
        "datetime": pa.array(acquired, pa.timestamp("us", "UTC")),
        "platform": _strings(_PLATFORMS.get(r.id[:3]) for r in records),
        "constellation": _same("sentinel-2", pa.string(), n_patches),
        "instruments": _same(["msi"], pa.list_(pa.string()), n_patches),
        "gsd": _same(10.0, pa.float64(), n_patches),
        "bec:row": pa.array(rows, pa.int64()),
        **_label_columns([r.labels for r in records], archive),
        "bec:split": _strings(r.split for r in records),
        "bec:country": _strings(r.country for r in records),
        "bec:season": seasons.take(month),
        "bec:snow": pa.array([r.flagged_snow for r in records], pa.bool_()),
        "bec:cloud_or_shadow": pa.array([r.flagged_cloud_or_shadow for r in records], pa.bool_()),
        "bec:place": _strings(r.place for r in records),
        "bec:tile": _strings(r.tile for r in records),
        "bec:s1_id": _strings(r.s1_id for r in records),
        "proj:code": _strings(f"EPSG:{code}" for code in epsg.tolist()),
        "proj:bbox": pa.ListArray.from_arrays(
            np.arange(n_patches + 1, dtype=np.int32) * 4, pa.array(projected.ravel())
        ),
        "grid:code": _strings(f"MGRS-{r.mgrs}" for r in records),
        "eo:cloud_cover": pa.nulls(n_patches, pa.float64()),
    }
    return pa.table(columns).replace_schema_metadata(_table_metadata())


def parquet_bytes(table: pa.Table) -> bytes:
    """Encode a table, of items or of what was set aside, as one parquet file in the order it has.

    Row groups hold 65,536 patches: neighbors in the cube are neighbors on the ground, so the
    bounds kept for each row group let a reader skip most of them.
    """
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP)
    return sink.getvalue()


def _strings(values: Iterable[str | None]) -> pa.Array:
    return pa.array(list(values), pa.string())


def _same(value: Any, kind: pa.DataType, n: int) -> pa.ChunkedArray:
    """Give a column of one value: its chunks are one buffer, whatever the length."""
    chunk = pa.array([value], kind).take(pa.array(np.zeros(min(n, _ROW_GROUP), np.int64)))
    starts = range(0, n, _ROW_GROUP)
    return pa.chunked_array([chunk.slice(0, n - i) for i in starts], kind)


def _stored_links() -> list[dict[str, str]]:
    return [
        {"rel": "collection", "href": f"{RELATIVE}collection.json", "type": "application/json"},
        {"rel": "store", "href": f"{RELATIVE}cube.zarr", "type": ZARR_TYPE},
    ]


def _asset_column(
    records: Sequence[PatchRecord], present: Mapping[str, NDArray[np.bool_]]
) -> pa.ChunkedArray:
    if S1_GROUP.path not in present:
        pairs = [all(p in r.files for p in POLARIZATIONS) for r in records]
        present = {**present, S1_GROUP.path: np.array(pairs, bool)}
    if MAP_GROUP.path not in present:
        maps = np.array(["map" in r.files for r in records], bool)
        present = {**present, MAP_GROUP.path: maps}
    always = np.ones(len(records), bool)
    return _assets({path: present.get(path, always) for path in GROUPS})


def with_views(
    table: pa.Table, added: Mapping[str, NDArray[np.bool_]], s1_ids: Mapping[int, str]
) -> pa.Table:
    """Say in an items table that the cube has got views of rows that lacked them.

    Parameters
    ----------
    table
        Items, one row a patch.
    added
        Group to whether its view was added, shape (patch,) in the order of the table.
    s1_ids
        Place in the table to the name of the Sentinel-1 patch that was added.

    Returns
    -------
    pyarrow.Table
        The same rows in the same order.
    """
    assets = table["assets"].combine_chunks()
    there = {path: np.asarray(assets.field(path).is_valid()) for path in GROUPS}
    masks = {path: mask | added.get(path, False) for path, mask in there.items()}
    names = table["bec:s1_id"].to_pylist()
    for place, name in s1_ids.items():
        names[place] = name
    for column, values in (("assets", _assets(masks)), ("bec:s1_id", _strings(names))):
        table = table.set_column(table.column_names.index(column), column, values)
    return table


def with_facts(
    table: pa.Table,
    labels: Mapping[int, tuple[str, ...]],
    others: Mapping[str, Mapping[int, Any]],
    archive: Archive,
) -> pa.Table:
    """State anew what is known of some patches in an items table.

    Parameters
    ----------
    table
        Items, one row a patch.
    labels
        Place in the table to the class names of the archive's own nomenclature.
    others
        Column to place to value.
    archive
        Nomenclature of the labels.

    Returns
    -------
    pyarrow.Table
        The same rows in the same order.
    """
    columns: dict[str, Any] = {}
    if labels:
        own = table["bec:labels_43" if archive == "v1" else "bec:labels"].to_pylist()
        known = [None if names is None else tuple(names) for names in own]
        for place, names in labels.items():
            known[place] = names
        columns |= _label_columns(known, archive)
    for name, values in others.items():
        column = table[name].to_pylist()
        for place, value in values.items():
            column[place] = value
        columns[name] = pa.array(column, table.schema.field(name).type)
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _assets(present: Mapping[str, NDArray[np.bool_]]) -> pa.ChunkedArray:
    """Describe the assets of each patch: null where the group has no view of it."""
    columns = {
        path: _where(present[path], _stored_asset(group), _ASSET) for path, group in GROUPS.items()
    }
    n_patches = len(next(iter(present.values())))
    chunks = [
        pa.StructArray.from_arrays([c.chunk(i) for c in columns.values()], list(columns))
        for i in range(len(range(0, n_patches, _ROW_GROUP)))
    ]
    return pa.chunked_array(chunks, pa.struct(dict.fromkeys(columns, _ASSET)))


def _where(mask: NDArray[np.bool_], value: Any, kind: pa.DataType) -> pa.ChunkedArray:
    """Give ``value`` where the mask is set and null elsewhere; whole chunks share a buffer."""
    if mask.all():
        return _same(value, kind, len(mask))
    pair = pa.array([None, value], kind)
    chunks = [
        pair.take(pa.array(mask[i : i + _ROW_GROUP].astype(np.int64)))
        for i in range(0, len(mask), _ROW_GROUP)
    ]
    return pa.chunked_array(chunks, kind)


def _stored_asset(group: Group) -> dict[str, Any]:
    whole = asset_definitions()[group.path]
    return {"href": f"{RELATIVE}cube.zarr/{group.path}"} | {
        field.name: whole[field.name] for field in _ASSET if field.name != "href"
    }


def _label_columns(labels: Sequence[tuple[str, ...] | None], archive: Archive) -> dict[str, Any]:
    """Class names in nomenclature order; few sets of labels occur, so each is mapped once."""
    kind = pa.list_(pa.string())
    names = NAMES_43 if archive == "v1" else NAMES_19
    known = {given: _in_order(given, names) for given in set(labels) if given is not None}
    own = [None if given is None else known[given] for given in labels]
    if archive == "v2":
        return {"bec:labels": pa.array(own, kind)}
    to_19 = {given: labels_43_to_19(given) for given in known}
    mapped = [None if given is None else to_19[given] for given in labels]
    return {"bec:labels": pa.array(mapped, kind), "bec:labels_43": pa.array(own, kind)}


def _in_order(labels: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise InvalidInputError(
            f"unknown label {unknown[0]!r}; expected a name of the {len(names)}-class nomenclature"
        )
    return tuple(name for name in names if name in labels)


def _table_metadata() -> dict[str, str]:
    covering = {edge: ["bbox", edge] for edge in ("xmin", "ymin", "xmax", "ymax")}
    geometry = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": covering},
    }
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    return {"geo": json.dumps(geo), "stac-geoparquet": json.dumps({"version": "1.1.0"})}


@functools.cache
def asset_definitions() -> Mapping[str, Mapping[str, Any]]:
    """Everything about an item's assets but href and transform, by group path.

    The same for every item, so it stands once in a collection (``item_assets``). Do not change
    what is returned: it is shared.
    """
    definitions = {group.path: _s2_asset(group) for group in S2_GROUPS}
    definitions[S1_GROUP.path] = _s1_asset()
    definitions[MAP_GROUP.path] = _map_asset()
    return definitions


def _group_asset(group: Group, title: str, *roles: str) -> dict[str, Any]:
    return {
        "title": title,
        "type": ZARR_TYPE,
        "roles": ["data", *roles],
        "gsd": group.resolution_m,
        "data_type": group.dtype,
        "proj:shape": [group.size_px, group.size_px],
        "raster:spatial_resolution": group.resolution_m,
        "zarr:node_type": "group",
        "zarr:zarr_format": 3,
    }


def _s2_asset(group: Group) -> dict[str, Any]:
    bands = [
        {
            "name": band.name,
            "eo:common_name": band.common_name,
            "eo:center_wavelength": band.center_um,
            "eo:full_width_half_max": band.fwhm_um,
        }
        for name in group.bands
        for band in S2_BANDS
        if band.name == name
    ]
    title = f"Sentinel-2 surface reflectance, {group.resolution_m} m"
    # 0 is no data and 10,000 is reflectance 1 in every Sentinel-2 Level-2A product of these
    # archives (processing baselines before 04.00 have no offset).
    scaling = {"nodata": 0, "raster:scale": 0.0001, "raster:offset": 0}
    return {**_group_asset(group, title, "reflectance"), **scaling, "bands": bands}


def _s1_asset() -> dict[str, Any]:
    return {
        **_group_asset(S1_GROUP, "Sentinel-1 backscatter (sigma nought), 10 m", "sigma0"),
        "nodata": "nan",
        "unit": "dB",
        "sar:instrument_mode": "IW",
        "sar:frequency_band": "C",
        "sar:center_frequency": 5.405,
        "sar:product_type": "GRD",
        "sar:observation_direction": "right",
        "sar:polarizations": list(POLARIZATIONS),
        "bands": [{"name": name, "sar:polarizations": [name]} for name in POLARIZATIONS],
    }


def _map_asset() -> dict[str, Any]:
    classes = [
        {
            "value": c.code,
            "name": c.name.lower().replace(" ", "-").replace(",", "").replace("/", "-"),
            "description": c.name,
            "color_hint": c.color.removeprefix("#"),
        }
        for c in CLASSES_43
    ]
    classes.append({"value": NODATA_MAP, "name": "unlabelled", "description": "No CORINE polygon"})
    return {
        **_group_asset(MAP_GROUP, "CORINE land cover, level 3, 10 m", "labels"),
        "nodata": NODATA_MAP,
        "classification:classes": classes,
    }
