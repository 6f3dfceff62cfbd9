"""Look-alikes of patches that are here, elsewhere, or posted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.ingest import ingest
from bigearth_cube.retrieval import index as retrieval_index
from bigearth_cube.retrieval import neighbors
from bigearth_cube.service import alike
from bigearth_cube.service.app import create_app
from tests.service.helpers import encoder, features_of, ids_of
from tests.sources import MemorySource, index_of, pixels_of


def _ranked(answer: Any) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    features = answer.json()["features"]
    return [(item["id"], item["properties"]["distance"]) for item in features]


@pytest.mark.parametrize("metric", ["chi2", "cosine", "euclidean", "hamming"])
def test_look_alikes_are_those_of_the_library(
    twin_client: TestClient, twins: tuple[Cube, Cube], metric: Any
) -> None:
    name = ids_of(twins[0])[9]
    expected = neighbors(twins[0], name, k=5, model="means", metric=metric)
    query = {"k": "5", "model": "means", "metric": metric}
    found = _ranked(twin_client.get(f"/collections/one/items/{name}/similar", params=query))
    assert [one for one, _ in found] == [neighbor.id for neighbor in expected]
    assert [far for _, far in found] == pytest.approx([n.score for n in expected])


def test_the_largest_k_gives_as_many_look_alikes(
    twin_client: TestClient, twins: tuple[Cube, Cube], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (retrieval_index, alike):
        monkeypatch.setattr(module, "MAX_K", 30)
    url = f"/collections/one/items/{ids_of(twins[0])[9]}/similar"
    assert len(_ranked(twin_client.get(url, params={"k": "30", "model": "means"}))) == 30
    answer = twin_client.get(url, params={"k": "31", "model": "means"})
    assert (answer.status_code, answer.json()["description"]) == (400, "k is 31, expected 1 to 30")


def test_a_filter_applies_inside_the_search_for_look_alikes(
    twin_client: TestClient, twins: tuple[Cube, Cube]
) -> None:
    name, text = ids_of(twins[0])[9], "\"bec:split\" = 'test'"
    query = {"k": "1000", "model": "means", "filter": text}
    found = _ranked(twin_client.get(f"/collections/one/items/{name}/similar", params=query))
    expected = {*twins[0].search(filter=text).ids.to_pylist()} - {name}
    assert {one for one, _ in found} == expected


def test_a_posted_patch_finds_itself_first_and_its_item_does_not(
    twin_client: TestClient, twins: tuple[Cube, Cube]
) -> None:
    name = ids_of(twins[0])[4]
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
    name = ids_of(twins[1])[2]
    body = {"item": {"collection": "two", "id": name}, "model": "means", "metric": "euclidean"}
    found = _ranked(twin_client.post("/collections/one/similar", json=body))
    query = features_of(pixels_of(index_of(name)).s2["s2/r10m"])
    far = {
        one: float(np.linalg.norm(features_of(pixels_of(index_of(one)).s2["s2/r10m"]) - query))
        for one in ids_of(twins[0])
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
        (_posted(B04=[[1] * 240] * 60), 400, "120 x 120"),
        (_posted(B04=[[[1] * 120] * 120]), 400, "120 x 120"),
        (_posted(B04=[[1.7] * 120] * 120), 400, "B04 has 1.7; expected DN, which are whole"),
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


def test_a_parameter_of_look_alikes_that_is_unknown_is_refused(
    twin_client: TestClient, twins: tuple[Cube, Cube]
) -> None:
    url = f"/collections/one/items/{ids_of(twins[0])[9]}/similar?model=means"
    answer = twin_client.get(f"{url}&metrics=cosine")
    assert answer.status_code == 400
    assert "unknown parameter 'metrics'; choose from: bbox, " in answer.json()["description"]


def test_bands_come_as_rows_or_as_one_list(twin_client: TestClient) -> None:
    rows = np.arange(120 * 120).reshape(120, 120)
    as_posted = [rows.tolist(), rows.ravel().tolist(), rows.astype(float).tolist()]
    found = [
        _ranked(twin_client.post("/collections/one/similar", json=_posted(B04=values)))
        for values in as_posted
    ]
    assert found[0] == found[1] == found[2]


@pytest.fixture(scope="module")
def two_sensors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Cube]]:
    """A cube with embeddings of two models of one space, and of one of another."""
    url = str(tmp_path_factory.mktemp("sensors") / "cube")
    ingest(MemorySource(30), url, workers=1, cube_id="sensors")
    cube = open_cube(url)
    vectors = np.full((cube.n_rows, 4), np.nan, np.float32)
    for row, name in zip(cube.rows.tolist(), ids_of(cube), strict=True):
        vectors[row] = features_of(pixels_of(index_of(name)).s2["s2/r10m"])
    for model, values, space in (
        ("net-s2", vectors, "aa"),
        ("net-s1", vectors[:, ::-1], "aa"),
        ("other-s1", vectors, "bb"),
    ):
        about = {"encoder": f"embeddings/{model}/encoder.onnx", "space": space}
        onnx_model = encoder((3, 2, 1, 0) if model == "net-s1" else (0, 1, 2, 3))
        open_cube(url).write_embeddings(model, values, about, encoder=onnx_model)
    open_cube(url).write_embeddings("bare-s1", vectors, {"space": "aa"})
    cube = open_cube(url)
    with TestClient(create_app([cube]), raise_server_exceptions=False) as client:
        yield client, cube


def test_a_query_of_one_model_finds_answers_of_another_of_its_space(
    two_sensors: tuple[TestClient, Cube],
) -> None:
    client, cube = two_sensors
    name = ids_of(cube)[9]
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
    url = f"/collections/sensors/items/{ids_of(cube)[9]}/similar"
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
    url = f"/collections/{cube.id}/items/{ids_of(cube)[0]}/similar"
    assert client.get(url).status_code == 404
