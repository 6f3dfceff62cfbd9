"""Load the items of a cube into pgstac, for those who run PostgreSQL and eoAPI.

The loader is pypgstac's own, so its partitions, its dehydrated items and its statistics are as
pgstac wants them; this gives it the items that our own service answers with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import psycopg
from pypgstac.db import PgstacDB
from pypgstac.load import Loader, Methods
from pypgstac.migrate import Migrate

from bigearth_cube import stac
from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError, StorageError

_BATCH: Final = 10_000
# A set function of CQL2 compares arrays of text only where pgstac knows the property for one.
_QUERYABLES: Final[Mapping[str, tuple[dict[str, Any], str | None]]] = {
    "bec:row": ({"type": "integer"}, "to_int"),
    "bec:labels": ({"type": "array", "items": {"type": "string"}}, "to_text_array"),
    "bec:labels_43": ({"type": "array", "items": {"type": "string"}}, "to_text_array"),
    **{
        name: ({"type": "string"}, "to_text")
        for name in (
            "bec:split",
            "bec:country",
            "bec:season",
            "bec:place",
            "bec:tile",
            "bec:s1_id",
            "grid:code",
            "proj:code",
            "platform",
        )
    },
    **{name: ({"type": "boolean"}, None) for name in ("bec:snow", "bec:cloud_or_shadow")},
}


def export_pgstac(
    cube: Cube,
    dsn: str,
    *,
    migrate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Load collection, queryables and all items of a cube into a pgstac database.

    Again for a newer release, or after a run that was stopped: what is there is brought up to
    date, nothing is there twice.

    Parameters
    ----------
    cube
        The cube, at the release to export.
    dsn
        As libpq has it: ``postgresql://user@host/database``, or ``host=… dbname=…``.
    migrate
        Install pgstac in the database, or bring it to the version of the pypgstac here.
    progress
        Called with items loaded and items in all.

    Returns
    -------
    int
        How many items were loaded.

    Raises
    ------
    InvalidInputError
        If the database has no pgstac, or that of another version, and ``migrate`` is False.
    StorageError
        If the database cannot be reached or refuses.
    """
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SET search_path TO pgstac, public")
            database = PgstacDB(connection=connection)
            _prepare(database, migrate)
            loader = Loader(database)
            loader.load_collections(iter([_collection(cube)]), Methods.upsert)
            _register(connection, cube)
            loader.load_items(_items(cube, progress), Methods.upsert)
    except psycopg.Error as error:
        said = " ".join(str(error).split())
        raise StorageError(f"PostgreSQL refuses or cannot be reached: {said}") from None
    return len(cube.items)


def _prepare(database: Any, migrate: bool) -> None:
    if migrate:
        Migrate(database).run_migration()
        database.connection.autocommit = True
        database.connection.execute("SET search_path TO pgstac, public")
        return
    exists = database.connection.execute("SELECT to_regclass('pgstac.migrations')").fetchone()
    if exists[0] is None:
        raise InvalidInputError(
            "the database has no pgstac; let this install it with --migrate, or run "
            "'pypgstac migrate' first"
        )
    try:
        Loader(database).check_version()
    except psycopg.Error:
        raise  # a lost connection says nothing of versions
    except Exception as error:  # noqa: BLE001  # pypgstac raises nothing narrower
        raise InvalidInputError(f"{error} Bring it up to date with --migrate.") from None


def _collection(cube: Cube) -> dict[str, Any]:
    made = stac.collection(
        cube.id, archive=cube.archive, items=cube.items, version=cube.release.name
    )
    base = cube.url.rstrip("/")
    for entry in [*made["links"], *made["assets"].values()]:
        if entry["href"].startswith("./"):
            entry["href"] = base + entry["href"].removeprefix(".")
    return made


def _register(connection: Any, cube: Cube) -> None:
    """Say of our properties what they are, once for all collections that have them."""
    for name, (definition, wrapper) in _QUERYABLES.items():
        if name not in cube.items.column_names:
            continue
        known = connection.execute("SELECT 1 FROM queryables WHERE name = %s", [name]).fetchone()
        if known is None:
            connection.execute(
                "INSERT INTO queryables (name, definition, property_wrapper) VALUES (%s, %s, %s)",
                [name, json.dumps({"title": name, **definition}), wrapper],
            )


def _items(cube: Cube, progress: Callable[[int, int], None] | None) -> Iterator[dict[str, Any]]:
    table = cube.items
    for start in range(0, len(table), _BATCH):
        part = table.slice(start, _BATCH)
        yield from stac.items(part, cube_url=cube.url)
        if progress is not None:
            progress(start + len(part), len(table))
