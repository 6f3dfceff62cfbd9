"""What the table of the benchmark says of given rates."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.benchmarks.comparison import OF_DEFAULT, ROWS, Rates, printed, ratio, table
from tests.benchmarks.servers import delaying_proxy


def verdicts(rates: Rates, profile: str = "fast") -> list[Sequence[str]]:
    return [line[-4:] for line in table(rates, {"webdataset": "not installed"}, profile)[1:]]


def test_ratios_are_taken_within_each_round() -> None:
    found = ratio([100, 10, 30], [10, 1, 30])
    assert found is not None
    assert (found.median, found.lowest, found.highest) == (10, 1, 10)
    assert ratio([1, None], [None, 1]) is None


@pytest.mark.parametrize(("ours", "verdict"), [(3.3, "reached"), (3.29, "MISSED")])
def test_a_row_says_whether_its_median_reaches_the_target(ours: float, verdict: str) -> None:
    lines = verdicts({"ours nginx fast": [ours], "webdataset": [1.0]})
    assert lines == [[f"{ours:.3g}", f"{ours:.3g}-{ours:.3g}", "3.3", verdict]]


def test_the_default_profile_is_to_reach_a_part_of_each_ratio() -> None:
    assert [row.of("default").target for row in ROWS] == [OF_DEFAULT * row.target for row in ROWS]


def test_a_peer_that_is_not_there_has_its_reason_instead_of_a_figure() -> None:
    lines = table(
        {"ours nginx fast": [5.0], "webdataset": [None]}, {"webdataset": "not installed"}, "fast"
    )
    assert lines[1][-1] == "not installed"
    assert lines[1][4] == "-"
    assert len(printed(lines).splitlines()) == 2


def test_the_proxy_passes_every_byte_and_waits_before_each_request(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    (tmp_path / "object").write_bytes(data)
    handler = partial(_Quiet, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    upstream = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with delaying_proxy(upstream, 200) as proxy:
            began = time.perf_counter()
            with urllib.request.urlopen(f"{proxy}/object") as answer:
                assert answer.read() == data
            assert time.perf_counter() - began >= 0.2
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass
