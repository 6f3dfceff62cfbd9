"""A question asked of the service becomes a selection file, and stays a question."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from bigearth_cube.cube import Cube
from bigearth_cube.search import Selection
from tests.service.helpers import ids_of

AUTUMN = "\"bec:season\" = 'autumn'"
AUTUMN_JSON = '{"op": "=", "args": [{"property": "bec:season"}, "autumn"]}'


@pytest.mark.parametrize(
    ("asked", "query"),
    [
        ({"filter": AUTUMN, "filter-lang": "cql2-text"}, {"filter": AUTUMN}),
        ({"filter": AUTUMN_JSON}, {"filter": AUTUMN}),
        ({"bbox": "-10,36,30,60.5"}, {"bbox": [-10, 36, 30, 60.5]}),
        (
            {"intersects": '{"type": "Point", "coordinates": [16.5, 48.2]}'},
            {"intersects": {"type": "Point", "coordinates": [16.5, 48.2]}},
        ),
        ({"datetime": "2017-06-01T00:00:00Z/.."}, {"datetime": "2017-06-01T00:00:00Z/.."}),
        ({}, {}),
    ],
)
def test_a_selection_from_the_service_is_that_of_the_library_and_knows_its_question(
    client: TestClient, cube: Cube, tmp_path: Path, asked: dict[str, str], query: dict[str, object]
) -> None:
    answer = client.get(f"/collections/{cube.id}/selection", params=asked)
    assert answer.status_code == 200, answer.text
    (tmp_path / "file.parquet").write_bytes(answer.content)
    selection = Selection.load(str(tmp_path / "file.parquet"))
    assert selection.digest == cube.search(**query).digest
    if asked:
        assert selection.resolve(cube, by="query").digest == selection.digest


def test_patches_by_name_are_a_selection_too(
    client: TestClient, cube: Cube, tmp_path: Path
) -> None:
    some = ids_of(cube)[5:7]
    answer = client.get(f"/collections/{cube.id}/selection", params={"ids": ",".join(some)})
    (tmp_path / "file.parquet").write_bytes(answer.content)
    selection = Selection.load(str(tmp_path / "file.parquet"))
    assert sorted(selection.ids.to_pylist()) == sorted(some)
    assert len(selection.resolve(cube, by="query")) == 2
