"""Whole servers: pystac-client, `bec serve` as a process, the validator."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import distributed
import numpy as np
import pystac_client
import pytest

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.ingest import ingest
from bigearth_cube.service import app as service_app
from bigearth_cube.service.process import serve
from tests.service.helpers import N_PATCHES, ids_of, serving
from tests.sources import MemorySource, index_of, pixels_of


@pytest.fixture(scope="module")
def server_url(cube: Cube) -> Iterator[str]:
    with serving([cube]) as url:
        yield url


@pytest.fixture(scope="module")
def twin_url(twins: tuple[Cube, Cube]) -> Iterator[str]:
    with serving(twins) as url:
        yield url


def test_pystac_client_pages_through_everything(server_url: str, cube: Cube) -> None:
    opened = pystac_client.Client.open(server_url)
    assert [one.id for one in opened.get_collections()] == [cube.id]
    whole = opened.search(limit=100)
    assert whole.matched() == N_PATCHES
    assert [item.id for item in whole.items()] == ids_of(cube)
    text = "a_contains(\"bec:labels\", 'Pastures') AND \"bec:country\" = 'Austria'"
    for method in ("GET", "POST"):
        asked = opened.search(
            method=method,
            bbox=[12, 40, 14, 60],
            datetime="2017-06/2017-08",
            filter=text,
            filter_lang="cql2-text",
            sortby=["-id"],
            limit=10,
        )
        found = [item.id for item in asked.items()]
        assert sorted(found, reverse=True) == found
        assert len(found) == asked.matched() > 10


@contextmanager
def _bec_serve(
    cube_url: str, *options: str, access: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command; give its process and address once it says it."""
    command = [sys.executable, "-m", "bigearth_cube", "serve", cube_url, "--port", "0", *options]
    env = os.environ | (access or {})
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if " at http" in line)
            yield process, next(word for word in line.split() if word.startswith("http"))
        finally:
            process.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_bec_serve_starts_answers_and_stops_when_told(cube_url: str, workers: str) -> None:
    with _bec_serve(cube_url, "--workers", workers) as (process, url):
        with urllib.request.urlopen(f"{url}search?limit=1", timeout=120) as answer:
            assert json.load(answer)["numberMatched"] == N_PATCHES
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
        process.wait(30)
    assert "GET /search 200" in said
    assert "Traceback" not in said


def test_bec_serve_reads_a_cube_on_s3(
    bucket: str, s3_options: dict[str, str], dask_client: distributed.Client
) -> None:
    ingest(MemorySource(12), f"{bucket}/cube", storage_options=s3_options, client=dask_client)
    cube = open_cube(f"{bucket}/cube", storage_options=s3_options)
    access = {
        "AWS_ACCESS_KEY_ID": s3_options["key"],
        "AWS_SECRET_ACCESS_KEY": s3_options["secret"],
        "AWS_ENDPOINT_URL": s3_options["endpoint_url"],
        "AWS_REGION": "us-east-1",
    }
    name = ids_of(cube)[7]
    with _bec_serve(cube.url, access=access) as (_, url):
        with urllib.request.urlopen(f"{url}search?limit=100", timeout=120) as answer:
            features = json.load(answer)["features"]
        pixels_url = f"{url}collections/{cube.id}/items/{name}/pixels?groups=s2/r60m"
        with urllib.request.urlopen(pixels_url, timeout=120) as answer:
            found = json.load(answer)["groups"]["s2/r60m"]
    assert [item["id"] for item in features] == ids_of(cube)
    known = pixels_of(index_of(name)).s2["s2/r60m"]
    assert np.array_equal(np.reshape(found["values"], found["shape"]), known)


