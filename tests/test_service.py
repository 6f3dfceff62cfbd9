"""The service: what it answers, what it refuses, and that no request makes it fail."""

from __future__ import annotations

import http.client
import io
import json
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import brotli
import distributed
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pystac_client
import pytest
import schemathesis
import stac_geoparquet.arrow
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import helper
from starlette.testclient import TestClient

from bigearth_cube import stac
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError, StorageError
from bigearth_cube.ingest import ingest
from bigearth_cube.nomenclature import CLASSES_43, NAMES_19
from bigearth_cube.retrieval import neighbors
from bigearth_cube.service.app import LARGEST_BODY, create_app
from bigearth_cube.service.memory import Memory
from bigearth_cube.service.pictures import png_of_map
from tests.sources import MemorySource, index_of, pixels_of

N = 600
SUMMER = {"filter": "\"bec:season\" = 'summer' AND a_contains(\"bec:labels\", 'Pastures')"}


@pytest.fixture(scope="module")
def client(cube: Cube) -> Iterator[TestClient]:
    """The service over the cube of 600 known patches."""
    with TestClient(create_app([cube]), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def twins(
    tmp_path_factory: pytest.TempPathFactory, dask_client: distributed.Client
) -> tuple[Cube, Cube]:
    """Two cubes of their own: of 70 patches with embeddings and encoder, and of 20."""
    urls = [str(tmp_path_factory.mktemp("service") / name) for name in ("one", "two")]
    ingest(MemorySource(70, without_s1=frozenset([3])), urls[0], client=dask_client, cube_id="one")
    ingest(MemorySource(20, first=100), urls[1], client=dask_client, cube_id="two")
    first = open_cube(urls[0])
    vectors = np.full((first.n_rows, 4), np.nan, np.float32)
    for row, name in zip(first.rows.tolist(), _ids(first), strict=True):
        vectors[row] = _features(pixels_of(index_of(name)).s2["s2/r10m"])
    first.write_embeddings("means", vectors, {"encoder": "embeddings/means/encoder.onnx"})
    first.storage.write("embeddings/means/encoder.onnx", _encoder())
    open_cube(urls[0]).write_embeddings("bare", vectors)
    return open_cube(urls[0]), open_cube(urls[1])


@pytest.fixture(scope="module")
def twin_client(twins: tuple[Cube, Cube]) -> Iterator[TestClient]:
    with TestClient(create_app(twins), raise_server_exceptions=False) as client:
        yield client


def _ids(cube: Cube) -> list[str]:
    return list(cube.items["id"].to_pylist())


def _features(pixels: Any) -> Any:
    return pixels.astype(np.float32).mean(axis=(1, 2))


def _encoder(order: tuple[int, ...] = (0, 1, 2, 3)) -> bytes:
    """An ONNX model that takes the mean of each 10 m band, in some order."""
    nodes = [
        helper.make_node("Cast", ["s2_r10m"], ["x"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["means"], keepdims=0),
        helper.make_node("Gather", ["means", "order"], ["embedding"], axis=1),
    ]
    given = helper.make_tensor_value_info("s2_r10m", onnx.TensorProto.UINT16, ["n", 4, 120, 120])
    made = helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["n", 4])
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3])
    kept = helper.make_tensor("order", onnx.TensorProto.INT64, [4], order)
    graph = helper.make_graph(nodes, "means", [given], [made], [axes, kept])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def _matched(client: TestClient, **query: Any) -> list[str]:
    answer = client.get("/search", params={"limit": "10000", **query})
    assert answer.status_code == 200, answer.text
    ids = [item["id"] for item in answer.json()["features"]]
    assert answer.json()["numberMatched"] == len(ids)
    return ids


# --- items ---------------------------------------------------------------------------------------


def test_items_are_those_that_the_library_makes_but_for_links_of_the_api(
    client: TestClient, cube: Cube
) -> None:
    answer = client.get("/search", params={"limit": str(N)}).json()
    expected = stac.items(cube.items, cube_url=cube.url)
    assert answer["numberMatched"] == answer["numberReturned"] == len(expected) == N
    for item, known in zip(answer["features"], json.loads(json.dumps(expected)), strict=True):
        item["assets"].pop("thumbnail")
        del item["links"], known["links"]
        assert item == known


def test_a_large_answer_is_compressed_for_who_understands_it(client: TestClient) -> None:
    url, compressed = "/search?limit=600", {"Accept-Encoding": "br"}
    with client.stream("GET", url, headers=compressed) as answer:
        assert answer.headers["content-encoding"] == "br"
        small = b"".join(answer.iter_raw())
    plain = client.get(url, headers={"Accept-Encoding": "identity"}).content
    assert len(small) < len(plain) / 10
    assert brotli.decompress(small) == plain


