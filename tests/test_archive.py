"""The readers of the published folders, on small archives written here and on real patches."""

from __future__ import annotations

import bz2
import contextlib
import json
import os
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bigearth_cube.archive import PatchRecord, PatchSource, open_archive
from bigearth_cube.archive.grid import Grid
from bigearth_cube.archive.listing import PatchFiles, PatchFolder
from bigearth_cube.archive.metadata import parse_s1_metadata, parse_s2_metadata
from bigearth_cube.archive.pixels import read_file
from bigearth_cube.errors import (
    InvalidInputError,
    MalformedPatchError,
    NotFoundError,
    StorageError,
)
from bigearth_cube.nomenclature import GROUPS, S2_BANDS, S2_GROUPS, labels_43_to_19, patch_origin
from bigearth_cube.nomenclature import tiles as all_tiles

TILE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
V2_ID = f"{TILE}_26_57"
V2_S1 = "S1B_IW_GRDH_1SDV_20170612T165809_33UUP_26_57"
V1_ID = "S2B_MSIL2A_20180204T94161_57_38"
V1_S1 = "S1A_IW_GRDH_1SDV_20180204T043253_35VPK_57_38"
V1_TILE = "S2B_MSIL1C_20180204T094161_N0206_R036_T35VPK_20180204T114839"


# --- a small archive, written with rasterio ---------------------------------------------------


def pixels_of(name: str, size_px: int, dtype: str) -> NDArray[Any]:
    """Pixels that differ from file to file."""
    rng = np.random.default_rng(list(name.encode()))
    if dtype == "float32":
        return rng.normal(-15, 5, (size_px, size_px)).astype(np.float32)
    return rng.integers(0, 2**16, (size_px, size_px), np.uint16)


def write_band(
    path: Path, pixels: NDArray[Any], corner: tuple[int, int, int], **profile: Any
) -> None:
    epsg, ulx, uly = corner
    path.parent.mkdir(parents=True, exist_ok=True)
    resolution = 1200 / pixels.shape[0]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=pixels.shape[0],
        width=pixels.shape[1],
        count=1,
        dtype=pixels.dtype,
        crs=f"EPSG:{epsg}",
        transform=Affine(resolution, 0, ulx, 0, -resolution, uly),
        **profile,
    ) as dataset:
        dataset.write(pixels, 1)


def write_s2(
    parent: Path, patch_id: str, corner: tuple[int, int, int], suffix: str = "tif"
) -> Path:
    for band in S2_BANDS:
        stem = f"{patch_id}_{band.name}"
        pixels = pixels_of(stem, band.size_px, "uint16")
        write_band(parent / patch_id / f"{stem}.{suffix}", pixels, corner)
    return parent / patch_id


def write_s1(parent: Path, s1_id: str, corner: tuple[int, int, int]) -> Path:
    for polarization in ("VV", "VH"):
        stem = f"{s1_id}_{polarization}"
        write_band(parent / s1_id / f"{stem}.tif", pixels_of(stem, 120, "float32"), corner)
    return parent / s1_id


def write_map(parent: Path, patch_id: str, corner: tuple[int, int, int]) -> Path:
    stem = f"{patch_id}_reference_map"
    codes = np.array([111, 211, 312, 523, 999], np.uint16)
    pixels = codes[pixels_of(stem, 120, "uint16") % 5]
    write_band(parent / patch_id / f"{stem}.tif", pixels, corner, compress="deflate", predictor=2)
    return parent / patch_id


def v1_json(**changes: Any) -> dict[str, Any]:
    epsg, ulx, uly = patch_origin("35VPK", 57, 38)
    fields = {
        "labels": ["Mixed forest", "Water bodies"],
        "coordinates": {"ulx": ulx, "uly": uly, "lrx": ulx + 1200, "lry": uly - 1200},
        "projection": f'PROJCS["WGS 84 / UTM zone 35N",AUTHORITY["EPSG","{epsg}"]]',
        "tile_source": f"{V1_TILE}.SAFE",
        "acquisition_date": "2018-02-04 09:41:56",
    }
    return {**fields, **changes}


def write_json(folder: Path, fields: Any) -> Path:
    path = folder / f"{folder.name}_labels_metadata.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return path


