"""The STAC API: clients that stac-fastapi calls, and the documents they answer with."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode

import attr
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from stac_fastapi.extensions.aggregation.client import BaseAggregationClient
from stac_fastapi.extensions.filter.client import BaseFiltersClient
from stac_fastapi.extensions.sort.client import BaseSortablesClient
from stac_fastapi.types.core import BaseCoreClient
from stac_fastapi.types.requests import get_base_url
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from bigearth_cube import pages, tally
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.item_index import ItemIndex, Places
from bigearth_cube.service.render import ARROW_TYPE, PARQUET_TYPE, ItemWriter, table_of
from bigearth_cube.service.requests import (
    MOST_ROWS,
    AggregateGet,
    AggregatePost,
    Asked,
    ItemsGet,
    SearchGet,
    SearchPost,
    check_parameters,
    format_of,
    question_of,
)
from bigearth_cube.service.shelf import Served, Shelf

GEOJSON: Final = "application/geo+json"
JSON: Final = "application/json"
SCHEMA: Final = "application/schema+json"
_BY_ACCEPT: Final = {"Vary": "Accept"}
_AT_ONCE: Final = 500  # items written before they are sent: 8 MB, of a page of 10,000
_SEARCHES_AT_ONCE: Final = 2
"""More threads of one interpreter only take it from each other: with 8 clients on 2 cores, 245
answers a second instead of 189."""
_MOST_CHOICES: Final = 64  # values of a property that its schema lists


class JsonResponse(Response):
    """JSON, by orjson."""

    media_type = JSON

    def render(self, content: Any) -> bytes:
        """Write the content."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


