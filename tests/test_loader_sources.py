"""What batches are drawn from: bands, several cubes, a cache, and every way to store an array."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import CubeIntegrityError, InvalidInputError
from bigearth_cube.ingest import ingest
from bigearth_cube.loader.batches import Batch, BatchLoader
from bigearth_cube.loader.blocks import BlockReader, ChunkCache, PixelSource
from bigearth_cube.loader.plan import epoch_order
from tests.sources import MemorySource, index_of, pixels_of

SMALL = ("s2/r60m",)
PATH = "s2/r60m/reflectance"


@pytest.fixture(scope="module")
def second_url(tmp_path_factory: pytest.TempPathFactory, dask_client: distributed.Client) -> str:
    """A cube of 200 patches that the session's cube does not have."""
    url = str(tmp_path_factory.mktemp("second"))
    ingest(
        MemorySource(200, first=600, with_views=False), url, client=dask_client, cube_id="second"
    )
    return url


@pytest.fixture(scope="module")
def second(second_url: str) -> Cube:
    return open_cube(second_url)


def copied(batch: Batch) -> Batch:
    return Batch(
        {group: pixels.copy() for group, pixels in batch.images.items()},
        batch.labels,
        batch.rows.copy(),
        batch.cubes,
    )


def delivered(loader: BatchLoader, epoch: int = 0) -> list[Batch]:
    return [copied(batch) for batch in loader.epoch(epoch)]