def test_an_item_by_its_name_is_the_one_that_the_search_gives(client: TestClient) -> None:
    (item,) = client.get("/search", params={"limit": "1"}).json()["features"]
    links = {link["rel"]: link["href"] for link in item["links"]}
    assert client.get(links["self"]).json() == item
    assert client.get(links["collection"]).json()["id"] == item["collection"]
    assert client.get(item["assets"]["thumbnail"]["href"]).status_code == 200


def test_unknown_values_are_left_out_of_items(
    dask_client: distributed.Client, tmp_path: Path
) -> None:
    source = MemorySource(5, unlabeled=frozenset([1]), without_s1=frozenset([2]))
    ingest(source, str(tmp_path / "cube"), client=dask_client)
    cube = open_cube(str(tmp_path / "cube"))
    with TestClient(create_app([cube])) as client:
        items = client.get("/search").json()["features"]
    assert [("bec:labels" in item["properties"]) for item in items].count(False) == 1
    assert ["s1/r10m" in item["assets"] for item in items].count(False) == 1
    for item, known in zip(items, stac.items(cube.items, cube_url=cube.url), strict=True):
        assert item["properties"] == known["properties"]
        assert item["stac_extensions"] == known["stac_extensions"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    west=st.floats(12, 14),
    width=st.floats(0, 1),
    label=st.sampled_from(NAMES_19),
    split=st.sampled_from(["train", "validation", "test"]),
    as_json=st.booleans(),
)
def test_the_service_and_the_library_find_the_same_rows(
    client: TestClient, cube: Cube, west: float, width: float, label: str, split: str, as_json: bool
) -> None:
    bbox = [west, 40.0, west + width, 60.0]
    text = f"\"bec:split\" = '{split}' OR a_contains(\"bec:labels\", '{label}')"
    found = cube.search(bbox=bbox, filter=text)
    if as_json:
        parts = [
            {"op": "=", "args": [{"property": "bec:split"}, split]},
            {"op": "a_contains", "args": [{"property": "bec:labels"}, [label]]},
        ]
        body = {"bbox": bbox, "filter": {"op": "or", "args": parts}, "limit": N}
        answer = client.post("/search", json=body).json()
        ids = [item["id"] for item in answer["features"]]
    else:
        ids = _matched(client, bbox=",".join(map(str, bbox)), filter=text)
    assert sorted(ids) == sorted(found.ids.to_pylist())


def test_a_filter_is_text_or_json_by_get_and_by_post(client: TestClient) -> None:
    text = "\"bec:split\" = 'test'"
    as_json = {"op": "=", "args": [{"property": "bec:split"}, "test"]}
    expected = _matched(client, filter=text)
    assert expected
    assert _matched(client, filter=json.dumps(as_json), **{"filter-lang": "cql2-json"}) == expected
    for language, given_filter in (("cql2-text", text), ("cql2-json", as_json), (None, text)):
        body = {"filter": given_filter, "limit": N} | (
            {"filter-lang": language} if language else {}
        )
        found = client.post("/search", json=body).json()["features"]
        assert [item["id"] for item in found] == expected


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("sortby", [None, "-id", "bec:split,-bec:row"])
def test_pages_hold_every_item_once_and_in_order(
    client: TestClient, method: str, sortby: str | None
) -> None:
    given_sort = {} if sortby is None else {"sortby": sortby}
    whole = _matched(client, **given_sort)
    paged: list[str] = []
    if method == "GET":
        link = {"href": "/search?limit=77" + (f"&sortby={sortby}" if sortby else "")}
    else:
        parts = [
            {"field": part.lstrip("-"), "direction": "desc" if part[0] == "-" else "asc"}
            for part in (sortby or "").split(",")
            if part
        ]
        link = {"href": "/search", "body": {"limit": 77, "sortby": parts}}  # type: ignore[dict-item]
    while True:
        if method == "GET":
            page = client.get(link["href"]).json()
        else:
            page = client.post(link["href"], json=link["body"]).json()
        paged += [item["id"] for item in page["features"]]
        following = [one for one in page["links"] if one["rel"] == "next"]
        if not following:
            break
        (link,) = following
    assert paged == whole
    assert len(set(paged)) == N


def test_fields_are_those_asked_for(client: TestClient) -> None:
    asked = {"fields": "bec:labels,-assets,-geometry", "limit": "1"}
    (item,) = client.get("/search", params=asked).json()["features"]
    assert set(item["properties"]) == {"datetime", "bec:labels"}
    assert not {"assets", "geometry"} & set(item)