@attr.s
class CoreClient(BaseCoreClient):
    """Landing page, collections and items of a shelf."""

    shelf: Shelf = attr.ib(kw_only=True)

    def __attrs_post_init__(self) -> None:
        self._writers = {name: ItemWriter(served) for name, served in self.shelf.served.items()}
        self._turns = threading.BoundedSemaphore(_SEARCHES_AT_ONCE)

    def landing_page(self, **kwargs: Any) -> Any:
        """Answer ``GET /``; a browser is sent to the explorer."""
        request: Request = kwargs["request"]
        base = get_base_url(request)
        if request.headers.get("accept", "").startswith("text/html"):
            return RedirectResponse(f"{base}explorer", status_code=307, headers=_BY_ACCEPT)
        page = super().landing_page(**kwargs)
        page["links"] += [
            {
                "rel": "child",
                "href": _collection_url(base, served),
                "type": JSON,
                "title": served.collection.get("title", served.name),
            }
            for served in self.shelf.served.values()
        ]
        page["links"] += _links_to_ask(base)
        page["links"].append({"rel": "preview", "href": f"{base}explorer", "type": "text/html"})
        return JsonResponse(dict(page), headers=_BY_ACCEPT)

    def all_collections(self, **kwargs: Any) -> Any:
        """Answer ``GET /collections``."""
        base = get_base_url(kwargs["request"])
        collections = [collection_of(served, base) for served in self.shelf.served.values()]
        links = [_link("self", f"{base}collections"), _link("root", base), _link("parent", base)]
        n = len(collections)
        return JsonResponse(
            {"collections": collections, "links": links, "numberMatched": n, "numberReturned": n}
        )

    def get_collection(self, collection_id: str, **kwargs: Any) -> Any:
        """Answer ``GET /collections/{collection_id}``."""
        served = self.shelf[collection_id]
        return JsonResponse(collection_of(served, get_base_url(kwargs["request"])))

    def get_item(self, item_id: str, collection_id: str, **kwargs: Any) -> Any:
        """Answer ``GET /collections/{collection_id}/items/{item_id}``."""
        served = self.shelf[collection_id]
        place = np.array([served.place_of(item_id)], np.int32)
        base = get_base_url(kwargs["request"])
        (item,) = self._writers[collection_id].features(place, base)
        return Response(item, media_type=GEOJSON)

    def item_collection(self, collection_id: str, **kwargs: Any) -> Any:  # type: ignore[override]
        """Answer ``GET /collections/{collection_id}/items``."""
        request: Request = kwargs.pop("request")
        check_parameters(request, ItemsGet)
        self.shelf[collection_id]
        return self.answer(request, kwargs, [collection_id])

    def get_search(self, **kwargs: Any) -> Any:  # type: ignore[override]
        """Answer ``GET /search``."""
        request: Request = kwargs.pop("request")
        check_parameters(request, SearchGet)
        return self.answer(request, kwargs, None)

    def post_search(self, search_request: SearchPost, **kwargs: Any) -> Any:  # type: ignore[override]
        """Answer ``POST /search``."""
        return self.answer(kwargs["request"], search_request.model_dump(), None)

    def answer(
        self, request: Request, given: dict[str, Any], collections: Sequence[str] | None
    ) -> Response:
        """Answer a question with items.

        Parameters
        ----------
        request
            Whose answer it is: it says the form, and what links begin with.
        given
            Conditions, order, page and fields, as parameters or as a body.
        collections
            Names of cubes instead of those given.
        """
        form = format_of(request)
        asked = Asked.of(given, **({} if form == "geojson" else {"most": MOST_ROWS}))
        if form != "geojson" and asked.fields is not None:
            raise InvalidInputError(
                "fields are of items in JSON, and a table has all columns; leave fields out, or "
                "ask for f=geojson"
            )
        served = self.shelf.among(asked.collections if collections is None else collections)
        base = get_base_url(request)
        with self._turns:
            page = pages.page(
                [s.index for s in served],
                asked.question,
                sortby=asked.sortby,
                limit=asked.limit,
                token=asked.token,
            )
            links = _page_links(request, base, page, given)
            if form == "geojson":
                return self._json(served, asked, page, base, links)
        # A table of no cube has the columns of the others.
        return _columns(served or self.shelf.among(None), page, form, links)

    def ranked(
        self, request: Request, served: Served, places: Places, distances: NDArray[np.float64]
    ) -> Response:
        """Answer with items in the order given, each with its ``distance`` as a property."""
        base = get_base_url(request)
        items = self._writers[served.name].features(places, base)
        opening = b'"properties":{'
        far = [opening + b'"distance":%b,' % orjson.dumps(d) for d in distances.tolist()]
        written = [i.replace(opening, d, 1) for i, d in zip(items, far, strict=True)]
        n = str(len(written)).encode()
        body = b'{"type":"FeatureCollection","features":[%b],"links":[],"numberReturned":%b}'
        return Response(body % (b",".join(written), n), media_type=GEOJSON)

    def _json(
        self,
        served: Sequence[Served],
        asked: Asked,
        page: pages.Page,
        base: str,
        links: list[dict[str, Any]],
    ) -> Response:
        tail = orjson.dumps(
            {"links": links, "numberMatched": page.matched, "numberReturned": len(page)}
        )

        def written() -> Iterator[bytes]:
            opening = b'{"type":"FeatureCollection","features":['
            for start in range(0, len(page), _AT_ONCE):
                some = slice(start, start + _AT_ONCE)
                items = self._items(served, page.which[some], page.places[some], base)
                if asked.fields is not None:
                    fields = asked.fields
                    items = [orjson.dumps(fields.apply(orjson.loads(item))) for item in items]
                yield opening + b",".join(items)
                opening = b","
            yield (opening if not len(page) else b"") + b"]," + tail[1:]

        if len(page) <= _AT_ONCE:
            return Response(b"".join(written()), media_type=GEOJSON, headers=_BY_ACCEPT)
        return StreamingResponse(written(), media_type=GEOJSON, headers=_BY_ACCEPT)

    def _items(
        self, served: Sequence[Served], which: NDArray[np.uint8], places: Places, base: str
    ) -> list[bytes]:
        if len(served) == 1:
            return self._writers[served[0].name].features(places, base)
        items: list[bytes] = [b""] * len(places)
        for number, one in enumerate(served):
            at = np.flatnonzero(which == number)
            features = self._writers[one.name].features(places[at], base)
            for position, feature in zip(at.tolist(), features, strict=True):
                items[position] = feature
        return items


def _page_links(
    request: Request, base: str, page: pages.Page, given: dict[str, Any]
) -> list[dict[str, Any]]:
    links = [_link("root", base), {**_link("self", str(request.url)), "type": GEOJSON}]
    for rel, token in (("next", page.next), ("prev", page.previous)):
        if token is None:
            continue
        link: dict[str, Any] = {"rel": rel, "type": GEOJSON, "method": request.method}
        here = (
            f"{base.rstrip('/')}{request.url.path.removeprefix(request.scope.get('root_path', ''))}"
        )
        if request.method == "POST":
            body = {k.replace("_", "-"): v for k, v in given.items() if v is not None}
            link |= {"href": here, "body": body | {"token": token}, "merge": False}
        else:
            kept = [(k, v) for k, v in request.query_params.multi_items() if k != "token"]
            link["href"] = f"{here}?{urlencode([*kept, ('token', token)])}"
        links.append(link)
    return links