def assert_same(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_array_equal(a.cubes, b.cubes)
        np.testing.assert_array_equal(a.labels, b.labels)
        for group, pixels in a.images.items():
            np.testing.assert_array_equal(pixels, b.images[group])


# Bands


@pytest.mark.parametrize("engine", ["threads", "dask"])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_bands_come_as_asked_and_in_that_order(
    cube: Cube, dask_client: distributed.Client, engine: str, share: float
) -> None:
    ids = cube.items["id"].to_pylist()
    options: dict[str, Any] = {"engine": dask_client if engine == "dask" else "threads"}
    groups = {"s2/r10m": ["B04", "B02"], "s2/r60m": None, "s1/r10m": ["VH"]}
    subset = int(share * 600)
    with BatchLoader(cube, batch_size=60, groups=groups, subset=subset, **options) as loader:
        batches = delivered(loader)
    assert sum(len(batch.rows) for batch in batches) == subset
    for batch in batches:
        for position in (0, 11):
            patch = pixels_of(index_of(ids[batch.rows[position]]))
            images = {group: pixels[position] for group, pixels in batch.images.items()}
            np.testing.assert_array_equal(images["s2/r10m"], patch.s2["s2/r10m"][[2, 0]])
            np.testing.assert_array_equal(images["s2/r60m"], patch.s2["s2/r60m"])
            assert patch.s1 is not None
            np.testing.assert_array_equal(images["s1/r10m"], patch.s1[[1]])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"s2/r10m": ["B05"]}, "no band 'B05' in s2/r10m; choose from: B02, B03, B04, B08"),
        ({"reference/r10m": ["clc"]}, "no band 'clc' in reference/r10m; choose from: none"),
        ({"s2/r10m": []}, r"bands \[\] of s2/r10m; expected at least one, and each once"),
        ({"s2/r10m": ["B02", "B02"]}, "each once"),
        ({"s2/r30m": ["B02"]}, "no group 's2/r30m' here; choose from: s2/r10m"),
        ({}, "no groups to deliver"),
        ("s2/r10m", r"expected names in a list: \['s2/r10m'\]"),
    ],
)
def test_bands_and_groups_that_are_not_there_are_refused(
    cube: Cube, groups: Any, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        BatchLoader(cube, batch_size=8, groups=groups)


# Several cubes


@pytest.mark.parametrize("engine", ["threads", "dask"])
@pytest.mark.parametrize("shuffle", ["pool", "exact", "none"])
def test_two_cubes_are_one_stream_of_their_patches(
    cube: Cube, second: Cube, dask_client: distributed.Client, engine: str, shuffle: Any
) -> None:
    cubes, ids = [cube, second], [c.items["id"].to_pylist() for c in (cube, second)]
    rows_of = [c.items["bec:row"].to_numpy() for c in cubes]
    selections = [cube.search(split="train"), None]
    options: dict[str, Any] = {"engine": dask_client if engine == "dask" else "threads"}
    with BatchLoader(
        cubes, selections, batch_size=40, groups=SMALL, shuffle=shuffle, **options
    ) as loader:
        batches = delivered(loader)
        spec = loader.spec
    # The first cube has 768 rows (three shards of 256), so the second begins at row 768.
    numbered = np.concatenate([selections[0].rows, 768 + second.rows])  # type: ignore[union-attr]
    expected = epoch_order(numbered, spec, 0)
    assert len(batches) == expected.n_batches
    for index, batch in enumerate(batches):
        found = np.where(batch.cubes == 1, 768 + batch.rows, batch.rows)
        np.testing.assert_array_equal(found, expected.batch(index))
        for position, (which, row) in enumerate(zip(batch.cubes, batch.rows, strict=True)):
            name = ids[which][int(np.searchsorted(rows_of[which], row))]
            patch = pixels_of(index_of(name)).s2["s2/r60m"]
            np.testing.assert_array_equal(batch.images["s2/r60m"][position], patch)
            assert batch.labels is not None
            np.testing.assert_array_equal(
                batch.labels[position], cubes[which].labels("label_19", np.array([row]))[0]
            )
    if shuffle != "none":
        assert all(len(set(batch.cubes)) == 2 for batch in batches)


def test_ranks_and_resumes_of_two_cubes_deliver_the_global_batches(
    cube: Cube, second: Cube
) -> None:
    options: dict[str, Any] = {"batch_size": 48, "groups": SMALL, "last": "pad"}
    with BatchLoader([cube, second], **options) as loader:
        whole = delivered(loader, 1)
        assert (whole[-1].rows == -1).tolist() == (whole[-1].cubes == -1).tolist()
        assert (whole[-1].rows == -1).sum() == -800 % 48
    parts: list[list[Batch]] = []
    for rank in range(2):
        with BatchLoader([cube, second], rank=rank, world_size=2, **options) as loader:
            loader.load_state({**loader.state(), "epoch": 1, "batch": 5})
            parts.append(delivered(loader, 1))
    for index, batch in enumerate(whole[5:]):
        both = [part[index] for part in parts]
        np.testing.assert_array_equal(np.concatenate([b.rows for b in both]), batch.rows)
        np.testing.assert_array_equal(np.concatenate([b.cubes for b in both]), batch.cubes)
        pixels = np.concatenate([b.images["s2/r60m"] for b in both])
        np.testing.assert_array_equal(pixels, batch.images["s2/r60m"])
    with (
        BatchLoader([second, cube], **options) as loader,
        BatchLoader([cube, second], **options) as other,
        pytest.raises(InvalidInputError, match="state was saved with selection"),
    ):
        loader.load_state(other.state())


def with_attributes(cube: Cube, **changed: Any) -> Cube:
    return dataclasses.replace(cube, attributes={**cube.attributes, **changed})


def with_document(cube: Cube, path: str, **changed: Any) -> Cube:
    document = {**cube.documents[path], **changed}
    return dataclasses.replace(cube, documents={**cube.documents, path: document})


def test_cubes_that_do_not_mean_the_same_are_refused(cube: Cube, second: Cube) -> None:
    classes = ["Arable land"]
    layout = {**second.attributes["layout"], "chunk_rows": 32}
    for other, options, message in (
        (
            with_attributes(second, scale={"s2": 1.0}),
            {},
            r"differ in scale: .*0\.0001.* and .*1\.0",
        ),
        (
            with_attributes(second, nomenclature={"label_19": classes}),
            {},
            "'bigearthnet-v2' and 'second' differ in classes of label_19",
        ),
        (with_attributes(second, layout=layout), {}, "differ in chunk_rows: 64 and 32"),
        (
            with_document(second, PATH, data_type="int16"),
            {},
            "differ in data type of s2/r60m: uint16 and int16",
        ),
        (
            with_document(second, PATH, shape=[256, 3, 20, 20]),
            {},
            r"differ in patch shape of s2/r60m: \[2, 20, 20\] and \[3, 20, 20\]",
        ),
        (second, {"groups": ["s1/r10m"]}, "no group 's1/r10m' here"),
        (second, {"labels": "label_43"}, "no labels 'label_43' here"),
    ):
        arguments: dict[str, Any] = {"batch_size": 8, "groups": SMALL, **options}
        with pytest.raises(InvalidInputError, match=message):
            BatchLoader([cube, other], **arguments)
    with pytest.raises(InvalidInputError, match="2 cubes and 1 selections"):
        BatchLoader([cube, second], cube.search(split="train"), batch_size=8)
    with pytest.raises(InvalidInputError, match="0 cubes"):
        BatchLoader([], batch_size=8)


def test_cubes_of_other_bands_are_refused(cube: Cube, second_url: str, tmp_path: Path) -> None:
    shutil.copytree(second_url, tmp_path / "own")
    names = zarr.open_array(str(tmp_path / "own" / "cube.zarr" / "s2" / "r60m" / "band"), mode="r+")
    names[:] = np.array(["B09", "B01"], object)
    with pytest.raises(InvalidInputError, match=r"bands of s2/r60m: \['B01', 'B09'\] and \['B09'"):
        BatchLoader([cube, open_cube(str(tmp_path / "own"))], batch_size=8, groups=SMALL)


# A cache of stored chunks


def test_later_epochs_ask_storage_only_for_what_is_not_kept(cube: Cube) -> None:
    options: dict[str, Any] = {"batch_size": 64, "groups": SMALL, "seed": 3}
    with BatchLoader(cube, **options) as loader:
        plain = [delivered(loader, epoch) for epoch in range(3)]
        without = loader.counters
    assert without.cache_hits == 0
    for room, n_kept in ((10**9, 10), (150_000, None), (1, 0)):
        with BatchLoader(cube, cache_bytes=room, **options) as loader:
            first = delivered(loader, 0)
            cost = loader.counters
            assert_same(first, plain[0])
            assert_same(delivered(loader, 1), plain[1])
            assert_same(delivered(loader, 2), plain[2])
            total = loader.counters
        kept = total.cache_hits // 2
        assert total.cache_hits == 2 * kept  # what is kept stays
        if n_kept is None:
            assert 0 < kept < 10
        else:
            assert kept == n_kept
        assert (total.requests == cost.requests) == (kept == 10)


def test_a_cache_keeps_no_more_than_it_has_room_for() -> None:
    cache = ChunkCache(100)
    answer = memoryview(bytes(range(200)))
    for chunk in range(8):
        cache.offer("g", chunk, answer[chunk : chunk + 30])
        cache.offer("g", chunk, answer[:30])
    assert cache.n_bytes == 90
    assert [cache.get("g", chunk) is not None for chunk in range(8)] == [True] * 3 + [False] * 5
    kept = cache.get("g", 2)
    assert kept == answer[2:32]
    assert kept is not None
    assert kept.nbytes == len(kept.obj)  # type: ignore[arg-type]  # not the whole answer
    cache.offer("g", 9, answer[:10])
    assert cache.n_bytes == 100


def test_a_cache_with_dask_is_refused(cube: Cube, dask_client: distributed.Client) -> None:
    with pytest.raises(InvalidInputError, match="its workers get other chunks every epoch"):
        BatchLoader(cube, batch_size=8, engine=dask_client, cache_bytes=1)


# Ways to store an array


def stored_anew(cube_url: str, folder: Path, **how: Any) -> Cube:
    """Return the session's cube with the 60 m array written again by zarr-python."""
    shutil.copytree(
        cube_url, folder, ignore=shutil.ignore_patterns("r10m", "r20m", "reflectance", "s1")
    )
    original = zarr.open_array(f"{cube_url}/cube.zarr/{PATH}", mode="r")
    array = zarr.create_array(
        str(folder / "cube.zarr" / PATH),
        shape=original.shape,
        dtype=original.dtype,
        fill_value=0,
        **how,
    )
    array[:] = original[:]
    root_path = folder / "cube.zarr" / "zarr.json"
    root = json.loads(root_path.read_text())
    document = json.loads((folder / "cube.zarr" / PATH / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"][PATH] = document
    root_path.write_text(json.dumps(root))
    return open_cube(str(folder))


COMPRESSORS: dict[str, Any] = {
    "zstd": ZstdCodec(level=3),
    "zstd with checksum": ZstdCodec(level=1, checksum=True),
    "blosc lz4": BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
    "blosc zstd": BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
    "none": None,
}


@pytest.mark.parametrize("is_sharded", [True, False])
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_what_zarr_python_writes_in_a_known_layout_is_read_without_it(
    cube: Cube,
    cube_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    compressor: str,
    is_sharded: bool,
) -> None:
    caplog.set_level(logging.WARNING)
    with BatchLoader(cube, batch_size=100, groups=SMALL) as loader:
        expected = delivered(loader)
    for has_checksum in (True, False):
        codecs = [] if COMPRESSORS[compressor] is None else [COMPRESSORS[compressor]]
        own = stored_anew(
            cube_url,
            tmp_path / str(has_checksum),
            chunks=(64, 2, 20, 20),
            shards=(256, 2, 20, 20) if is_sharded else None,
            compressors=[*codecs, Crc32cCodec()] if has_checksum else codecs or None,
        )
        layout = own.pixel_layout("s2/r60m")
        assert (layout.sharded, layout.checksum) == (is_sharded, has_checksum)
        with BatchLoader(own, batch_size=100, groups=SMALL) as loader:
            assert_same(delivered(loader), expected)
            n_chunks = 10
            # An index a shard and each of 10 chunks; a whole shard brings its index along.
            assert loader.counters.requests <= n_chunks + 3 * is_sharded
    assert not caplog.records


OTHERS: dict[str, dict[str, Any]] = {
    "gzip": {"chunks": (64, 2, 20, 20), "compressors": [GzipCodec()]},
    "chunks across pixels": {"chunks": (64, 2, 10, 10)},
    "chunks across pixels in shards": {"chunks": (16, 2, 10, 10), "shards": (64, 2, 20, 20)},
    "other chunks of rows": {"chunks": (48, 2, 20, 20)},
    "transposed": {"chunks": (64, 2, 20, 20), "filters": [TransposeCodec(order=(0, 2, 3, 1))]},
    "points between numbers": {
        "chunks": (64, 2, 20, 20),
        "chunk_key_encoding": {"name": "default", "separator": "."},
    },
}


@pytest.mark.parametrize("how", OTHERS)
def test_any_other_layout_is_read_by_zarr_python_which_is_said_once(
    cube: Cube,
    cube_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    dask_client: distributed.Client,
    how: str,
) -> None:
    own = stored_anew(cube_url, tmp_path / "own", **OTHERS[how])
    for groups in (SMALL, {"s2/r60m": ["B09"]}):
        with BatchLoader(cube, batch_size=100, groups=groups) as loader:
            expected = delivered(loader)
        for engine in ("threads", dask_client):
            caplog.clear()
            with BatchLoader(own, batch_size=100, groups=groups, engine=engine) as loader:  # type: ignore[arg-type]
                assert_same(delivered(loader), expected)
                assert_same(delivered(loader), expected)
            (message,) = caplog.messages
            assert "read by zarr-python, several times slower" in message
            assert PATH in message


def test_an_object_that_zarr_python_would_fill_is_an_error(cube_url: str, tmp_path: Path) -> None:
    own = stored_anew(cube_url, tmp_path / "own", **OTHERS["chunks across pixels"])
    key = f"{PATH}/c/1/0/1/0"
    stored = tmp_path / "own" / "cube.zarr" / key
    content = stored.read_bytes()
    stored.unlink()
    with (
        BatchLoader(own, batch_size=100, groups=SMALL) as loader,
        pytest.raises(CubeIntegrityError, match=r"rows \d+ to \d+: object is missing") as caught,
    ):
        delivered(loader)
    assert caught.value.key == key
    stored.write_bytes(content[:-5])
    with (
        BatchLoader(own, batch_size=100, groups=SMALL) as loader,
        pytest.raises(CubeIntegrityError, match=r"rows \d+ to \d+: chunk does not decode"),
    ):
        delivered(loader)


def test_reads_are_runs_of_chunks_in_one_object(cube: Cube, second: Cube) -> None:
    layouts = [c.pixel_layout("s2/r60m") for c in (cube, second)]
    sources = [
        PixelSource(cube.storage, layout, (), first_chunk=first)
        for layout, first in zip(layouts, (0, 12), strict=True)
    ]
    reads = BlockReader({"g": sources}).reads("g", [13, 0, 1, 3, 4, 2, 9, 12])
    found = [(read.part, read.shard, read.chunks) for read in reads]
    assert found == [
        (0, 0, (0, 1, 2, 3)),
        (0, 1, (4,)),
        (0, 2, (9,)),
        (1, 0, (12, 13)),
    ]


def test_cubes_are_told_apart_where_one_is_damaged(
    cube: Cube, second_url: str, tmp_path: Path
) -> None:
    shutil.copytree(second_url, tmp_path / "own")
    own = open_cube(str(tmp_path / "own"))
    key = own.pixel_layout("s2/r60m").key(0)
    (tmp_path / "own" / "cube.zarr" / key).unlink()
    with (
        BatchLoader([cube, own], batch_size=64, groups=SMALL) as loader,
        pytest.raises(CubeIntegrityError, match="object is missing") as caught,
    ):
        delivered(loader)
    assert caught.value.key == f"{tmp_path}/own/cube.zarr/{key}"
