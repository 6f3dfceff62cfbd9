"""``bec serve`` beside stac-fastapi.pgstac, over the same 549,488 items.

PostgreSQL with PostGIS is Debian's, its API lives in ``.venv-peers``; one worker each, on the same
cores. ``bec export pgstac`` loads the items (3 minutes). One client asks both in turn
the same question, a new one each time, and a ratio is taken question by question.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from bigearth_cube.cube import open_cube
from tests.benchmarks.bench_service import QUESTIONS, Server, connect, get, real_items, server
from tests.postgres import postgres_server

psycopg = pytest.importorskip("psycopg", reason="pypgstac is not installed")
from bigearth_cube.pgstac import export_pgstac  # it needs that

__all__ = ["real_items", "server"]

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
N_ROUNDS, N_WARM_UP = 30, 5
# As the documentation of pgstac has it for a server of this size: all items fit into memory.
SETTINGS = {
    "shared_buffers": "4GB",
    "work_mem": "64MB",
    "effective_cache_size": "12GB",
    "maintenance_work_mem": "1GB",
    "random_page_cost": "1.1",
    "max_wal_size": "8GB",
}
ASKED = {"bbox": 8, "bbox, time, season": 8, "bbox, time, season, label": 8, "attributes": 15}
"""Ratio to reach, by kind of question."""


@pytest.fixture(scope="module")
def pgstac_url(real_items: str) -> Iterator[str]:
    """Address of stac-fastapi.pgstac over all items."""
    installed = [str(PEERS), "-c", "import stac_fastapi.pgstac, uvicorn"]
    if not PEERS.exists() or subprocess.run(installed, check=False).returncode:
        pytest.skip("stac-fastapi.pgstac is not installed; run: make -B .venv-peers/.tried")
    with postgres_server(SETTINGS) as dsn:
        export_pgstac(open_cube(real_items), dsn, migrate=True)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        where = urlsplit(dsn)
        access = {
            "PGHOST": where.hostname or "",
            "PGPORT": str(where.port),
            "PGUSER": where.username or "",
            "PGPASSWORD": "-",
            "PGDATABASE": where.path.strip("/"),
        }
        app = [
            "stac_fastapi.pgstac.app:create_app",
            "--factory",
            "--port",
            str(port),
            "--log-level",
            "warning",
        ]
        process = subprocess.Popen([PEERS, "-m", "uvicorn", *app], env=os.environ | access)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "stac-fastapi.pgstac has ended"
        try:
            with urllib.request.urlopen(f"{url}/collections", timeout=10):
                return
        except urllib.error.URLError:
            time.sleep(0.2)
    pytest.fail("stac-fastapi.pgstac does not answer")


@pytest.mark.parametrize("kind", QUESTIONS)
def test_page_of_10_beside_pgstac(
    benchmark: Any, server: Server, pgstac_url: str, kind: str
) -> None:
    benchmark.group = "a page of 10 by HTTP, beside stac-fastapi.pgstac"
    rng = np.random.default_rng(0)
    ours, theirs = connect(server.url), connect(pgstac_url)
    ours_ms: list[float] = []
    theirs_ms: list[float] = []

    def ask() -> None:
        question = {"limit": 10, **QUESTIONS[kind](rng)}
        if "filter" in question:
            question["filter-lang"] = "cql2-text"
        n_found = set()
        for connection, times in ((ours, ours_ms), (theirs, theirs_ms)):
            began = time.perf_counter()
            answer = get(connection, "/search", **question)
            times.append((time.perf_counter() - began) * 1000)
            n_found.add(len(json.loads(answer)["features"]))
        assert len(n_found) == 1, (question, n_found)

    for _ in range(N_WARM_UP):
        ask()
    ours_ms.clear()
    theirs_ms.clear()
    benchmark.pedantic(ask, rounds=N_ROUNDS)
    ours.close()
    theirs.close()
    ratios = np.array(theirs_ms) / np.array(ours_ms)
    low, median, high = np.percentile(ratios, [10, 50, 90])
    benchmark.extra_info.update(
        ours_p50_ms=round(float(np.median(ours_ms)), 2),
        theirs_p50_ms=round(float(np.median(theirs_ms)), 2),
        ratio=round(float(median), 1),
        ratio_p10_p90=[round(float(low), 1), round(float(high), 1)],
        asked=ASKED[kind],
    )