def _columns(
    served: Sequence[Served], page: pages.Page, form: str, links: list[dict[str, Any]]
) -> Response:
    """Answer with a table; the links of the page stand in the headers."""
    parts = [table_of(one, page.places[page.which == number]) for number, one in enumerate(served)]
    table = pa.concat_tables(parts, promote_options="default")
    if len(parts) > 1:
        positions = np.concatenate([np.flatnonzero(page.which == n) for n in range(len(parts))])
        table = table.take(pa.array(np.argsort(positions, kind="stable")))
    sink = io.BytesIO()
    if form == "arrow":
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    else:
        pq.write_table(table, sink, compression="zstd")
    headers = {
        "OGC-NumberMatched": str(page.matched),
        "OGC-NumberReturned": str(len(page)),
        **_BY_ACCEPT,
    }
    following = [
        f'<{link["href"]}>; rel="{link["rel"]}"'
        for link in links
        if link["rel"] in ("next", "prev") and "body" not in link
    ]
    if following:
        headers["Link"] = ", ".join(following)
    kind = ARROW_TYPE if form == "arrow" else PARQUET_TYPE
    return Response(sink.getvalue(), media_type=kind, headers=headers)


def collection_of(served: Served, base: str) -> dict[str, Any]:
    """Describe a cube as the API has it: links of the API, hrefs absolute."""
    stored = served.collection
    own = _collection_url(base, served)
    beside = served.url.rstrip("/") + "/"

    def absolute(entry: dict[str, Any]) -> dict[str, Any]:
        href = entry["href"]
        return {**entry, "href": beside + href.removeprefix("./")} if href[:2] == "./" else entry

    inferred = ("self", "root", "parent", "items", "item", "collection")
    links = [
        _link("self", own),
        _link("root", base),
        _link("parent", base),
        {"rel": "items", "href": f"{own}/items", "type": GEOJSON},
        {
            "rel": "http://www.opengis.net/def/rel/ogc/1.0/queryables",
            "href": f"{own}/queryables",
            "type": SCHEMA,
        },
        *_links_to_ask(f"{own}/"),
    ]
    kept = [absolute(link) for link in stored["links"] if link["rel"] not in inferred]
    assets = {name: absolute(asset) for name, asset in stored.get("assets", {}).items()}
    return {**stored, "links": links + kept, "assets": assets}


def _links_to_ask(base: str) -> list[dict[str, Any]]:
    return [
        {
            "rel": "http://www.opengis.net/def/rel/ogc/1.0/sortables",
            "href": f"{base}sortables",
            "type": SCHEMA,
        },
        _link("aggregate", f"{base}aggregate"),
        _link("aggregations", f"{base}aggregations"),
    ]


def _collection_url(base: str, served: Served) -> str:
    return f"{base}collections/{quote(served.name, safe='')}"


def _link(rel: str, href: str) -> dict[str, Any]:
    return {"rel": rel, "href": href, "type": JSON}


# --- what may be asked ---------------------------------------------------------------------------


@attr.s
class QueryablesClient(BaseFiltersClient):
    """Properties that a filter may name."""

    shelf: Shelf = attr.ib(kw_only=True)

    def get_queryables(self, collection_id: str | None = None, **kwargs: Any) -> Any:
        """Answer ``/queryables`` and ``/collections/{collection_id}/queryables``."""
        served = _chosen(self.shelf, collection_id)
        url = str(kwargs["request"].url)
        common = [set(one.index.queryables) for one in served]
        names = sorted(set.intersection(*common))
        schema = _schema(url, "Queryables", {name: _kind(served, name) for name in names})
        return JsonResponse(schema, media_type=SCHEMA)


