"""The page of costs says what the functions of the product give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bigearth_cube.cube import open_cube
from bigearth_cube.ingest import ingest
from bigearth_cube.writer import ZARR
from tests import costs


def test_the_page_of_costs_is_what_the_functions_give() -> None:
    said, found = costs.PAGE.read_text(), costs.page()
    # Memory is measured, and numpy's own part of it differs between versions.
    measured = re.compile(r"^- \*\*Plan of an epoch.*$", re.MULTILINE)
    assert measured.sub("", said) == measured.sub("", found)
    lines = measured.findall(said)[0], measured.findall(found)[0]
    said_bytes, found_bytes = (int(re.search(r"(\d+) bytes a row", x)[1]) for x in lines)  # type: ignore[index]
    assert said_bytes == pytest.approx(found_bytes, rel=0.2)


def test_requests_grow_with_the_rows_and_no_faster() -> None:
    small, large = (costs.epoch_of(n).requests / n for n in (20_480, 204_800))
    assert large == pytest.approx(small, rel=0.1)


def test_a_large_cube_has_a_shard_for_every_1024_patches() -> None:
    assert costs.Archive(costs.LARGE).shards == -(-costs.LARGE // 1024)
    assert costs.Archive(costs.V2).shards == 537


@pytest.mark.samples
@pytest.mark.slow
def test_real_patches_are_stored_in_the_ratios_of_the_page(samples: Path, tmp_path: Path) -> None:
    lists = sorted((samples / "metadata").glob("metadata*.parquet"))
    report = ingest([str(samples / "v2"), *map(str, lists)], str(tmp_path), workers=1)
    cube = open_cube(str(tmp_path))
    for group, ratio in costs.RATIOS.items():
        layout = cube.pixel_layout(group)
        prefix = f"{ZARR}/{layout.path}/c/"
        stored = sum(size for _, size in cube.storage.list(prefix))
        views = report.accounts[group.split("/")[0]].ingested  # type: ignore[index]
        index = layout.index_bytes * layout.n_rows // layout.shard_rows
        if views > 10:
            assert views * layout.patch_bytes / (stored - index) == pytest.approx(ratio, rel=0.05)
