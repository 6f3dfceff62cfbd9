"""``bec serve`` on the 549,488 items of the official metadata: latency, throughput, memory.

One worker; whoever asks runs beside it on the same cores. Every request asks something new, so
no answer comes from a memory. Percentiles are in the ``extra_info`` of each benchmark.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest

from bigearth_cube.catalog import tile_item
from bigearth_cube.ingest import ingest
from bigearth_cube.nomenclature import COUNTRIES, NAMES_19, SEASONS, tiles

COLLECTION = "bigearthnet-v2"
N_REQUESTS, N_CLIENTS = 300, 8


def connect(url: str) -> http.client.HTTPConnection:
    where = urlsplit(url)
    return http.client.HTTPConnection(where.hostname or "", where.port)


def get(connection: http.client.HTTPConnection, path: str, **query: Any) -> bytes:
    connection.request("GET", f"{path}?{urlencode(query)}" if query else path)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, body[:300]
    return body


class Server:
    """A ``bec serve`` of its own process."""

    def __init__(self, cube: str) -> None:
        began = time.perf_counter()
        command = [sys.executable, "-m", "bigearth_cube", "serve", cube, "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if " at http" in line:
                self.url = line.split()[-1]
                break
        self._reading = threading.Thread(target=self.process.stderr.read, daemon=True)
        self._reading.start()
        self.connection = connect(self.url)
        self.get("/search", limit=10)
        self.start_s = time.perf_counter() - began

    def get(self, path: str, **query: Any) -> bytes:
        return get(self.connection, path, **query)

    @property
    def peak_mb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) // 1024

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self._reading.join()
        self.process.stderr.close()  # type: ignore[union-attr]
        self.connection.close()


@pytest.fixture(scope="module")
def real_items(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cube without pixels of all items of v2."""
    ready = os.environ.get("BEC_BENCH_CUBE")
    if ready:
        return ready
    samples = os.environ.get("BEC_SAMPLES")
    if not samples:
        pytest.skip("BEC_SAMPLES names no folder of official lists")
    url = str(tmp_path_factory.mktemp("real") / "cube")
    lists = [str(path) for path in sorted(Path(samples, "metadata").glob("*.parquet"))]
    ingest(lists, url, cube_id=COLLECTION, metadata_only=True)
    return url


@pytest.fixture(scope="module")
def server(real_items: str) -> Iterator[Server]:
    started = Server(real_items)
    yield started
    started.stop()


@functools.cache
def _centers() -> list[tuple[float, float]]:
    """Where the archive has patches: centers of its tiles, degrees."""
    boxes = [tile_item(tile)["bbox"] for tile in tiles() if tile.n_v2]
    return [((west + east) / 2, (south + north) / 2) for west, south, east, north in boxes]


def _box(rng: np.random.Generator) -> str:
    """Draw a box of one by one degree around a tile's middle; nearly all hold patches."""
    x, y = _centers()[rng.integers(len(_centers()))]
    west, south = x - rng.uniform(0.2, 0.8), y - rng.uniform(0.2, 0.8)
    return f"{west:.4f},{south:.4f},{west + 1:.4f},{south + 1:.4f}"


def _season(rng: np.random.Generator) -> str:
    return f"\"bec:season\" = '{rng.choice(SEASONS)}'"


def _label(rng: np.random.Generator) -> str:
    return f"a_contains(\"bec:labels\", '{rng.choice(NAMES_19)}')"


def _months(rng: np.random.Generator) -> str:
    return f"2017-{rng.integers(6, 10):02}-01T00:00:00Z/2018-0{rng.integers(1, 6)}-28T00:00:00Z"