def test_tables_hold_the_items_that_json_has(client: TestClient, cube: Cube) -> None:
    answer = client.get("/search", params={**SUMMER, "f": "geoparquet", "limit": "1000"})
    table = pq.read_table(io.BytesIO(answer.content))
    expected = _matched(client, **SUMMER)
    assert table["id"].to_pylist() == expected
    assert answer.headers["ogc-numbermatched"] == str(len(expected))
    (first, *_) = stac_geoparquet.arrow.stac_table_to_items(table)
    json_item = client.get(f"/collections/{cube.id}/items/{first['id']}").json()
    assert first["bbox"] == json_item["bbox"]
    assert first["assets"]["s2/r10m"]["href"] == json_item["assets"]["s2/r10m"]["href"]
    assert first["properties"]["bec:labels"] == json_item["properties"]["bec:labels"]
    accept = {"Accept": "application/vnd.apache.arrow.stream"}
    stream = client.get("/search", params={"limit": "7"}, headers=accept)
    assert pa.ipc.open_stream(stream.content).read_all().num_rows == 7
    assert 'rel="next"' in stream.headers["link"]


def test_every_queryable_filters_and_every_sortable_sorts(client: TestClient, cube: Cube) -> None:
    for where in ("", f"/collections/{cube.id}"):
        names = client.get(f"{where}/queryables").json()["properties"]
        assert {"eo:cloud_cover", "bec:labels", "geometry", "datetime", "id"} <= set(names)
        for name in names:
            answer = client.get("/search", params={"filter": f'"{name}" IS NULL', "limit": "1"})
            assert answer.status_code == 200, answer.text
        for name in client.get(f"{where}/sortables").json()["properties"]:
            assert client.get("/search", params={"sortby": name}).status_code == 200


def test_counts_are_those_of_the_items(client: TestClient, cube: Cube) -> None:
    names = "total_count,bec_labels_frequency,bec_split_frequency"
    for url in ("/aggregate", f"/collections/{cube.id}/aggregate"):
        answer = client.get(url, params={**SUMMER, "aggregations": names}).json()
        posted = client.post(url, json={**SUMMER, "aggregations": names.split(",")}).json()
        assert answer["aggregations"] == posted["aggregations"]
    counted = {one["name"]: one for one in answer["aggregations"]}
    items = client.get("/search", params={**SUMMER, "limit": "1000"}).json()["features"]
    assert counted["total_count"]["value"] == len(items)
    for bucket in counted["bec_labels_frequency"]["buckets"]:
        of_label = [item for item in items if bucket["key"] in item["properties"]["bec:labels"]]
        assert bucket["frequency"] == len(of_label)


def test_density_counts_each_item_in_one_cell(client: TestClient, cube: Cube) -> None:
    url = f"/collections/{cube.id}/density"
    found = client.get(url, params={**SUMMER, "zoom": "10", "label": "Pastures"}).json()
    assert sum(found["count"]) == found["matched"] == len(_matched(client, **SUMMER))
    assert found["with_label"] == found["count"]
    other = client.get(url, params={"zoom": "10", "label": "Arable land"}).json()
    of_label = _matched(client, filter="a_contains(\"bec:labels\", 'Arable land')")
    assert sum(other["with_label"]) == len(of_label) < N
    assert client.get(url, params={"label": "Grass"}).status_code == 400


def test_two_cubes_answer_as_one_and_each_alone(
    twin_client: TestClient, twins: tuple[Cube, Cube]
) -> None:
    one, two = map(_ids, twins)
    assert _matched(twin_client) == one + two
    assert _matched(twin_client, sortby="-id") == sorted(one + two, reverse=True)
    assert _matched(twin_client, collections="two") == two
    assert _matched(twin_client, collections="three") == []
    assert twin_client.get(f"/collections/one/items/{two[0]}").status_code == 404
    assert [c["id"] for c in twin_client.get("/collections").json()["collections"]] == [
        "one",
        "two",
    ]


