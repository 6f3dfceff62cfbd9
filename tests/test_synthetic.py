"""The synthetic archive: believable pixels, exact bytes, labels that are there to be seen."""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc
from numpy.typing import NDArray

from bigearth_cube.archive.base import Patch
from bigearth_cube.archive.synthetic import SynthReport, published, write_archive
from bigearth_cube.archive.synthetic.landcover import (
    MIN_SHARE,
    choose_codes,
    choose_labels,
    draw_map,
    labels_of,
)
from bigearth_cube.archive.synthetic.materials import MATERIALS, RECIPES
from bigearth_cube.archive.synthetic.places import invent_places
from bigearth_cube.archive.synthetic.plan import SCHEMA, PlannedPatch
from bigearth_cube.archive.synthetic.textures import FIELDS, PATTERNS, canvases, window
from bigearth_cube.archive.synthetic.write import draw_patch, plan_patches
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import (
    CLASSES_43,
    COUNTRIES,
    NAMES_19,
    NAMES_43,
    PATCHES_PER_SIDE,
    S1_GROUP,
    S2_BANDS,
    S2_GROUPS,
    STATISTICS,
    Archive,
    labels_43_to_19,
    patch_origin,
    reben_split,
    season_of,
    tiles,
)

REAL_RATIO_10M = 1.74
"""Compression of the 10 m array of the real v1 samples: blosc zstd-5 bitshuffle, chunks of 64."""


@pytest.fixture(scope="module", params=["v1", "v2"])
def thousand(request: pytest.FixtureRequest) -> tuple[Archive, list[PlannedPatch], list[Patch]]:
    archive: Archive = request.param
    planned = plan_patches(archive, 1000, seed=0)
    return archive, planned, [draw_patch(p, 0) for p in planned]


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SynthReport]:
    folder = tmp_path_factory.mktemp("v1")
    return folder, write_archive(folder, archive="v1", n_patches=40, seed=1)


@pytest.fixture(scope="module")
def v2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SynthReport]:
    folder = tmp_path_factory.mktemp("v2")
    return folder, write_archive(folder, archive="v2", n_patches=40, seed=1)


