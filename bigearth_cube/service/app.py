"""The application: the STAC API and what stands beside it, with errors in words.

State is what was opened at the start, so any number of processes answer alike.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from brotli_asgi import BrotliMiddleware
from fastapi import Depends, FastAPI
from stac_fastapi.api.app import StacApi
from stac_fastapi.api.models import EmptyRequest
from stac_fastapi.api.routes import create_async_endpoint
from stac_fastapi.extensions.aggregation import AggregationExtension
from stac_fastapi.extensions.fields import FieldsExtension
from stac_fastapi.extensions.fields.fields import FieldsConformanceClasses
from stac_fastapi.extensions.filter import FilterConformanceClasses, FilterExtension
from stac_fastapi.extensions.sort import (
    ItemCollectionSortExtension,
    SearchSortExtension,
    SortConformanceClasses,
)
from stac_fastapi.types.config import ApiSettings
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bigearth_cube.cube import Cube
from bigearth_cube.items_table import STAC_VERSION
from bigearth_cube.service import patches, requests
from bigearth_cube.service.faults import FAULTS, add_faults, fault
from bigearth_cube.service.shelf import Shelf
from bigearth_cube.service.stac_api import (
    AggregationClient,
    CoreClient,
    JsonResponse,
    QueryablesClient,
    SortablesClient,
)

LARGEST_BODY: Final = 4 << 20
"""Bytes: 12 bands of a patch as JSON numbers are 1.5 MB, a question is far less."""
_TITLE: Final = "BigEarthNet"
_DESCRIPTION: Final = (
    "Sentinel-1 and Sentinel-2 patches of BigEarthNet with land-cover labels, from cubes."
)
_EXPLORER: Final = Path(__file__).parent / "explorer" / "dist"
_NO_EXPLORER: Final = (
    "<!doctype html><html lang=en><title>BigEarthNet</title><p>The explorer is not built: run "
    "<code>make web</code> in a checkout (it needs Node), or install a wheel, which has it. "
    "The API is there: <a href=api.html>its operations</a>.</p></html>"
)
_FILTERS: Final[list[str]] = [
    FilterConformanceClasses.FILTER,
    FilterConformanceClasses.SEARCH,
    FilterConformanceClasses.ITEMS,
    FilterConformanceClasses.BASIC_CQL2,
    FilterConformanceClasses.CQL2_JSON,
    FilterConformanceClasses.CQL2_TEXT,
    FilterConformanceClasses.ADVANCED_COMPARISON_OPERATORS,
    FilterConformanceClasses.BASIC_SPATIAL_FUNCTIONS,
    FilterConformanceClasses.SPATIAL_FUNCTIONS,
    FilterConformanceClasses.ARRAY_FUNCTIONS,
    FilterConformanceClasses.PROPERTY_PROPERTY,
]
_SORTS: Final[list[str]] = [
    SortConformanceClasses.ITEM_SEARCH_SORT,
    SortConformanceClasses.ITEM_SEARCH_SORTABLES,
    # pystac-client knows no later version.
    "https://api.stacspec.org/v1.0.0/item-search#sort",
]
_log = logging.getLogger(__name__)


def create_app(cubes: Sequence[Cube]) -> FastAPI:
    """Make the application that serves some cubes; see ``app_of``.

    Raises
    ------
    InvalidInputError
        If there is no cube, or two have one name.
    CubeIntegrityError
        If an items table is missing or damaged.
    StorageError
        If storage refuses or cannot be reached.
    """
    return app_of(Shelf(cubes))


def app_of(shelf: Shelf) -> FastAPI:
    """Make the application.

    Parameters
    ----------
    shelf
        The cubes that it serves.

    Returns
    -------
    fastapi.FastAPI
        An ASGI application.
    """
    extensions = [
        FilterExtension(client=QueryablesClient(shelf=shelf), conformance_classes=_FILTERS),
        SearchSortExtension(client=SortablesClient(shelf=shelf), conformance_classes=_SORTS),
        ItemCollectionSortExtension(client=SortablesClient(shelf=shelf)),
        FieldsExtension(
            conformance_classes=[FieldsConformanceClasses.SEARCH, FieldsConformanceClasses.ITEMS]
        ),
        _Aggregation(client=AggregationClient(shelf=shelf)),
    ]
    settings = ApiSettings(
        _env_file=None,  # type: ignore[call-arg]  # a setting of its base class
        stac_fastapi_title=_TITLE,
        stac_fastapi_description=_DESCRIPTION,
        stac_fastapi_version=version("bigearth-cube"),
        stac_fastapi_landing_id="bigearthnet",
    )
    client = CoreClient(shelf=shelf, landing_page_id="bigearthnet")
    app = FastAPI(
        title=_TITLE,
        description=_DESCRIPTION,
        version=version("bigearth-cube"),
        openapi_url=settings.openapi_url,
        docs_url=settings.docs_url,
        redoc_url=None,
        responses=FAULTS,
        dependencies=[Depends(requests.refuse_repeated)],
    )
    api = StacApi(
        settings=settings,
        app=app,
        client=client,
        extensions=extensions,
        exceptions={},
        stac_version=STAC_VERSION,
        response_class=JsonResponse,
        search_get_request_model=requests.SearchGet,
        search_post_request_model=requests.SearchPost,
        items_get_request_model=requests.ItemsGet,
        middlewares=[
            Middleware(
                CORSMiddleware,
                allow_origins=["*"],
                allow_methods=["OPTIONS", "POST", "GET"],
                allow_headers=["Content-Type"],
                max_age=600,
            ),
            Middleware(_Limits, most_bytes=LARGEST_BODY),
            # The quickest level: a page of 10,000 items is 18 MB, and waits for it.
            Middleware(
                BrotliMiddleware,
                quality=1,
                minimum_size=1000,
                gzip_fallback=False,
                excluded_handlers=[r"\.png$"],
            ),
            Middleware(_Log),
        ],
    )
    api.app.include_router(patches.router_of(shelf, client))
    add_faults(api.app)
    _add_health(api.app, shelf)
    _add_explorer(api.app)
    api.app.state.shelf = shelf
    return api.app


class _Aggregation(AggregationExtension):
    """The extension with our parameters, and an operation id of its own for each operation."""

    def register(self, app: FastAPI) -> None:
        """Add the routes."""
        client: Any = self.client

        async def posted(request: Request, given: requests.AggregatePost) -> Any:
            return await run_in_threadpool(client.aggregate, given, request=request)

        async def posted_to(
            request: Request, collection_id: str, given: requests.AggregatePost
        ) -> Any:
            return await run_in_threadpool(client.aggregate, given, collection_id, request=request)

        own = "/collections/{collection_id}"
        listed, counted = client.get_aggregations, client.aggregate
        for path, method, endpoint in (
            ("/aggregations", "GET", create_async_endpoint(listed, EmptyRequest)),
            (f"{own}/aggregations", "GET", create_async_endpoint(listed, requests.CollectionGet)),
            ("/aggregate", "GET", create_async_endpoint(counted, requests.AggregateGet)),
            (
                f"{own}/aggregate",
                "GET",
                create_async_endpoint(counted, requests.CollectionAggregateGet),
            ),
            ("/aggregate", "POST", posted),
            (f"{own}/aggregate", "POST", posted_to),
        ):
            name = path.replace(own, "Collection ").replace("/", "").title()
            tags: list[str | Enum] = ["Aggregation Extension"]
            app.add_api_route(path, endpoint, name=name, methods=[method], tags=tags)


def _add_health(app: FastAPI, shelf: Shelf) -> None:
    @app.get("/healthz", tags=["Liveliness/Readiness"])
    async def healthz() -> dict[str, Any]:
        """Say that requests are answered, and from which releases."""
        releases = {name: served.cube.release.name for name, served in shelf.served.items()}
        return {"status": "UP", "releases": releases}


def _add_explorer(app: FastAPI) -> None:
    if (_EXPLORER / "index.html").exists():
        app.mount("/explorer", StaticFiles(directory=_EXPLORER, html=True), name="explorer")
        return

    @app.get("/explorer", include_in_schema=False)
    async def explorer() -> Response:
        """Say how the page is made."""
        return HTMLResponse(_NO_EXPLORER, 404)


# --- around every request ------------------------------------------------------------------------


class _Log:
    """Say of each request what was asked, how it ended and how long it took.

    Only the path is said: what follows it may hold what is not for a log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            took_ms = (time.perf_counter() - began) * 1000
            # repr: a line break in a path would be a line of the log of its own
            path = repr(scope["path"])[1:-1]
            _log.info("%s %s %d %.1f ms", scope["method"], path, status, took_ms)


class _Limits:
    """Refuse a body that is larger than any question, before it is in memory, or is no text.

    The framework has a limit too, but its refusal does not say what the limit is.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = not stated.isdigit() or int(stated[:20]) > self._most_bytes
        body = bytearray()
        more = not too_large
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # who asked is gone
            body += message.get("body", b"")
            too_large = len(body) > self._most_bytes
            more = message.get("more_body", False) and not too_large
        if too_large:
            said = f"the body is larger than {self._most_bytes:,} bytes; send one patch at a time"
            answer = fault(413, "TooLarge", said, {"Connection": "close"})
            await answer(scope, receive, send)
            return
        if _is_broken_text(bytes(body)):
            said = "the body is no UTF-8, or holds half of a surrogate pair; send text as UTF-8"
            await fault(400, "InvalidInputError", said)(scope, receive, send)
            return
        messages = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        await self._app(scope, replay, send)


def _is_broken_text(body: bytes) -> bool:
    """Whether a body is no UTF-8, or escapes half a surrogate pair: an answer could not quote it."""
    try:
        text = body.decode()
        if r"\ud" in text.lower():
            json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeError:
        return True
    except (ValueError, RecursionError):
        return False  # whoever reads it says what is wrong
    return False
