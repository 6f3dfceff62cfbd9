"""A cube read by us and by others; columns, labels, single patches, verify."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from bigearth_cube.counts import count_patches
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import CubeIntegrityError, InvalidInputError, NotFoundError
from bigearth_cube.ingest import ingest
from bigearth_cube.layout import CubeLayout
from bigearth_cube.lock import lock
from bigearth_cube.nomenclature import (
    COUNTRIES,
    GROUPS,
    NAMES_19,
    SEASONS,
    SPLITS,
    multi_hot,
    patch_origin,
)
from bigearth_cube.release import runs_of
from tests.sources import MemorySource, index_of, labels_of, pixels_of, place_of


def test_plain_xarray_reads_every_pixel_as_it_was_given(cube: Cube) -> None:
    tree = xr.open_datatree(f"{cube.url}/cube.zarr", engine="zarr", consolidated=True, chunks={})
    ids = tree["id"].values
    for row in (0, 63, 64, 255, 256, 599):
        patch = pixels_of(index_of(ids[row]))
        for path, pixels in patch.s2.items():
            np.testing.assert_array_equal(tree[path]["reflectance"][row].values, pixels)
        np.testing.assert_array_equal(tree["s1/r10m"]["backscatter"][row].values, patch.s1)
        np.testing.assert_array_equal(tree["reference/r10m"]["clc"][row].values, patch.clc)
    tree.close()


def test_zarr_python_alone_can_mask_padding(cube: Cube) -> None:
    root = zarr.open_group(f"{cube.url}/cube.zarr", mode="r")
    ids = root["id"][:]
    assert len(ids) == 768
    assert (ids != "").sum() == 600
    padding = root["s1/r10m/backscatter"][600:]
    assert np.isnan(padding).all()


def test_our_tree_leaves_padding_out_and_says_the_row(cube: Cube) -> None:
    for path in ("s2/r10m", "s2/r60m", "s1/r10m", "reference/r10m"):
        dataset = cube.tree[path]
        assert dataset.sizes["patch"] == 600
        np.testing.assert_array_equal(dataset["row"], np.arange(600))
        assert {"tile", "place", "epsg", "ulx", "uly", "has_labels"} <= set(dataset.coords)
    assert cube.tree["s2/r20m"]["band"].values.tolist() == list(GROUPS["s2/r20m"].bands)
    assert cube.tree["id"].values[0].startswith("S2A_")
    assert cube.tree["s1/r10m"]["id"].values[0].startswith("S1A_")
    assert cube.tree["acquired"].values[0] == np.datetime64("2017-06-13T10:10:31")


def test_rows_are_ordered_by_split_flag_and_blocks_of_8_by_8(cube: Cube) -> None:
    items = cube.items
    splits = items["bec:split"].to_pylist()
    assert splits == sorted(splits, key=["train", "validation", "test"].index)
    places = items["bec:place"].to_pylist()
    flags = items["bec:snow"].to_pylist()
    keys = []
    for split, flag, place in zip(splits, flags, places, strict=True):
        col, row = (int(part) for part in place.split("_")[1:])
        order = ["train", "validation", "test"].index(split)
        keys.append((order, flag, col // 8, row // 8, col, row))
    assert keys == sorted(keys)


def test_opening_takes_one_object(cube_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigearth_cube.storage import Storage

    asked: list[str] = []
    read = Storage.read

    def counted(self: Storage, key: str) -> bytes:
        asked.append(key)
        return read(self, key)

    monkeypatch.setattr(Storage, "read", counted)
    opened = open_cube(cube_url)
    assert (opened.n_patches, opened.n_rows, opened.archive) == (600, 768, "v2")
    assert asked == ["cube.zarr/zarr.json"]


def test_labels_are_those_of_the_archive(cube: Cube) -> None:
    ids = cube.items["id"].to_pylist()
    expected = np.stack([multi_hot(labels_of(index_of(i)), NAMES_19) for i in ids])
    np.testing.assert_array_equal(cube.labels("label_19"), expected)
    np.testing.assert_array_equal(cube.labels("label_19", cube.rows[5:7]), expected[5:7])
    assert cube.class_names("label_19") == NAMES_19


def test_labels_a_cube_does_not_have_are_refused(cube: Cube) -> None:
    with pytest.raises(InvalidInputError, match="choose from: label_19"):
        cube.labels("label_43")
    with pytest.raises(InvalidInputError, match="no group 's2/r15m' here; choose from: s2/r10m"):
        cube.pixel_layout("s2/r15m")


def test_one_patch_lies_where_its_file_lay(cube: Cube) -> None:
    patch_id = cube.items["id"][17].as_py()
    index = index_of(patch_id)
    tree = cube.patch(patch_id)
    for path, pixels in pixels_of(index).s2.items():
        dataset = tree[path]
        np.testing.assert_array_equal(dataset["reflectance"].values, pixels)
        resolution = GROUPS[path].resolution_m
        epsg, ulx, uly = patch_origin("33UUP", *place_of(index))
        assert (dataset["epsg"], dataset["ulx"], dataset["uly"]) == (epsg, ulx, uly)
        assert float(dataset["x"][0]) == ulx + resolution / 2
        assert float(dataset["y"][-1]) == uly - 1200 + resolution / 2
        assert "32633" in dataset["spatial_ref"].attrs["crs_wkt"]
    with pytest.raises(NotFoundError, match="no patch 'nope'"):
        cube.patch("nope")


@pytest.mark.parametrize("url", ["/no/such/place", "memory://no/such/cube"])
def test_a_place_without_a_cube_is_told_in_one_line(url: str) -> None:
    with pytest.raises(NotFoundError, match=r"no cube at .*expected cube\.zarr/zarr\.json"):
        open_cube(url)


def test_a_missing_bucket_and_a_missing_cube_are_told_apart(
    bucket: str, s3_options: dict[str, str]
) -> None:
    with pytest.raises(NotFoundError, match="no cube at"):
        open_cube(f"{bucket}/x", s3_options)
    with pytest.raises(NotFoundError, match="bucket 'none-such' does not exist"):
        open_cube("s3://none-such/x", s3_options)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"attributes": {"releases": 3}}'])
def test_a_root_document_that_is_not_one_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cube.zarr").mkdir()
    (tmp_path / "cube.zarr" / "zarr.json").write_bytes(content)
    with pytest.raises(CubeIntegrityError, match="root document"):
        open_cube(str(tmp_path))


def test_an_unknown_release_is_refused_with_those_there_are(cube_url: str) -> None:
    with pytest.raises(NotFoundError, match="no release 'r9'; the cube has: r1"):
        open_cube(cube_url, release="r9")


@pytest.fixture
def own_cube(cube_url: str, tmp_path: Path) -> Cube:
    """A copy that a test may damage or add to."""
    shutil.copytree(cube_url, tmp_path / "own")
    return open_cube(str(tmp_path / "own"))


def test_verify_finds_nothing_in_a_sound_cube_and_reads_every_object(cube: Cube) -> None:
    objects = cube.recorded_objects()
    assert [fault for _, fault in cube.verify(objects) if fault] == []
    recorded = {o.key for o in objects}
    stored = {key for key, _ in cube.storage.list()}
    unrecorded = {key for key in stored - recorded if not key.startswith("ingest/")}
    assert unrecorded == set()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_verify_finds_damage_anywhere(own_cube: Cube, damage: str) -> None:
    objects = own_cube.recorded_objects()
    rng = np.random.default_rng(3)
    for position in rng.choice(len(objects), 12, replace=False):
        stored = objects[position]
        path = Path(own_cube.url) / stored.key
        sound = path.read_bytes()
        if damage == "remove":
            path.unlink()
        elif damage == "truncate":
            path.write_bytes(sound[:-1])
        else:
            at = int(rng.integers(len(sound)))
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 4]) + sound[at + 1 :])
        faults = [fault for _, fault in own_cube.verify(objects) if fault]
        assert [fault.key for fault in faults] == [stored.key]
        if "/c/" in stored.key and "s2/r10m/reflectance" in stored.key:
            assert faults[0].rows
        path.write_bytes(sound)


def test_embeddings_come_back_and_the_cube_still_opens_and_verifies(own_cube: Cube) -> None:
    vectors = np.full((own_cube.n_rows, 8), np.nan, np.float32)
    vectors[own_cube.rows] = np.random.default_rng(0).random((600, 8), np.float32)
    own_cube.write_embeddings("tb-cnn", vectors, {"checkpoint": "abc"})
    again = open_cube(own_cube.url)
    np.testing.assert_array_equal(again.embeddings("tb-cnn"), vectors)
    assert again.tree["embeddings/tb-cnn"]["vector"].sizes == {"patch": 600, "dim": 8}
    assert [f for _, f in again.verify(again.recorded_objects()) if f] == []
    with pytest.raises(NotFoundError, match="it has: tb-cnn"):
        again.embeddings("other")
    with pytest.raises(InvalidInputError, match="one for every row"):
        again.write_embeddings("x", vectors[:5])
    with pytest.raises(InvalidInputError, match="model name"):
        again.write_embeddings("a/b", vectors)


def test_predictions_come_back_along_the_classes_and_the_cube_still_verifies(
    own_cube: Cube,
) -> None:
    scores = np.full((own_cube.n_rows, 19), np.nan, np.float32)
    scores[own_cube.rows[:300]] = np.random.default_rng(0).random((300, 19), np.float32)
    own_cube.write_predictions("tb-cnn", scores, "label_19", {"threshold": 0.3})
    again = open_cube(own_cube.url)
    assert (again.predicted, again.embedded) == (("tb-cnn",), ())
    np.testing.assert_array_equal(again.predictions("tb-cnn"), scores)
    node = again.tree["predictions/tb-cnn"]
    assert node["score"].sizes == {"patch": 600, "class_19": 19}
    assert node.attrs == {"threshold": 0.3, "labels": "label_19"}
    assert [f for _, f in again.verify(again.recorded_objects()) if f] == []
    with pytest.raises(NotFoundError, match=r"no predictions 'x' .* it has: tb-cnn"):
        again.predictions("x")
    with pytest.raises(InvalidInputError, match=r"expected \(\d+, 19\) for label_19"):
        again.write_predictions("x", scores[:, :7], "label_19")
    ingest(MemorySource(20, first=600), own_cube.url)
    assert np.isnan(open_cube(own_cube.url).predictions("tb-cnn")[own_cube.n_rows :]).all()


def test_an_encoder_lies_beside_its_embeddings_and_is_verified(own_cube: Cube) -> None:
    own_cube.write_embeddings("with", vectors_of(own_cube), encoder=b"onnx")
    open_cube(own_cube.url).write_embeddings("without", vectors_of(own_cube))
    cube = open_cube(own_cube.url)
    assert cube.encoder("with") == b"onnx"
    for name in ("without", "none"):
        with pytest.raises(NotFoundError, match=name):
            cube.encoder(name)
    (Path(own_cube.url) / "embeddings/with/encoder.onnx").write_bytes(b"0nnx")
    faults = [fault for _, fault in cube.verify(cube.recorded_objects()) if fault]
    assert [fault.key for fault in faults] == ["embeddings/with/encoder.onnx"]


def vectors_of(cube: Cube, dim: int = 4) -> np.ndarray:
    return np.random.default_rng(dim).random((cube.n_rows, dim), np.float32)


def test_embeddings_never_take_back_what_was_published_meanwhile(own_cube: Cube) -> None:
    before = open_cube(own_cube.url)
    own_cube.write_embeddings("first", vectors_of(own_cube))
    before.write_embeddings("second", vectors_of(before))  # opened when there was no "first"
    assert open_cube(own_cube.url).embedded == ("first", "second")
    ingest(MemorySource(20, first=600), own_cube.url)
    for stale in (before, open_cube(own_cube.url, release="r1")):
        with pytest.raises(InvalidInputError, match="release 'r1', the cube is at 'r2'"):
            stale.write_embeddings("third", vectors_of(stale))
    now = open_cube(own_cube.url)
    assert [r.name for r in now.releases] == ["r1", "r2"]
    assert [f for _, f in now.verify(now.recorded_objects()) if f] == []
    found = now.embeddings("first")
    np.testing.assert_array_equal(found[: own_cube.n_rows], vectors_of(own_cube))
    assert np.isnan(found[own_cube.n_rows :]).all()


def test_an_ingest_and_embeddings_do_not_publish_at_once(own_cube: Cube) -> None:
    with (
        lock(own_cube.storage),
        pytest.raises(InvalidInputError, match="the cube is being written"),
    ):
        own_cube.write_embeddings("model", vectors_of(own_cube))


@pytest.mark.parametrize("damage", ["remove", "flip", "truncate"])
@pytest.mark.parametrize("column", ["label_19", "has_labels", "epsg", "id", "s1/r10m/present"])
def test_a_damaged_column_is_an_error_and_never_fill(
    own_cube: Cube, column: str, damage: str
) -> None:
    suffix = "/0" if column == "label_19" else ""
    path = Path(own_cube.url) / f"cube.zarr/{column}/c/0{suffix}"
    sound = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        middle = len(sound) // 2
        flipped = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
        path.write_bytes(flipped if damage == "flip" else sound[:-3])
    with pytest.raises(CubeIntegrityError, match=column):
        open_cube(own_cube.url).column(column)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 not a table PAR1"])
def test_a_damaged_items_table_is_an_error_that_names_it(
    own_cube: Cube, content: bytes | None
) -> None:
    path = Path(own_cube.url) / "items/r1-0.parquet"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CubeIntegrityError, match=r"items/r1-0\.parquet"):
        own_cube.search(split="train")


def test_damage_within_the_table_of_a_later_release_is_told_with_its_name(tmp_path: Path) -> None:
    ingest(MemorySource(10), str(tmp_path))
    ingest(MemorySource(30, first=10), str(tmp_path))
    path = tmp_path / "items/r2-0.parquet"
    metadata = pq.ParquetFile(path).metadata.row_group(0)
    data = bytearray(path.read_bytes())
    for index in range(metadata.num_columns):  # its first page, not the footer that tells of it
        column = metadata.column(index)
        begin = column.data_page_offset + 40
        data[begin : column.data_page_offset + column.total_compressed_size] = b""
        data[begin:begin] = bytes(len(path.read_bytes()) - len(data))
    path.write_bytes(data)
    cube = open_cube(str(tmp_path))
    for read in (lambda: cube.items, lambda: cube.read_items(())):
        with pytest.raises(CubeIntegrityError, match=r"items/r2-0\.parquet"):
            read()


def test_a_table_of_other_columns_is_damage(tmp_path: Path) -> None:
    ingest(MemorySource(10), str(tmp_path))
    ingest(MemorySource(30, first=10), str(tmp_path))
    path = tmp_path / "items/r2-0.parquet"
    pq.write_table(pq.read_table(path).drop_columns("bec:season"), path)
    cube = open_cube(str(tmp_path))
    for read in (lambda: cube.items, lambda: cube.read_items(())):
        with pytest.raises(CubeIntegrityError, match=r"items/r2-0\.parquet: .*other columns"):
            read()


def test_a_cube_without_its_records_cannot_be_verified(own_cube: Cube) -> None:
    (Path(own_cube.url) / "ingest/r1/objects.json").write_bytes(b"{")
    with pytest.raises(CubeIntegrityError, match=r"ingest/r1/objects\.json"):
        own_cube.recorded_objects()


def test_an_older_release_has_its_own_length_and_groups(tmp_path: Path) -> None:
    url = str(tmp_path)
    ingest(MemorySource(40, with_views=False), url)
    first = open_cube(url)
    ingest(MemorySource(40, first=40), url)
    old, now = open_cube(url, release="r1"), open_cube(url)
    assert old.layout == first.layout
    assert old.documents == first.documents
    assert old.tree.groups == first.tree.groups
    assert now.pixel_layout("s2/r10m").n_rows == now.n_rows > old.n_rows
    assert old.pixel_layout("s2/r10m").n_rows == old.n_rows
    with pytest.raises(InvalidInputError, match="no group 's1/r10m' here"):
        old.pixel_layout("s1/r10m")
    assert now.column("s1/r10m/present").sum() == 40


def test_a_cube_of_another_format_is_refused(own_cube: Cube) -> None:
    path = Path(own_cube.url) / "cube.zarr/zarr.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(InvalidInputError, match="format 2, this package reads 1"):
        open_cube(own_cube.url)


def test_counts_are_those_of_the_records(cube: Cube) -> None:
    counts = cube.counts()
    assert list(counts["split"]) == ["train", "validation", "test"]
    assert sum(cells["total"]["all"] for cells in counts["split"].values()) == 600
    flagged = sum(index % 50 == 7 for index in range(600))
    both = {"all": 600, "unflagged": 600 - flagged}
    assert counts["country"] == {"Austria": {"summer": both, "total": both}}
    assert counts["season"]["summer"]["total"] == both
    assert counts["flag"]["snow"]["total"] == {"all": flagged, "unflagged": 0}
    expected = sum(NAMES_19[0] in labels_of(i) for i in range(600))
    assert counts["label"][NAMES_19[0]]["total"]["all"] == expected


patches = st.fixed_dictionaries(
    {
        "split": st.sampled_from([*SPLITS, None]),
        "season": st.sampled_from(SEASONS),
        "country": st.sampled_from([*COUNTRIES[:3], None, "Atlantis"]),
        "snow": st.sampled_from([True, False, None]),
        "cloud_or_shadow": st.sampled_from([True, False, None]),
        "labels": st.none() | st.lists(st.sampled_from(NAMES_19[:4]), unique=True),
    }
)


@given(st.lists(patches, max_size=30))
def test_counts_are_those_of_a_linear_scan(rows: list[dict[str, Any]]) -> None:
    expected: Counter[tuple[str, ...]] = Counter()

    def known(name: str | None, names: Sequence[str]) -> str:
        return name if name in names and name is not None else "unknown"

    for row in rows:
        split, country = known(row["split"], SPLITS), known(row["country"], COUNTRIES)
        labels = ["unknown"] if row["labels"] is None else row["labels"]
        flags = [n for n in ("snow", "cloud_or_shadow") if row[n]]
        if row["snow"] is None and row["cloud_or_shadow"] is None:
            flags = ["unknown"]
        cells = [("split", split, "total")]
        for column in (split, "total"):
            cells += [("season", row["season"], column)]
            cells += [("label", label, column) for label in labels]
            cells += [("flag", flag.replace("_", " "), column) for flag in flags]
        cells += [("country", country, column) for column in (row["season"], "total")]
        for cell in cells:
            expected[*cell, "all"] += 1
            expected[*cell, "unflagged"] += (row["snow"], row["cloud_or_shadow"]) == (False, False)
    types = {"snow": pa.bool_(), "cloud_or_shadow": pa.bool_(), "labels": pa.list_(pa.string())}
    fields = ("split", "season", "country", "snow", "cloud_or_shadow", "labels")
    schema = pa.schema([(f"bec:{name}", types.get(name, pa.string())) for name in fields])
    items = pa.Table.from_pylist([{f"bec:{k}": v for k, v in row.items()} for row in rows], schema)
    counted = {
        (title, name, column, kind): n
        for title, table in count_patches(items).items()
        for name, cells in table.items()
        for column, kinds in cells.items()
        for kind, n in kinds.items()
    }
    assert {cell: n for cell, n in counted.items() if n} == dict(+expected)


@pytest.fixture(scope="module")
def official(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """All pairs of v2, from the official lists."""
    url = str(tmp_path_factory.mktemp("official") / "cube")
    names = ("metadata.parquet", "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
    lists = [str(samples / "metadata" / name) for name in names]
    report = ingest(lists, url, metadata_only=True)
    assert not report.quarantined
    return open_cube(url)


@pytest.mark.samples
def test_counts_of_the_official_lists_are_the_published_ones(official: Cube, samples: Path) -> None:
    counts = official.counts()
    assert {name: cells["total"] for name, cells in counts["split"].items()} == {
        "train": {"all": 272_544, "unflagged": 237_871},
        "validation": {"all": 139_577, "unflagged": 122_342},
        "test": {"all": 137_367, "unflagged": 119_825},
    }
    assert {name: cells["total"]["all"] for name, cells in counts["flag"].items()} == {
        "snow": 60_773,
        "cloud or shadow": 8_677,
    }
    with open(samples / "tables/v2_class_counts_by_split.csv", newline="") as file:
        published = {row["labels"]: row for row in csv.DictReader(file)}
    assert published.keys() == counts["label"].keys()
    for name, row in published.items():
        cells = counts["label"][name]
        for split in SPLITS:
            unflagged = int(row[f"main_{split}"])
            assert cells[split] == {
                "all": unflagged + int(row[f"flagged_{split}"]),
                "unflagged": unflagged,
            }
        total = {"all": int(row["all_total"]), "unflagged": int(row["main_total"])}
        assert cells["total"] == total


@pytest.mark.samples
def test_countries_and_seasons_of_the_official_lists_are_the_published_ones(
    official: Cube, samples: Path
) -> None:
    counts = official.counts()
    with open(samples / "tables/v2_country_season.csv", newline="") as file:
        parts, seasons, _, *rows = csv.reader(file)
    by_season: Counter[tuple[str, str]] = Counter()
    assert {row[0] for row in rows} == counts["country"].keys()
    for country, *numbers in rows:
        found = {"flagged": {}, "main": {}}
        for part, season, n in zip(parts[1:], seasons[1:], map(int, numbers), strict=True):
            found[part][season] = n
            by_season[part, season] += n
        for season in SEASONS:
            unflagged = found["main"][season]
            both = {"all": unflagged + found["flagged"][season], "unflagged": unflagged}
            assert counts["country"][country][season] == both
    for season in SEASONS:
        unflagged = by_season["main", season]
        both = {"all": unflagged + by_season["flagged", season], "unflagged": unflagged}
        assert counts["season"][season]["total"] == both


@pytest.mark.samples
def test_all_pairs_can_be_searched_and_verified_without_pixels(official: Cube) -> None:
    assert (official.n_patches, official.has_pixels) == (549_488, False)
    asked = '"bec:snow" = false AND "bec:cloud_or_shadow" = false'
    assert len(official.search(split="train", filter=asked)) == 237_871
    assert [fault for _, fault in official.verify(official.recorded_objects()) if fault] == []
    with pytest.raises(InvalidInputError, match="has no pixels: it was made from lists alone"):
        official.pixel_layout("s2/r10m")


def test_items_are_one_table_with_the_rows_of_the_cube(cube: Cube) -> None:
    items = cube.items
    np.testing.assert_array_equal(items["bec:row"].to_numpy(), cube.rows)
    data = cube.storage.read("items/r1-0.parquet")
    assert pq.read_table(io.BytesIO(data)).equals(items)
    collection = json.loads(cube.storage.read("collection.json"))
    assert collection["id"] == cube.id == "bigearthnet-v2"


def test_a_layout_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="unknown group"):
        CubeLayout("v2", ("s3/r10m",), 256)
    with pytest.raises(InvalidInputError, match="whole chunks"):
        CubeLayout("v2", ("s2/r10m",), 100)


def test_runs_of_nothing_are_none() -> None:
    assert runs_of(np.empty(0, np.int64)) == ()


def test_a_cube_and_a_selection_show_themselves_in_a_line(cube: Cube) -> None:
    assert repr(cube) == f"<Cube bigearthnet-v2 r1, 600 patches, {cube.url}>"
    train = cube.search(split="train")
    assert repr(train) == (
        f"<Selection of {len(train)} patches of bigearthnet-v2 r1, {{'split': 'train'}}>"
    )