def _rows(folder: Path) -> list[dict[str, Any]]:
    names = ("metadata.parquet", "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
    return [row for name in names for row in pq.read_table(folder / name).to_pylist()]


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _s1(patch: Patch) -> NDArray[np.float32]:
    assert patch.s1 is not None
    return patch.s1


def _clc(patch: Patch) -> NDArray[np.uint16]:
    assert patch.clc is not None
    return patch.clc


def _ratio_10m(patches: NDArray[np.uint16]) -> float:
    codec = Blosc("zstd", 5, Blosc.BITSHUFFLE)
    chunks = [
        np.ascontiguousarray(patches[i : i + 64]) for i in range(0, len(patches) // 64 * 64, 64)
    ]
    return sum(c.nbytes for c in chunks) / sum(len(codec.encode(c)) for c in chunks)


# What is drawn


def test_every_band_has_the_published_mean_and_deviation(
    thousand: tuple[Archive, list[PlannedPatch], list[Patch]],
) -> None:
    archive, _, patches = thousand
    found = {}
    for group in (*S2_GROUPS, S1_GROUP):
        arrays: list[NDArray[Any]] = [
            _s1(p) if group is S1_GROUP else p.s2[group.path] for p in patches
        ]
        stacked = np.stack(arrays)
        for i, band in enumerate(group.bands):
            pixels = stacked[:, i].astype(np.float64)
            found[band] = (pixels.mean(), pixels.std())
    far = {
        band: (found[band], expected)
        for band, expected in STATISTICS[archive].items()
        if not np.allclose(found[band], expected, rtol=0.15)
    }
    assert far == {}


def test_patches_hold_about_three_labels_and_never_more_than_twelve(
    thousand: tuple[Archive, list[PlannedPatch], list[Patch]],
) -> None:
    n_labels = [len(p.record.labels or ()) for p in thousand[1]]
    assert 2.5 <= np.mean(n_labels) <= 3.5
    assert 1 <= min(n_labels) <= max(n_labels) <= 12


def test_the_10_m_array_compresses_as_the_real_one(
    thousand: tuple[Archive, list[PlannedPatch], list[Patch]],
) -> None:
    ratio = _ratio_10m(np.stack([p.s2["s2/r10m"] for p in thousand[2]]))
    assert ratio == pytest.approx(REAL_RATIO_10M, rel=0.15)


@pytest.mark.samples
def test_the_real_compression_is_what_the_constant_says(samples: Path) -> None:
    bands = [b.name for b in S2_BANDS if b.resolution_m == 10]
    folders = sorted((samples / "v1" / "BigEarthNet-v1.0").iterdir())
    real = np.stack(
        [np.stack([tifffile.imread(f / f"{f.name}_{b}.tif") for b in bands]) for f in folders]
    )
    codec = Blosc("zstd", 5, Blosc.BITSHUFFLE)
    assert real.nbytes / len(codec.encode(real)) == pytest.approx(REAL_RATIO_10M, rel=0.03)


def test_labels_are_the_classes_in_the_map(
    thousand: tuple[Archive, list[PlannedPatch], list[Patch]],
) -> None:
    archive, planned, patches = thousand
    for plan, patch in zip(planned, patches, strict=True):
        codes = tuple(int(code) for code in np.unique(_clc(patch)))
        assert labels_of(codes, archive) == plan.record.labels


def test_less_than_a_quarter_of_a_map_is_unlabelled(
    thousand: tuple[Archive, list[PlannedPatch], list[Patch]],
) -> None:
    labelled = [c.code for c in CLASSES_43 if c.name_19]
    assert max(1 - np.isin(_clc(p), labelled).mean() for p in thousand[2]) < 0.25


def test_the_resolutions_show_one_scene(
    thousand: tuple[Archive, list[PlannedPatch], list[Patch]],
) -> None:
    correlations = []
    for patch in thousand[2][::20]:
        b08 = patch.s2["s2/r10m"][3].astype(float)
        b8a = patch.s2["s2/r20m"][3].astype(float)
        b09 = patch.s2["s2/r60m"][1].astype(float)
        at_20 = b08.reshape(60, 2, 60, 2).mean((1, 3))
        at_60 = b08.reshape(20, 6, 20, 6).mean((1, 3))
        correlations += [np.corrcoef(at_20.ravel(), b8a.ravel())[0, 1]]
        correlations += [np.corrcoef(at_60.ravel(), b09.ravel())[0, 1]]
    assert np.median(correlations) > 0.8


def test_vv_is_stronger_than_vh(
    thousand: tuple[Archive, list[PlannedPatch], list[Patch]],
) -> None:
    for patch in thousand[2][::10]:
        vv, vh = _s1(patch)
        assert vv.mean() > vh.mean()


def test_a_flagged_patch_is_brighter_in_blue(
    thousand: tuple[Archive, list[PlannedPatch], list[Patch]],
) -> None:
    _, planned, patches = thousand
    blue = np.array([p.s2["s2/r10m"][0].mean() for p in patches])
    flagged = np.array([p.record.flagged for p in planned])
    assert 0.02 < flagged.mean() < 0.15
    assert np.median(blue[flagged]) > 2 * np.median(blue[~flagged])


def test_no_pixel_is_nodata(thousand: tuple[Archive, list[PlannedPatch], list[Patch]]) -> None:
    for patch in thousand[2]:
        assert min(int(pixels.min()) for pixels in patch.s2.values()) >= 1
        assert np.isfinite(_s1(patch)).all()


@settings(max_examples=60)
@given(
    codes=st.sets(st.sampled_from([c.code for c in CLASSES_43]), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_map_holds_exactly_the_classes_asked_for(codes: set[int], seed: int) -> None:
    ground, clc = draw_map(np.random.default_rng(seed), tuple(sorted(codes)), canvases(0))
    found, n_px = np.unique(ground, return_counts=True)
    assert set(found.tolist()) == codes
    assert set(np.unique(clc).tolist()) - {999} == codes
    assert n_px.min() >= 0.98 * MIN_SHARE * ground.size


@given(seed=st.integers(0, 2**32 - 1), country=st.sampled_from(COUNTRIES))
def test_codes_stand_for_exactly_the_labels(seed: int, country: str) -> None:
    rng = np.random.default_rng(seed)
    labels = choose_labels(rng, country)
    assert 1 <= len(labels) <= 12
    codes = choose_codes(rng, labels, country)
    assert labels_of(codes, "v2") == tuple(sorted(labels))


def test_every_class_has_a_recipe_of_known_materials_and_patterns() -> None:
    assert set(RECIPES) == {c.code for c in CLASSES_43}
    used = {layer.pattern for recipe in RECIPES.values() for layer in recipe.layers}
    assert used <= set(PATTERNS)
    materials = {recipe.base for recipe in RECIPES.values()}
    materials |= {layer.material for recipe in RECIPES.values() for layer in recipe.layers}
    assert materials | {"snow", "cloud"} <= set(MATERIALS)


def test_a_window_is_a_view_of_any_canvas() -> None:
    drawn = canvases(0)
    assert set(drawn) == {*PATTERNS, *FIELDS}
    rng = np.random.default_rng(0)
    for name, canvas in drawn.items():
        cut = window(canvas, rng)
        assert cut.shape == (120, 120)
        assert np.shares_memory(cut, canvas)
        if name in PATTERNS:
            assert 0 <= canvas.min() < canvas.max() <= 1


# Where and when


@pytest.mark.parametrize("archive", ["v1", "v2"])
def test_patches_lie_on_the_published_grid_under_distinct_names(archive: Archive) -> None:
    planned = plan_patches(archive, 500, seed=3)
    records = [p.record for p in planned]
    assert len({r.id for r in records}) == len({p.v1_id for p in planned}) == 500
    for record in records:
        assert (record.epsg, record.ulx, record.uly) == patch_origin(
            record.mgrs, record.col, record.row
        )
        assert record.s1_acquired is not None
        assert abs(record.s1_acquired - record.acquired).days <= 6


@pytest.mark.parametrize("n_patches", [4, 40, 100, 1000])
def test_all_splits_of_v2_appear_in_their_shares_and_by_the_published_rule(n_patches: int) -> None:
    records = [p.record for p in plan_patches("v2", n_patches, seed=5)]
    counts = Counter(r.split for r in records)
    assert counts["train"] == pytest.approx(0.5 * n_patches, rel=0.15)
    assert counts["validation"] == pytest.approx(0.25 * n_patches, rel=0.15)
    assert counts["test"] == pytest.approx(0.25 * n_patches, rel=0.15)
    assert all(r.split == reben_split(r.col, r.row) for r in records)


@pytest.mark.parametrize("archive", ["v1", "v2"])
@pytest.mark.parametrize("load", [0.8, 1.0])
def test_an_acquisition_can_be_filled_to_its_last_cell(archive: Archive, load: float) -> None:
    rng = np.random.default_rng(0)
    n_cells = PATCHES_PER_SIDE**2
    wanted = round(load * n_cells)
    places = islice(invent_places(rng, archive, wanted, tiles()[:1]), wanted)
    cells = [(col, row) for _, col, row in places]
    assert len(set(cells)) == len(cells) == wanted
    assert all(0 <= index < PATCHES_PER_SIDE for cell in cells for index in cell)
    if archive == "v2":  # its splits have 49, 25.5 and 25.5 % of the cells
        counts = Counter(reben_split(*cell) for cell in cells)
        assert counts["train"] == pytest.approx(0.5 * wanted, rel=0.05)
        assert counts["test"] == pytest.approx(0.25 * wanted, rel=0.05)


def test_more_patches_than_the_acquisitions_hold_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="115 acquisitions of v2 can hold 952,315"):
        plan_patches("v2", 952_316, seed=0)


def test_full_blocks_of_v1_hold_two_train_one_validation_one_test() -> None:
    records = [p.record for p in plan_patches("v1", 400, seed=5)]
    blocks: dict[tuple[str, int, int], list[str]] = {}
    for r in records:
        blocks.setdefault((r.tile, r.col // 2, r.row // 2), []).append(r.split or "flagged")
    unflagged = [b for b in blocks.values() if len(b) == 4 and "flagged" not in b]
    assert len(unflagged) > 50
    for block in unflagged:
        assert sorted(block) == ["test", "train", "train", "validation"]


def test_all_dates_of_a_place_share_their_labels_and_map() -> None:
    planned = plan_patches("v2", 2000, seed=0)
    places: dict[str, list[PlannedPatch]] = {}
    for p in planned:
        places.setdefault(p.record.place, []).append(p)
    revisited = [dates for dates in places.values() if len(dates) > 1]
    assert len(revisited) > 20
    for dates in revisited[:5]:
        maps = [_clc(draw_patch(p, 0)) for p in dates]
        assert len({p.record.labels for p in dates}) == 1
        assert len({clc.tobytes() for clc in maps}) == 1


def test_snow_falls_in_cold_months_and_countries_only() -> None:
    for record in (p.record for p in plan_patches("v2", 1000, seed=2)):
        if record.flagged_snow:
            assert season_of(record.acquired) != "summer"
            assert record.country not in ("Portugal", "Ireland", "Belgium")


# What is written


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(
    tmp_path: Path,
) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        write_archive(tmp_path / name, archive="v2", n_patches=260, seed=7, workers=workers)
    one = _digests(tmp_path / "one")
    assert len(one) == 260 * 15 + 2
    assert _digests(tmp_path / "two") == one


def test_another_seed_gives_another_archive() -> None:
    first, second = (plan_patches("v2", 40, seed) for seed in (0, 1))
    assert [p.record.id for p in first] != [p.record.id for p in second]


def test_the_report_counts_what_is_there(v2: tuple[Path, SynthReport]) -> None:
    folder, report = v2
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert report.n_files == len(files) == 40 * 15 + 2
    assert report.n_bytes == sum(file.stat().st_size for file in files)
    assert sum(report.n_by_split.values()) == report.n_patches == 40


def test_progress_rises_to_the_number_of_patches(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_archive(
        tmp_path, archive="v1", n_patches=40, workers=1, progress=lambda *now: told.append(now)
    )
    assert len(told) > 1
    assert told == sorted(set(told))
    assert told[-1] == (40, 40)


def test_v2_lies_in_tiles_and_scenes(v2: tuple[Path, SynthReport]) -> None:
    folder, _ = v2
    for row in _rows(folder):
        tile = row["patch_id"][:-6]
        scene = row["s1_name"].rsplit("_", 3)[0]
        s2 = folder / "BigEarthNet-S2" / tile / row["patch_id"]
        s1 = folder / "BigEarthNet-S1" / scene / row["s1_name"]
        reference = folder / "Reference_Maps" / tile / row["patch_id"]
        assert len(row["patch_id"]) == 50
        assert {f.name for f in s2.iterdir()} == {
            f"{row['patch_id']}_{b.name}.tif" for b in S2_BANDS
        }
        assert {f.name for f in s1.iterdir()} == {f"{row['s1_name']}_{p}.tif" for p in ("VV", "VH")}
        assert [f.name for f in reference.iterdir()] == [f"{row['patch_id']}_reference_map.tif"]


@pytest.mark.parametrize(
    ("archive", "sizes"),
    [("v1", {29_192, 7_560, 1_160, 58_024}), ("v2", {29_196, 7_572, 1_172, 58_008})],
)
def test_files_have_the_published_sizes(
    archive: str, sizes: set[int], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(archive)[0]
    found = {f.stat().st_size for f in folder.rglob("*.tif") if "reference_map" not in f.name}
    assert found == sizes


@pytest.mark.parametrize("archive", ["v1", "v2"])
def test_rasterio_reads_the_pixels_and_the_georeference(
    archive: Archive, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(archive)[0]
    planned = {
        name: p
        for p in plan_patches(archive, 40, seed=1)
        for name in (p.record.id, str(p.record.s1_id))
    }
    files = sorted(folder.rglob("*.tif"))
    assert len(files) == 40 * (15 if archive == "v2" else 14)
    for file in files[::7]:
        plan = planned[file.parent.name]
        patch = draw_patch(plan, 1)
        kind = file.stem.removeprefix(f"{file.parent.name}_")
        with rasterio.open(file) as dataset:
            pixels = dataset.read(1)
            assert dataset.crs.to_epsg() == plan.record.epsg
            assert dataset.transform.c == plan.record.ulx
            assert dataset.transform.f == plan.record.uly
            assert dataset.transform.a == -dataset.transform.e == 1200 / dataset.width
            is_s1 = kind in ("VV", "VH")
            assert dataset.nodata == (0 if archive == "v2" and not is_s1 else None)
        if kind == "reference_map":
            expected: Any = patch.clc
        elif is_s1:
            expected = _s1(patch)[("VV", "VH").index(kind)]
        else:
            group = next(g for g in S2_GROUPS if kind in g.bands)
            expected = patch.s2[group.path][group.bands.index(kind)]
        assert pixels.dtype == expected.dtype
        assert np.array_equal(pixels, expected)


def test_v2_labels_are_those_of_the_reference_maps(v2: tuple[Path, SynthReport]) -> None:
    for row in _rows(v2[0]):
        (file,) = v2[0].glob(f"Reference_Maps/*/{row['patch_id']}/*.tif")
        codes = np.unique(tifffile.imread(file))
        names = tuple(c.name for c in CLASSES_43 if c.code in codes)
        assert row["labels"] == sorted(labels_43_to_19(names))


def test_the_parquets_of_v2_have_the_official_columns(v2: tuple[Path, SynthReport]) -> None:
    folder, _ = v2
    for name in ("metadata.parquet", "metadata_for_patches_with_snow_cloud_or_shadow.parquet"):
        assert pq.read_schema(folder / name).remove_metadata() == SCHEMA
    flags = pq.read_table(folder / "metadata.parquet").select(SCHEMA.names[-2:]).to_pylist()
    assert not any(any(row.values()) for row in flags)


@pytest.mark.samples
def test_the_columns_are_those_of_the_official_files(samples: Path) -> None:
    for file in sorted((samples / "metadata").glob("*.parquet")):
        assert pq.read_schema(file).remove_metadata() == SCHEMA


def test_v1_json_has_the_published_keys_and_spellings(v1: tuple[Path, SynthReport]) -> None:
    folder, _ = v1
    s2_files = sorted(folder.glob("BigEarthNet-v1.0/*/*.json"))
    assert len(s2_files) == 40
    for file in s2_files:
        document = json.loads(file.read_bytes())
        assert list(document) == [
            "labels",
            "coordinates",
            "projection",
            "tile_source",
            "acquisition_date",
        ]
        ranks = [NAMES_43.index(name) for name in document["labels"]]
        assert ranks == sorted(ranks)
        assert document["tile_source"].endswith(".SAFE")
    for file in folder.glob("BigEarthNet-S1-v1.0/*/*.json"):
        document = json.loads(file.read_bytes())
        assert list(document["coordinates"]) == ["ulx", "uly", "lrx", "lly"]
        assert document["corresponding_s2_patch"] in {f.parent.name for f in s2_files}


def test_v1_lists_are_written_as_published(v1: tuple[Path, SynthReport]) -> None:
    folder, report = v1

    def text(name: str) -> str:
        return bz2.decompress((folder / f"v1_{name}.csv.bz2").read_bytes()).decode()

    counts = {}
    for name in ("train", "val", "test", "patches_with_seasonal_snow"):
        assert text(name).count("\r\n") == text(name).count("\n")
        counts[name] = text(name).count("\n")
    assert counts["patches_with_seasonal_snow"] == report.n_snow
    assert counts["train"] + counts["val"] + counts["test"] <= 40 - report.n_snow - report.n_cloud
    pairs = list(csv.DictReader(io.StringIO(text("s1_s2_name_country_season"))))
    assert list(pairs[0]) == ["s1_name", "s2_name", "country", "season"]
    assert len(pairs) == 40
    assert {p["season"] for p in pairs} <= {"Winter", "Spring", "Summer", "Fall"}
    for pair in pairs:
        assert (folder / "BigEarthNet-v1.0" / pair["s2_name"]).is_dir()
        assert (folder / "BigEarthNet-S1-v1.0" / pair["s1_name"]).is_dir()


# The exact bytes, against real files


def _geotiff(file: Path) -> tuple[NDArray[Any], dict[str, int]]:
    with tifffile.TiffFile(file) as tiff:
        tags = tiff.pages.first.tags
        corner, keys = tags[33922].value, tags[34735].value
        return tiff.asarray(), {
            "epsg": int(keys[keys.index(3072) + 3]),
            "ulx": int(corner[3]),
            "uly": int(corner[4]),
        }


@pytest.mark.samples
@pytest.mark.parametrize(
    ("archive", "pattern", "sizes"),
    [
        ("v1", "v1/BigEarthNet-v1.0/*/*.tif", {29_192, 7_560, 1_160}),
        ("v2", "v2/BigEarthNet-S2/*/*/*.tif", {29_196, 7_572, 1_172}),
        ("v1", "v1/BigEarthNet-S1-v1.0/*/*.tif", {58_024}),
        ("v2", "v2/BigEarthNet-S1/*/*/*.tif", {58_008}),
    ],
)
def test_real_pixels_give_the_real_file(
    samples: Path, archive: Archive, pattern: str, sizes: set[int]
) -> None:
    files = [f for f in sorted(samples.glob(pattern)) if f.stat().st_size in sizes]
    assert len(files) >= 20
    for file in files[::3]:
        pixels, where = _geotiff(file)
        write = published.s1_tiff if pixels.dtype.kind == "f" else published.s2_tiff
        assert write(pixels, archive=archive, **where) == file.read_bytes(), file.name


@pytest.mark.samples
def test_a_real_reference_map_comes_back_with_its_tags(samples: Path, tmp_path: Path) -> None:
    file = next(samples.glob("v2/Reference_Maps/*/*/*.tif"))
    codes, where = _geotiff(file)
    ours = tmp_path / "map.tif"
    ours.write_bytes(published.map_tiff(codes, **where))
    assert np.array_equal(tifffile.imread(ours), codes)
    with tifffile.TiffFile(file) as theirs, tifffile.TiffFile(ours) as mine:
        expected = {t.code: (t.dtype, t.count, t.value) for t in theirs.pages.first.tags}
        found = {t.code: (t.dtype, t.count, t.value) for t in mine.pages.first.tags}
    for strips in (273, 279):  # zlib and libdeflate compress to other lengths
        assert found.pop(strips)[:2] == expected.pop(strips)[:2]
    assert found == expected


@pytest.mark.samples
def test_real_json_comes_back_to_the_byte(samples: Path) -> None:
    s2_files = sorted(samples.glob("v1/BigEarthNet-v1.0/*/*.json"))
    s1_files = sorted(samples.glob("v1/BigEarthNet-S1-v1.0/*/*.json"))
    assert (len(s2_files), len(s1_files)) == (44, 40)
    for file in (*s2_files, *s1_files):
        document = json.loads(file.read_bytes())
        corner = document["coordinates"]
        where = {"ulx": corner["ulx"], "uly": corner["uly"]}
        where["epsg"] = int(document["projection"][-8:-3])
        labels = tuple(document["labels"])
        if "tile_source" in document:
            ours = published.s2_json(
                labels,
                tile_source=document["tile_source"],
                acquired=document["acquisition_date"],
                **where,
            )
        else:
            ours = published.s1_json(
                labels,
                s2_patch=document["corresponding_s2_patch"],
                scene_source=document["scene_source"],
                acquired=document["acquisition_time"],
                **where,
            )
        # Some of the copies at hand gained a final newline.
        assert ours == file.read_bytes().rstrip(b"\n"), file.name


# With an official list


def _listing(**changes: Any) -> pa.Table:
    rows = [
        {
            "patch_id": f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{col:02d}_{row:02d}",
            "labels": labels,
            "split": reben_split(col, row),
            "country": "Austria",
            "s1_name": f"S1B_IW_GRDH_1SDV_20170612T165809_33UUP_{col}_{row}",
            "s2v1_name": f"S2A_MSIL2A_20170613T101031_{col}_{row}",
            "contains_seasonal_snow": False,
            "contains_cloud_or_shadow": False,
        }
        | changes
        for col, row, labels in (
            (26, 57, ["Arable land", "Mixed forest", "Urban fabric"]),
            (15, 20, ["Permanent crops"]),
            (0, 5, ["Inland waters", "Pastures"]),
            (3, 90, sorted(NAMES_19)[:11]),
        )
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_with_a_list_names_labels_and_splits_are_the_lists(tmp_path: Path) -> None:
    pq.write_table(_listing(), tmp_path / "list.parquet")
    folder = tmp_path / "archive"
    write_archive(folder, archive="v2", n_patches=4, metadata=tmp_path / "list.parquet")
    by_name = {row["patch_id"]: row for row in _listing().to_pylist()}
    assert {row["patch_id"]: row for row in _rows(folder)} == by_name
    for name, row in by_name.items():
        (file,) = folder.glob(f"Reference_Maps/*/{name}/*.tif")
        codes = tuple(int(code) for code in np.unique(tifffile.imread(file)))
        assert list(labels_of(codes, "v2")) == row["labels"]


def test_with_a_list_v1_takes_its_v1_names(tmp_path: Path) -> None:
    pq.write_table(_listing(), tmp_path / "list.parquet")
    folder = tmp_path / "archive"
    write_archive(folder, archive="v1", n_patches=4, metadata=tmp_path / "list.parquet")
    for row in _listing().to_pylist():
        file = folder / "BigEarthNet-v1.0" / row["s2v1_name"]
        document = json.loads((file / f"{file.name}_labels_metadata.json").read_bytes())
        assert sorted(labels_43_to_19(tuple(document["labels"]))) == row["labels"]


@pytest.mark.samples
def test_the_official_list_gives_rows_of_all_splits(samples: Path) -> None:
    metadata = samples / "metadata" / "metadata.parquet"
    planned = plan_patches("v2", 200, seed=0, metadata=metadata)
    assert Counter(p.record.split for p in planned) == {"train": 100, "validation": 50, "test": 50}
    wanted = {p.record.id for p in planned}
    for row in pq.read_table(metadata).to_pylist():
        if row["patch_id"] in wanted:
            plan = next(p for p in planned if p.record.id == row["patch_id"])
            assert list(plan.record.labels or ()) == row["labels"]
            assert plan.v1_id == row["s2v1_name"]


# Refusals


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="is not empty"):
        write_archive(tmp_path, archive="v2", n_patches=4)
    assert [file.name for file in tmp_path.iterdir()] == ["keep.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="is a file"):
        write_archive(tmp_path / "file", archive="v2", n_patches=4)


@pytest.mark.parametrize("n_patches", [0, -3])
def test_no_patches_are_refused(tmp_path: Path, n_patches: int) -> None:
    with pytest.raises(InvalidInputError, match="expected at least 1"):
        write_archive(tmp_path / "new", archive="v2", n_patches=n_patches)
    assert not (tmp_path / "new").exists()


def test_an_unknown_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="choose one of: v1, v2"):
        write_archive(tmp_path, archive="v3", n_patches=4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["Pasture"]}, "has the label 'Pasture'"),
        ({"split": "val"}, "unknown split 'val'"),
        ({"patch_id": "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_95"}, "off the grid"),
        ({"patch_id": "S2A_MSIL2A_20170613T101031_N9999_R022_T01ABC_26_57"}, "unknown MGRS"),
    ],
)
def test_a_list_with_wrong_values_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    pq.write_table(_listing(**change), tmp_path / "list.parquet")
    with pytest.raises(InvalidInputError, match=message):
        write_archive(
            tmp_path / "new", archive="v2", n_patches=4, metadata=tmp_path / "list.parquet"
        )
    assert not (tmp_path / "new").exists()


def test_a_list_of_another_shape_is_refused(tmp_path: Path) -> None:
    list_file = tmp_path / "list.parquet"
    pq.write_table(_listing().drop_columns(["s1_name"]), list_file)
    with pytest.raises(InvalidInputError, match="has no column 's1_name'"):
        write_archive(tmp_path / "new", archive="v2", n_patches=4, metadata=list_file)
    pq.write_table(_listing(), list_file)
    with pytest.raises(InvalidInputError, match="has 4 rows, expected at least 5"):
        write_archive(tmp_path / "new", archive="v2", n_patches=5, metadata=list_file)
    list_file.write_bytes(b"not a parquet file")
    with pytest.raises(InvalidInputError, match="cannot be read as parquet"):
        write_archive(tmp_path / "new", archive="v2", n_patches=4, metadata=list_file)
    with pytest.raises(InvalidInputError, match="cannot be read as parquet"):
        write_archive(tmp_path / "new", archive="v2", n_patches=4, metadata=tmp_path / "none")
