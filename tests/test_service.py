"""The service: what it answers, what it refuses, and that no request makes it fail."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from bigearth_cube import stac
from bigearth_cube.cube import Cube
from bigearth_cube.service.app import create_app


@pytest.fixture(scope="module")
def client(cube: Cube) -> Iterator[TestClient]:
    """The service over the cube of 600 known patches."""
    with TestClient(create_app([cube]), raise_server_exceptions=False) as client:
        yield client


def test_items_are_those_that_the_library_makes_but_for_links_of_the_api(
    client: TestClient, cube: Cube
) -> None:
    answer = client.get("/search", params={"limit": "600"}).json()
    expected = stac.items(cube.items, cube_url=cube.url)
    assert answer["numberMatched"] == answer["numberReturned"] == len(expected) == 600
    for item, known in zip(answer["features"], json.loads(json.dumps(expected)), strict=True):
        item["assets"].pop("thumbnail")
        del item["links"], known["links"]
        assert item == known
