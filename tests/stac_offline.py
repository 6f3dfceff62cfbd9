"""Run stac-api-validator with schemas from a folder instead of the network.

``python -m tests.stac_offline --root-url http://127.0.0.1:8000 --conformance core ...``; extension
schemas lie in the folder named by BEC_STAC_SCHEMAS, those of STAC's core in pystac.
"""

from __future__ import annotations

import importlib.resources
import os
import re
from pathlib import Path

import pystac
import requests
from pystac.stac_io import DefaultStacIO
from stac_api_validator.__main__ import main

from bigearth_cube.items_table import BEC_SCHEMA

_CORE = Path(str(importlib.resources.files("pystac.validation.jsonschemas")))
_OWN = Path(str(importlib.resources.files("bigearth_cube"))) / "data" / "bec-v1.0.0.json"
_PLACES = (
    (r"https://stac-extensions\.github\.io/([^/]+)/(v[^/]+)/schema\.json", "{}-{}.json"),
    (r"https://schemas\.stacspec\.org/v1\.1\.0/[^/]+/json-schema/(.+)", "stac-spec/v1.1.0/{}"),
    (r"https://geojson\.org/schema/(.+)", "geojson/{}"),
)


def schema(url: str) -> str | None:
    """Text of a schema; an empty one of what is never looked into; None if it is no schema."""
    url = url.rstrip("#")
    if url == BEC_SCHEMA:
        return _OWN.read_text()
    if url.startswith("https://proj.org/"):
        return "{}"
    for pattern, name in _PLACES:
        match = re.fullmatch(pattern, url)
        if match:
            folder = Path(os.environ["BEC_STAC_SCHEMAS"]) if "extensions" in url else _CORE
            return (folder / name.format(*match.groups())).read_text()
    return None


class _Offline(DefaultStacIO):
    def read_text_from_href(self, href: str) -> str:
        return schema(href) or super().read_text_from_href(href)


def _install() -> None:
    send = requests.Session.send

    def offline(
        self: requests.Session, request: requests.PreparedRequest, **kwargs: object
    ) -> requests.Response:
        text = schema(request.url or "")
        if text is None:
            return send(self, request, **kwargs)  # type: ignore[arg-type]
        response = requests.Response()
        response.status_code, response._content = 200, text.encode()
        response.url, response.request = request.url or "", request
        return response

    requests.Session.send = offline  # type: ignore[method-assign, assignment]
    pystac.StacIO.set_default(_Offline)


if __name__ == "__main__":
    _install()
    main()
