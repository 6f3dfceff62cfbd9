"""The explorer over the 549,488 items of the official metadata, in headless Chromium.

The server is warm, the browser draws in software and shares the cores with it. A view is there
when its numbers are and the map has nothing left to draw.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import pytest

from bigearth_cube.nomenclature import NAMES_19, SEASONS
from tests.benchmarks.bench_service import Server, real_items, server

sync_api = pytest.importorskip("playwright.sync_api")
from tests.test_explorer import browser, built

__all__ = ["browser", "real_items", "server"]

DRAWN = """() => document.querySelector('.total[aria-busy=false] strong')
    && document.querySelector('.map[aria-busy=false]')"""
CHANGE = f"""async (value) => {{
    const drawn = {DRAWN};
    const box = [...document.querySelectorAll('input[type=checkbox]')].find(
        (input) => input.closest('label').textContent.includes(value));
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const began = performance.now();
    const until = async (there) => {{
        while (there() !== !!drawn()) {{
            await frame();
            if (performance.now() - began > 60000) throw new Error(value + ": nothing changed");
        }}
    }};
    box.click();
    await until(() => false);
    await until(() => true);
    return performance.now() - began;
}}"""


@pytest.fixture
def view(browser: Any, server: Server) -> Iterator[Any]:
    """A page whose cache is empty."""
    context = browser.new_context(viewport={"width": 1920, "height": 1080})
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    context.close()


def show(page: Any, server: Server) -> None:
    page.goto(f"{server.url.rstrip('/')}/explorer/")
    page.wait_for_function(DRAWN)


@built
def test_first_view(benchmark: Any, browser: Any, server: Server) -> None:
    def look() -> None:
        context = browser.new_context(viewport={"width": 1920, "height": 1080})
        show(context.new_page(), server)
        context.close()

    benchmark.pedantic(look, rounds=10, warmup_rounds=1)
    benchmark.extra_info["seconds"] = [round(s, 2) for s in benchmark.stats.stats.data]


@built
def test_change_of_a_filter(benchmark: Any, view: Any, server: Server) -> None:
    show(view, server)
    times: list[float] = []

    def change() -> None:
        for value in (*NAMES_19[:8], *SEASONS):
            times.extend(view.evaluate(CHANGE, value) for _ in ("on", "off"))

    benchmark.pedantic(change, rounds=3)
    benchmark.extra_info["median_ms"] = round(statistics.median(times))
    benchmark.extra_info["range_ms"] = [round(min(times)), round(max(times))]
