"""Pictures of what a cube holds; the one module here that draws, so the one with matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch as Swatch
from matplotlib.ticker import MaxNLocator

from bigearth_cube.counts import TOTAL, Counts, Table
from bigearth_cube.errors import InvalidInputError

# Okabe and Ito's colors, told apart by color-blind readers too; gray is what is flagged.
_COLORS: Final[Mapping[str, str]] = {
    "train": "#0072b2",
    "validation": "#56b4e9",
    "test": "#e69f00",
    "spring": "#009e73",
    "summer": "#f0e442",
    "autumn": "#d55e00",
    "winter": "#cc79a7",
    "unknown": "#555555",
}
_FLAGGED: Final = "#c8c8c8"
_NAME_WIDTH: Final = 46


def draw_counts(counts: Counts, title: str, path: str) -> None:
    """Draw the counts of a cube: classes, splits, seasons and countries, as one picture.

    A bar is as long as all patches of its row, and the number beside it says how many. Its
    colored parts are the unflagged patches by column, its gray end is what is flagged.

    Parameters
    ----------
    counts
        As ``Cube.counts`` gives them.
    title
        What is counted, such as the name of the cube.
    path
        File to write; its suffix says the format (png, svg, pdf).

    Raises
    ------
    InvalidInputError
        If the format is unknown.
    OSError
        If the file cannot be written.
    """
    figure = Figure(figsize=(15, 9), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    splits = [cells[TOTAL] for cells in counts["split"].values()]
    n_patches, n_unflagged = (sum(n[kind] for n in splits) for kind in ("all", "unflagged"))
    figure.suptitle(
        f"{title}: {n_patches:,} patches, {n_unflagged:,} of them unflagged", fontsize=15
    )
    sides = figure.add_gridspec(1, 2, width_ratios=(1.25, 1))
    _draw(
        figure.add_subplot(sides[0]), "classes by split (a patch has one or more)", counts["label"]
    )
    small = {
        "splits": counts["split"],
        "seasons by split": counts["season"],
        "countries by season": counts["country"],
    }
    # As much room for a bar in each panel, and some for its title.
    heights = [len(table) + 3 for table in small.values()]
    panels = sides[1].subgridspec(len(small), 1, height_ratios=heights)
    for i, (name, table) in enumerate(small.items()):
        _draw(figure.add_subplot(panels[i]), name, table)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise InvalidInputError(f"cannot draw to {path!r}: {error}") from None


def _draw(axes: Axes, title: str, table: Table) -> None:
    """Draw a table as stacked bars, first row on top."""
    names = ["\n".join(textwrap.wrap(name, _NAME_WIDTH)) for name in table]
    columns: Sequence[str] = list(next(iter(table.values()), {TOTAL: {}}))
    parts = [name for name in columns if name != TOTAL] or [TOTAL]
    whole = [cells[TOTAL]["all"] for cells in table.values()]
    ends = [0] * len(table)
    for part in parts:
        lengths = [cells[part]["unflagged"] for cells in table.values()]
        colors = [_COLORS[row if part == TOTAL else part] for row in table]
        axes.barh(range(len(table)), lengths, left=ends, color=colors)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    flagged = [n - end for n, end in zip(whole, ends, strict=True)]
    axes.barh(range(len(table)), flagged, left=ends, color=_FLAGGED)
    for y, n in enumerate(whole):
        axes.annotate(
            f"{n:,}", (n, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_yticks(range(len(table)), names, fontsize=9)
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_xlim(0, max(whole, default=1) * 1.16)  # room for the number of the longest bar
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11, pad=22)
    swatches = [] if parts == [TOTAL] else [Swatch(color=_COLORS[p], label=p) for p in parts]
    swatches += [Swatch(color=_FLAGGED, label="flagged")] if any(flagged) else []
    if swatches:
        # Between title and bars: wherever else, some cube has a bar there.
        axes.legend(
            handles=swatches,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(swatches),
            fontsize=8.5,
            frameon=False,
            borderaxespad=0.2,
            borderpad=0,
            handlelength=1,
            columnspacing=1,
            handletextpad=0.4,
        )
