"""What is compared with what, which ratio is to be reached, and how the table reads."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Rates = Mapping[str, Sequence[float | None]]
"""Contender to its patches a second in each round; None where a round of it failed."""

OF_DEFAULT = 0.8
"""Part of each ratio that a cube of the default profile is to reach."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    label
        What is on the right side of the ratio, in words.
    left, right
        Names of two contenders; ``{profile}`` in them stands for the profile of the cube.
    target
        Ratio of their rates to reach with a cube of the profile ``fast``.
    of_default
        Part of it to reach with the default profile.
    """

    label: str
    left: str
    right: str
    target: float
    of_default: float = OF_DEFAULT

    def of(self, profile: str) -> Row:
        """Return the row of one profile, with its own target."""
        return Row(
            self.label,
            self.left.format(profile=profile),
            self.right.format(profile=profile),
            self.target * (self.of_default if profile == "default" else 1),
        )


ROWS = (
    Row("xarray .isel per batch through dask, nginx", "ours nginx {profile}", "xarray nginx", 30),
    Row("xarray .isel per batch through dask, RGW", "ours rgw {profile}", "xarray rgw", 30),
    Row("xbatcher, nginx", "ours nginx {profile}", "xbatcher nginx", 2.3),
    Row("xbatcher, RGW", "ours rgw {profile}", "xbatcher rgw", 2.3),
    Row("xbatcher by whole shards, nginx", "ours nginx {profile}", "xbatcher blocks nginx", 2.3),
    Row("xbatcher by whole shards, RGW", "ours rgw {profile}", "xbatcher blocks rgw", 2.3),
    Row("zarr-python + obstore by blocks, nginx", "ours nginx {profile}", "zarr nginx", 2.2),
    Row("zarr-python + obstore by blocks, RGW", "ours rgw {profile}", "zarr rgw", 2.2),
    Row("GeoTIFFs as TorchGeo, local", "ours nginx {profile}", "geotiffs", 50),
    Row("LMDB resized to float32, local", "ours nginx {profile}", "lmdb resized", 4.5),
    Row("WebDataset, local", "ours nginx {profile}", "webdataset", 3.3),
    Row("LMDB raw, local", "ours nginx {profile}", "lmdb raw", 1.0),
    Row("LMDB raw, local", "ours local {profile}", "lmdb raw", 1.5),
    Row("MosaicML, first epoch, RGW", "ours rgw {profile}", "mosaic first", 5),
    Row("MosaicML, later epochs, its cache", "ours rgw {profile}", "mosaic later", 0.9),
    Row("MosaicML, later epochs, its cache", "ours cached {profile}", "mosaic later", 1.4),
    Row("decode + gather ceiling", "ours local {profile}", "ceiling {profile}", 0.85),
    Row("threads", "dask in process {profile}", "ours nginx {profile}", 0.9),
    Row("threads", "dask processes {profile}", "ours nginx {profile}", 0.6),
    Row("the same proxy without delay", "ours proxy50 {profile}", "ours proxy {profile}", 0.8),
)
FIRST_BATCH_S = 1.0
UNJUDGED = ("torch nginx fast", "lmdb raw in process")
"""Contenders whose rates are printed beside the table."""


@dataclass(frozen=True)
class Ratio:
    """Median and range of a ratio over rounds, taken pair by pair."""

    median: float
    lowest: float
    highest: float


def ratio(left: Sequence[float | None], right: Sequence[float | None]) -> Ratio | None:
    """Divide round by round; None where no round has both.

    Examples
    --------
    >>> ratio([10, 30, None], [5, 10, 10])
    Ratio(median=2.5, lowest=2.0, highest=3.0)
    """
    pairs = [a / b for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    return Ratio(statistics.median(pairs), min(pairs), max(pairs)) if pairs else None


def table(rates: Rates, failures: Mapping[str, str], profile: str) -> list[list[str]]:
    """Lay out the rows of one profile, heading first; a row without figures says why."""
    lines = [["ours", "against", "ours/s", "theirs/s", "ratio", "range", "target", ""]]
    for row in (row.of(profile) for row in ROWS):
        if row.left not in rates or row.right not in rates:
            continue
        found = ratio(rates[row.left], rates[row.right])
        figures = [_median(rates[row.left]), _median(rates[row.right])]
        if found is None:
            why = failures.get(row.left) or failures.get(row.right) or "not measured"
            lines.append([row.left, row.label, *figures, "-", "-", f"{row.target:.3g}", why])
            continue
        reached = found.median >= row.target
        spread = f"{found.lowest:.3g}-{found.highest:.3g}"
        verdict = "reached" if reached else "MISSED"
        lines.append(
            [
                *(row.left, row.label, *figures),
                *(f"{found.median:.3g}", spread, f"{row.target:.3g}", verdict),
            ]
        )
    return lines


def printed(lines: Sequence[Sequence[str]]) -> str:
    """Align columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _median(rates: Sequence[float | None]) -> str:
    known = [rate for rate in rates if rate is not None]
    return f"{statistics.median(known):,.0f}" if known else "-"