@contextmanager
def _stripping(prefix: str, target: str) -> Iterator[str]:
    """A proxy that takes a prefix off each path, and knows nothing else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(421)
                return
            connection = http.client.HTTPConnection(urlsplit(target).netloc)
            headers = {"Host": self.headers["Host"], "Accept": self.headers.get("Accept", "*/*")}
            connection.request("GET", self.path.removeprefix(prefix), headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name in ("content-type", "location", "link"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            connection.close()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{prefix}"
        finally:
            server.shutdown()
            thread.join()


def _read(address: str, accept: str = "application/json") -> tuple[str, bytes]:
    asked = urllib.request.Request(address, headers={"Accept": accept})
    with urllib.request.urlopen(asked, timeout=120) as answer:
        return answer.url, answer.read()


def test_behind_a_proxy_that_strips_a_prefix_every_link_has_it(
    cube: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("index.html", "app.js"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(service_app, "_EXPLORER", tmp_path)
    monkeypatch.setenv("ROOT_PATH", "/elsewhere")  # of stac-fastapi, which breaks the explorer
    with (
        serving([cube], root_path="/stac/v1") as url,
        _stripping("/stac/v1", url) as base,
    ):
        landing = json.loads(_read(f"{base}/")[1])
        collection = json.loads(_read(f"{base}/collections/{cube.id}")[1])
        page = json.loads(_read(f"{base}/search?limit=2")[1])
        item = page["features"][0]
        links = [*landing["links"], *collection["links"], *page["links"], *item["links"]]
        own = {
            link["href"]
            for link in [*links, {"rel": "thumbnail", **item["assets"]["thumbnail"]}]
            if urlsplit(link["href"]).netloc == urlsplit(base).netloc
            and link["rel"] != "aggregate"  # asked of nothing, it refuses
        }
        assert len(own) > 15
        for href in own:
            assert href.startswith(f"{base}/"), href
            assert _read(href)[1]
        relations = {link["rel"]: link["href"] for link in page["links"]}
        assert {"self", "root", "next"} <= set(relations)
        assert json.loads(_read(relations["next"])[1])["features"][0] != item
        assert json.loads(_read(f"{base}/api")[1])["servers"] == [{"url": "/stac/v1"}]
        assert b"'/stac/v1/api'" in _read(f"{base}/api.html")[1]
        for address, accept in ((f"{base}/explorer", "*/*"), (f"{base}/", "text/html")):
            assert _read(address, accept) == (f"{base}/explorer/", b"index.html")
        assert _read(f"{base}/explorer/app.js")[1] == b"app.js"


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_bec_serve_is_told_what_a_proxy_takes_off(cube_url: str, workers: str) -> None:
    options = ("--root-path", "/stac", "--workers", workers)
    with _bec_serve(cube_url, *options) as (_, url):
        page = json.loads(_read(f"{url}search?limit=1")[1])
    assert {"self", "root", "next"} == {link["rel"] for link in page["links"]}
    assert all(link["href"].startswith(f"{url}stac/") for link in page["links"])


@pytest.mark.parametrize("root_path", ["stac", "/stac/", "/", "//evil", "/a b", "/ä"])
def test_a_root_path_that_is_none_is_refused(cube_url: str, root_path: str) -> None:
    with pytest.raises(InvalidInputError, match="no slash at its end"):
        serve([cube_url], port=0, root_path=root_path)


@pytest.mark.slow
def test_bec_serve_keeps_an_idle_connection_longer_than_load_balancers(cube_url: str) -> None:
    with _bec_serve(cube_url) as (_, url):
        connection = http.client.HTTPConnection(urlsplit(url).netloc)

        def matched() -> int:
            connection.request("GET", "/search?limit=1")
            return json.load(connection.getresponse())["numberMatched"]  # type: ignore[no-any-return]

        assert matched() == N_PATCHES
        time.sleep(62)  # they give up after 60 s
        assert matched() == N_PATCHES
        connection.close()


@pytest.mark.slow
def test_stac_api_validator_finds_no_fault(twin_url: str) -> None:
    if not os.environ.get("BEC_STAC_SCHEMAS"):
        pytest.skip("BEC_STAC_SCHEMAS names no folder of schemas")
    pytest.importorskip("stac_api_validator")
    box = [[[0, 40], [30, 40], [30, 60], [0, 60], [0, 40]]]
    geometry = json.dumps({"type": "Polygon", "coordinates": box})
    classes = ("core", "collections", "features", "item-search", "filter")
    command = [sys.executable, "-m", "tests.stac_offline", "--root-url", f"{twin_url}/"]
    command += [word for name in classes for word in ("--conformance", name)]
    command += ["--collection", "one", "--geometry", geometry]
    said = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert "Errors: none" in said.stdout, said.stdout[-3000:] + said.stderr[-2000:]
    assert said.returncode == 0
