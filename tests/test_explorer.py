"""The explorer in a real browser, over the cube of 600 known patches.

Screenshots lie in the folder that BEC_SCREENSHOTS names, where it is set.
"""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigearth_cube import nomenclature
from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.ingest import ingest
from bigearth_cube.nomenclature import NAMES_43
from bigearth_cube.search import Selection

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
sync_api = pytest.importorskip("playwright.sync_api")

FOLDER = Path(nomenclature.__file__).parent / "service" / "explorer"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
built = pytest.mark.skipif(
    not (FOLDER / "dist" / "index.html").is_file() or CHROMIUM is None,
    reason="needs the built page (make web) and chromium",
)
MODEL, OTHER_MODEL = "spectra", "textures"


@pytest.fixture(scope="module")
def shown(cube_url: str, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """A copy of the cube of known patches, with embeddings of two models."""
    url = str(shutil.copytree(cube_url, tmp_path_factory.mktemp("shown") / "cube"))
    cube = open_cube(url)
    draw = np.random.default_rng(0)
    for model in (MODEL, OTHER_MODEL):
        vectors = np.full((cube.n_rows, 8), np.nan, np.float32)
        vectors[cube.rows] = draw.random((len(cube.rows), 8))
        cube.write_embeddings(model, vectors)
        cube = open_cube(url)
    scores = np.full((cube.n_rows, 19), np.nan, np.float32)
    scores[cube.rows] = 0.25 + 0.5 * cube.labels("label_19")
    scores[labeled(cube)[0]] = 0.25  # a patch of which the model knows nothing
    cube.write_predictions(MODEL, scores, "label_19")
    return open_cube(url)


def labeled(cube: Cube) -> np.ndarray:
    """Rows of patches that have classes."""
    return cube.rows[cube.labels("label_19").any(axis=1)]


@pytest.fixture(scope="module")
def of_43(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """A cube of the first archive, which has both nomenclatures."""
    folder = tmp_path_factory.mktemp("of_43")
    write_archive(folder / "archive", archive="v1", n_patches=24, seed=1, workers=1)
    ingest([str(folder / "archive")], str(folder / "cube"), workers=1)
    return open_cube(str(folder / "cube"))


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """A cube of lists alone: 24 x 24 places of one square, each on eight dates.

    Of the first patch only the name is known; a model says of all that they have every class.
    """
    folder = tmp_path_factory.mktemp("crowded")
    rows: list[dict[str, Any]] = [
        {
            "patch_id": f"S2A_MSIL2A_201706{day}T101031_N9999_R022_T33UUP_{col}_{row}",
            "labels": ["Pastures"],
            "split": "train",
            "country": "Austria",
            "s1_name": None,
            "contains_seasonal_snow": False,
            "contains_cloud_or_shadow": False,
        }
        for day in range(10, 18)
        for col in range(30, 54)
        for row in range(30, 54)
    ]
    for name in ("labels", "contains_seasonal_snow", "contains_cloud_or_shadow"):
        rows[0][name] = None
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    url = str(folder / "cube")
    ingest([str(folder / "metadata.parquet")], url, cube_id="crowded", metadata_only=True)
    cube = open_cube(url)
    cube.write_predictions(MODEL, np.full((cube.n_rows, 19), 0.75, np.float32), "label_19")
    return open_cube(url)


@pytest.fixture(scope="module")
def address(shown: Cube, of_43: Cube, crowded: Cube) -> Iterator[str]:
    """Where a server on loopback shows the explorer."""
    from bigearth_cube.service.app import create_app

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(
            uvicorn.Config(create_app([shown, of_43, crowded]), log_config=None, access_log=False)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/explorer/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a screen, drawing in software, that calls nobody by itself."""
    with sync_api.sync_playwright() as playwright:
        quiet = ("background-networking", "component-update", "sync", "quic")
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--enable-unsafe-swiftshader",
                *(f"--disable-{q}" for q in quiet),
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page of 1280 x 900 px that fails the test on an error or on a request to another host."""
    faults: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    own = address.removesuffix("explorer/")
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request",
        lambda r: faults.append(r.url) if not r.url.startswith((own, "data:", "blob:")) else None,
    )
    yield page
    page.close()
    assert faults == []


def keep(page: Any, name: str) -> None:
    """Keep a screenshot where a folder for them is named."""
    if folder := os.environ.get("BEC_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png")


CELL_AT = """([x, y]) => {
    const canvas = document.querySelector('canvas.cells'), box = canvas.getBoundingClientRect();
    if (canvas.hidden) return false;
    const [i, j] = [(x - box.x) / box.width * canvas.width, (y - box.y) / box.height * canvas.height];
    return canvas.getContext('2d').getImageData(i, j, 1, 1).data[3] > 0;
}"""
"""Whether a cell is drawn at a place of the page."""


def total(page: Any) -> int:
    """Number of patches that the page says are left, once it has counted."""
    page.wait_for_selector(".total[aria-busy=false] strong")
    return int(page.inner_text(".total strong").replace(",", ""))


def test_classes_and_colors_are_those_of_the_library() -> None:
    text = (FOLDER / "src" / "classes.ts").read_text()
    codes = re.findall(r'\[(\d+), ("[^"]+"), "(#\w+)"\]', text)
    assert [(int(code), json.loads(name), color) for code, name, color in codes] == [
        (c.code, c.name, c.color) for c in nomenclature.CLASSES_43
    ]
    colors = dict(re.findall(r'^  \["([^"]+)", "(#\w+)"\],$', text, re.MULTILINE))
    assert tuple(colors) == nomenclature.NAMES_19
    for name, color in colors.items():
        assert color in [c.color for c in nomenclature.CLASSES_43 if c.name_19 == name]


@built
def test_a_filter_leaves_what_a_search_of_the_cube_finds(
    page: Any, address: str, shown: Cube, tmp_path: Path
) -> None:
    page.goto(address)
    assert total(page) == len(shown.rows)
    keep(page, "map")
    page.get_by_role("checkbox", name="Pastures").check()
    page.get_by_role("checkbox", name="summer").check()
    pastures = """A_OVERLAPS("bec:labels", ('Pastures')) AND "bec:season" = 'summer'"""
    expected = shown.search(filter=pastures)
    page.wait_for_function(
        "n => document.querySelector('.total strong')?.textContent === n", arg=str(len(expected))
    )
    page.get_by_role("button", name="Copy as").click()
    assert "bec search" in page.inner_text(".copy")
    assert pastures in page.inner_text(".copy").replace('\\"', '"')
    keep(page, "copy")
    with page.expect_download() as download:
        page.get_by_role("link", name="selection.parquet").click()
    download.value.save_as(tmp_path / "selection.parquet")
    assert Selection.load(str(tmp_path / "selection.parquet")).digest == expected.digest
    page.get_by_role("button", name="Clear all filters").click()
    page.wait_for_function(
        "n => document.querySelector('.total strong')?.textContent === n", arg=str(len(shown.rows))
    )


@built
def test_what_is_copied_for_pystac_client_runs_and_asks_for_large_pages(
    page: Any, address: str, shown: Cube, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page.goto(f"{address}?view=copy&labels=Pastures")
    total(page)
    copied = tmp_path / "copied.py"
    copied.write_text(page.locator("pre", has_text="pystac_client").inner_text())
    with caplog.at_level("INFO", logger="bigearth_cube.service.app"):
        known = runpy.run_path(str(copied))
    expected = shown.search(filter="A_CONTAINS(\"bec:labels\", 'Pastures')")
    np.testing.assert_array_equal(np.sort(known["sel"].rows), np.sort(expected.rows))
    searches = [r.getMessage() for r in caplog.records if " /search " in r.getMessage()]
    assert len(expected) > 10
    assert len(searches) == 1


@built
def test_flags_are_counted_and_a_choice_does_not_narrow_its_own_counts(
    page: Any, address: str, shown: Cube
) -> None:
    def counts(title: str) -> list[str]:
        return list(page.get_by_role("group", name=title).locator(".count").all_inner_texts())

    with_snow = str(len(shown.search(filter='"bec:snow" = TRUE')))
    without = str(len(shown.search(filter='"bec:snow" = FALSE')))
    everything = str(len(shown.rows))
    page.goto(address)
    total(page)
    assert counts("Seasonal snow") == [everything, without, with_snow]
    page.get_by_role("group", name="Seasonal snow").get_by_role("radio", name="only").check()
    page.wait_for_function(
        "n => document.querySelector('.total strong')?.textContent === n", arg=with_snow
    )
    assert counts("Seasonal snow") == [everything, without, with_snow]
    assert counts("Cloud or shadow") == [with_snow, with_snow, "0"]
    page.get_by_role("group", name="Seasonal snow").scroll_into_view_if_needed()
    keep(page, "flags")
    page.goto(f"{address}?collection=crowded")
    assert total(page) == 4608
    assert counts("Cloud or shadow") == ["4,608", "4,607", "0"]  # one is unknown


@built
def test_the_43_classes_are_counted_chosen_and_told_apart_from_the_19(
    page: Any, address: str, of_43: Cube
) -> None:
    page.goto(f"{address}?collection={of_43.id}")
    assert total(page) == len(of_43.rows)
    page.get_by_role("radio", name="43", exact=True).check()
    counts = dict(zip(NAMES_43, of_43.labels("label_43").sum(axis=0).tolist(), strict=True))
    name = max(counts, key=lambda name: counts[name])
    page.get_by_role("checkbox", name=re.compile(f"^{re.escape(name)}")).check()
    page.wait_for_function(
        "n => document.querySelector('.total strong')?.textContent === n", arg=str(counts[name])
    )
    assert "classes=43" in page.url
    page.goto(f"{address}?collection={of_43.id}&patch={of_43.items['id'][0].as_py()}")
    for n, labels in ((19, "bec:labels"), (43, "bec:labels_43")):
        told = page.get_by_role("list", name=f"Classes, of {n}").inner_text()
        assert set(told.split("\n")) == set(of_43.items[labels][0].as_py())
    keep(page, "of_43")


@built
@pytest.mark.parametrize("collection", ["", "crowded"])
def test_a_cell_says_what_it_holds_and_leads_to_its_patches(
    page: Any, address: str, collection: str
) -> None:
    def sweep(said: str) -> tuple[float, float]:
        """Move over the map, from its middle, until it says something; returns where that is."""
        page.wait_for_selector(".map[aria-busy=false]")
        box = page.locator(".map .canvas").first.bounding_box()
        grid = [(i / 30, j / 30) for i in range(1, 30) for j in range(1, 30)]
        for i, j in sorted(grid, key=lambda at: math.dist(at, (0.5, 0.5))):
            x, y = box["x"] + box["width"] * i, box["y"] + box["height"] * j
            page.mouse.move(x, y)
            page.evaluate("new Promise((done) => requestAnimationFrame(done))")
            if re.fullmatch(said, page.inner_text(".map .said")):
                return x, y
        raise AssertionError(f"nothing says {said}")

    asked: list[Any] = []
    page.on("response", lambda r: asked.append(r) if "/items?" in r.url else None)
    page.goto(f"{address}?collection={collection}" if collection else address)
    is_drawn = []
    for _ in range(10):  # three zoom levels nearer each time, until patches are drawn
        before = page.url
        at = sweep(r"[\d,]+ patches|\d{4}-\d\d-\d\d: .+")
        says_cell = page.inner_text(".map .said").endswith("patches")
        is_drawn.append((says_cell, page.evaluate(CELL_AT, at)))
        page.mouse.click(*at)
        with suppress(sync_api.TimeoutError):  # the map may have moved below the mouse
            page.wait_for_function("url => location.href !== url", arg=before, timeout=5_000)
        if "patch=" in page.url:
            break
    page.wait_for_selector("dialog dl")
    assert {says for says, _ in is_drawn} == {True, False}
    assert all(says_cell == drawn for says_cell, drawn in is_drawn)
    keep(page, f"footprints-{collection}")
    answers = [answer.json() for answer in asked]
    assert answers
    assert all(a["numberReturned"] == a["numberMatched"] for a in answers)


@built
def test_a_patch_shows_its_bands_a_spectrum_and_its_look_alikes(page: Any, address: str) -> None:
    page.goto(f"{address}?view=patches")
    page.locator(".card").first.click()
    title = page.inner_text("#patch-title")
    page.wait_for_function("document.querySelector('.picture img')?.naturalWidth === 120")
    true_color = page.get_attribute(".picture img", "src")
    page.get_by_role("button", name="False color").click()
    assert page.get_attribute(".picture img", "src") != true_color
    page.get_by_role("button", name="Other bands").click()
    page.get_by_role("combobox", name="red").select_option("B11")
    assert "bands=B11%2CB8A%2CB04" in page.get_attribute(".picture img", "src")
    page.locator(".picture").press("ArrowRight")
    page.get_by_role("heading", name="Pixel 61, 60").wait_for()
    assert page.locator(".spectrum circle").count() == 12
    page.get_by_role("button", name="Find look-alikes").click()
    page.wait_for_selector(".alike .card")
    assert page.locator(".alike .card").count() == 24
    assert title not in page.locator(".alike .card").evaluate_all(
        "cards => cards.map(c => c.title)"
    )
    keep(page, "patch")
    page.locator(".alike .card").first.click()
    page.wait_for_function(
        "t => document.querySelector('#patch-title').textContent !== t", arg=title
    )


@built
def test_what_a_model_says_stands_beside_the_labels_and_where_they_part_is_marked(
    page: Any, address: str, shown: Cube
) -> None:
    unlike, alike = labeled(shown)[:2]
    n_marked = {}
    for row in (unlike, alike):
        (place,) = np.flatnonzero(shown.items["bec:row"].to_numpy() == row)
        page.goto(f"{address}?patch={shown.items['id'][int(place)].as_py()}")
        page.wait_for_selector(".scores tbody tr")
        n_classes = int(shown.labels("label_19", np.array([row])).sum())
        assert page.locator(".scores tbody tr").count() == n_classes
        n_marked[row] = page.locator(".scores .apart").count() / n_classes
    assert n_marked == {unlike: 1, alike: 0}


@built
def test_what_is_unknown_is_not_told_as_absent(page: Any, address: str, crowded: Cube) -> None:
    ids = crowded.items["id"].to_pylist()
    unknown = ids[crowded.items["bec:labels"].to_pylist().index(None)]
    known = next(name for name in ids if name != unknown)
    for name, said, flags in (
        (known, {"no": 18, "yes": 1}, "none"),
        (unknown, {"unknown": 19}, "seasonal snow unknown, cloud or shadow unknown"),
    ):
        page.goto(f"{address}?collection=crowded&patch={name}")
        page.wait_for_selector(".scores tbody tr")
        told = page.locator(".scores tbody td:last-child").all_inner_texts()
        assert Counter(told) == said
        assert page.locator(".scores .apart").count() == said.get("no", 0)
        assert page.locator("dt:text('Flags') + dd").inner_text() == flags
    keep(page, "unknown")
    page.goto(f"{address}?collection=crowded&view=patches")
    page.wait_for_selector(".card")
    assert "labels unknown" in page.locator(f".card[title^={unknown}]").get_attribute("title")


@built
def test_an_address_can_be_shared_and_the_back_button_goes_back(
    page: Any, browser: Any, address: str
) -> None:
    page.goto(address)
    everything = total(page)
    page.get_by_role("checkbox", name="winter").check()
    page.get_by_role("button", name="Statistics").click()
    page.wait_for_selector(".chart")
    page.wait_for_function(
        "n => document.querySelector('.total strong')?.textContent !== n", arg=str(everything)
    )
    left = total(page)
    assert left < everything
    keep(page, "statistics")
    other = browser.new_page()
    other.goto(page.url)
    assert total(other) == left
    assert other.get_by_role("checkbox", name="winter").is_checked()
    assert other.locator(".chart").count() > 0
    other.close()
    page.go_back()
    page.wait_for_selector(".map")
    page.go_back()
    page.wait_for_function(
        "n => document.querySelector('.total strong')?.textContent === n", arg=str(everything)
    )
    assert not page.get_by_role("checkbox", name="winter").is_checked()


@built
def test_the_keyboard_alone_filters_opens_a_patch_switches_its_bands_and_closes_it(
    page: Any, address: str, shown: Cube
) -> None:
    def tab_to(selector: str) -> None:
        """Press Tab until an element has the focus, and shows it."""
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                break
        focused = page.locator(":focus-visible")
        assert focused.evaluate("(e, s) => e.matches(s)", selector)
        assert focused.evaluate("e => getComputedStyle(e).outlineStyle") != "none"

    page.goto(address)
    total(page)
    tab_to(".choices li:nth-child(5) input")
    page.keyboard.press("Space")
    left = len(shown.search(filter="A_CONTAINS(\"bec:labels\", 'Pastures')"))
    page.wait_for_function(
        "n => document.querySelector('.total strong')?.textContent === n", arg=str(left)
    )
    tab_to(".views button:nth-child(2)")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    tab_to("li:nth-child(2) > .card")
    chosen = page.evaluate("document.activeElement.title.split('\\n')[0]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".picture img")
    assert page.inner_text("#patch-title") == chosen
    tab_to(".kinds button:nth-child(2)")
    page.keyboard.press("Enter")
    page.wait_for_selector(".picture img[src*=false_color]")
    tab_to(".kinds button:last-child")
    page.keyboard.press("Enter")
    tab_to(".bands label:first-child select")
    page.keyboard.type("B11")
    page.wait_for_selector(".picture img[src*='bands=B11%2CB8A%2CB04']")
    tab_to(".picture")
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Pixel 61, 60").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert page.evaluate("document.activeElement.title").startswith(chosen)


@built
def test_the_address_of_a_patch_holds_its_pixel_and_how_look_alikes_are_sought(
    page: Any, browser: Any, address: str
) -> None:
    def seen(page: Any) -> list[Any]:
        page.wait_for_selector(".alike[aria-busy=false] .card")
        page.wait_for_selector("section[aria-label=Spectrum][aria-busy=false]")
        return [
            page.locator("section[aria-label=Spectrum]").text_content(),
            page.get_by_role("combobox", name="by", exact=True).input_value(),
            page.get_by_role("combobox", name="of", exact=True).input_value(),
            page.get_by_role("checkbox", name="within the filters").is_checked(),
            page.locator(".alike .card").evaluate_all("cards => cards.map((card) => card.title)"),
        ]

    page.goto(f"{address}?view=patches&labels=Pastures")
    page.locator(".card").first.click()
    page.locator(".picture").click(position={"x": 100, "y": 30})
    page.get_by_role("button", name="Find look-alikes").click()
    page.get_by_role("combobox", name="of", exact=True).select_option(OTHER_MODEL)
    page.get_by_role("combobox", name="by", exact=True).select_option("cosine")
    page.get_by_role("checkbox", name="within the filters").check()
    page.wait_for_url("**&within=&**")
    page.wait_for_function(
        "[...document.querySelectorAll('.alike .card')].every((c) => /Pastures/.test(c.title))"
    )
    here = seen(page)
    assert here[1:4] == ["cosine", OTHER_MODEL, True]
    other = browser.new_page(viewport={"width": 1280, "height": 900})
    other.goto(page.url)
    assert seen(other) == here
    other.close()
    page.locator(".alike .card").first.click()  # pixel and look-alikes were of the patch before
    page.wait_for_url(re.compile(r"^(?!.*(pixel|model|within)=).*patch="))
    page.go_back()
    assert seen(page) == here


@built
def test_a_key_held_down_writes_the_address_when_it_is_let_go(page: Any, address: str) -> None:
    page.goto(f"{address}?view=patches")
    page.locator(".card").first.click()
    n_written = page.locator(".picture").evaluate("""async (picture) => {
        let n = 0;
        const write = history.replaceState;
        history.replaceState = (...given) => (n++, write.apply(history, given));
        for (const [key, times] of [["ArrowRight", 59], ["ArrowLeft", 117]]) {
            for (let i = 0; i < times; i++) {
                picture.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
                await new Promise((done) => setTimeout(done));
            }
        }
        return n;
    }""")
    assert n_written < 100  # in 10 s Safari takes no more
    page.wait_for_url("**pixel=2%2C60**", timeout=5_000)


@built
def test_what_the_service_refuses_is_said_in_its_words(page: Any, address: str) -> None:
    page.goto(f"{address}?from=2018-03-01&to=2017-01-01")
    assert "2018-03-01" in page.get_by_role("alert").first.inner_text()
    page.goto(f"{address}?patch=no-such-patch")
    page.wait_for_selector("dialog .error")
    assert "no patch 'no-such-patch'" in page.inner_text("dialog .error")
    keep(page, "refusal")
    page.goto(f"{address}?collection=elsewhere")
    assert 'no collection "elsewhere"' in page.get_by_role("alert").inner_text()


OVER_THE_EDGE = """() => [...document.querySelectorAll('html, aside, main, dialog')]
    .filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.tagName)"""
"""Parts of the page that scroll sideways; what is meant to (the snippets) is none of them."""


@built
@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (380, 800)])
def test_the_page_fits_its_screen_with_its_controls_in_reach(
    browser: Any, address: str, width: int, height: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(60_000)

    def assert_in_reach(role: str, name: str) -> None:
        control = page.get_by_role(role, name=name, exact=True)
        assert control.is_visible(), name
        control.scroll_into_view_if_needed()
        box = control.bounding_box()
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= width, name

    views = {"map": "Map", "patches": "Patches", "charts": "Statistics", "copy": "Copy as"}
    for view in views:
        page.goto(f"{address}?view={view}")
        total(page)
        assert page.evaluate(OVER_THE_EDGE) == [], view
        for name in views.values():
            assert_in_reach("button", name)
        assert_in_reach("combobox", "Collection")
        keep(page, f"{view}-{width}-{scheme}")
    page.goto(address)
    total(page)
    for role, name in (("combobox", "Color by"), ("button", "Zoom in"), ("button", "Zoom out")):
        assert_in_reach(role, name)
    if width < 760:
        page.get_by_role("button", name="Filters").click()
    for name in ("Clear all filters", "Pastures", "summer", "Austria", "train", "from", "only"):
        assert page.locator("aside").get_by_text(name, exact=True).first.is_visible(), name
    assert page.evaluate(OVER_THE_EDGE) == []
    keep(page, f"filters-{width}-{scheme}")
    page.goto(f"{address}?view=patches")
    page.locator(".card").first.click()
    page.locator(".picture").click()
    page.get_by_role("button", name="Other bands").click()
    page.get_by_role("button", name="Find look-alikes").click()
    page.wait_for_selector(".alike .card")
    page.wait_for_selector(".spectrum")
    assert page.evaluate(OVER_THE_EDGE) == []
    for name in ("True color", "False color", "Other bands", "Find look-alikes"):
        assert_in_reach("button", name)
    for name in ("red", "green", "blue", "by", "of"):
        assert_in_reach("combobox", name)
    assert_in_reach("button", "Close the patch")
    keep(page, f"patch-{width}-{scheme}")
    page.close()


@built
@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_no_serious_fault(browser: Any, address: str, scheme: str) -> None:
    axe = FOLDER / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.is_file():
        pytest.skip("needs axe-core; make web installs it")
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    for query in ("", "?view=patches", "?view=charts", "?view=copy", "?patch="):
        page.goto(address + query)
        if query == "?patch=":
            page.goto(f"{address}?view=patches")
            page.locator(".card").first.click()
            page.wait_for_selector("dialog dl")
        total(page)
        page.add_script_tag(path=str(axe))
        found = page.evaluate("axe.run()")["violations"]
        serious = [
            (f["id"], [n["target"] for n in f["nodes"]][:3])
            for f in found
            if f["impact"] in ("serious", "critical")
        ]
        assert serious == [], query
    page.close()