QUESTIONS: dict[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "bbox": lambda rng: {"bbox": _box(rng)},
    "bbox, time, season": lambda rng: {
        "bbox": _box(rng),
        "datetime": _months(rng),
        "filter": _season(rng),
    },
    "bbox, time, season, label": lambda rng: {
        "bbox": _box(rng),
        "datetime": _months(rng),
        "filter": f"{_season(rng)} AND {_label(rng)}",
    },
    "attributes": lambda rng: {
        "filter": f'{_season(rng)} AND {_label(rng)} AND "bec:country" = '
        f"'{rng.choice(COUNTRIES)}' AND \"bec:row\" > {rng.integers(1000)}"
    },
}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_page_of_10(benchmark: Any, server: Server, kind: str) -> None:
    benchmark.group = "a page of 10"
    rng = np.random.default_rng(0)
    for _ in range(20):
        server.get("/search", limit=10, **QUESTIONS[kind](rng))
    times = []

    def ask() -> None:
        began = time.perf_counter()
        server.get("/search", limit=10, **QUESTIONS[kind](rng))
        times.append((time.perf_counter() - began) * 1000)

    benchmark.pedantic(ask, rounds=N_REQUESTS)
    p50, p95 = np.percentile(times, [50, 95])
    benchmark.extra_info.update(p50_ms=round(p50, 2), p95_ms=round(p95, 2))


def test_8_clients(benchmark: Any, server: Server) -> None:
    benchmark.group = "8 clients, the four questions in turn"
    kinds = list(QUESTIONS.values())

    def client(number: int) -> None:
        rng, connection = np.random.default_rng(number), connect(server.url)
        for turn in range(N_REQUESTS // 2):
            get(connection, "/search", limit=10, **kinds[turn % len(kinds)](rng))
        connection.close()

    def all_clients() -> None:
        threads = [threading.Thread(target=client, args=(n,)) for n in range(N_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    benchmark.pedantic(all_clients, rounds=3)
    n_requests = N_REQUESTS // 2 * N_CLIENTS
    rates = [n_requests / seconds for seconds in benchmark.stats.stats.data]
    benchmark.extra_info["requests_a_second"] = [round(rate) for rate in rates]


def test_1000_items(benchmark: Any, server: Server) -> None:
    benchmark.group = "1,000 items, parsed"
    rng = np.random.default_rng(0)

    def ask() -> None:
        body = server.get("/search", limit=1000, filter=f'"bec:row" > {rng.integers(500_000)}')
        assert len(json.loads(body)["features"]) == 1000

    benchmark.pedantic(ask, rounds=10, warmup_rounds=1)


def test_all_items_in_pages(benchmark: Any, server: Server) -> None:
    benchmark.group = "549,488 items in pages of 10,000, raw JSON"

    def page_through() -> None:
        n_items, token = 0, None
        while True:
            more = {} if token is None else {"token": token}
            body = server.get("/search", limit=10_000, **more)
            tail = json.loads("{" + body[body.rindex(b'"links":[{"rel":"root"') :].decode())
            n_items += tail["numberReturned"]
            links = {link["rel"]: link["href"] for link in tail["links"]}
            if "next" not in links:
                break
            token = links["next"].rpartition("token=")[2]
        assert n_items == tail["numberMatched"] == 549_488

    benchmark.pedantic(page_through, rounds=1)


def test_counts_under_a_filter(benchmark: Any, server: Server) -> None:
    benchmark.group = "what an explorer shows of a filter: six counts and a map"
    rng = np.random.default_rng(0)
    names = (
        "total_count,bec_labels_frequency,bec_country_frequency,bec_season_frequency,"
        "bec_split_frequency,datetime_frequency"
    )

    def ask() -> None:
        condition = {"filter": f"{_season(rng)} OR {_label(rng)}"}
        server.get(f"/collections/{COLLECTION}/aggregate", aggregations=names, **condition)
        server.get(f"/collections/{COLLECTION}/density", zoom=8, **condition)

    benchmark.pedantic(ask, rounds=30, warmup_rounds=2)


def test_start_to_first_answer(benchmark: Any, real_items: str, server: Server) -> None:
    benchmark.group = "start to first answer"
    peaks = []

    def start() -> None:
        started = Server(real_items)
        peaks.append(started.peak_mb)
        started.stop()

    benchmark.pedantic(start, rounds=3)
    benchmark.extra_info.update(peak_mb_at_start=peaks, peak_mb_after_all=server.peak_mb)
