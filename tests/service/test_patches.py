"""What there is of one patch: pictures, pixels, other dates, predictions."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.ingest import ingest
from bigearth_cube.nomenclature import CLASSES_43, NAMES_19
from bigearth_cube.service.app import create_app
from bigearth_cube.service.memory import Memory
from bigearth_cube.service.pictures import png_of_map
from tests.servers import serving
from tests.service.helpers import ids_of
from tests.sources import MemorySource, index_of, pixels_of


def _shades(png: bytes) -> Any:
    """Decode what the service writes: 8 bits, filters 0 and 2."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts = 8, {}
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            kind + data
        )
        parts[kind], at = data, at + 12 + size
    width, height, depth, kind_of = struct.unpack(">IIBB", parts[b"IHDR"][:10])
    n = 3 if kind_of == 2 else 1
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, 1 + width * n)
    values = rows[:, 1:]
    if rows[0, 0] == 2:
        values = np.cumsum(values, axis=0, dtype=np.uint8)
    if kind_of == 3:
        return np.frombuffer(parts[b"PLTE"], np.uint8).reshape(-1, 3)[values]
    assert depth == 8
    return values.reshape(height, width, n)


@pytest.mark.parametrize("kind", ["true_color", "false_color", "s1", "map"])
def test_a_thumbnail_shows_the_patch_and_is_kept_by_who_asked(
    client: TestClient, cube: Cube, kind: str
) -> None:
    url = f"/collections/{cube.id}/items/{ids_of(cube)[5]}/thumbnail.png?kind={kind}"
    answer = client.get(url)
    assert answer.headers["content-type"] == "image/png"
    assert _shades(answer.content).shape == (120, 120, 3)
    again = client.get(url, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_thumbnail_is_one_chunk_read_and_its_neighbors_are_none(
    cube_url: str, cube: Cube
) -> None:
    layout = cube.pixel_layout("s2/r10m")
    of_next_chunk = int(np.searchsorted(cube.rows, layout.chunk_rows))
    first, second, third = (ids_of(cube)[place] for place in (0, 1, of_next_chunk))
    with serving(Path(cube_url)) as server, TestClient(create_app([open_cube(server.url)])) as web:
        pixels: list[list[tuple[str, int, int]]] = []
        for name in (first, second, third):
            server.sent.clear()
            answer = web.get(f"/collections/{cube.id}/items/{name}/thumbnail.png")
            assert answer.status_code == 200, answer.text
            pixels.append([sent for sent in server.sent if "/s2/r10m/" in sent[0]])
    assert [len(sent) for sent in pixels] == [2, 0, 1]  # the index of the shard, then chunks
    index, chunk = sorted(pixels[0], key=lambda sent: sent[2])
    stored = layout.shard_rows * int(np.prod(layout.patch_shape)) * 2
    assert index[2] < chunk[2] < stored * layout.chunk_rows / layout.shard_rows


def test_the_same_dn_has_the_same_shade_in_every_patch(client: TestClient, cube: Cube) -> None:
    shades: dict[int, set[int]] = {}
    for name in ids_of(cube)[:3]:
        png = client.get(f"/collections/{cube.id}/items/{name}/thumbnail.png").content
        red = _shades(png)[..., 0]
        dn = pixels_of(index_of(name)).s2["s2/r10m"][2]
        for value, shade in zip(dn.ravel().tolist(), red.ravel().tolist(), strict=True):
            shades.setdefault(value, set()).add(shade)
    assert all(len(of_value) == 1 for of_value in shades.values())
    in_order = [min(shades[value]) for value in sorted(shades)]
    assert in_order == sorted(in_order)
    assert len(set(in_order)) > 100


def test_calm_water_is_dark_in_the_picture_of_sentinel_1_and_no_noise(
    client: TestClient, cube: Cube
) -> None:
    name = ids_of(cube)[5]
    url = f"/collections/{cube.id}/items/{name}/thumbnail.png?kind=s1"
    red, _, blue = np.moveaxis(_shades(client.get(url).content).astype(int), -1, 0)
    s1 = pixels_of(index_of(name)).s1
    assert s1 is not None
    vv, vh = s1
    # The ratio stands out above the noise of the sensor (-22 dB) by as much as VV does.
    ratio = ((vv - vh - 1.5) / 10.5).clip(0, 1) * 255
    np.testing.assert_allclose(blue, ratio * red / 255, atol=1.5)
    is_calm = (vv < -22) & (ratio > 0)
    assert is_calm.sum() > 20
    assert blue[is_calm].max() < 20 < ratio[is_calm].max()


def test_a_map_has_the_colors_of_corine_and_nothing_elsewhere() -> None:
    codes = np.array([cover.code for cover in CLASSES_43] + [999, 0, 7, 1000], np.uint16)[None]
    colors = _shades(png_of_map(codes))[0]
    for color, cover in zip(colors, CLASSES_43, strict=False):
        assert bytes(color).hex() == cover.color[1:]
    assert not colors[len(CLASSES_43) :].any()


def test_three_bands_of_any_resolution_make_a_picture(client: TestClient, cube: Cube) -> None:
    url = f"/collections/{cube.id}/items/{ids_of(cube)[0]}/thumbnail.png"
    shades = _shades(client.get(url, params={"bands": "B12,B01,VH"}).content)
    assert (shades[::2, ::2, 0] == shades[1::2, 1::2, 0]).all()
    assert (shades[::6, ::6, 1] == shades[5::6, 5::6, 1]).all()
    for bands in ("B12", "B12,B11,B99", "B02,B03,B04,B08"):
        assert client.get(url, params={"bands": bands}).status_code == 400


def test_pixels_and_spectrum_are_those_of_the_archive(client: TestClient, cube: Cube) -> None:
    name = ids_of(cube)[17]
    url = f"/collections/{cube.id}/items/{name}"
    known = pixels_of(index_of(name))
    groups = client.get(f"{url}/pixels").json()["groups"]
    for path, expected in known.s2.items():
        got = np.reshape(groups[path]["values"], groups[path]["shape"])
        np.testing.assert_array_equal(got, expected)
    assert set(client.get(f"{url}/pixels?groups=s1/r10m").json()["groups"]) == {"s1/r10m"}
    bands = client.get(f"{url}/spectrum", params={"x": "119", "y": "7"}).json()["bands"]
    values = {band["name"]: band for band in bands}
    assert values["B04"]["value"] == known.s2["s2/r10m"][2, 7, 119]
    assert values["B01"]["value"] == known.s2["s2/r60m"][0, 1, 19]
    assert known.s1 is not None
    assert values["VV"]["value"] == pytest.approx(float(known.s1[0, 7, 119]))
    assert len(bands) == 12 + 2 + 1
    for x, y in ((120, 0), (0, -1)):
        assert client.get(f"{url}/spectrum", params={"x": x, "y": y}).status_code == 400
    assert client.get(f"{url}/pixels?groups=../zarr.json").status_code == 400


def test_a_view_that_a_patch_lacks_is_not_found(
    twin_client: TestClient, twins: tuple[Cube, Cube]
) -> None:
    name = next(name for name in ids_of(twins[0]) if index_of(name) == 3)
    url = f"/collections/one/items/{name}"
    answer = twin_client.get(f"{url}/thumbnail.png?kind=s1")
    assert answer.status_code == 404
    assert "has no pixels of s1/r10m" in answer.json()["description"]
    assert "s1/r10m" not in twin_client.get(f"{url}/pixels").json()["groups"]


def test_dates_are_the_items_of_the_same_place(client: TestClient, cube: Cube) -> None:
    name = ids_of(cube)[3]
    found = client.get(f"/collections/{cube.id}/items/{name}/dates").json()
    assert [item["id"] for item in found["features"]] == [name]


def test_what_models_say_of_a_patch_is_told_highest_first_and_only_where_they_did(
    tmp_path: Path,
) -> None:
    ingest(MemorySource(12), str(tmp_path), workers=1)
    cube = open_cube(str(tmp_path))
    scores = np.random.default_rng(0).random((cube.n_rows, 19), np.float32)
    scores[cube.rows[3]] = np.nan
    cube.write_predictions("good", scores, "label_19", {"threshold": 0.4})
    open_cube(str(tmp_path)).write_predictions("bare", scores, "label_19")
    ids = ids_of(cube)
    with TestClient(create_app([open_cube(str(tmp_path))])) as client:

        def said(patch_id: str) -> Any:
            answer = client.get(f"/collections/{cube.id}/items/{patch_id}/predictions")
            assert answer.status_code == 200, answer.text
            return answer.json()

        told = {entry["model"]: entry for entry in said(ids[5])["models"]}
        assert said(ids[3])["models"] == []
        unknown = client.get(f"/collections/{cube.id}/items/none/predictions")
    assert {name: entry["threshold"] for name, entry in told.items()} == {"good": 0.4, "bare": None}
    expected = dict(zip(NAMES_19, scores[cube.rows[5]].tolist(), strict=True))
    assert told["good"]["scores"] == pytest.approx(expected, abs=1e-4)
    ranked = list(told["good"]["scores"].values())
    assert ranked == sorted(ranked, reverse=True)
    assert unknown.status_code == 404


@given(sizes=st.lists(st.integers(0, 60), max_size=40))
def test_a_memory_never_holds_more_than_it_may(sizes: list[int]) -> None:
    memory = Memory(100)
    for key, size in enumerate(sizes):
        assert len(memory.get(key % 7, lambda n=size: b"x" * n)) >= 0  # type: ignore[misc]
        assert memory.n_bytes <= 100