def test_cubes_of_one_name_are_refused(cube: Cube) -> None:
    with pytest.raises(InvalidInputError, match="two cubes are named"):
        create_app([cube, cube])
    with pytest.raises(InvalidInputError, match="no cube to serve"):
        create_app([])


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("filter=%22bec:sason%22='x'", "unknown property 'bec:sason'; choose one of: bec:cloud"),
        ("filter=%22bec:season%22=", "line 1, column"),
        ("filter=%22bec:season%22='spring'&filter-lang=cql2-json", "the filter is text"),
        ("filter=%7B%22op%22", "no JSON"),
        ("filter=" + "(" * 500, "levels deep"),
        ("filter-crs=EPSG:25832", "CRS84"),
        ("bbox=1,2,3", "4 numbers"),
        ("bbox=1,2,3,x", "expected numbers"),
        ("bbox=1,9,3,4", "south 9 above north 4"),
        ("bbox=1,2,3,4&intersects=%7B%7D", "choose one"),
        ("intersects=%7B%22type%22:%22Point%22%7D", "GeoJSON"),
        ("datetime=2018-03", "2018-03-01T00:00:00Z"),
        ("datetime=2018-04-01T00:00:00Z/2018-03-01T00:00:00Z", "ends before it starts"),
        ("limit=0", "from 1"),
        ("limit=-3", "from 1"),
        ("limit=ten", "from 1"),
        ("sortby=nothing", "choose from"),
        ("token=abc", "none of ours"),
        ("f=xml", "geoparquet"),
        ("query=x", "unknown parameter 'query'"),
    ],
)
def test_a_wrong_question_is_answered_with_400_and_what_to_do(
    client: TestClient, query: str, said: str
) -> None:
    answer = client.get(f"/search?{query}")
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["description"]


