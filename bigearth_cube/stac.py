"""Records as STAC: items, the collection of a cube, and its Intake catalog.

Items are virtual: rows of the items table, whose ``bec:row`` is the index along the patch axis
of every array of the cube. ``items`` makes whole Items of rows; ``collection`` describes a cube.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import shapely

from bigearth_cube.items_table import (
    BEC_SCHEMA,
    RELATIVE,
    STAC_VERSION,
    ZARR_TYPE,
    asset_definitions,
    extension_urls,
    footprints,
    items_table,
    parquet_bytes,
    with_facts,
    with_views,
)
from bigearth_cube.nomenclature import (
    COUNTRIES,
    GROUPS,
    MAP_GROUP,
    NAMES_19,
    NAMES_43,
    PATCH_M,
    S1_GROUP,
    S2_GROUPS,
    SEASONS,
    SPLITS,
    Archive,
    Group,
)

__all__ = [
    "BEC_SCHEMA",
    "asset_definitions",
    "collection",
    "extension_urls",
    "footprints",
    "intake_catalog",
    "items",
    "items_table",
    "parquet_bytes",
    "with_facts",
    "with_views",
]

LICENSE: Final = "CDLA-Permissive-1.0"
PARQUET_TYPE: Final = "application/vnd.apache.parquet"
JSON_TYPE: Final = "application/json"
YAML_TYPE: Final = "application/yaml"

_NOT_PROPERTIES: Final = frozenset(
    (
        "id",
        "type",
        "stac_version",
        "stac_extensions",
        "geometry",
        "bbox",
        "links",
        "assets",
        "collection",
    )
)


def items(table: pa.Table, *, cube_url: str) -> list[dict[str, Any]]:
    """Make whole STAC 1.1 Items of rows of an items table.

    Parameters
    ----------
    table
        Rows as ``items_table`` makes them.
    cube_url
        URL of the cube, which the hrefs begin with.

    Returns
    -------
    list of dict
        In the order of the table. Unknown properties are left out. Bands and classes are
        shared between items: copy before changing.
    """
    geometries = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    rings = shapely.get_coordinates(geometries).reshape(-1, 5, 2)  # closed squares
    rows = table.drop_columns(["geometry"]).to_pylist()
    base = cube_url.rstrip("/") + "/"
    return [_item(row, ring, base) for row, ring in zip(rows, rings.tolist(), strict=True)]


def _item(row: Mapping[str, Any], ring: list[list[float]], base: str) -> dict[str, Any]:
    properties = {
        name: value
        for name, value in row.items()
        if value is not None and name not in _NOT_PROPERTIES
    }
    properties["datetime"] = timestamp(properties["datetime"])
    west, _, _, north = properties["proj:bbox"]
    assets = {
        key: {
            **asset_definitions()[key],
            "href": base + asset["href"].removeprefix(RELATIVE),
            "proj:transform": _transform(GROUPS[key], west, north),
        }
        for key, asset in row["assets"].items()
        if asset is not None
    }
    extensions = ["projection", "grid", "zarr", "bec"]
    extensions += ["eo", "raster"] * bool(assets)  # without pixels they have nothing to say
    extensions += ["sar"] * (S1_GROUP.path in assets)
    extensions += ["classification"] * (MAP_GROUP.path in assets)
    return {
        "type": row["type"],
        "stac_version": row["stac_version"],
        "stac_extensions": extension_urls(*extensions),
        "id": row["id"],
        "collection": row["collection"],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [row["bbox"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")],
        "properties": properties,
        "links": [
            {**link, "href": base + link["href"].removeprefix(RELATIVE)} for link in row["links"]
        ],
        "assets": assets,
    }


def _transform(group: Group, west: float, north: float) -> list[float]:
    return [group.resolution_m, 0, west, 0, -group.resolution_m, north]


def timestamp(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# --- collections ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _About:
    """What is published of an archive; DOIs as registered with Crossref and DataCite."""

    title: str
    description: str
    citation: str
    doi: str | None
    publications: tuple[tuple[str, str], ...]


_IGARSS_2019: Final = (
    "10.1109/IGARSS.2019.8900532",
    (
        "G. Sumbul, M. Charfuelan, B. Demir, V. Markl: BigEarthNet: A Large-Scale Benchmark Archive "
        "for Remote Sensing Image Understanding. IGARSS 2019, pp. 5901-5904."
    ),
)
_GRSM_2021: Final = (
    "10.1109/MGRS.2021.3089174",
    (
        "G. Sumbul, A. de Wall, T. Kreuziger, F. Marcelino, H. Costa, P. Benevides, M. Caetano, "
        "B. Demir, V. Markl: BigEarthNet-MM: A Large-Scale, Multimodal, Multilabel Benchmark Archive "
        "for Remote Sensing Image Classification and Retrieval. IEEE Geoscience and Remote Sensing "
        "Magazine 9(3), 2021."
    ),
)
_REBEN: Final = (
    "10.48550/arXiv.2407.03653",
    (
        "K. N. Clasen, L. Hackel, T. Burgert, G. Sumbul, B. Demir, V. Markl: reBEN: Refined "
        "BigEarthNet Dataset for Remote Sensing Image Analysis. IGARSS 2025."
    ),
)
ABOUT: Final[Mapping[Archive, _About]] = {
    "v1": _About(
        "BigEarthNet v1.0",
        "Sentinel-2 patches of 1200 m x 1200 m with CORINE Land Cover labels (43 classes, and 19 "
        "derived from them), each paired with a Sentinel-1 patch; ten European countries, June "
        "2017 to May 2018.",
        _IGARSS_2019[1],
        None,
        (_IGARSS_2019, _GRSM_2021),
    ),
    "v2": _About(
        "BigEarthNet v2.0 (reBEN)",
        "Pairs of Sentinel-1 and Sentinel-2 patches of 1200 m x 1200 m with CORINE Land Cover "
        "labels (19 classes) and pixel-level reference maps; ten European countries, June 2017 "
        "to May 2018, processed anew with sen2cor 2.11.",
        _REBEN[1],
        "10.5281/zenodo.10891137",
        (_REBEN, _IGARSS_2019, _GRSM_2021),
    ),
}
PROVIDERS: Final = [
    {
        "name": "Technische Universität Berlin and BIFOLD",
        "roles": ["producer", "licensor"],
        "url": "https://bigearth.net",
    },
    {
        "name": "European Union, Copernicus Programme",
        "description": "Sentinel-1 and Sentinel-2 data; CORINE Land Cover 2018",
        "roles": ["producer"],
        "url": "https://www.copernicus.eu",
    },
]
_COLUMNS: Final = {
    "id": "Name of the Sentinel-2 patch, as published",
    "geometry": "Footprint, WGS84",
    "datetime": "Sensing time of the Sentinel-2 view, UTC",
    "bec:row": "Index along the patch axis of every array of the cube",
    "bec:labels": "Land-cover classes present, 19-class nomenclature; null where unknown",
    "bec:labels_43": "Land-cover classes present, CORINE level 3; null where unknown",
    "bec:split": "train, validation or test; null where the patch has none",
    "bec:country": "Country",
    "bec:season": "Season by calendar month of acquisition",
    "bec:snow": "Flagged for seasonal snow",
    "bec:cloud_or_shadow": "Flagged for cloud or cloud shadow",
    "bec:place": "Footprint: MGRS square, column, row; shared by all dates of it",
    "bec:tile": "Acquisition the patch was cut from",
    "bec:s1_id": "Name of the Sentinel-1 view of the pair",
    "proj:code": "UTM zone",
    "proj:bbox": "West, south, east, north in the UTM zone, meters",
    "grid:code": "MGRS square",
}


def collection(
    identifier: str,
    *,
    archive: Archive,
    items: pa.Table,
    tables: Sequence[str] = (),
    version: str | None = None,
) -> dict[str, Any]:
    """Describe a cube as a STAC 1.1 Collection, to lie beside it as ``collection.json``.

    Parameters
    ----------
    identifier
        Id of the cube.
    archive
        Where its patches come from.
    items
        Items table of the whole cube; not empty.
    tables
        Keys of its files below the cube, e.g. ``"items/r1-0.parquet"``.
    version
        Name of the newest release.

    Returns
    -------
    dict
        Hrefs are relative to the cube.
    """
    boxes = items["bbox"].combine_chunks()
    edges = [pc.struct_field(boxes, edge) for edge in ("xmin", "ymin", "xmax", "ymax")]
    extremes = (pc.min, pc.min, pc.max, pc.max)
    bbox = [extreme(edge).as_py() for extreme, edge in zip(extremes, edges, strict=True)]
    times = pc.min_max(items["datetime"]).as_py()
    described = describe(
        identifier,
        archive=archive,
        bbox=bbox,
        interval=(times["min"], times["max"]),
        n_patches=len(items),
        groups=_groups_present(items),
        summaries={
            name: _in_order_of(_distinct(items[name]), order)
            for name, order in {
                "platform": (),
                "bec:country": COUNTRIES,
                "bec:season": SEASONS,
                "bec:split": SPLITS,
                "proj:code": (),
                "grid:code": (),
            }.items()
        },
        version=version,
    )
    described["links"] += [
        {"rel": "store", "href": "./cube.zarr", "type": ZARR_TYPE},
        *({"rel": "items", "href": f"./{key}", "type": PARQUET_TYPE} for key in tables),
    ]
    described["assets"] = {
        "cube": {
            "href": "./cube.zarr",
            "title": "All pixels and labels",
            "type": ZARR_TYPE,
            "roles": ["data"],
            "zarr:node_type": "group",
            "zarr:zarr_format": 3,
            "zarr:consolidated": True,
        },
        **{
            key: {
                "href": f"./{key}",
                "title": "Items, stac-geoparquet",
                "type": PARQUET_TYPE,
                "roles": ["collection-mirror"],
            }
            for key in tables
        },
        "intake": intake_asset("./intake.yaml"),
    }
    return described


def _groups_present(items: pa.Table) -> list[Group]:
    """List the groups that any item has an asset of."""
    assets = items["assets"].combine_chunks()
    return [
        group
        for path, group in GROUPS.items()
        if pc.struct_field(assets, path).null_count < len(items)
    ]


def _distinct(column: pa.ChunkedArray) -> list[str]:
    return sorted(value for value in column.unique().to_pylist() if value is not None)


def _in_order_of(values: list[str], order: Sequence[str]) -> list[str]:
    return [v for v in order if v in values] + [v for v in values if v not in order]


def intake_asset(href: str) -> dict[str, Any]:
    return {
        "href": href,
        "title": "Intake catalog",
        "type": YAML_TYPE,
        "roles": ["metadata"],
    }


def describe(
    identifier: str,
    *,
    archive: Archive,
    bbox: Sequence[float],
    interval: tuple[datetime, datetime],
    n_patches: int,
    groups: Sequence[Group],
    summaries: Mapping[str, Sequence[str]],
    version: str | None,
) -> dict[str, Any]:
    """Everything about a collection that does not depend on where it lies."""
    about = ABOUT[archive]
    labels = {"bec:labels": list(NAMES_19)}
    if archive == "v1":
        labels["bec:labels_43"] = list(NAMES_43)
    columns = {k: v for k, v in _COLUMNS.items() if archive == "v1" or k != "bec:labels_43"}
    extensions = ["projection", *["eo", "raster"] * bool(groups)]
    extensions += ["zarr", "datacube", "table", "scientific", "bec"]
    extensions += ["sar"] * (S1_GROUP in groups) + ["classification"] * (MAP_GROUP in groups)
    extensions += ["version"] * (version is not None)
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": extension_urls(*extensions),
        "id": identifier,
        "title": about.title,
        "description": about.description,
        "keywords": ["BigEarthNet", "Sentinel-1", "Sentinel-2", "land cover", "CORINE"],
        "license": LICENSE,
        "providers": PROVIDERS,
        **({"version": version} if version is not None else {}),
        "extent": {
            "spatial": {"bbox": [list(bbox)]},
            "temporal": {"interval": [[timestamp(when) for when in interval]]},
        },
        "summaries": {
            "constellation": ["sentinel-2"],
            "instruments": ["msi"],
            "gsd": [group.resolution_m for group in S2_GROUPS],
            **{name: list(values) for name, values in summaries.items() if values},
            **labels,
        },
        "bec:archive": archive,
        "sci:citation": about.citation,
        **({"sci:doi": about.doi} if about.doi else {}),
        "sci:publications": [
            {"doi": doi, "citation": citation} for doi, citation in about.publications
        ],
        **_datacube(archive, bbox, groups),
        "table:columns": [{"name": name, "description": text} for name, text in columns.items()],
        "table:primary_geometry": "geometry",
        "table:row_count": n_patches,
        "item_assets": {group.path: dict(asset_definitions()[group.path]) for group in groups},
        "links": [
            {"rel": "license", "href": "https://cdla.dev/permissive-1-0/", "type": "text/html"},
            *(
                {"rel": "cite-as", "href": f"https://doi.org/{doi}"}
                for doi in ([about.doi] if about.doi else [about.publications[0][0]])
            ),
        ],
    }


def _datacube(archive: Archive, bbox: Sequence[float], groups: Sequence[Group]) -> dict[str, Any]:
    offset = {"type": "offset", "extent": [0, PATCH_M], "unit": "m"}
    nomenclatures = {"label_19": ("class_19", NAMES_19), "label_43": ("class_43", NAMES_43)}
    if archive == "v2":
        del nomenclatures["label_43"]
    dimensions = {
        "patch": {
            "type": "geometry",
            "axes": ["x", "y"],
            "bbox": list(bbox),
            "geometry_types": ["Polygon"],
            "description": "Patches; the index is bec:row of the items",
        },
        "y": {**offset, "description": "South of the patch's upper edge"},
        "x": {**offset, "description": "East of the patch's left edge"},
        **{
            f"{group.path}/{group.axis}": {"type": "bands", "values": list(group.bands)}
            for group in groups
            if group.axis
        },
        **{name: {"type": "class", "values": list(v)} for name, v in nomenclatures.values()},
    }
    variables = {f"{g.path}/{g.array}": _variable(g) for g in groups}
    for label, (dimension, _) in nomenclatures.items():
        variables[label] = {
            "variable_type": "auxiliary",
            "dimensions": ["patch", dimension],
            "data_type": "uint8",
        }
    return {"cube:dimensions": dimensions, "cube:variables": variables}


def _variable(group: Group) -> dict[str, Any]:
    definition = asset_definitions()[group.path]
    bands = [f"{group.path}/{group.axis}"] if group.axis else []
    return {
        "variable_type": "data",
        "description": definition["title"],
        "dimensions": ["patch", *bands, "y", "x"],
        "data_type": group.dtype,
        "nodata": definition["nodata"],
        **({"unit": definition["unit"]} if "unit" in definition else {}),
    }


# --- Intake -----------------------------------------------------------------------------------


FROM_ENVIRONMENT: Final = "{{ env(BEC_CUBE) }}"
_SOURCES: Final = (
    ("cube", "bigearth_cube", "Everything, as an xarray.DataTree", None),
    ("items", "bigearth_items", "One row a patch, as an Arrow table (stac-geoparquet)", None),
    (
        "s2",
        "bigearth_group",
        "Sentinel-2 at one resolution: res is r10m, r20m or r60m",
        S2_GROUPS[0],
    ),
    ("s1", "bigearth_group", "Sentinel-1 backscatter, VV and VH, dB", S1_GROUP),
    ("reference", "bigearth_group", "CORINE land cover, level-3 codes", MAP_GROUP),
)


def intake_catalog(url: str = "{{ CATALOG_DIR }}") -> str:
    """Write the Intake catalog of a cube, in the V1 format its drivers need.

    Parameters
    ----------
    url
        Template of the cube's URL; by default the folder the catalog lies in.

    Returns
    -------
    str
        YAML.
    """
    lines = ["metadata:", "  version: 1", "sources:"]
    for name, driver, description, group in _SOURCES:
        lines += [f"  {name}:", f"    driver: {driver}", f'    description: "{description}"']
        lines += ["    args:", f'      url: "{url}"']
        if group is not None:
            sensor, res = group.path.split("/")
            lines += [f"      sensor: {sensor}", f"      res: {res}"]
    return "\n".join(lines) + "\n"
