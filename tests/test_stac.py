"""The items table, items, collections and the published catalog."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pystac
import pytest
import shapely
import shapely.geometry
import stac_geoparquet.arrow
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from referencing.exceptions import NoSuchResource

from bigearth_cube import catalog, stac
from bigearth_cube.archive.base import PatchRecord
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import (
    GROUPS,
    NAMES_19,
    NAMES_43,
    PATCH_M,
    S2_BANDS,
    Archive,
    labels_43_to_19,
    patch_origin,
    tiles,
)

CUBE_URL = "s3://bucket/mine"
PACKAGE = Path(stac.__file__).parent
CORE_URL = "https://schemas.stacspec.org/v1.1.0"
CORE = Path(pystac.__file__).parent / "validation" / "jsonschemas"
WHEN = datetime(2017, 6, 13, 10, 10, 31, tzinfo=UTC)
PAIR_AND_MAP = {"VV": "vv.tif", "VH": "vh.tif", "map": "map.tif"}


def record(mgrs: str = "33UUP", col: int = 6, row: int = 57, **known: Any) -> PatchRecord:
    epsg, ulx, uly = patch_origin(mgrs, col, row)
    tile = f"S2A_MSIL2A_20170613T101031_N9999_R022_T{mgrs}"
    fields = {"acquired": WHEN, "files": PAIR_AND_MAP, **known}
    return PatchRecord(
        f"{tile}_{col:02d}_{row:02d}", tile, mgrs, col, row, epsg=epsg, ulx=ulx, uly=uly, **fields
    )


def table_of(*records: PatchRecord, archive: Archive = "v2") -> pa.Table:
    rows = np.arange(len(records), dtype=np.int64) + 1024
    return stac.items_table(records, rows, collection="mine", archive=archive)


FULL = record(
    labels=("Pastures", "Arable land"),
    country="Austria",
    split="test",
    flagged_snow=False,
    flagged_cloud_or_shadow=True,
    s1_id="S1B_IW_GRDH_1SDV_20170612T165809_33UUP_06_57",
)
BARE = record(col=7, files={})


# --- the table


def test_a_row_says_what_the_record_says() -> None:
    row = table_of(FULL).to_pylist()[0]
    expected = {
        "id": FULL.id,
        "collection": "mine",
        "datetime": WHEN,
        "platform": "sentinel-2a",
        "bec:row": 1024,
        "bec:labels": ["Arable land", "Pastures"],
        "bec:split": "test",
        "bec:country": "Austria",
        "bec:season": "summer",
        "bec:snow": False,
        "bec:cloud_or_shadow": True,
        "bec:place": "33UUP_06_57",
        "bec:tile": FULL.tile,
        "bec:s1_id": FULL.s1_id,
        "proj:code": "EPSG:32633",
        "proj:bbox": [FULL.ulx, FULL.uly - PATCH_M, FULL.ulx + PATCH_M, FULL.uly],
        "grid:code": "MGRS-33UUP",
        "eo:cloud_cover": None,
    }
    assert {name: row[name] for name in expected} == expected


def test_what_no_source_says_is_null_and_no_label_is_an_empty_list() -> None:
    table = table_of(BARE, record(labels=()))
    unknown = ["bec:split", "bec:country", "bec:snow", "bec:cloud_or_shadow", "bec:s1_id"]
    assert {table[name][0].as_py() for name in unknown} == {None}
    assert table["bec:labels"].to_pylist() == [None, []]


def test_v1_has_both_nomenclatures() -> None:
    given = ("Vineyards", "Airports", "Olive groves")
    table = table_of(record(labels=given), archive="v1")
    assert table["bec:labels_43"].to_pylist() == [["Airports", "Vineyards", "Olive groves"]]
    assert table["bec:labels"].to_pylist() == [list(labels_43_to_19(given))]
    assert "bec:labels_43" not in table_of(FULL).column_names


@given(st.sets(st.sampled_from(NAMES_19)).flatmap(lambda s: st.permutations(sorted(s))))
def test_labels_stand_in_nomenclature_order(names: list[str]) -> None:
    stored = table_of(record(labels=tuple(names)))["bec:labels"][0].as_py()
    assert stored == [name for name in NAMES_19 if name in names]


def test_an_unknown_label_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="'Pasture'"):
        table_of(record(labels=("Pasture",)))


def test_rows_and_records_must_be_as_many() -> None:
    with pytest.raises(InvalidInputError, match="2 rows for 1 records"):
        stac.items_table([FULL], np.arange(2), collection="mine", archive="v2")


def test_a_table_without_patches_has_the_same_columns() -> None:
    assert table_of().schema.equals(table_of(FULL).schema)


def test_assets_follow_what_the_cube_holds() -> None:
    assets = table_of(FULL, BARE)["assets"].to_pylist()
    assert [path for path, asset in assets[0].items() if asset] == list(GROUPS)
    assert [path for path, asset in assets[1].items() if asset] == ["s2/r10m", "s2/r20m", "s2/r60m"]
    told = {"s1/r10m": np.array([False, True]), "reference/r10m": np.array([False, False])}
    table = stac.items_table(
        [FULL, BARE], np.arange(2), collection="mine", archive="v2", present=told
    )
    assert [bool(a["s1/r10m"]) for a in table["assets"].to_pylist()] == [False, True]
    assert [bool(a["reference/r10m"]) for a in table["assets"].to_pylist()] == [False, False]


def test_columns_of_one_value_cost_one_chunk_of_memory() -> None:
    n = 200_000
    table = stac.items_table([FULL] * n, np.arange(n), collection="mine", archive="v2")
    chunks = table["assets"].chunks
    assert len(chunks) == 4
    addresses = {c.field(0).field(0).buffers()[2].address for c in chunks}
    assert len(addresses) == 1


def test_the_table_survives_parquet_with_its_metadata() -> None:
    table = table_of(FULL, BARE)
    again = pq.read_table(io.BytesIO(stac.parquet_bytes(table)))
    assert again.equals(table)
    geo = json.loads(again.schema.metadata[b"geo"])
    assert geo["columns"]["geometry"]["geometry_types"] == ["Polygon"]
    assert json.loads(again.schema.metadata[b"stac-geoparquet"]) == {"version": "1.1.0"}


# --- footprints


@pytest.mark.parametrize("tile", tiles(), ids=lambda tile: tile.product[11:26] + tile.mgrs)
def test_footprints_of_every_tile_are_the_utm_square_counterclockwise(tile: Any) -> None:
    col, row = (a.ravel() for a in np.meshgrid([0, 45, 90], [0, 45, 90]))
    ulx, uly = tile.ulx + PATCH_M * col, tile.uly - PATCH_M * row
    wkb, bounds = stac.footprints(np.full(9, tile.epsg), ulx, uly)
    polygons = shapely.from_wkb(wkb.to_numpy(zero_copy_only=False))
    assert shapely.is_valid(polygons).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(polygons)).all()
    np.testing.assert_array_equal(shapely.bounds(polygons), bounds)
    to_utm = pyproj.Transformer.from_crs(4326, tile.epsg, always_xy=True)
    for polygon, x, y in zip(polygons, ulx, uly, strict=True):
        square = shapely.box(x, y - PATCH_M, x + PATCH_M, y)
        # Along the straight edges in degrees, not at the corners only.
        dense = shapely.transform(
            shapely.segmentize(polygon, 0.0005), to_utm.transform, interleaved=False
        )
        assert shapely.hausdorff_distance(dense, square) < 0.1


# --- items


def test_items_are_what_pystac_reads() -> None:
    item = pystac.Item.from_dict(stac.items(table_of(FULL), cube_url=CUBE_URL)[0])
    assert item.datetime == WHEN
    assert item.collection_id == "mine"
    assert item.assets["s2/r10m"].href == f"{CUBE_URL}/cube.zarr/s2/r10m"
    assert item.get_single_link("store").href == f"{CUBE_URL}/cube.zarr"  # type: ignore[union-attr]


def test_an_answer_without_rows_has_no_items() -> None:
    assert stac.items(table_of(FULL).slice(0, 0), cube_url=CUBE_URL) == []


def test_unknown_properties_are_left_out_of_items() -> None:
    item = stac.items(table_of(BARE), cube_url=CUBE_URL)[0]
    assert None not in item["properties"].values()
    assert "eo:cloud_cover" not in item["properties"]


def test_assets_have_the_bands_and_the_grid_of_their_group() -> None:
    assets = stac.items(table_of(FULL), cube_url=CUBE_URL)[0]["assets"]
    for path, group in GROUPS.items():
        asset = assets[path]
        assert [band["name"] for band in asset.get("bands", [])] == list(group.bands)
        assert asset["gsd"] == asset["raster:spatial_resolution"] == group.resolution_m
        assert asset["proj:shape"] == [group.size_px] * 2
        edge = group.resolution_m
        assert asset["proj:transform"] == [edge, 0, FULL.ulx, 0, -edge, FULL.uly]
    assert {p: a["nodata"] for p, a in assets.items()} == {
        "s2/r10m": 0,
        "s2/r20m": 0,
        "s2/r60m": 0,
        "s1/r10m": "nan",
        "reference/r10m": 999,
    }
    assert {a["raster:scale"] for p, a in assets.items() if p.startswith("s2")} == {0.0001}
    wavelengths = {
        band["name"]: band["eo:center_wavelength"]
        for path in ("s2/r10m", "s2/r20m", "s2/r60m")
        for band in assets[path]["bands"]
    }
    assert wavelengths == {band.name: band.center_um for band in S2_BANDS}


def test_items_as_another_reader_of_the_table_makes_them_agree_with_ours() -> None:
    table = table_of(FULL, BARE)
    theirs = list(stac_geoparquet.arrow.stac_table_to_items(table))
    for item, ours in zip(theirs, stac.items(table, cube_url=CUBE_URL), strict=True):
        known = {k: v for k, v in item["properties"].items() if v is not None}
        known["datetime"] = known["datetime"].replace(".000000", "")
        assert known == ours["properties"]
        assert item["bbox"] == ours["bbox"]
        assert item["geometry"] == ours["geometry"]
        assert {k for k, v in item["assets"].items() if v} == set(ours["assets"])


# --- collections and the catalog


def test_a_collection_says_where_when_and_what() -> None:
    table = table_of(FULL, record("29SND", acquired=WHEN + timedelta(days=300)))
    made = stac.collection("mine", archive="v2", items=table, tables=["items/r1-0.parquet"])
    pystac.Collection.from_dict(made)
    boxes = np.array([list(b.values()) for b in table["bbox"].to_pylist()])
    assert made["extent"]["spatial"]["bbox"] == [[*boxes.min(0)[:2], *boxes.max(0)[2:]]]
    assert made["extent"]["temporal"]["interval"] == [
        ["2017-06-13T10:10:31Z", "2018-04-09T10:10:31Z"]
    ]
    assert made["summaries"]["bec:season"] == ["spring", "summer"]
    assert made["summaries"]["bec:labels"] == list(NAMES_19)
    assert "bec:labels_43" not in made["summaries"]
    assert made["license"] == "CDLA-Permissive-1.0"
    assert made["table:row_count"] == 2
    assert made["assets"]["items/r1-0.parquet"]["roles"] == ["collection-mirror"]
    assert {link["href"] for link in made["links"] if link["rel"] == "items"} == {
        "./items/r1-0.parquet"
    }


def test_a_collection_describes_only_groups_it_has() -> None:
    made = stac.collection("mine", archive="v1", items=table_of(BARE, archive="v1"))
    assert list(made["item_assets"]) == ["s2/r10m", "s2/r20m", "s2/r60m"]
    assert made["summaries"]["bec:labels_43"] == list(NAMES_43)
    assert not any("sar" in url for url in made["stac_extensions"])


def test_items_and_collections_without_pixels_name_no_extension_of_pixels() -> None:
    rows, nothing = np.array([0]), np.zeros(1, bool)
    table = stac.items_table(
        [BARE], rows, collection="mine", archive="v2", present=dict.fromkeys(GROUPS, nothing)
    )
    for made in (
        stac.items(table, cube_url="s3://b/c")[0],
        stac.collection("mine", archive="v2", items=table),
    ):
        named = {url.split("/")[-3] for url in made["stac_extensions"]}
        assert not named & {"eo", "raster", "sar", "classification"}
        assert {"projection", "zarr"} <= named


def test_the_committed_catalog_is_what_the_package_writes(tmp_path: Path) -> None:
    committed = PACKAGE.parent / "catalog"
    if not committed.is_dir():
        pytest.skip("no checkout beside the package")
    catalog.build_catalog(tmp_path)
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    kept = {p.relative_to(committed): p.read_bytes() for p in committed.rglob("*") if p.is_file()}
    assert made == kept


def test_the_catalog_has_the_published_counts(tmp_path: Path) -> None:
    catalog.build_catalog(tmp_path)
    counts = {
        name: json.loads((tmp_path / name / "collection.json").read_text())["table:row_count"]
        for name in ("bigearthnet-v1", "bigearthnet-v2")
    }
    assert counts == {"bigearthnet-v1": 590_326, "bigearthnet-v2": 549_488}


def test_the_catalog_can_be_walked_with_and_without_a_base_url(tmp_path: Path) -> None:
    for base_url in (None, "https://example.com/catalog"):
        catalog.build_catalog(tmp_path, base_url=base_url)
        document = json.loads((tmp_path / "catalog.json").read_text())
        links = {link["href"] for link in document["links"] if link["rel"] == "self"}
        assert links == ({f"{base_url}/catalog.json"} if base_url else set())
        walked = pystac.Catalog.from_file(str(tmp_path / "catalog.json"))
        if base_url is None:
            children = [c.id for c in walked.get_children()]
            assert children == ["bigearthnet-v1", "bigearthnet-v2", "bigearthnet-tiles"]


def test_every_tile_can_be_walked_to_and_back(tmp_path: Path) -> None:
    catalog.build_catalog(tmp_path)
    root = pystac.Catalog.from_file(str(tmp_path / "catalog.json"))
    own = root.get_child("bigearthnet-tiles")
    assert isinstance(own, pystac.Collection)
    found = {item.id: item for item in own.get_items()}
    assert set(found) == {tile.product for tile in tiles()}
    assert len(found) == 125
    boxes = np.array([item.bbox for item in found.values()])
    west, south, east, north = own.extent.spatial.bboxes[0]
    assert (boxes[:, :2] >= [west, south]).all()
    assert (boxes[:, 2:] <= [east, north]).all()
    for item in found.values():
        assert item.get_parent() is own
        assert item.get_root() is root
        for link in item.get_links("related"):
            assert (tmp_path / "bigearthnet-tiles" / link.href).resolve().exists()
    counted = [item.properties["bec:patches_v2"] for item in found.values()]
    assert sum(counted) == 549_488
    assert sum(n > 0 for n in counted) == 115


@pytest.mark.parametrize("tile", tiles(), ids=lambda tile: tile.product[11:26] + tile.mgrs)
def test_the_footprint_of_a_tile_is_the_square_that_its_patches_fill(tile: Any) -> None:
    item = catalog.tile_item(tile)
    polygon = shapely.geometry.shape(item["geometry"])
    assert polygon.is_valid
    assert polygon.exterior.is_ccw
    assert item["bbox"] == pytest.approx(polygon.bounds, abs=0)
    edge = 91 * PATCH_M
    square = shapely.box(tile.ulx, tile.uly - edge, tile.ulx + edge, tile.uly)
    to_utm = pyproj.Transformer.from_crs(4326, tile.epsg, always_xy=True)
    dense = shapely.transform(
        shapely.segmentize(polygon, 0.01), to_utm.transform, interleaved=False
    )
    assert shapely.hausdorff_distance(dense, square) < 10
    _, bounds = stac.footprints(
        np.full(2, tile.epsg),
        np.array([tile.ulx, tile.ulx + edge - PATCH_M]),
        np.array([tile.uly, tile.uly - edge + PATCH_M]),
    )
    assert shapely.box(*polygon.buffer(1e-4).bounds).contains(shapely.box(*bounds[0]))
    assert shapely.box(*polygon.buffer(1e-4).bounds).contains(shapely.box(*bounds[1]))


def test_the_packaged_intake_catalog_is_the_published_one(tmp_path: Path) -> None:
    catalog.build_catalog(tmp_path)
    packaged = (PACKAGE / "data" / "bigearthnet.yaml").read_bytes()
    assert packaged == (tmp_path / "bigearthnet.yaml").read_bytes()


# --- schemas, offline


def _schema_file(url: str, extensions: Path) -> Path | None:
    extension = r"https://stac-extensions\.github\.io/([^/]+)/(v[^/]+)/schema\.json"
    for pattern, place in (
        (extension, lambda m: extensions / f"{m[1]}-{m[2]}.json"),
        (
            r"https://schemas\.stacspec\.org/v1\.1\.0/[^/]+/json-schema/(\w[\w-]*(?:\.json)?)",
            lambda m: CORE / "stac-spec" / "v1.1.0" / m[1],
        ),
        (r"https://geojson\.org/schema/(\w+\.json)", lambda m: CORE / "geojson" / m[1]),
        (r".*/bec/(v[^/]+)/schema\.json", lambda m: PACKAGE / "data" / f"bec-{m[1]}.json"),
    ):
        if match := re.fullmatch(pattern, url):
            return Path(place(match))
    return None


@pytest.fixture(scope="module")
def validate() -> Callable[[dict[str, Any]], None]:
    """Validate an object against the core schema and every extension it declares."""
    folder = os.environ.get("BEC_STAC_SCHEMAS")
    if not folder:
        pytest.skip("BEC_STAC_SCHEMAS names no folder of extension schemas")
    extensions = Path(folder)

    def retrieve(url: str) -> Resource[Any]:
        if "/raster/v1.1.0/" in url:  # of which mlm takes the names of data types alone
            types = {
                "$ref": f"{CORE_URL}/item-spec/json-schema/data-values.json#/properties/data_type"
            }
            path_to_it = {"bands": {"items": {"properties": {"data_type": types}}}}
            return Resource.from_contents(
                {
                    "$schema": "http://json-schema.org/draft-07/schema#",
                    "definitions": path_to_it,
                }
            )
        if url.startswith("https://proj.org/"):
            return Resource.from_contents({"$schema": "http://json-schema.org/draft-07/schema#"})
        path = _schema_file(url.rstrip("#"), extensions)
        if path is None or not path.exists():
            raise NoSuchResource(url)
        return Resource.from_contents(json.loads(path.read_text()))

    registry: Registry[Any] = Registry(retrieve=retrieve)  # type: ignore[call-arg]

    validators: dict[str, Draft7Validator] = {}

    def check(document: dict[str, Any]) -> None:
        plain = json.loads(json.dumps(document, allow_nan=False))
        kind = {"Feature": "item", "Collection": "collection", "Catalog": "catalog"}[plain["type"]]
        core = f"{CORE_URL}/{kind}-spec/json-schema/{kind}.json"
        for url in [core, *plain.get("stac_extensions", [])]:
            if url not in validators:
                schema = registry.get_or_retrieve(url).value.contents
                validators[url] = Draft7Validator(schema, registry=registry)
            validator = validators[url]
            problems = [f"{url}: {e.json_path}: {e.message}" for e in validator.iter_errors(plain)]
            assert not problems, problems[0][:1000]

    return check


def test_items_are_valid(validate: Callable[[dict[str, Any]], None]) -> None:
    table = table_of(FULL, BARE, record(labels=(), files={"map": "map.tif"}))
    for item in stac.items(table, cube_url=CUBE_URL):
        validate(item)
    for item in stac.items(table_of(record(labels=("Airports",)), archive="v1"), cube_url="/tmp/c"):
        validate(item)


def test_items_as_another_reader_makes_them_are_valid(
    validate: Callable[[dict[str, Any]], None],
) -> None:
    for item in stac_geoparquet.arrow.stac_table_to_items(table_of(FULL, BARE)):
        properties = {k: v for k, v in item["properties"].items() if v is not None}
        assets = {k: v for k, v in item["assets"].items() if v is not None}
        validate({**item, "properties": properties, "assets": assets})


def test_collections_are_valid(validate: Callable[[dict[str, Any]], None]) -> None:
    tables = ["items/r1-0.parquet"]
    validate(
        stac.collection("mine", archive="v2", items=table_of(FULL), tables=tables, version="r1")
    )
    validate(stac.collection("mine", archive="v1", items=table_of(BARE, archive="v1")))


_NOT_TILES = ("catalog.json", "collection.json")


@pytest.mark.parametrize("every", [25, pytest.param(1, marks=pytest.mark.slow)])
def test_the_published_catalog_is_valid(
    validate: Callable[[dict[str, Any]], None], tmp_path: Path, every: int
) -> None:
    catalog.build_catalog(tmp_path, base_url="https://example.com/catalog")
    paths = sorted(tmp_path.rglob("*.json"))
    assert len(paths) == 1 + 3 + 125
    for path in paths[::every] + [p for p in paths if p.name in _NOT_TILES]:
        validate(json.loads(path.read_text()))


MODEL = catalog.Model(
    name="tb-cnn-r1",
    architecture="TB-CNN",
    n_parameters=16_523_251,
    groups=("s2/r10m", "s2/r20m", "s2/r60m"),
    class_names=NAMES_19,
    threshold=0.35,
    trained=WHEN,
    cube="mine",
    release="r1",
    selection="0" * 64,
    hyperparameters={"batch_size": 512, "learning_rate": 1e-3},
    metrics={"validation_f1": 0.7},
    framework_version="2.13.0",
    size=66_000_000,
    sha256="ab" * 32,
)


def test_a_model_is_a_valid_item_of_what_it_reads_and_says(
    validate: Callable[[dict[str, Any]], None],
) -> None:
    described = stac.collection("mine", archive="v2", items=table_of(FULL), version="r1")
    item = catalog.model_item(
        MODEL, described, checkpoint_url="s3://bucket/runs/best.pt", cube_url=CUBE_URL
    )
    validate(item)
    assert pystac.Item.from_dict(item).bbox == described["extent"]["spatial"]["bbox"][0]
    inputs = item["properties"]["mlm:input"]
    assert [i["input"]["shape"] for i in inputs] == [
        [-1, 4, 120, 120],
        [-1, 6, 60, 60],
        [-1, 2, 20, 20],
    ]
    wanted = [band for i in inputs for band in i["bands"]]
    assert [band["name"] for band in item["properties"]["bands"]] == wanted
    (output,) = item["properties"]["mlm:output"]
    assert [c["description"] for c in output["classification:classes"]] == list(NAMES_19)
    with pytest.raises(InvalidInputError, match="'a/b' has other characters"):
        catalog.model_item(
            replace(MODEL, name="a/b"), described, checkpoint_url="x", cube_url=CUBE_URL
        )


@pytest.mark.parametrize(
    "change",
    [
        {"bec:row": -1},
        {"bec:season": "fall"},
        {"bec:split": "val"},
        {"bec:place": "somewhere"},
        {"bec:labels": ["Pastures", "Pastures"]},
        {"bec:colour": "red"},
        {"bec:row": None},
        {"bec:patches_v1": 1, "bec:patches_v2": 2},
    ],
    ids=str,
)
def test_our_extension_refuses_what_is_wrong(
    validate: Callable[[dict[str, Any]], None], change: dict[str, Any]
) -> None:
    item = stac.items(table_of(FULL), cube_url=CUBE_URL)[0]
    item["properties"].update(change)
    with pytest.raises(AssertionError, match=re.escape(stac.BEC_SCHEMA)):
        validate(item)