@attr.s
class SortablesClient(BaseSortablesClient):
    """Properties that an answer may be sorted by."""

    shelf: Shelf = attr.ib(kw_only=True)

    def get_sortables(self, request: Request | None = None, **kwargs: Any) -> Any:
        """Answer ``/sortables``."""
        return self._answer(None, request)

    def get_collection_sortables(
        self, collection_id: str, request: Request | None = None, **kwargs: Any
    ) -> Any:
        """Answer ``/collections/{collection_id}/sortables``."""
        return self._answer(collection_id, request)

    def _answer(self, collection_id: str | None, request: Request | None) -> Any:
        served = _chosen(self.shelf, collection_id)
        names = sorted(set.intersection(*(set(one.index.sortables) for one in served)))
        properties = {name: _kind(served, name) for name in names}
        schema = _schema(str(request.url) if request else "", "Sortables", properties)
        return JsonResponse(schema, media_type=SCHEMA)


def _chosen(shelf: Shelf, collection_id: str | None) -> list[Served]:
    return shelf.among(None) if collection_id is None else [shelf[collection_id]]


def _schema(url: str, title: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": url,
        "type": "object",
        "title": title,
        "properties": properties,
        "additionalProperties": False,
    }


def _kind(served: Sequence[Served], name: str) -> dict[str, Any]:
    kind = served[0].index.table.schema.field(name).type
    about: dict[str, Any] = {"title": name}
    if pa.types.is_binary(kind):
        return about | {"$ref": "https://geojson.org/schema/Geometry.json"}
    if pa.types.is_list(kind):
        items = {"type": "string"} | _enum([one.index.sets(name)[0] for one in served])
        return about | {"type": "array", "items": items}
    if pa.types.is_timestamp(kind):
        return about | {"type": "string", "format": "date-time"}
    if pa.types.is_boolean(kind):
        return about | {"type": "boolean"}
    if pa.types.is_string(kind):
        return about | {"type": "string"} | _choices([one.index for one in served], name)
    return about | {"type": "integer" if pa.types.is_integer(kind) else "number"}


def _choices(indexes: Sequence[ItemIndex], name: str) -> dict[str, Any]:
    coded = [index.codes(name) for index in indexes]
    if any(codes is None for codes in coded):
        return {}
    return _enum([codes[0].to_pylist() for codes in coded if codes is not None])


def _enum(names: Sequence[Sequence[str]]) -> dict[str, Any]:
    values = sorted({name for some in names for name in some})
    return {"enum": values} if 0 < len(values) <= _MOST_CHOICES else {}


# --- counts --------------------------------------------------------------------------------------


@attr.s
class AggregationClient(BaseAggregationClient):
    """Counts of what a question finds."""

    shelf: Shelf = attr.ib(kw_only=True)

    def get_aggregations(self, collection_id: str | None = None, **kwargs: Any) -> Any:
        """Answer ``/aggregations``, of all or of one collection."""
        _chosen(self.shelf, collection_id)
        kinds = {"total_count": "integer", "datetime_min": "datetime", "datetime_max": "datetime"}
        listed = [
            {"name": name, "data_type": kinds.get(name, "frequency_distribution")}
            for name in tally.AGGREGATIONS
        ]
        return _counts(kwargs["request"], listed)

    def aggregate(  # type: ignore[override]
        self, given: AggregatePost | None = None, collection_id: str | None = None, **kwargs: Any
    ) -> Any:
        """Answer ``/aggregate``, of all or of one collection."""
        request: Request = kwargs.pop("request")
        if given is None:
            check_parameters(request, AggregateGet)
            conditions = kwargs
        else:
            conditions = given.model_dump()
        collection_id = collection_id or request.path_params.get("collection_id")
        served = _chosen(self.shelf, collection_id)
        collections = conditions.get("collections")
        if collection_id is None and collections:
            wanted = collections.split(",") if isinstance(collections, str) else collections
            served = self.shelf.among(wanted)
        names = conditions.get("aggregations")
        names = names.split(",") if isinstance(names, str) else names
        if not names:
            raise InvalidInputError(
                f"no aggregations named; choose from: {', '.join(tally.AGGREGATIONS)}"
            )
        counted = tally.aggregate(
            [one.index for one in served],
            question_of(conditions),
            names,
            zoom=conditions.get("zoom", 6),
        )
        return _counts(request, counted)


def _counts(request: Request, aggregations: list[dict[str, Any]]) -> Response:
    base = get_base_url(request)
    return JsonResponse(
        {
            "type": "AggregationCollection",
            "aggregations": aggregations,
            "links": [_link("root", base), _link("self", str(request.url))],
        }
    )