def write_parquet(path: Path, *rows: dict[str, Any]) -> Path:
    base = {
        "patch_id": V2_ID,
        "labels": ["Arable land", "Pastures"],
        "split": "test",
        "country": "Austria",
        "s1_name": V2_S1,
        "s2v1_name": "S2A_MSIL2A_20170613T101031_26_57",
        "contains_seasonal_snow": False,
        "contains_cloud_or_shadow": True,
    }
    pq.write_table(pa.Table.from_pylist([{**base, **row} for row in rows]), path)
    return path


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole pair of each archive; copied, never changed."""
    root = tmp_path_factory.mktemp("archives")
    corner = patch_origin("33UUP", 26, 57)
    write_s2(root / "v2" / "BigEarthNet-S2" / TILE, V2_ID, corner)
    write_s1(root / "v2" / "BigEarthNet-S1" / V2_S1[:32], V2_S1, corner)
    write_map(root / "v2" / "Reference_Maps" / TILE, V2_ID, corner)
    corner = patch_origin("35VPK", 57, 38)
    write_json(write_s2(root / "v1" / "BigEarthNet-v1.0", V1_ID, corner), v1_json())
    folder = write_s1(root / "v1" / "BigEarthNet-S1-v1.0", V1_S1, corner)
    write_json(folder, {"corresponding_s2_patch": V1_ID, "coordinates": {"lly": 0}})
    return root


@pytest.fixture
def v2(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "v2", tmp_path / "v2"))


@pytest.fixture
def v1(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "v1", tmp_path / "v1"))


def open_folders(*sources: Path, **options: Any) -> PatchSource:
    return open_archive([str(source) for source in sources], **options)


def only(source: PatchSource) -> PatchRecord:
    (record,) = source.records()
    return record


def reasons(source: PatchSource) -> dict[str, str]:
    return {aside.id: aside.reason for aside in source.quarantined()}


def assert_balanced(source: PatchSource) -> None:
    """Everything found is in a record, an orphan or in quarantine, before and after reading."""
    records = list(source.records())
    n_ingested: Counter[str] = Counter(s2=len(records), s1=0, reference=0)
    for record in records:
        n_ingested["s1"] += "VV" in record.files
        n_ingested["reference"] += "map" in record.files
    n_aside = Counter(aside.source for aside in [*source.orphans(), *source.quarantined()])
    assert dict(source.found()) == {
        kind: n_ingested[kind] + n_aside[kind] for kind in source.found()
    }


# --- what is read ------------------------------------------------------------------------------


def test_a_v2_patch_has_what_its_name_its_files_and_the_parquet_say(v2: Path) -> None:
    write_parquet(v2 / "metadata.parquet", {}, {"patch_id": f"{TILE}_30_30"})
    source = open_folders(v2)
    record = only(source)
    assert source.archive == "v2"
    assert (record.id, record.tile, record.mgrs, record.place) == (
        V2_ID,
        TILE,
        "33UUP",
        "33UUP_26_57",
    )
    assert record.acquired == datetime(2017, 6, 13, 10, 10, 31, tzinfo=UTC)
    assert (record.epsg, record.ulx, record.uly) == patch_origin("33UUP", 26, 57)
    assert (record.labels, record.split) == (("Arable land", "Pastures"), "test")
    assert (record.country, record.s1_id) == ("Austria", V2_S1)
    assert (record.flagged_snow, record.flagged_cloud_or_shadow) == (False, True)
    assert source.absent() == [f"{TILE}_30_30"]
    assert_balanced(source)


def test_a_v1_patch_takes_date_and_tile_from_its_json_since_its_name_is_faulty(v1: Path) -> None:
    source = open_folders(v1)
    record = only(source)
    assert source.archive == "v1"
    assert record.acquired == datetime(2018, 2, 4, 9, 41, 56, tzinfo=UTC)
    assert (record.tile, record.mgrs, record.col, record.row) == (V1_TILE, "35VPK", 57, 38)
    assert record.labels == ("Mixed forest", "Water bodies")
    assert record.s1_id == V1_S1
    assert (record.split, record.country, record.flagged_snow) == (None, None, None)
    assert not source.orphans()
    assert_balanced(source)


@pytest.mark.parametrize("archive", ["v1", "v2"])
def test_every_pixel_of_a_pair_equals_what_was_written(written: Path, archive: str) -> None:
    parquet = [] if archive == "v1" else [write_parquet(written / "metadata.parquet", {})]
    source = open_folders(written / archive, *parquet)
    record = only(source)
    patch = source.read(record)
    for group in S2_GROUPS:
        assert patch.s2[group.path].shape == group.patch_shape
        assert patch.s2[group.path].dtype == np.uint16
        for i, band in enumerate(group.bands):
            expected = pixels_of(f"{record.id}_{band}", group.size_px, "uint16")
            assert patch.s2[group.path][i].tobytes() == expected.tobytes()
    assert patch.s1 is not None
    assert patch.s1.dtype == np.float32
    for i, polarization in enumerate(("VV", "VH")):
        expected = pixels_of(f"{record.s1_id}_{polarization}", 120, "float32")
        assert patch.s1[i].tobytes() == expected.tobytes()
    assert (patch.clc is not None) == (archive == "v2")
    assert patch.problems == ()


def test_bands_stand_in_the_published_order_at_their_own_size(written: Path) -> None:
    source = open_folders(written / "v2")
    shapes = {path: array.shape for path, array in source.read(only(source)).s2.items()}
    assert shapes == {
        "s2/r10m": (4, 120, 120),
        "s2/r20m": (6, 60, 60),
        "s2/r60m": (2, 20, 20),
    }
    assert [GROUPS[path].bands for path in shapes] == [
        ("B02", "B03", "B04", "B08"),
        ("B05", "B06", "B07", "B8A", "B11", "B12"),
        ("B01", "B09"),
    ]


def test_labels_of_v1_map_to_the_19_by_name(v1: Path) -> None:
    labels = only(open_folders(v1)).labels
    assert labels is not None
    assert labels_43_to_19(labels) == ("Mixed forest", "Inland waters")


def test_a_flat_layout_with_the_suffix_tiff_is_read(tmp_path: Path) -> None:
    write_s2(tmp_path, V2_ID, patch_origin("33UUP", 26, 57), suffix="tiff")
    source = open_folders(tmp_path)
    assert source.archive == "v2"
    source.read(only(source))
    assert_balanced(source)


def test_each_published_folder_can_be_named_alone_and_twice(v2: Path) -> None:
    folders = [v2 / "BigEarthNet-S2", v2 / "BigEarthNet-S1", v2 / "Reference_Maps"]
    parquet = write_parquet(v2.parent / "metadata.parquet", {})
    apart = open_folders(*folders, parquet)
    assert list(apart.records()) == list(open_folders(v2, parquet).records())
    assert list(apart.records()) == list(open_folders(*folders, v2, parquet).records())
    assert apart.found() == {"s2": 1, "s1": 1, "reference": 1}
    assert open_folders(v2 / "BigEarthNet-S2" / TILE).found()["s2"] == 1


def test_without_the_parquet_labels_are_unknown_and_sentinel_1_is_an_orphan(v2: Path) -> None:
    source = open_folders(v2)
    record = only(source)
    assert (record.labels, record.split, record.s1_id) == (None, None, None)
    (orphan,) = source.orphans()
    assert (orphan.id, orphan.source) == (V2_S1, "s1")
    assert orphan.reason.endswith("; add metadata.parquet")
    assert_balanced(source)


def test_a_patch_that_the_parquet_gives_no_label_is_not_taken_for_unlabeled(v2: Path) -> None:
    write_parquet(v2 / "metadata.parquet", {"labels": []})
    assert only(open_folders(v2)).labels == ()


def test_a_listed_sentinel_1_patch_that_is_not_at_hand_leaves_its_name(v2: Path) -> None:
    write_parquet(v2 / "metadata.parquet", {})
    shutil.rmtree(v2 / "BigEarthNet-S1")
    source = open_folders(v2)
    assert only(source).s1_id == V2_S1
    assert source.read(only(source)).s1 is None
    assert not source.quarantined()


def test_pairs_whose_sentinel_2_patch_is_missing_are_orphans(v2: Path) -> None:
    write_parquet(v2 / "metadata.parquet", {})
    shutil.rmtree(v2 / "BigEarthNet-S2")
    source = open_folders(v2)
    assert list(source.records()) == []
    assert {orphan.source for orphan in source.orphans()} == {"s1", "reference"}
    assert source.absent() == [V2_ID]
    assert_balanced(source)


def test_the_lists_of_v1_give_split_flags_country_and_pair(v1: Path) -> None:
    lists = {
        "v1_val.csv.bz2": f"{V1_ID}\nS2A_MSIL2A_20170717T113321_28_89\n",
        "train.csv": "S2A_MSIL2A_20170717T113321_28_87\n",
        "v1_patches_with_seasonal_snow.csv": f"{V1_ID}\n",
        "v1_patches_with_cloud_and_shadow.csv.bz2": "S2A_MSIL2A_20170717T113321_35_89\n",
        "v1_s1_s2_name_country_season.csv": f"s1_name,s2_name,country,season\n"
        f"{V1_S1},{V1_ID},Finland,Winter\n",
    }
    for name, text in lists.items():
        data = text.encode()
        (v1 / name).write_bytes(bz2.compress(data) if name.endswith(".bz2") else data)
    next(v1.glob("BigEarthNet-S1-v1.0/*/*.json")).unlink()  # the list pairs, too
    source = open_folders(v1)
    record = only(source)
    assert (record.split, record.country, record.s1_id) == ("validation", "Finland", V1_S1)
    assert (record.flagged_snow, record.flagged_cloud_or_shadow) == (True, False)
    assert len(source.absent()) == 3
    assert_balanced(source)


# --- what is set aside -------------------------------------------------------------------------


V1_FAULTS: dict[str, tuple[Any, str]] = {
    "no JSON": (None, "cannot be read: No such file"),
    "cut JSON": ('{"labels": ["Pas', "does not parse as JSON"),
    "list": ("[1, 2]", "holds a JSON list, expected an object"),
    "deep": ("[" * 100_000, "does not parse as JSON"),
    "label": (v1_json(labels=["Pasture"]), "unknown label 'Pasture'"),
    "labels": (v1_json(labels="Pastures"), "labels is 'Pastures', expected a list"),
    "nested labels": (v1_json(labels=[["Pastures"]]), "unknown label"),
    "date": (v1_json(acquisition_date="2018-02-04 09:41:61"), "is no time"),
    "tile": (v1_json(tile_source="somewhere"), "names no MGRS square"),
    "no coordinates": (v1_json(coordinates=None), "coordinates is missing"),
    "text": (v1_json(coordinates={"ulx": "5"}), "expected whole meters"),
    "not a number": ('{"x": NaN}', "labels is missing"),
    "huge": (v1_json(coordinates={"ulx": 10**400}), "expected whole meters"),
    "infinite": (
        json.dumps(v1_json(coordinates={"ulx": float("inf")})),
        "expected whole meters",
    ),
    "off the grid": (
        v1_json(coordinates={"ulx": 600000, "uly": 60000, "lrx": 601200, "lry": 58800}),
        "off the grid",
    ),
    "size": (
        v1_json(coordinates={"ulx": 0, "uly": 0, "lrx": 1210, "lry": -1200}),
        "off the grid: 1210 x 1200 m",
    ),
    "zone": (v1_json(projection='PROJCS["x",AUTHORITY["EPSG","32634"]]'), "off the grid"),
    "projection": (v1_json(projection="local"), "names no EPSG code"),
}


@pytest.mark.parametrize("fault", V1_FAULTS)
def test_a_faulty_json_sets_the_patch_aside_and_makes_its_pair_an_orphan(
    v1: Path, fault: str
) -> None:
    fields, reason = V1_FAULTS[fault]
    folder = v1 / "BigEarthNet-v1.0" / V1_ID
    path = write_json(folder, fields if fields is not None else "")
    if fields is None:
        path.unlink()
    source = open_folders(v1)
    assert list(source.records()) == []
    (aside,) = source.quarantined()
    assert (aside.id, aside.file, aside.source) == (V1_ID, str(path), "s2")
    assert reason in aside.reason
    assert [orphan.id for orphan in source.orphans()] == [V1_S1]
    assert_balanced(source)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(field=st.sampled_from(sorted(v1_json())), value=JSON_VALUES)
def test_whatever_a_field_of_the_json_holds_is_taken_or_refused(field: str, value: Any) -> None:
    text = json.dumps(v1_json(**{field: value}))
    with contextlib.suppress(InvalidInputError):
        assert parse_s2_metadata(text.encode()).mgrs == "35VPK"


@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_json_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_s2_metadata(data)
    with pytest.raises(InvalidInputError):
        parse_s1_metadata(data)


def test_a_sentinel_1_patch_with_a_broken_json_is_set_aside_alone(v1: Path) -> None:
    write_json(v1 / "BigEarthNet-S1-v1.0" / V1_S1, "{")
    source = open_folders(v1)
    assert only(source).s1_id is None
    assert "does not parse" in reasons(source)[V1_S1]
    assert_balanced(source)


def test_the_second_folder_of_a_patch_is_set_aside(v2: Path) -> None:
    shutil.copytree(v2 / "BigEarthNet-S2" / TILE / V2_ID, v2 / V2_ID)
    shutil.copytree(v2 / "Reference_Maps" / TILE / V2_ID, v2.parent / "more" / V2_ID)
    source = open_folders(v2, v2.parent / "more")
    source.read(only(source))
    second, third = sorted(source.quarantined(), key=lambda aside: aside.source)
    assert (second.source, third.source) == ("reference", "s2")
    assert third.file == str(v2 / V2_ID)
    assert str(v2 / "BigEarthNet-S2" / TILE / V2_ID) in third.reason
    assert_balanced(source)


def test_two_sentinel_1_patches_never_share_a_row(v1: Path) -> None:
    other = V1_S1.replace("S1A", "S1B")
    folder = write_s1(v1 / "BigEarthNet-S1-v1.0", other, patch_origin("35VPK", 57, 38))
    write_json(folder, {"corresponding_s2_patch": V1_ID})
    source = open_folders(v1)
    assert only(source).s1_id == V1_S1
    assert V1_S1 in reasons(source)[other]
    assert_balanced(source)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{TILE}_5_7", "s2"),
        (f"{TILE}_26_57 (copy)", "s2"),
        ("S2A_MSIL2A_2017", "s2"),
        ("S1B_IW_GRDH_1SDV_20170612T165809_33UUP_26", "s1"),
    ],
)
def test_a_folder_whose_name_does_not_parse_is_set_aside(v2: Path, name: str, kind: str) -> None:
    parent = v2 / "BigEarthNet-S2" / TILE if kind == "s2" else v2 / "BigEarthNet-S1"
    (parent / name).mkdir()
    source = open_folders(v2)
    (aside,) = source.quarantined()
    assert (aside.id, aside.source) == (name, kind)
    assert_balanced(source)


def test_a_folder_whose_name_is_no_text_can_be_written_down(v2: Path) -> None:
    try:
        os.mkdir(os.fsencode(v2 / "BigEarthNet-S2" / TILE) + b"/S2A_\xff")
    except OSError:
        pytest.skip("this file system takes no such names")
    (aside,) = open_folders(v2).quarantined()
    assert aside.id == "S2A_\\xff"
    pa.array([aside.id, aside.file])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"{TILE}_91_00", "patch index (91, 0) is off the grid"),
        (f"{TILE.replace('0613T', '1332T')}_00_00", "is no time"),
    ],
)
def test_an_impossible_index_or_time_is_set_aside(v2: Path, name: str, reason: str) -> None:
    folder = v2 / "BigEarthNet-S2" / TILE / V2_ID
    for file in folder.iterdir():
        file.rename(folder / file.name.replace(V2_ID, name))
    folder.rename(folder.parent / name)
    source = open_folders(v2)
    assert reason in reasons(source)[name]
    assert_balanced(source)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"labels": ["Arable Land"]}, "unknown label 'Arable Land'"),
        ({"split": "val"}, "unknown split 'val'"),
        ({"s1_name": "S1B"}, "does not parse"),
    ],
)
def test_a_patch_with_an_impossible_listing_is_set_aside(
    v2: Path, row: dict[str, Any], reason: str
) -> None:
    write_parquet(v2 / "metadata.parquet", row)
    source = open_folders(v2)
    assert list(source.records()) == []
    assert reason in reasons(source)[V2_ID]
    assert_balanced(source)


def test_a_missing_band_is_known_before_reading(v2: Path) -> None:
    (v2 / "BigEarthNet-S2" / TILE / V2_ID / f"{V2_ID}_B8A.tif").unlink()
    (v2 / "BigEarthNet-S1" / V2_S1[:32] / V2_S1 / f"{V2_S1}_VH.tif").unlink()
    source = open_folders(v2)
    assert reasons(source) == {V2_ID: "lacks B8A", V2_S1: "lacks VH"}
    assert_balanced(source)


def test_an_empty_patch_folder_is_set_aside_as_what_its_place_says(v2: Path) -> None:
    for parent in (v2 / "BigEarthNet-S2" / TILE, v2 / "Reference_Maps" / TILE):
        (parent / f"{TILE}_00_00").mkdir()
    source = open_folders(v2)
    assert Counter(aside.source for aside in source.quarantined()) == {"s2": 1, "reference": 1}
    assert_balanced(source)


def spoil(kind: str) -> Callable[[Path], None]:
    size = pixels_of("x", 60, "uint16")
    corner = patch_origin("33UUP", 26, 57)
    return {
        "empty": lambda path: path.write_bytes(b""),
        "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "gone": lambda path: path.unlink(),
        "folder": lambda path: (path.unlink(), path.mkdir()),
        "shape": lambda path: write_band(path, size, corner),
        "dtype": lambda path: (
            write_band(path, pixels_of("x", 120, "float32") / 2**70, corner)
            if "V" not in path.name
            else write_band(path, pixels_of("x", 120, "uint16"), corner)
        ),
        "text": lambda path: path.write_text("no TIFF"),
        "moved": lambda path: write_band(
            path, rasterio_read(path), (corner[0], corner[1] + 1200, corner[2])
        ),
        "zone": lambda path: write_band(path, rasterio_read(path), (32634, *corner[1:])),
        "large": lambda path: os.truncate(path, 1 << 25),
    }[kind]


def rasterio_read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as dataset:
        pixels: NDArray[Any] = dataset.read(1)
    return pixels


FAULTS = {
    "empty": "is empty",
    "truncated": "is truncated",
    "gone": "cannot be read: No such file",
    "folder": "cannot be read: Is a directory",
    "shape": "is 60x60 px, expected 120x120 px",
    "dtype": "expected",
    "text": "is no TIFF",
    "moved": "is off the grid: it lies at (332400, 5331600)",
    "zone": "in EPSG:32634",
    "large": "has more than",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_band_is_named_with_its_file_and_reason(v2: Path, fault: str) -> None:
    source = open_folders(v2)
    record = only(source)
    path = v2 / "BigEarthNet-S2" / TILE / V2_ID / f"{V2_ID}_B03.tif"
    spoil(fault)(path)
    with pytest.raises(MalformedPatchError) as caught:
        source.read(record)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.patch_id, error.file) == (V2_ID, str(path))
    assert FAULTS[fault] in error.reason
    assert "\n" not in error.reason


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_sentinel_1_patch_or_map_does_not_cost_the_row(v2: Path, fault: str) -> None:
    write_parquet(v2 / "metadata.parquet", {})
    source = open_folders(v2)
    record = only(source)
    if fault in ("truncated", "large"):
        spoiled = [Path(record.files["VV"])]  # a deflated map is truncated in another sense
    else:
        spoiled = [Path(record.files["VV"]), Path(record.files["map"])]
    for path in spoiled:
        spoil(fault)(path)
    patch = source.read(record)
    assert set(patch.s2) == {group.path for group in S2_GROUPS}
    assert patch.s1 is None
    assert [problem.file for problem in patch.problems] == [str(path) for path in spoiled]
    assert [problem.id for problem in patch.problems] == [V2_S1, V2_ID][: len(spoiled)]
    assert all(FAULTS[fault] in problem.reason for problem in patch.problems)


def test_a_band_that_a_record_does_not_name_makes_it_malformed(v2: Path) -> None:
    record = only(open_folders(v2))
    files = {band: path for band, path in record.files.items() if band != "B01"}
    bare = PatchRecord(
        V2_ID, TILE, "33UUP", 26, 57, record.acquired, record.epsg, record.ulx, record.uly,
        files=files,
    )  # fmt: skip
    with pytest.raises(MalformedPatchError, match="lacks B01"):
        open_folders(v2).read(bare)


def test_a_failing_file_system_is_no_fault_of_a_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, flags: int) -> int:
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        read_file("/somewhere/B02.tif")


# --- squares that no table holds ---------------------------------------------------------------


def test_a_new_square_takes_its_origin_from_its_first_patch(tmp_path: Path) -> None:
    tile = TILE.replace("33UUP", "31UFT")
    write_s2(tmp_path / tile, f"{tile}_02_03", (32631, 602400, 5796420))
    write_s2(tmp_path / tile, f"{tile}_02_04", (32631, 602400, 5795220))
    source = open_folders(tmp_path)
    assert [(r.epsg, r.ulx, r.uly) for r in source.records()] == [
        (32631, 602400, 5796420),
        (32631, 602400, 5795220),
    ]
    for record in source.records():
        source.read(record)


@given(col=st.integers(0, 90), row=st.integers(0, 90), wrong=st.integers(1, 80), axis=st.booleans())
def test_a_patch_of_a_new_square_with_a_wrong_index_is_off_the_lattice(
    col: int, row: int, wrong: int, axis: bool
) -> None:
    measured = (
        32631,
        600000 + 1200 * (col + wrong * axis),
        5800020 - 1200 * (row + wrong * (1 - axis)),
    )
    with pytest.raises(InvalidInputError, match="off the grid"):
        Grid().corner("31UFT", col, row, measure=lambda: measured)


def test_all_squares_of_the_archives_lie_on_the_lattice_of_new_ones() -> None:
    for tile in all_tiles():
        unknown = f"{tile.mgrs[:3]}ZZ"
        expected = (tile.epsg, tile.ulx, tile.uly)
        assert Grid().corner(unknown, 0, 0, measure=[expected].pop) == expected


def test_a_new_square_in_another_zone_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="expected EPSG:32755 of square 55HBU"):
        Grid().corner("55HBU", 0, 0, measure=lambda: (32655, 199980, 5900020))


# --- what is refused ---------------------------------------------------------------------------


def test_an_empty_or_wrong_folder_says_what_it_holds_and_what_to_do(
    tmp_path: Path, v2: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong" / "photos").mkdir(parents=True)
    cases = {
        tmp_path / "empty": "is empty; expected a BigEarthNet patch folder such as S2A_MSIL2A",
        tmp_path / "wrong": "holds 1 entries, none a BigEarthNet patch folder such as S2A_MSIL2A",
        v2.parent: f"name a folder inside it instead: {v2}",
        v2 / "BigEarthNet-S2" / TILE / V2_ID: "it is a patch folder itself",
    }
    for folder, line in cases.items():
        with pytest.raises(InvalidInputError) as caught:
            open_folders(folder)
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_is_published_beside_the_lists_is_named_and_not_read(
    v1: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = ["bigearthnet_s2_tile_ids.csv"]
    for name in others:
        (v1.parent / name).write_bytes(b"no list at all")
    (v1.parent / "v1_train.csv").write_text(f"{V1_ID}\n")
    named = [v1.parent / name for name in (*others, "v1_train.csv")]
    records = list(open_folders(v1, *named).records())
    assert [record.split for record in records if record.id == V1_ID] == ["train"]
    assert caplog.messages == [
        f"{v1.parent / name} says nothing of patches; it is not read" for name in others
    ]


def test_the_lists_expected_are_named_whole() -> None:
    told = r"patches_with_no_19_class_targets, .* \(\[v1_\]….csv\[.bz2\]\)"
    with pytest.raises(InvalidInputError, match=told):
        open_archive([__file__])


def test_sources_that_cannot_be_read_are_refused_in_one_line(v1: Path, v2: Path) -> None:
    parquet = write_parquet(v2.parent / "metadata.parquet", {})
    (v2.parent / "BigEarthNet-S2.tar.zst").write_bytes(b"")
    (v2.parent / "notes.csv").write_text("")
    cases: list[tuple[list[object], type[Exception], str]] = [
        ([], InvalidInputError, "no source given"),
        ([v2 / "nowhere"], NotFoundError, "does not exist"),
        (["s3://bucket/archive"], InvalidInputError, "name its tar, or copy the folder"),
        ([v2.parent / "BigEarthNet-S2.tar.zst"], InvalidInputError, "is damaged or not the tar"),
        ([v2, v2.parent / "notes.csv"], InvalidInputError, "is no official list"),
        ([parquet], InvalidInputError, "official lists but no patch"),
        ([v1, parquet], InvalidInputError, "is a list of v2, but the patches are of v1"),
        ([v1, v2], InvalidInputError, "patches of both archives"),
    ]
    for sources, error, line in cases:
        with pytest.raises(error, match=line):
            open_archive([str(source) for source in sources])
    with pytest.raises(InvalidInputError, match="patches of v2, but archive v1 was asked for"):
        open_folders(v2, archive="v1")
    with pytest.raises(InvalidInputError, match="choose one of: auto, v1, v2"):
        open_folders(v2, archive="v3")


def test_an_archive_is_refused_at_once_where_rasterio_is_missing(
    v2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(InvalidInputError, match=r'needs rasterio .*"bigearth-cube\[ingest\]"'):
        open_folders(v2)


def test_a_broken_list_is_refused_in_one_line(v1: Path, v2: Path) -> None:
    cases: list[tuple[Path, str, bytes, str]] = [
        (v2, "metadata.parquet", b"PAR1", "cannot be read as a table of v2"),
        (v1, "v1_train.csv", b"name\n", "expected one v1 patch name a line"),
        (v1, "v1_train.csv.bz2", bz2.compress(b"x" * 99)[:-9], "cannot be read"),
        (v1, "v1_s1_s2_name_country_season.csv", b"a,b\n", "expected s1_name, s2_name, country"),
        (v1, "v1_s1_s2_name_country_season.csv", b"s1_name,s2_name,country\na\n", "line 2 has 1"),
    ]
    for root, name, data, line in cases:
        (root / name).write_bytes(data)
        with pytest.raises(InvalidInputError, match=line) as caught:
            list(open_folders(root).records())
        assert "\n" not in str(caught.value)
        (root / name).unlink()
    pq.write_table(pa.table({"patch_id": ["x"]}), v2 / "metadata.parquet")
    with pytest.raises(InvalidInputError, match="has no column 'labels'"):
        list(open_folders(v2).records())


# --- what travels ------------------------------------------------------------------------------


def test_a_source_and_its_records_stay_small_and_work_in_a_worker(v2: Path) -> None:
    write_parquet(v2 / "metadata.parquet", {})
    source = open_folders(v2)
    record = only(source)
    assert isinstance(source, PatchSource)
    remote = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 1000
    assert list(remote.records()) == [record]
    patch = remote.read(pickle.loads(pickle.dumps(record)))
    assert patch.s2["s2/r10m"].tobytes() == source.read(record).s2["s2/r10m"].tobytes()


def test_the_files_of_a_record_are_a_mapping_of_their_folders() -> None:
    shared = {"B01": "B01.tif", "B02": "B02.tif"}
    files = PatchFiles([PatchFolder("/a", "p", shared), PatchFolder("/b", "q", {"VV": "VV.tif"})])
    assert dict(files) == {
        "B01": "/a/p/p_B01.tif",
        "B02": "/a/p/p_B02.tif",
        "VV": "/b/q/q_VV.tif",
    }
    assert (len(files), "VH" in files, files.get("VH")) == (3, False, None)
    assert pickle.loads(pickle.dumps(files)) == files


# --- real patches ------------------------------------------------------------------------------


REAL = [
    (["v1"], (44, 40, 0), (4, 0, 0), 36, 0),
    (["v1", "metadata"], (44, 40, 0), (4, 0, 590_282), 36, 0),
    (["v2"], (18, 19, 1), (19, 0, 0), 0, 1),
    (["v2", "metadata"], (18, 19, 1), (3, 0, 549_470), 16, 1),
    (["odd/flat-layout-tiff-suffix"], (1, 0, 0), (0, 0, 0), 0, 0),
]


@pytest.mark.samples
@pytest.mark.parametrize(("sources", "found", "aside", "n_s1", "n_maps"), REAL)
def test_every_pixel_of_a_real_archive_equals_rasterio(
    samples: Path,
    sources: list[str],
    found: tuple[int, int, int],
    aside: tuple[int, int, int],
    n_s1: int,
    n_maps: int,
) -> None:
    source = open_folders(*(samples / name for name in sources))
    assert tuple(source.found().values()) == found
    assert (len(source.orphans()), len(source.quarantined()), len(source.absent())) == aside
    assert_balanced(source)
    patches = {record.id: source.read(record) for record in source.records()}
    assert sum(patch.s1 is not None for patch in patches.values()) == n_s1
    assert sum(patch.clc is not None for patch in patches.values()) == n_maps
    assert not any(patch.problems for patch in patches.values())
    for record in source.records():
        patch = patches[record.id]
        planes = {b: patch.s2[g.path][i] for g in S2_GROUPS for i, b in enumerate(g.bands)}
        if patch.s1 is not None:
            planes |= {"VV": patch.s1[0], "VH": patch.s1[1]}
        if patch.clc is not None:
            planes["map"] = patch.clc
        assert planes.keys() == record.files.keys()
        for band, plane in planes.items():
            expected = rasterio_read(Path(record.files[band]))
            assert plane.dtype == expected.dtype
            assert plane.tobytes() == expected.tobytes(), record.files[band]


@pytest.mark.samples
def test_real_v1_records_have_what_the_lists_and_the_calendar_say(samples: Path) -> None:
    records = {r.id: r for r in open_folders(samples / "v1", samples / "metadata").records()}
    record = records["S2B_MSIL2A_20180204T94161_57_38"]
    assert record.acquired == datetime(2018, 2, 4, 9, 41, 56, tzinfo=UTC)
    assert (record.mgrs, record.country, record.season) == ("35VPK", "Finland", "winter")
    assert {r.split for r in records.values()} <= {"train", "validation", "test", None}
    assert "validation" in {r.split for r in records.values()}
    assert all(r.s1_id is not None and r.flagged_snow is not None for r in records.values())


@pytest.mark.samples
def test_real_v2_records_are_labeled_once_the_parquets_are_named(samples: Path) -> None:
    unknown = list(open_folders(samples / "v2").records())
    known = list(open_folders(samples / "v2", samples / "metadata").records())
    assert [r.id for r in unknown] == [r.id for r in known]
    assert {r.labels for r in unknown} == {None}
    assert all(r.labels and r.split and r.country and r.s1_id for r in known)