def test_a_token_of_another_question_is_refused(client: TestClient) -> None:
    page = client.get("/search", params={"limit": "3"}).json()
    following = next(link["href"] for link in page["links"] if link["rel"] == "next")
    assert client.get(f"{following}&sortby=-id").status_code == 400
    assert client.get(following).json()["numberMatched"] == N


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"limt": 1}', "limt"),
        (b'{"query": {"eo:cloud_cover": {"lt": 1}}}', "query"),
        (b'{"bbox": [NaN, 1, 2, 3]}', ""),
        (b"[]", ""),
        (b"{", ""),
        (b'{"filter": ' + b'{"op": "not", "args": [' * 3000 + b"]}" * 3000 + b"}", ""),
        (b'{"sortby": [{"field": 3}]}', "sortby"),
    ],
)
def test_a_wrong_body_is_answered_with_400(client: TestClient, body: bytes, said: str) -> None:
    answer = client.post("/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["description"]


def test_a_body_of_50_mb_is_refused_unread(client: TestClient) -> None:
    chunks_taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal chunks_taken
        for _ in range(50):
            chunks_taken += 1
            yield b" " * (1 << 20)

    assert client.post("/search", content=b" " * (LARGEST_BODY + 1)).status_code == 413
    answer = client.post("/search", content=endless())
    assert answer.status_code == 413
    assert "4,194,304 bytes" in answer.json()["description"]


@pytest.mark.parametrize(
    "path",
    [
        "/collections/nothing",
        "/collections/nothing/items",
        "/collections/{id}/items/nothing",
        "/collections/{id}/items/..%2F..%2Fcube.zarr%2Fzarr.json",
        "/collections/{id}/items/%00/thumbnail.png",
        "/collections/{id}/items/nothing/thumbnail.png",
        "/collections/{id}/items/nothing/similar",
        "/collections/..%2F..%2Fetc/items/passwd/pixels",
        "/explorer/..%2F..%2Fapp.py",
        "/nothing",
    ],
)
def test_what_is_not_there_is_answered_with_404(client: TestClient, cube: Cube, path: str) -> None:
    answer = client.get(path.replace("{id}", cube.id))
    assert answer.status_code == 404
    assert answer.json()["description"]


def test_damage_and_an_unreachable_storage_are_told_apart(
    dask_client: distributed.Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ingest(MemorySource(3), str(tmp_path / "cube"), client=dask_client)
    cube = open_cube(str(tmp_path / "cube"))
    app = create_app([cube])

    def unreachable() -> None:
        raise StorageError("the endpoint cannot be reached; check the network")

    app.add_api_route("/unreachable", unreachable)
    shutil.rmtree(tmp_path / "cube" / "cube.zarr" / "s2" / "r10m" / "reflectance" / "c")
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get(f"/collections/{cube.id}/items/{_ids(cube)[0]}/thumbnail.png")
        assert (answer.status_code, answer.json()["code"]) == (500, "CubeIntegrityError")
        assert "object is missing" in answer.json()["description"]
        answer = client.get("/unreachable")
        assert (answer.status_code, answer.json()["code"]) == (503, "StorageError")


def test_the_log_says_what_was_asked_but_no_more_than_the_path(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bigearth_cube"):
        client.get("/search?limit=1&token=secret")
        client.get("/no%0Abec: GET /forged 200")
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("GET /search 400")
    assert not any("secret" in line or "\n" in line for line in said)


# --- of one patch --------------------------------------------------------------------------------


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
    url = f"/collections/{cube.id}/items/{_ids(cube)[5]}/thumbnail.png?kind={kind}"
    answer = client.get(url)
    assert answer.headers["content-type"] == "image/png"
    assert _shades(answer.content).shape == (120, 120, 3)
    again = client.get(url, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_same_dn_has_the_same_shade_in_every_patch(client: TestClient, cube: Cube) -> None:
    shades: dict[int, set[int]] = {}
    for name in _ids(cube)[:3]:
        png = client.get(f"/collections/{cube.id}/items/{name}/thumbnail.png").content
        red = _shades(png)[..., 0]
        dn = pixels_of(index_of(name)).s2["s2/r10m"][2]
        for value, shade in zip(dn.ravel().tolist(), red.ravel().tolist(), strict=True):
            shades.setdefault(value, set()).add(shade)
    assert all(len(of_value) == 1 for of_value in shades.values())
    in_order = [min(shades[value]) for value in sorted(shades)]
    assert in_order == sorted(in_order)
    assert len(set(in_order)) > 100


def test_a_map_has_the_colors_of_corine_and_nothing_elsewhere() -> None:
    codes = np.array([cover.code for cover in CLASSES_43] + [999, 0, 7, 1000], np.uint16)[None]
    colors = _shades(png_of_map(codes))[0]
    for color, cover in zip(colors, CLASSES_43, strict=False):
        assert bytes(color).hex() == cover.color[1:]
    assert not colors[len(CLASSES_43) :].any()


def test_three_bands_of_any_resolution_make_a_picture(client: TestClient, cube: Cube) -> None:
    url = f"/collections/{cube.id}/items/{_ids(cube)[0]}/thumbnail.png"
    shades = _shades(client.get(url, params={"bands": "B12,B01,VH"}).content)
    assert (shades[::2, ::2, 0] == shades[1::2, 1::2, 0]).all()
    assert (shades[::6, ::6, 1] == shades[5::6, 5::6, 1]).all()
    for bands in ("B12", "B12,B11,B99", "B02,B03,B04,B08"):
        assert client.get(url, params={"bands": bands}).status_code == 400


def test_pixels_and_spectrum_are_those_of_the_archive(client: TestClient, cube: Cube) -> None:
    name = _ids(cube)[17]
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
    name = next(name for name in _ids(twins[0]) if index_of(name) == 3)
    url = f"/collections/one/items/{name}"
    answer = twin_client.get(f"{url}/thumbnail.png?kind=s1")
    assert answer.status_code == 404
    assert "has no pixels of s1/r10m" in answer.json()["description"]
    assert "s1/r10m" not in twin_client.get(f"{url}/pixels").json()["groups"]


def test_dates_are_the_items_of_the_same_place(client: TestClient, cube: Cube) -> None:
    name = _ids(cube)[3]
    found = client.get(f"/collections/{cube.id}/items/{name}/dates").json()
    assert [item["id"] for item in found["features"]] == [name]


# --- look-alikes ---------------------------------------------------------------------------------


def _ranked(answer: Any) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    features = answer.json()["features"]
    return [(item["id"], item["properties"]["distance"]) for item in features]


@pytest.mark.parametrize("metric", ["chi2", "cosine", "euclidean", "hamming"])
def test_look_alikes_are_those_of_the_library(
    twin_client: TestClient, twins: tuple[Cube, Cube], metric: Any
) -> None:
    name = _ids(twins[0])[9]
    expected = neighbors(twins[0], name, k=5, model="means", metric=metric)
    query = {"k": "5", "model": "means", "metric": metric}
    found = _ranked(twin_client.get(f"/collections/one/items/{name}/similar", params=query))
    assert [one for one, _ in found] == [neighbor.id for neighbor in expected]
    assert [far for _, far in found] == pytest.approx([n.score for n in expected])


def test_a_filter_applies_inside_the_search_for_look_alikes(
    twin_client: TestClient, twins: tuple[Cube, Cube]
) -> None:
    name, text = _ids(twins[0])[9], "\"bec:split\" = 'test'"
    query = {"k": "1000", "model": "means", "filter": text}
    found = _ranked(twin_client.get(f"/collections/one/items/{name}/similar", params=query))
    expected = {*twins[0].search(filter=text).ids.to_pylist()} - {name}
    assert {one for one, _ in found} == expected


def test_a_posted_patch_finds_itself_first_and_its_item_does_not(
    twin_client: TestClient, twins: tuple[Cube, Cube]
) -> None:
    name = _ids(twins[0])[4]
    pixels = pixels_of(index_of(name)).s2
    bands = dict(zip(("B02", "B03", "B04", "B08"), pixels["s2/r10m"].tolist(), strict=True))
    body = {"bands": bands, "model": "means", "k": 3}
    found = _ranked(twin_client.post("/collections/one/similar", json=body))
    assert found[0] == (name, pytest.approx(0, abs=1e-3))
    item = {"collection": "one", "id": name}
    others = _ranked(
        twin_client.post("/collections/one/similar", json={"item": item, "model": "means", "k": 2})
    )
    assert [one for one, _ in others] == [one for one, _ in found[1:]]


def test_an_item_of_another_cube_is_embedded_by_the_model_of_this_one(
    twin_client: TestClient, twins: tuple[Cube, Cube]
) -> None:
    name = _ids(twins[1])[2]
    body = {"item": {"collection": "two", "id": name}, "model": "means", "metric": "euclidean"}
    found = _ranked(twin_client.post("/collections/one/similar", json=body))
    query = _features(pixels_of(index_of(name)).s2["s2/r10m"])
    far = {
        one: float(np.linalg.norm(_features(pixels_of(index_of(one)).s2["s2/r10m"]) - query))
        for one in _ids(twins[0])
    }
    assert [one for one, _ in found] == sorted(far, key=lambda one: far[one])[:10]


def _posted(**changes: Any) -> dict[str, Any]:
    bands: dict[str, Any] = {name: [[5] * 120] * 120 for name in ("B02", "B03", "B04", "B08")}
    return {"model": "means", "bands": bands | changes}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({**_posted(), "model": "bare"}, 409, "came without their encoder"),
        ({**_posted(), "model": "other"}, 404, "it has: bare, means"),
        ({**_posted(), "model": "../means"}, 404, "no embeddings"),
        ({**_posted(), "model": None}, 400, "choose one of: bare, means"),
        ({**_posted(), "k": 0}, 400, "expected 1 to 10,000"),
        ({**_posted(), "k": 1_000_000}, 400, "expected 1 to 10,000"),
        ({**_posted(), "metric": "l7"}, 400, "chi2"),
        (_posted(B04=[[None] * 120] * 120), 400, "B04"),
        (_posted(B04=[["NaN"] * 120] * 120), 400, "B04"),
        (_posted(B04=[[1] * 119] * 120), 400, "120 x 120"),
        (_posted(B04=[[1] * 120, [1]]), 400, "120 x 120"),
        (_posted(B04=[[-1] * 120] * 120), 400, "0 to 65535"),
        (_posted(B99=[]), 400, "no band 'B99'"),
        ({"model": "means", "bands": {"B02": [[5] * 120] * 120}}, 400, "B03 is missing"),
        (
            {"model": "means", "bands": {"VV": [[5] * 120] * 120, "VH": [[5] * 120] * 120}},
            400,
            "reads s2/r10m",
        ),
        ({"model": "means", "bands": {}}, 400, "no bands"),
        ({"model": "means"}, 400, "one of the two"),
        ({"model": "means", "item": {"id": "x"}}, 400, "expected a STAC item"),
        ({"model": "means", "item": {"collection": "/etc", "id": "x"}}, 404, "choose one of"),
    ],
)
def test_a_wrong_query_for_look_alikes_is_refused_in_words(
    twin_client: TestClient, body: dict[str, Any], status: int, said: str
) -> None:
    answer = twin_client.post("/collections/one/similar", json=body)
    assert answer.status_code == status, answer.text[:300]
    assert said in answer.json()["description"]


@pytest.fixture(scope="module")
def two_sensors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Cube]]:
    """A cube with embeddings of two models of one space, and of one of another."""
    url = str(tmp_path_factory.mktemp("sensors") / "cube")
    ingest(MemorySource(30), url, workers=1, cube_id="sensors")
    cube = open_cube(url)
    vectors = np.full((cube.n_rows, 4), np.nan, np.float32)
    for row, name in zip(cube.rows.tolist(), _ids(cube), strict=True):
        vectors[row] = _features(pixels_of(index_of(name)).s2["s2/r10m"])
    for model, values, space in (
        ("net-s2", vectors, "aa"),
        ("net-s1", vectors[:, ::-1], "aa"),
        ("other-s1", vectors, "bb"),
    ):
        about = {"encoder": f"embeddings/{model}/encoder.onnx", "space": space}
        encoder = _encoder((3, 2, 1, 0) if model == "net-s1" else (0, 1, 2, 3))
        open_cube(url).write_embeddings(model, values, about, encoder=encoder)
    open_cube(url).write_embeddings("bare-s1", vectors, {"space": "aa"})
    cube = open_cube(url)
    with TestClient(create_app([cube]), raise_server_exceptions=False) as client:
        yield client, cube


