"""Ask a STAC API, and freeze what it finds as if its cube had been asked."""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pystac import STACError
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.warnings import PystacClientWarning

from bigearth_cube.cql import parse_filter
from bigearth_cube.errors import InvalidInputError, NotFoundError, StorageError
from bigearth_cube.nomenclature import check_split
from bigearth_cube.search import Selection

_PAGE: Final = 10_000
_WANTED: Final = {
    "include": ["id", "collection", "properties.bec:row"],
    "exclude": ["geometry", "bbox", "links", "assets", "stac_extensions"],
}


def search_api(url: str, *, collection: str | None = None, **query: Any) -> Selection:
    """Select patches through a STAC API, such as ``bec serve``: the same rows, the same digest.

    Parameters
    ----------
    url
        Landing page of the API.
    collection
        Id of the cube; not needed where the API has one collection.
    **query
        As for ``bigearth_cube.search.search``.

    Returns
    -------
    Selection
        Of the release that the API serves, which its collection names as ``version``.

    Raises
    ------
    NotFoundError
        If there is no STAC API, or no such collection.
    InvalidInputError
        If the API refuses the query, cannot filter, has several collections, or serves what is no
        cube.
    StorageError
        If the API cannot be reached or fails.
    """
    with warnings.catch_warnings():
        # What it cannot do is asked below; its items are used by their names alone.
        warnings.simplefilter("ignore", PystacClientWarning)
        client = _opened(url)
        try:
            return _selection(client, url, collection, query)
        except APIError as error:
            raise _refusal(url, error) from None


def _opened(url: str) -> Any:
    no_api = NotFoundError(f"no STAC API at {url}; expected its landing page, as JSON")
    try:
        client = Client.open(url)
    except APIError as error:
        if getattr(error, "status_code", None) is None:
            raise _refusal(url, error) from None
        raise no_api from None
    except (STACError, KeyError, TypeError, ValueError):
        raise no_api from None
    if not client.conforms_to("ITEM_SEARCH"):
        raise no_api
    return client


def _refusal(url: str, error: APIError) -> Exception:
    status = getattr(error, "status_code", None)
    said = " ".join(str(error).split())[:500]
    if status is not None and 400 <= status < 500:
        return InvalidInputError(f"{url} refuses the query ({status}): {said}")
    return StorageError(f"{url} cannot be asked: {said}")


def _selection(client: Any, url: str, collection: str | None, query: dict[str, Any]) -> Selection:
    about = _collection(client, url, collection)
    release = about.extra_fields.get("version")
    if not isinstance(release, str):
        raise InvalidInputError(
            f"collection {about.id!r} of {url} names no release as its version; it is no cube"
        )
    asked = {name: value for name, value in query.items() if value is not None}
    condition = _filter(asked)
    if condition is not None and not client.conforms_to("FILTER"):
        raise InvalidInputError(
            f"{url} cannot filter; ask by bbox, datetime and ids, or ask the cube itself"
        )
    told: dict[str, Any] = {
        name: asked[name] for name in ("bbox", "intersects", "datetime", "ids") if name in asked
    }
    if condition is not None:
        told |= {"filter": condition, "filter_lang": "cql2-json"}
    if client.conforms_to("FIELDS"):
        told["fields"] = _WANTED
    found = client.search(collections=[about.id], limit=_PAGE, **told)
    names, rows = [], []
    for item in found.items_as_dicts():
        names.append(item["id"])
        rows.append(item.get("properties", {}).get("bec:row"))
    if None in rows:
        raise InvalidInputError(
            f"item {names[rows.index(None)]!r} of {url} says no bec:row; it is no row of a cube"
        )
    order = np.argsort(np.array(rows, np.int64), kind="stable")
    ids = pa.array(names, pa.string()).take(pa.array(order))
    return Selection(about.id, release, np.array(rows, np.int64)[order], ids, asked)


def _collection(client: Any, url: str, name: str | None) -> Any:
    collections = {c.id: c for c in client.get_collections()}
    choices = ", ".join(sorted(collections)) or "none"
    if name is None and len(collections) != 1:
        raise InvalidInputError(
            f"{url} has {len(collections)} collections; choose one of: {choices}"
        )
    if name is not None and name not in collections:
        raise NotFoundError(f"no collection {name!r} at {url}; it has: {choices}")
    return collections[name] if name is not None else next(iter(collections.values()))


def _filter(asked: dict[str, Any]) -> Any:
    """Give the filter as CQL2 JSON, with the split as a condition of it."""
    conditions = []
    if "split" in asked:
        split = check_split(asked["split"])
        conditions.append({"op": "=", "args": [{"property": "bec:split"}, split]})
    if "filter" in asked:
        conditions.append(parse_filter(asked["filter"]))
    if not conditions:
        return None
    return conditions[0] if len(conditions) == 1 else {"op": "and", "args": conditions}
