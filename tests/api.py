"""The least STAC API that a client can page through, over the items of cubes, on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bigearth_cube import stac
from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.pages import Fields, page
from bigearth_cube.search import Question

_SPEC = "https://api.stacspec.org/v1.0.0"
ALL = ("/core", "/collections", "/item-search", "/item-search#filter", "/item-search#fields")


@contextmanager
def served(
    cubes: Mapping[str, Cube], *, conforms: tuple[str, ...] = ALL, broken: bool = False
) -> Iterator[str]:
    """Serve cubes; yields the URL of the landing page."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def _send(self, status: int, document: Any) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            found = _document(self.path, url, cubes, conforms)
            self._send(200 if found else 404, found or {"detail": "nothing here"})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if broken:
                self._send(503, {"detail": "no memory left"})
                return
            try:
                self._send(200, _found(asked, url, cubes))
            except InvalidInputError as error:
                self._send(400, {"detail": str(error)})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _document(path: str, url: str, cubes: Mapping[str, Cube], conforms: tuple[str, ...]) -> Any:
    if path in ("", "/"):
        links = [
            {"rel": "self", "href": url},
            {"rel": "root", "href": url},
            {"rel": "data", "href": f"{url}/collections"},
            {
                "rel": "search",
                "href": f"{url}/search",
                "method": "POST",
                "type": "application/geo+json",
            },
        ]
        about = {"type": "Catalog", "stac_version": "1.1.0", "id": "test", "description": "test"}
        return {**about, "conformsTo": [_SPEC + name for name in conforms], "links": links}
    if path == "/collections":
        described = [_collection(name, cube) for name, cube in cubes.items()]
        return {"collections": described, "links": []}
    return None


def _collection(name: str, cube: Cube) -> dict[str, Any]:
    return stac.collection(name, archive=cube.archive, items=cube.items, version=cube.release.name)


def _found(asked: dict[str, Any], url: str, cubes: Mapping[str, Cube]) -> dict[str, Any]:
    wanted = {
        name: asked[name]
        for name in ("bbox", "intersects", "datetime", "filter", "ids")
        if name in asked
    }
    (name,) = asked["collections"]
    cube = cubes[name]
    found = page(
        cube.index,
        Question.of(**wanted),
        limit=min(asked.get("limit", 10), 97),
        token=asked.get("token"),
    )
    features = stac.items(cube.items.take(found.places), cube_url=cube.url)
    if "fields" in asked:
        features = [Fields.of(asked["fields"]).apply(item) for item in features]
    links = []
    if found.next is not None:
        body = {**asked, "token": found.next}
        links = [{"rel": "next", "href": f"{url}/search", "method": "POST", "body": body}]
    about = {"type": "FeatureCollection", "features": features, "links": links}
    return {**about, "numberMatched": found.matched}
