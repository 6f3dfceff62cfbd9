"""The published description: a static STAC catalog of the archives, their tiles, and models.

Everything but the models comes from tables in this package, so the same version always writes the
same bytes. Any browser of static catalogs can walk what is written: all links are relative.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyproj
import shapely

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.items_table import (
    STAC_VERSION,
    asset_definitions,
    extension_urls,
    footprints,
)
from bigearth_cube.nomenclature import (
    ARCHIVES,
    COUNTRIES,
    GROUPS,
    MAP_GROUP,
    PATCH_M,
    PATCHES_PER_SIDE,
    SEASONS,
    SPLITS,
    Archive,
    Tile,
    tiles,
)
from bigearth_cube.stac import (
    ABOUT,
    FROM_ENVIRONMENT,
    JSON_TYPE,
    PROVIDERS,
    describe,
    intake_asset,
    intake_catalog,
    timestamp,
)

TILES: Final = "bigearthnet-tiles"
GEOJSON_TYPE: Final = "application/geo+json"
_TILE_M: Final = PATCH_M * PATCHES_PER_SIDE
# Between corners alone a straight line leaves the UTM square by some hundred meters, with ten steps
# an edge by less than a pixel.
_STEPS: Final = 10
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")


def build_catalog(directory: str | Path, *, base_url: str | None = None) -> list[Path]:
    """Write the static catalog of the published archives and of the tiles they were cut from.

    Parameters
    ----------
    directory
        Local folder; made where it is missing.
    base_url
        URL the folder will be served from; adds ``self`` links. Without it the catalog is
        self-contained: all its links are relative.

    Returns
    -------
    list of pathlib.Path
        The files, in the order written.
    """
    names = {archive: f"bigearthnet-{archive}" for archive in ARCHIVES}
    titles = {name: ABOUT[archive].title for archive, name in names.items()}
    titles[TILES] = "Sentinel-2 tiles of BigEarthNet"
    root = {
        "type": "Catalog",
        "stac_version": STAC_VERSION,
        "id": "bigearthnet",
        "title": "BigEarthNet",
        "description": "The BigEarthNet archives as cubes: one item a patch, one row an item.",
        "links": [
            {"rel": "root", "href": "./catalog.json", "type": JSON_TYPE},
            *(
                {
                    "rel": "child",
                    "href": f"./{name}/collection.json",
                    "type": JSON_TYPE,
                    "title": title,
                }
                for name, title in titles.items()
            ),
        ],
    }
    documents: dict[str, Any] = {"catalog.json": root}
    for archive, name in names.items():
        documents[f"{name}/collection.json"] = _published(name, archive)
    documents[f"{TILES}/collection.json"] = _tile_collection(titles[TILES])
    for tile in tiles():
        documents[f"{TILES}/{tile.product}.json"] = tile_item(tile)
    if base_url is not None:
        for path, document in documents.items():
            kind = GEOJSON_TYPE if document["type"] == "Feature" else JSON_TYPE
            href = f"{base_url.rstrip('/')}/{path}"
            document["links"].insert(0, {"rel": "self", "href": href, "type": kind})
    texts = {
        path: json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        for path, document in documents.items()
    }
    texts["bigearthnet.yaml"] = intake_catalog(FROM_ENVIRONMENT)
    written = []
    for path, text in texts.items():
        target = Path(directory) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        written.append(target)
    return written


def _published(name: str, archive: Archive) -> dict[str, Any]:
    own = [t for t in tiles() if (t.n_v1 if archive == "v1" else t.n_v2)]
    described = describe(
        name,
        archive=archive,
        bbox=_square_bounds((t.epsg, t.ulx, t.uly) for t in own),
        interval=(min(t.acquired for t in own), max(t.acquired for t in own)),
        n_patches=sum(t.n_v1 if archive == "v1" else t.n_v2 for t in own),
        groups=[g for g in GROUPS.values() if archive == "v2" or g != MAP_GROUP],
        summaries={
            "platform": sorted({f"sentinel-{t.product[1:3].lower()}" for t in own}),
            "bec:country": COUNTRIES,
            "bec:season": SEASONS,
            "bec:split": SPLITS,
            "proj:code": sorted({f"EPSG:{t.epsg}" for t in own}),
            "grid:code": sorted({f"MGRS-{t.mgrs}" for t in own}),
        },
        version="1.0" if archive == "v1" else "2.0",
    )
    described["links"] += [
        {"rel": "root", "href": "../catalog.json", "type": JSON_TYPE},
        {"rel": "parent", "href": "../catalog.json", "type": JSON_TYPE},
    ]
    described["assets"] = {"intake": intake_asset("../bigearthnet.yaml")}
    return described


def _square_bounds(corners: Iterable[tuple[int, int, int]]) -> list[float]:
    """West, south, east, north of all patches along the rims of squares of 91 x 91."""
    last = PATCHES_PER_SIDE - 1
    along = np.arange(PATCHES_PER_SIDE)
    col = np.concatenate([along, along, 0 * along, 0 * along + last])
    row = np.concatenate([0 * along, 0 * along + last, along, along])
    squares = np.array(sorted(set(corners)), np.int64)
    epsg = np.repeat(squares[:, 0], len(col))
    ulx = (squares[:, 1, None] + PATCH_M * col).ravel()
    uly = (squares[:, 2, None] - PATCH_M * row).ravel()
    _, bounds = footprints(epsg, ulx, uly)
    west, south = np.floor(bounds[:, :2].min(axis=0) * 1e4) / 1e4
    east, north = np.ceil(bounds[:, 2:].max(axis=0) * 1e4) / 1e4
    return [float(west), float(south), float(east), float(north)]


# --- tiles ------------------------------------------------------------------------------------


def _tile_collection(title: str) -> dict[str, Any]:
    own = tiles()
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": extension_urls("projection"),
        "id": TILES,
        "title": title,
        "description": "The 125 Sentinel-2 acquisitions that the patches of BigEarthNet were cut "
        "from, June 2017 to May 2018; v2 uses 115 of them. An item's footprint is the square of "
        "91 x 91 patches that fit into the acquisition.",
        "keywords": ["BigEarthNet", "Sentinel-2", "MGRS"],
        "license": "other",
        "providers": PROVIDERS,
        "extent": {
            "spatial": {"bbox": [_square_bounds((t.epsg, t.ulx, t.uly) for t in own)]},
            "temporal": {
                "interval": [
                    [timestamp(when(t.acquired for t in own)) for when in (min, max)],
                ]
            },
        },
        "summaries": {
            "constellation": ["sentinel-2"],
            "instruments": ["msi"],
            "platform": sorted({_platform(t) for t in own}),
            "proj:code": sorted({f"EPSG:{t.epsg}" for t in own}),
            "grid:code": sorted({f"MGRS-{t.mgrs}" for t in own}),
        },
        "links": [
            {
                "rel": "license",
                "href": "https://sentinel.esa.int/documents/247904/690755/"
                "Sentinel_Data_Legal_Notice",
                "type": "application/pdf",
            },
            {"rel": "root", "href": "../catalog.json", "type": JSON_TYPE},
            {"rel": "parent", "href": "../catalog.json", "type": JSON_TYPE},
            *(
                {
                    "rel": "item",
                    "href": f"./{t.product}.json",
                    "type": GEOJSON_TYPE,
                    "title": f"{t.mgrs}, {t.acquired:%Y-%m-%d}",
                }
                for t in own
            ),
        ],
    }


def _platform(tile: Tile) -> str:
    return f"sentinel-{tile.product[1:3].lower()}"


def tile_item(tile: Tile) -> dict[str, Any]:
    """Describe one acquisition as a STAC Item, to lie beside the others of its collection.

    It has no assets: the products are Copernicus's to publish.
    """
    west, north = tile.ulx, tile.uly
    east, south = west + _TILE_M, north - _TILE_M
    ring = _densified(tile.epsg, west, south, east, north)
    parts: dict[Archive, int] = {"v1": tile.n_v1, "v2": tile.n_v2}
    here = {"href": "./collection.json", "type": JSON_TYPE}
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": extension_urls("projection", "grid", "bec"),
        "id": tile.product,
        "collection": TILES,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [*np.min(ring, axis=0).tolist(), *np.max(ring, axis=0).tolist()],
        "properties": {
            "datetime": timestamp(tile.acquired),
            "title": f"{tile.mgrs}, {tile.acquired:%Y-%m-%d}",
            "platform": _platform(tile),
            "constellation": "sentinel-2",
            "instruments": ["msi"],
            "proj:code": f"EPSG:{tile.epsg}",
            "proj:bbox": [west, south, east, north],
            "grid:code": f"MGRS-{tile.mgrs}",
            **{f"bec:patches_{archive}": n for archive, n in parts.items()},
        },
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": JSON_TYPE},
            {"rel": "parent", **here},
            {"rel": "collection", **here},
            *(
                {
                    "rel": "related",
                    "href": f"../bigearthnet-{archive}/collection.json",
                    "type": JSON_TYPE,
                    "title": f"{n:,} patches of {ABOUT[archive].title}",
                }
                for archive, n in parts.items()
                if n
            ),
        ],
        "assets": {},
    }


def _densified(epsg: int, west: int, south: int, east: int, north: int) -> list[list[float]]:
    """Ring of a UTM square in WGS84, counterclockwise from its lower left."""
    square = shapely.get_coordinates(
        shapely.segmentize(shapely.box(west, south, east, north, ccw=True), _TILE_M / _STEPS)
    )
    start = int(np.flatnonzero((square[:-1] == [west, south]).all(axis=1))[0])
    square = np.roll(square[:-1], -start, axis=0)
    to_wgs84 = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)
    lon, lat = to_wgs84.transform(*square.T)
    ring = np.stack([lon, lat], axis=1).round(7).tolist()
    return [*ring, ring[0]]


# --- models -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is to be told of a trained model.

    Attributes
    ----------
    name, architecture
        Of this model, and of the kind of network it is.
    n_parameters
        Trainable ones.
    groups
        Groups of the cube that it reads, in order, as DN: it normalizes them itself.
    class_names
        Of its outputs, in order.
    threshold
        A class is predicted where its score is at least this.
    trained
        When.
    cube, release, selection
        Id and release of the cube, and digest of the selection it was trained on.
    hyperparameters
        Plain values by name.
    metrics
        Measured figures by name, e.g. ``validation_f1``.
    framework_version
        Of PyTorch.
    size
        Of the checkpoint, bytes.
    sha256
        Of the checkpoint, hexadecimal.
    """

    name: str
    architecture: str
    n_parameters: int
    groups: Sequence[str]
    class_names: Sequence[str]
    threshold: float
    trained: datetime
    cube: str
    release: str
    selection: str
    hyperparameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    framework_version: str
    size: int
    sha256: str


