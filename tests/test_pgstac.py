"""The items of a cube in pgstac: the same answers as ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bigearth_cube import stac
from bigearth_cube.cli import main
from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError, StorageError
from bigearth_cube.pages import page
from bigearth_cube.search import Question
from tests.postgres import postgres_server

psycopg = pytest.importorskip("psycopg", reason="pypgstac is not installed")
pgstac = pytest.importorskip("bigearth_cube.pgstac", reason="pypgstac is not installed")
pytestmark = pytest.mark.slow  # 15 to 30 s, most of it pgstac's own installation


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """DSN of an empty PostgreSQL server on loopback, stopped at the end."""
    with postgres_server() as dsn:
        yield dsn


@pytest.fixture(scope="module")
def loaded(server: str, cube: Cube) -> str:
    """DSN of that server with pgstac and all items of the cube, put there by the command."""
    with pytest.raises(InvalidInputError, match=r"the database has no pgstac; .* --migrate"):
        pgstac.export_pgstac(cube, server)
    main(["export", "pgstac", cube.url, server, "--migrate"])
    return server


def asked_of_pgstac(
    dsn: str, query: dict[str, Any], *, hydrated: bool = False
) -> list[dict[str, Any]]:
    """All items of an answer, in its order."""
    query = {**query, "conf": {"nohydrate": not hydrated}}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET search_path TO pgstac, public")
        body = psycopg.types.json.Jsonb({"limit": 10_000, **query})
        return list(connection.execute("SELECT search(%s)", [body]).fetchone()[0]["features"])


LABEL = {"op": "a_contains", "args": [{"property": "bec:labels"}, ["Pastures"]]}
SUMMER = {"op": "=", "args": [{"property": "bec:season"}, "summer"]}
SHAPE = {
    "type": "Polygon",
    "coordinates": [[[12.4, 48.0], [12.9, 47.9], [12.8, 48.5], [12.4, 48.0]]],
}
QUERIES: dict[str, dict[str, Any]] = {
    "everything": {},
    "a box": {"bbox": [12.5, 48.1, 12.7, 48.3]},
    "a box without items": {"bbox": [0, 0, 1, 1]},
    "a shape": {"intersects": SHAPE},
    "a time": {"datetime": "2017-06-13T00:00:00Z/2017-06-14T00:00:00Z"},
    "a time without items": {"datetime": "2018-01-01T00:00:00Z/.."},
    "box, time and season": {
        "bbox": [12.5, 48.1, 12.7, 48.3],
        "datetime": "2017-06-01T00:00:00Z/..",
        "filter": SUMMER,
    },
    "a label": {"filter": LABEL},
    "one of labels": {
        "filter": {
            "op": "a_overlaps",
            "args": [{"property": "bec:labels"}, ["Pastures", "Mixed forest"]],
        }
    },
    "and, or, not": {
        "filter": {
            "op": "and",
            "args": [
                {
                    "op": "or",
                    "args": [LABEL, {"op": "=", "args": [{"property": "bec:snow"}, True]}],
                },
                {"op": "not", "args": [{"op": "=", "args": [{"property": "bec:split"}, "test"]}]},
            ],
        }
    },
    "a range": {"filter": {"op": "between", "args": [{"property": "bec:row"}, 100, 140]}},
    "a list": {"filter": {"op": "in", "args": [{"property": "bec:split"}, ["test", "validation"]]}},
    "a pattern": {"filter": {"op": "like", "args": [{"property": "bec:place"}, "33UUP_1%"]}},
    "a comparison": {"filter": {"op": ">=", "args": [{"property": "bec:row"}, 500]}},
    "a spatial filter": {
        "filter": {"op": "s_intersects", "args": [{"property": "geometry"}, SHAPE]}
    },
    "cloud cover": {"filter": {"op": "<=", "args": [{"property": "eo:cloud_cover"}, 10]}},
    "unknown cloud cover": {"filter": {"op": "isNull", "args": [{"property": "eo:cloud_cover"}]}},
}


@pytest.mark.parametrize("name", QUERIES)
def test_pgstac_and_we_find_the_same(loaded: str, cube: Cube, name: str) -> None:
    query = QUERIES[name]
    theirs = asked_of_pgstac(loaded, {**query, "collections": [cube.id]})
    ours = cube.search(**query)
    assert sorted(item["id"] for item in theirs) == sorted(ours.ids.to_pylist())
    assert bool(theirs) == (
        name not in ("a box without items", "a time without items", "cloud cover")
    )


@pytest.mark.parametrize("sortby", [[("bec:split", "desc"), ("id", "asc")], [("bec:row", "desc")]])
def test_pgstac_and_we_sort_alike(loaded: str, cube: Cube, sortby: list[tuple[str, str]]) -> None:
    keys = [{"field": field, "direction": direction} for field, direction in sortby]
    theirs = asked_of_pgstac(loaded, {"collections": [cube.id], "sortby": keys})
    ours = page(cube.index, Question.of(), sortby=keys, limit=1000)
    assert [item["id"] for item in theirs] == cube.items["id"].take(ours.places).to_pylist()


def test_items_come_out_of_pgstac_as_they_went_in(loaded: str, cube: Cube) -> None:
    theirs = {
        item["id"]: item
        for item in asked_of_pgstac(loaded, {"collections": [cube.id]}, hydrated=True)
    }
    for item in stac.items(cube.items, cube_url=cube.url):
        found = theirs[item["id"]]
        found["links"] = [link for link in found["links"] if link["rel"] in ("collection", "store")]
        assert found == item


def test_exporting_again_changes_nothing(loaded: str, cube: Cube) -> None:
    calls: list[tuple[int, int]] = []
    n = pgstac.export_pgstac(cube, loaded, progress=lambda *done: calls.append(done))
    assert n == len(cube.items)
    assert calls[-1] == (n, n)
    assert len(asked_of_pgstac(loaded, {})) == n


def test_a_database_out_of_reach_is_said_in_one_line(cube: Cube) -> None:
    with pytest.raises(StorageError, match=r"PostgreSQL refuses or cannot be reached: .*refused"):
        pgstac.export_pgstac(cube, "postgresql://bec@127.0.0.1:9/postgres")


def test_a_connection_that_is_lost_is_not_taken_for_an_old_version(
    loaded: str, cube: Cube, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(_: Any) -> None:
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(pgstac.Loader, "check_version", lose)
    with pytest.raises(StorageError, match="server closed the connection"):
        pgstac.export_pgstac(cube, loaded)