def test_a_query_of_one_model_finds_answers_of_another_of_its_space(
    two_sensors: tuple[TestClient, Cube],
) -> None:
    client, cube = two_sensors
    name = _ids(cube)[9]
    query = {"k": "5", "model": "net-s2", "query-model": "net-s1"}
    expected = neighbors(cube, name, k=5, model="net-s2", query_model="net-s1")
    found = _ranked(client.get(f"/collections/sensors/items/{name}/similar", params=query))
    assert [one for one, _ in found] == [neighbor.id for neighbor in expected]
    assert [far for _, far in found] == pytest.approx([n.score for n in expected])
    item = {"collection": "sensors", "id": name}
    posted = client.post("/collections/sensors/similar", json={**query, "k": 5, "item": item})
    assert _ranked(posted) == found
    # The query's own model reads what is posted: the same vector, and now the patch is no answer's.
    pixels = pixels_of(index_of(name)).s2["s2/r10m"]
    bands = dict(zip(("B02", "B03", "B04", "B08"), pixels.tolist(), strict=True))
    given = {**query, "k": 5, "bands": bands}
    posted = client.post("/collections/sensors/similar", json=given)
    of_others = [(one, far) for one, far in _ranked(posted) if one != name]
    assert [one for one, _ in of_others] == [one for one, _ in found][: len(of_others)]
    assert [far for _, far in of_others] == pytest.approx(
        [far for _, far in found][: len(of_others)]
    )
    posted = client.post("/collections/sensors/similar", json={**given, "query-model": "bare-s1"})
    assert posted.status_code == 409
    assert "'bare-s1'" in posted.json()["description"]
    models = client.get("/collections/sensors/models").json()["models"]
    assert {model["name"]: model["space"] for model in models} == {
        "bare-s1": "aa",
        "net-s1": "aa",
        "net-s2": "aa",
        "other-s1": "bb",
    }


