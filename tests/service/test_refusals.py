"""What the service refuses, and that no request makes it fail."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from starlette.testclient import TestClient

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import StorageError
from bigearth_cube.ingest import ingest
from bigearth_cube.service.app import LARGEST_BODY, create_app
from tests.service.helpers import N_PATCHES, ids_of
from tests.sources import MemorySource


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
        ("fields=id&f=geoparquet", "leave fields out, or ask for f=geojson"),
    ],
)
def test_a_wrong_question_is_answered_with_400_and_what_to_do(
    client: TestClient, query: str, said: str
) -> None:
    answer = client.get(f"/search?{query}")
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["description"]


def test_a_parameter_that_is_there_twice_is_refused_everywhere(
    client: TestClient, cube: Cube
) -> None:
    described = client.get("/api").json()["paths"]
    ids = {"collection_id": cube.id, "item_id": ids_of(cube)[0]}
    assert len(described) > 20
    for path, operations in described.items():
        for method in operations:
            url = f"{path.format(**ids)}?bbox=1,2,3,4&f=arrow&bbox=5,6,7,8"
            answer = client.request(method, url, json={} if method == "post" else None)
            assert answer.status_code == 400, url
            assert "parameter 'bbox' is there twice; give it once" in answer.text


def test_a_token_of_another_question_is_refused(client: TestClient) -> None:
    page = client.get("/search", params={"limit": "3"}).json()
    following = next(link["href"] for link in page["links"] if link["rel"] == "next")
    assert client.get(f"{following}&sortby=-id").status_code == 400
    assert client.get(following).json()["numberMatched"] == N_PATCHES


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
        (b'{"collections": ["\\ud800"]}', "half of a surrogate pair"),
        (b'{"filter": "id = \'\\uDEAD\'"}', "half of a surrogate pair"),
        (b'{"fields": ["\\ud800"], "limit": 1}', "half of a surrogate pair"),
        (b'{"fields": ["\xed\xa0\x80"], "limit": 1}', "no UTF-8"),
        ('{"fields": ["\\ud800"], "limit": 1}'.encode("utf-16"), "no UTF-8"),
    ],
)
def test_a_wrong_body_is_answered_with_400(client: TestClient, body: bytes, said: str) -> None:
    answer = client.post("/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["description"]


def test_a_surrogate_pair_is_text(client: TestClient) -> None:
    body = b'{"ids": ["\\ud83c\\udf0d"]}'
    answer = client.post("/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["numberMatched"] == 0


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
        answer = client.get(f"/collections/{cube.id}/items/{ids_of(cube)[0]}/thumbnail.png")
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


def test_openapi_says_how_each_operation_refuses(twin_client: TestClient) -> None:
    described = twin_client.get("/api").json()
    operations = {
        f"{method} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }
    assert len(operations) > 25
    for name, operation in operations.items():
        statuses = set(operation["responses"])
        assert {"200", "400", "404", "default"} <= statuses, name
        assert "422" not in statuses, name  # what a form lacks is a wrong question, 400
        assert ("409" in statuses) == name.endswith("/similar"), name
    shape = described["components"]["schemas"]["Fault"]
    assert shape["required"] == ["code", "description"]
    refused = twin_client.post("/collections/one/similar", json={"bands": {}, "model": "bare"})
    assert set(refused.json()) == set(shape["properties"])


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
            said = (case.as_curl_command(), answer.status_code, answer.text[:500])
            assert answer.status_code < 500, said
            assert str(answer.status_code) in case.operation.definition.raw["responses"], said

        ask()
    assert asked > 25 * examples // 3