def model_item(
    model: Model, described: Mapping[str, Any], *, checkpoint_url: str, cube_url: str
) -> dict[str, Any]:
    """Describe a published checkpoint as a STAC Item with the machine learning model extension.

    Parameters
    ----------
    model
        What is known of it.
    described
        The collection of the cube it was trained on: its extent is the model's.
    checkpoint_url, cube_url
        Where they lie.

    Raises
    ------
    InvalidInputError
        If the name is no name for a file.
    """
    if not _NAME.fullmatch(model.name):
        raise InvalidInputError(
            f"model name {model.name!r} has other characters than A-Z a-z 0-9 . _ -"
        )
    bbox = described["extent"]["spatial"]["bbox"][0]
    start, end = described["extent"]["temporal"]["interval"][0]
    classes = [
        {"value": i, "name": _slug(name), "description": name}
        for i, name in enumerate(model.class_names)
    ]
    tasks = ["scene-classification", "similarity-search"]
    output = {
        "name": "scores",
        "description": f"Logits; a class is predicted where the sigmoid is at least "
        f"{model.threshold:g}",
        "tasks": tasks[:1],
        "result": {
            "shape": [-1, len(classes)],
            "dim_order": ["batch", "class"],
            "data_type": "float32",
        },
        "classification:classes": classes,
    }
    bands = [band for group in model.groups for band in asset_definitions()[group].get("bands", ())]
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": extension_urls("mlm", "eo", "file", "classification", "bec"),
        "id": model.name,
        "geometry": json.loads(shapely.to_geojson(shapely.box(*bbox))),
        "bbox": list(bbox),
        "properties": {
            "datetime": None,
            "start_datetime": start,
            "end_datetime": end,
            "created": timestamp(model.trained),
            "description": f"{model.architecture} trained on {model.cube}, release "
            f"{model.release}; datetimes are those of its training data",
            "license": "Apache-2.0",
            "bands": bands,
            "bec:cube": model.cube,
            "bec:release": model.release,
            "bec:selection": model.selection,
            "bec:metrics": dict(model.metrics),
            "mlm:name": model.name,
            "mlm:architecture": model.architecture,
            "mlm:framework": "PyTorch",
            "mlm:framework_version": model.framework_version,
            "mlm:tasks": tasks,
            "mlm:total_parameters": model.n_parameters,
            "mlm:pretrained": False,
            "mlm:hyperparameters": dict(model.hyperparameters),
            "mlm:input": [_model_input(group) for group in model.groups],
            "mlm:output": [output],
        },
        "links": [
            {
                "rel": "derived_from",
                "href": f"{cube_url.rstrip('/')}/collection.json",
                "type": JSON_TYPE,
                "title": f"The cube it was trained on, release {model.release}",
            }
        ],
        "assets": {
            "checkpoint": {
                "href": checkpoint_url,
                "title": "Weights and all that is needed to use them",
                "type": "application/octet-stream; application=pytorch",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "torch.save",
                # The schema of STAC 1.1 takes bands in properties, where the extension wants
                # them, only beside bands of an asset.
                "bands": [{"name": band["name"]} for band in bands],
                "file:size": model.size,
                "file:checksum": f"1220{model.sha256}",  # multihash: SHA-256, 32 bytes
            }
        },
    }


def _model_input(path: str) -> dict[str, Any]:
    group = GROUPS[path]
    return {
        "name": path,
        "description": f"{group.array} as the cube stores it; the model normalizes it itself",
        "bands": list(group.bands),
        "input": {
            "shape": [-1, len(group.bands), group.size_px, group.size_px],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": group.dtype,
        },
    }


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