def test_a_query_of_a_model_of_another_space_is_refused_in_words(
    two_sensors: tuple[TestClient, Cube],
) -> None:
    client, cube = two_sensors
    url = f"/collections/sensors/items/{_ids(cube)[9]}/similar"
    answer = client.get(url, params={"model": "net-s2", "query-model": "other-s1"})
    assert answer.status_code == 400
    assert "'other-s1' (space bb) and 'net-s2' (space aa) are of different" in answer.text
    body = {**_posted(), "model": "net-s2", "query-model": "other-s1"}
    answer = client.post("/collections/sensors/similar", json=body)
    assert answer.status_code == 400
    assert "are of different spaces" in answer.json()["description"]
    answer = client.get(url, params={"model": "net-s2", "query-model": "none"})
    assert answer.status_code == 404


def test_nan_in_posted_bands_is_refused(twin_client: TestClient) -> None:
    body = json.dumps(_posted(B04=[[float("nan")] * 120] * 120))
    headers = {"Content-Type": "application/json"}
    answer = twin_client.post("/collections/one/similar", content=body, headers=headers)
    assert answer.status_code == 400, answer.text


def test_models_are_listed_with_what_can_be_asked_of_them(
    twin_client: TestClient, client: TestClient, cube: Cube
) -> None:
    assert twin_client.get("/collections/one/models").json()["models"] == [
        {"name": "bare", "features": 4, "encoder": False},
        {"name": "means", "features": 4, "encoder": True},
    ]
    url = f"/collections/{cube.id}/items/{_ids(cube)[0]}/similar"
    assert client.get(url).status_code == 404


@given(sizes=st.lists(st.integers(0, 60), max_size=40))
def test_a_memory_never_holds_more_than_it_may(sizes: list[int]) -> None:
    memory = Memory(100)
    for key, size in enumerate(sizes):
        assert len(memory.get(key % 7, lambda n=size: b"x" * n)) >= 0  # type: ignore[misc]
        assert memory.n_bytes <= 100


# --- pages for people, and whole servers -----------------------------------------------------------


def test_a_browser_is_sent_to_the_explorer_and_a_client_is_not(client: TestClient) -> None:
    as_browser = client.get("/", headers={"Accept": "text/html"}, follow_redirects=False)
    assert (as_browser.status_code, as_browser.headers["location"][-9:]) == (307, "/explorer")
    assert "explorer" in client.get("/explorer").text
    landing = client.get("/").json()
    assert landing["type"] == "Catalog"
    assert any(link["rel"] == "search" and link["method"] == "POST" for link in landing["links"])
    assert client.get("/healthz").json()["status"] == "UP"


