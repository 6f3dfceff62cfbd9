"""What the STAC API answers."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import brotli
import distributed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stac_geoparquet.arrow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from bigearth_cube import pages, stac
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.ingest import ingest
from bigearth_cube.nomenclature import NAMES_19
from bigearth_cube.service import app, patches, stac_api
from bigearth_cube.service.app import create_app
from bigearth_cube.service.render import ItemWriter, table_of
from bigearth_cube.service.requests import MOST_ROWS, Asked
from bigearth_cube.service.shelf import Served
from bigearth_cube.service.stac_api import collection_of
from tests.service.helpers import N_PATCHES, ids_of
from tests.sources import MemorySource

SUMMER = {"filter": "\"bec:season\" = 'summer' AND a_contains(\"bec:labels\", 'Pastures')"}


def _matched(client: TestClient, **query: Any) -> list[str]:
    answer = client.get("/search", params={"limit": "10000", **query})
    assert answer.status_code == 200, answer.text
    ids = [item["id"] for item in answer.json()["features"]]
    assert answer.json()["numberMatched"] == len(ids)
    return ids


def test_items_are_those_that_the_library_makes_but_for_links_of_the_api(
    client: TestClient, cube: Cube
) -> None:
    answer = client.get("/search", params={"limit": str(N_PATCHES)}).json()
    expected = stac.items(cube.items, cube_url=cube.url)
    assert answer["numberMatched"] == answer["numberReturned"] == len(expected) == N_PATCHES
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
        body = {"bbox": bbox, "filter": {"op": "or", "args": parts}, "limit": N_PATCHES}
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
        body = {"filter": given_filter, "limit": N_PATCHES} | (
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
    assert len(set(paged)) == N_PATCHES


def test_a_page_names_the_one_before_it_as_the_specification_does(client: TestClient) -> None:
    def links_of(answer: Any) -> dict[str, str]:
        if answer.headers["content-type"] == ARROW:
            return {relation: link["url"] for relation, link in answer.links.items()}
        return {link["rel"]: link["href"] for link in answer.json()["links"]}

    for form in ("geojson", "arrow"):
        first = client.get(f"/search?limit=5&sortby=-id&f={form}")
        second = client.get(links_of(first)["next"])
        back = client.get(links_of(second)["prev"])
        assert {"next", "prev"} & set(links_of(first)) == {"next"}
        assert {"next", "prev"} & set(links_of(second)) == {"next", "prev"}
        assert {"next", "prev"} & set(links_of(back)) == {"next"}
        ids = [
            pa.ipc.open_stream(page.content).read_all()["id"].to_pylist()
            if form == "arrow"
            else [item["id"] for item in page.json()["features"]]
            for page in (first, second, back)
        ]
        assert ids[0] == ids[2] != ids[1]


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


PARQUET, ARROW = "application/vnd.apache.parquet", "application/vnd.apache.arrow.stream"
GEOJSON = "application/geo+json"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", GEOJSON),
        ("", GEOJSON),
        ("text/html", GEOJSON),
        (PARQUET, PARQUET),
        (f"text/html, {PARQUET}", PARQUET),
        (f"{GEOJSON}, {PARQUET}", GEOJSON),
        (f"{PARQUET};q=0.5, {GEOJSON};q=0.4", PARQUET),
        (f"{GEOJSON};q=0.1, {PARQUET.upper()} ; Q=0.2", PARQUET),
        (f"{PARQUET};q=0.2, application/json", GEOJSON),
        (f"*/*;q=0.1, {ARROW};version=1;q=0.9, {PARQUET};q=0.9", ARROW),
        (f"{PARQUET};q=0", GEOJSON),
        (f"{PARQUET};q=x", PARQUET),
    ],
)
@pytest.mark.parametrize("limit", ["1", "600"])
def test_the_form_that_accept_likes_most_is_answered_and_caches_are_told(
    client: TestClient, accept: str, kind: str, limit: str
) -> None:
    answer = client.get("/search", params={"limit": limit}, headers={"Accept": accept})
    assert answer.headers["content-type"] == kind
    assert "Accept" in answer.headers["vary"].split(", ")


def test_a_table_of_two_cubes_is_in_the_order_of_the_items(
    twin_client: TestClient, twins: tuple[Cube, Cube]
) -> None:
    for sortby in ("id", "-id", "-collection,id"):
        asked = {"sortby": sortby, "limit": "1000"}
        table = twin_client.get("/search", params={**asked, "f": "arrow"}).content
        found = pa.ipc.open_stream(table).read_all()["id"].to_pylist()
        assert found == _matched(twin_client, sortby=sortby)
        assert len(found) == sum(len(ids_of(cube)) for cube in twins)


@pytest.mark.parametrize("names", ["one", "one,two"])
def test_a_table_of_nothing_has_the_columns_of_one_that_holds_something(
    twin_client: TestClient, names: str
) -> None:
    def table(**query: str) -> pa.Table:
        answer = twin_client.get("/search", params={"f": "geoparquet", **query})
        return pq.read_table(io.BytesIO(answer.content))

    full, empty = table(collections=names), table(collections="nope")
    assert (len(full), len(empty)) == (10, 0)
    assert empty.schema.equals(full.schema)
    assert empty.schema.metadata[b"geo"] == full.schema.metadata[b"geo"]


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
    assert sum(other["with_label"]) == len(of_label) < N_PATCHES
    assert client.get(url, params={"label": "Grass"}).status_code == 400


def test_density_of_too_many_cells_is_refused(
    client: TestClient, cube: Cube, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"/collections/{cube.id}/density?zoom=12"
    n_cells = len(client.get(url).json()["count"])
    assert 1 < n_cells < patches._MOST_CELLS == 100_000
    monkeypatch.setattr(patches, "_MOST_CELLS", n_cells)
    assert client.get(url).status_code == 200
    monkeypatch.setattr(patches, "_MOST_CELLS", n_cells - 1)
    answer = client.get(url)
    assert answer.status_code == 400
    assert f"zoom 12 has {n_cells} cells here, more than {n_cells - 1}" in answer.text


def test_two_cubes_answer_as_one_and_each_alone(
    twin_client: TestClient, twins: tuple[Cube, Cube]
) -> None:
    one, two = map(ids_of, twins)
    assert _matched(twin_client) == one + two
    assert _matched(twin_client, sortby="-id") == sorted(one + two, reverse=True)
    assert _matched(twin_client, collections="two") == two
    assert _matched(twin_client, collections="three") == []
    assert twin_client.get(f"/collections/one/items/{two[0]}").status_code == 404
    assert [c["id"] for c in twin_client.get("/collections").json()["collections"]] == [
        "one",
        "two",
    ]


def test_no_password_of_a_url_is_told(cube: Cube) -> None:
    served = Served(cube)
    assert served.collection["id"] == cube.id  # read before the storage is another
    storage = copy.copy(cube.storage)
    object.__setattr__(storage, "url", "https://who:secret@host:8443/cubes/v2?key=secret#secret")
    served.cube = replace(cube, storage=storage)
    assert served.url == "https://host:8443/cubes/v2"
    places = np.arange(2, dtype=np.int32)
    told = [
        collection_of(served, "http://api/"),
        ItemWriter(served).features(places, "http://api/"),
        table_of(served, places).to_pylist(),
    ]
    for document in map(str, told):
        assert "https://host:8443/cubes/v2/cube.zarr" in document
        assert "secret" not in document
        assert "who" not in document


def test_a_page_of_another_origin_may_ask(client: TestClient) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    assert client.get("/search", headers=origin).headers["access-control-allow-origin"] == "*"
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "Content-Type",
    }
    answer = client.options("/search", headers=origin | asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]


@given(limit=st.integers(1, 10**12))
def test_a_page_has_at_most_10_000_items_and_a_table_a_million_rows(limit: int) -> None:
    for given_limit in (limit, str(limit)):
        assert Asked.of({"limit": given_limit}).limit == min(limit, 10_000)
        assert Asked.of({"limit": given_limit}, most=MOST_ROWS).limit == min(limit, 1_000_000)


def test_a_limit_that_is_too_large_is_taken_for_the_largest(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def page(*args: Any, limit: int, **given_too: Any) -> Any:
        asked.append(limit)
        return pages.page(*args, limit=limit, **given_too)

    monkeypatch.setattr(stac_api, "pages", SimpleNamespace(page=page))
    for form in ("geojson", "arrow"):
        assert client.get(f"/search?limit=2000000&f={form}").status_code == 200
    assert asked == [10_000, 1_000_000]


def test_cubes_of_one_name_are_refused(cube: Cube) -> None:
    with pytest.raises(InvalidInputError, match="two cubes are named"):
        create_app([cube, cube])
    with pytest.raises(InvalidInputError, match="no cube to serve"):
        create_app([])


_OGC, _STAC = "http://www.opengis.net", "https://api.stacspec.org"
_REL = f"{_OGC}/def/rel/ogc/1.0"
_BOX = "POLYGON((12 48,15 48,15 49,12 49,12 48))"
# What each class is about: links of the landing page, and questions that have an answer.
_ANSWERED: dict[str, tuple[set[str], list[str]]] = {
    f"{_STAC}/v1.0.0/core": ({"self", "root", "service-desc", "service-doc", "child"}, ["/"]),
    f"{_STAC}/v1.0.0/collections": ({"data"}, ["/collections", "/collections/{id}"]),
    f"{_STAC}/v1.0.0/ogcapi-features": ({"data", "conformance"}, ["/collections/{id}/items"]),
    f"{_STAC}/v1.0.0/ogcapi-features#fields": (set(), ["/collections/{id}/items?fields=id"]),
    f"{_STAC}/v1.1.0/ogcapi-features#sort": (set(), ["/collections/{id}/items?sortby=-id"]),
    f"{_STAC}/v1.0.0/item-search": ({"search"}, ["/search?bbox=12,48,15,49"]),
    f"{_STAC}/v1.0.0/item-search#fields": (set(), ["/search?fields=id"]),
    f"{_STAC}/v1.0.0/item-search#sort": (set(), ["/search?sortby=-id"]),
    f"{_STAC}/v1.1.0/item-search#sort": (set(), ["/search?sortby=-id"]),
    f"{_STAC}/v1.1.0/item-search#sortables": ({f"{_REL}/sortables"}, ["/sortables"]),
    f"{_STAC}/v1.0.0-rc.2/item-search#filter": ({f"{_REL}/queryables"}, ["/queryables"]),
    f"{_STAC}/v0.3.0/aggregation": (
        {"aggregate", "aggregations"},
        [
            f"{where}/{what}"
            for where in ("", "/collections/{id}")
            for what in ("aggregations", "aggregate?aggregations=total_count")
        ],
    ),
    f"{_OGC}/spec/ogcapi-features-1/1.0/conf/core": ({"conformance"}, ["/conformance"]),
    f"{_OGC}/spec/ogcapi-features-1/1.0/conf/geojson": (set(), ["/collections/{id}/items"]),
    f"{_OGC}/spec/ogcapi-features-1/1.0/conf/oas30": ({"service-desc"}, ["/api"]),
    f"{_OGC}/spec/ogcapi-features-3/1.0/conf/filter": (set(), ["/collections/{id}/queryables"]),
    f"{_OGC}/spec/ogcapi-features-3/1.0/conf/features-filter": (
        set(),
        ["/collections/{id}/items?filter=id IS NULL"],
    ),
    f"{_OGC}/spec/ogcapi-features-5/1.0/conf/sortables": (set(), ["/collections/{id}/sortables"]),
    **{
        f"{_OGC}/spec/cql2/1.0/conf/{name}": (set(), [f"/search?filter={text}" for text in texts])
        for name, texts in {
            "basic-cql2": ["id='x' OR NOT \"bec:snow\"=TRUE", "datetime<DATE('2018-01-01')"],
            "cql2-text": ["id IS NULL&filter-lang=cql2-text"],
            "cql2-json": ['{"op":"isNull","args":[{"property":"id"}]}&filter-lang=cql2-json'],
            "advanced-comparison-operators": [
                "id LIKE 'S2A%25'",
                '"bec:row" BETWEEN 1 AND 5',
                '"bec:row" IN (1,2)',
            ],
            "basic-spatial-functions": ["S_INTERSECTS(geometry,BBOX(12,48,15,49))"],
            "spatial-functions": [
                f"S_{name}(geometry,{_BOX})"
                for name in (
                    "EQUALS",
                    "DISJOINT",
                    "TOUCHES",
                    "WITHIN",
                    "OVERLAPS",
                    "CROSSES",
                    "CONTAINS",
                )
            ],
            "array-functions": [
                f"A_{name}(\"bec:labels\",('Pastures'))"
                for name in ("EQUALS", "CONTAINS", "CONTAINEDBY", "OVERLAPS")
            ],
            "property-property": ['"bec:country"="bec:season"'],
        }.items()
    },
}


def test_what_the_service_declares_it_answers_and_links_to(client: TestClient, cube: Cube) -> None:
    landing = client.get("/").json()
    assert set(landing["conformsTo"]) == set(_ANSWERED)
    assert client.get("/conformance").json()["conformsTo"] == landing["conformsTo"]
    linked = {link["rel"]: link for link in landing["links"]}
    for name, (relations, urls) in _ANSWERED.items():
        assert relations <= set(linked), name
        for url in urls:
            answer = client.get(url.replace("{id}", cube.id))
            assert answer.status_code == 200, (name, url, answer.text)
    for name in ("aggregations", f"{_REL}/queryables", f"{_REL}/sortables"):
        answer = client.get(linked[name]["href"])
        assert answer.headers["content-type"] == linked[name]["type"]
    counts = f"{linked['aggregate']['href']}?aggregations=total_count"
    assert client.get(counts).json()["aggregations"][0]["value"] == N_PATCHES


def test_a_browser_is_sent_to_the_explorer_and_a_client_is_not(client: TestClient) -> None:
    as_browser = client.get("/", headers={"Accept": "text/html"}, follow_redirects=False)
    assert (as_browser.status_code, as_browser.headers["location"][-9:]) == (307, "/explorer")
    assert "explorer" in client.get("/explorer").text
    landing = client.get("/").json()
    assert landing["type"] == "Catalog"
    assert any(link["rel"] == "search" and link["method"] == "POST" for link in landing["links"])
    assert client.get("/healthz").json()["status"] == "UP"


def test_the_explorer_is_shown_where_it_is_built_and_says_how_to_build_it_where_not(
    cube: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_EXPLORER", tmp_path)
    with TestClient(create_app([cube])) as client:
        answer = client.get("/explorer")
    assert answer.status_code == 404
    assert "make web" in answer.text
    assert answer.headers["content-type"].startswith("text/html")
    (tmp_path / "index.html").write_text("the page")
    with TestClient(create_app([cube])) as client:
        answer = client.get("/explorer")
    assert (answer.status_code, answer.text) == (200, "the page")