@contextmanager
def _serving(cubes: Sequence[Cube]) -> Iterator[str]:
    """Run a real server in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(create_app(cubes), log_config=None, access_log=False, ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def server_url(cube: Cube) -> Iterator[str]:
    with _serving([cube]) as url:
        yield url


@pytest.fixture(scope="module")
def twin_url(twins: tuple[Cube, Cube]) -> Iterator[str]:
    with _serving(twins) as url:
        yield url


def test_pystac_client_pages_through_everything(server_url: str, cube: Cube) -> None:
    opened = pystac_client.Client.open(server_url)
    assert [one.id for one in opened.get_collections()] == [cube.id]
    whole = opened.search(limit=100)
    assert whole.matched() == N
    assert [item.id for item in whole.items()] == _ids(cube)
    text = "a_contains(\"bec:labels\", 'Pastures') AND \"bec:country\" = 'Austria'"
    for method in ("GET", "POST"):
        asked = opened.search(
            method=method,
            bbox=[12, 40, 14, 60],
            datetime="2017-06/2017-08",
            filter=text,
            filter_lang="cql2-text",
            sortby=["-id"],
            limit=10,
        )
        found = [item.id for item in asked.items()]
        assert sorted(found, reverse=True) == found
        assert len(found) == asked.matched() > 10


@contextmanager
def _bec_serve(cube_url: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command; give its process and address once it says it."""
    command = [sys.executable, "-m", "bigearth_cube", "serve", cube_url, "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if " at http" in line)
            yield process, next(word for word in line.split() if word.startswith("http"))
        finally:
            process.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_bec_serve_starts_answers_and_stops_when_told(cube_url: str, workers: str) -> None:
    with _bec_serve(cube_url, "--workers", workers) as (process, url):
        with urllib.request.urlopen(f"{url}search?limit=1", timeout=120) as answer:
            assert json.load(answer)["numberMatched"] == N
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
        process.wait(30)
    assert "GET /search 200" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_bec_serve_keeps_an_idle_connection_longer_than_load_balancers(cube_url: str) -> None:
    with _bec_serve(cube_url) as (_, url):
        connection = http.client.HTTPConnection(urlsplit(url).netloc)

        def matched() -> int:
            connection.request("GET", "/search?limit=1")
            return json.load(connection.getresponse())["numberMatched"]  # type: ignore[no-any-return]

        assert matched() == N
        time.sleep(62)  # they give up after 60 s
        assert matched() == N
        connection.close()


@pytest.mark.slow
def test_stac_api_validator_finds_no_fault(twin_url: str) -> None:
    if not os.environ.get("BEC_STAC_SCHEMAS"):
        pytest.skip("BEC_STAC_SCHEMAS names no folder of schemas")
    pytest.importorskip("stac_api_validator")
    box = [[[0, 40], [30, 40], [30, 60], [0, 60], [0, 40]]]
    geometry = json.dumps({"type": "Polygon", "coordinates": box})
    classes = ("core", "collections", "features", "item-search", "filter")
    command = [sys.executable, "-m", "tests.stac_offline", "--root-url", f"{twin_url}/"]
    command += [word for name in classes for word in ("--conformance", name)]
    command += ["--collection", "one", "--geometry", geometry]
    said = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert "Errors: none" in said.stdout, said.stdout[-3000:] + said.stderr[-2000:]
    assert said.returncode == 0


@pytest.mark.parametrize(
    "which", ["the API as a whole", pytest.param("slow", marks=pytest.mark.slow)]
)
def test_nothing_that_the_openapi_allows_makes_the_service_fail(
    twin_client: TestClient, which: str
) -> None:
    schema = schemathesis.openapi.from_asgi("/api", twin_client.app)
    examples = 100 if which == "slow" else 3
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            answer = case.call(session=None)
            assert answer.status_code < 500, (case.as_curl_command(), answer.text[:500])

        ask()
    assert asked > 25 * examples // 3


def test_what_models_say_of_a_patch_is_told_highest_first_and_only_where_they_did(
    tmp_path: Path,
) -> None:
    ingest(MemorySource(12), str(tmp_path), workers=1)
    cube = open_cube(str(tmp_path))
    scores = np.random.default_rng(0).random((cube.n_rows, 19), np.float32)
    scores[cube.rows[3]] = np.nan
    cube.write_predictions("good", scores, "label_19", {"threshold": 0.4})
    open_cube(str(tmp_path)).write_predictions("bare", scores, "label_19")
    ids = _ids(cube)
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
