"""Pictures of what a cube holds; the one module here that draws, so the one with matplotlib.

Figures are made as objects and drawn by Agg, so nothing here needs a display or leaves state
behind.

Axes: N patch, Y and X pixel, C color.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch as Swatch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bigearth_cube.counts import TOTAL, Counts, Table
from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.retrieval import Neighbor

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
RIGHT, WRONG, MISSED, INK, FAINT = "#1a7f37", "#cf222e", "#9a6700", "#1f2328", "#d0d7de"
_MARKS: Final = {RIGHT: "✓", WRONG: "✗", MISSED: "○"}
_LABEL_WIDTH: Final = 30
_MAX_LABELS: Final = 6
_MAX_RANKS: Final = 10


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
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    """Write a picture in the format that its name ends with."""
    try:
        figure.savefig(path, dpi=130)
    except ValueError as error:
        raise InvalidInputError(f"cannot draw to {str(path)!r}: {error}") from None


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


@dataclass(frozen=True, slots=True)
class LabeledPatch:
    """A patch as a picture shows it.

    Attributes
    ----------
    dn_YXC
        Red, green and blue, uint16.
    true, predicted
        Class names.
    title
        Line above it.
    """

    dn_YXC: NDArray[np.uint16]
    true: tuple[str, ...]
    predicted: tuple[str, ...]
    title: str = ""


def stretched(dn_NYXC: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Stretch pictures that are shown together, alike, so that they can be compared.

    Each picture has a range (its 2nd and 98th percentile, color by color: haze lifts blue more
    than red), and the set takes the 25th percentile of the dark ends and the 85th of the
    bright ones, so that one cloudy patch does not darken all others. A gamma of 1/1.4 opens
    shadows.

    Returns
    -------
    ndarray
        0..1, same shape.
    """
    low_NC, high_NC = np.percentile(dn_NYXC, [2, 98], axis=(1, 2))
    low_C, high_C = np.percentile(low_NC, 25, axis=0), np.percentile(high_NC, 85, axis=0)
    scaled = (dn_NYXC - low_C) / np.maximum(high_C - low_C, 1)
    return np.asarray(scaled.clip(0, 1) ** (1 / 1.4))


def true_color(cube: Cube, patch_ids: Sequence[str]) -> NDArray[np.uint16]:
    """Read what a picture needs of some patches.

    Returns
    -------
    ndarray
        DN_NYXC uint16 in the order of the names; C is B04, B03, B02: red, green, blue.

    Raises
    ------
    NotFoundError
        If a patch is not in the cube.
    InvalidInputError
        If the cube has no pixels.
    """
    pictures: list[NDArray[np.uint16]] = []
    for patch_id in patch_ids:
        view: Any = cube.patch(patch_id)["s2/r10m"]["reflectance"]
        pictures.append(view.sel(band=["B04", "B03", "B02"]).transpose("y", "x", "band").values)
    return np.stack(pictures)


def draw_look_alikes(
    cube: Cube, query_id: str, found: Sequence[Neighbor], path: str | Path, title: str = ""
) -> None:
    """Draw a patch and its neighbors in true color as PNG, with their labels where known.

    Parameters
    ----------
    cube
        Where they are.
    query_id
        The patch that was asked about.
    found
        Its neighbors, nearest first; the first ten are drawn.
    path
        PNG.
    title
        Line above all.

    Raises
    ------
    NotFoundError
        If a patch is not in the cube.
    """
    shown = found[:_MAX_RANKS]
    ids = [query_id, *(neighbor.id for neighbor in shown)]
    pixels_NYXC = true_color(cube, ids)
    names = cube.items.column("id")
    labels = cube.items.column("bec:labels")
    of = {
        patch_id: tuple(labels[pc.index(names, patch_id).as_py()].as_py() or ()) for patch_id in ids
    }
    titles = ["query", *(f"rank {rank}: {n.score:.2f}" for rank, n in enumerate(shown, start=1))]
    patches = [
        LabeledPatch(dn_YXC, of[patch_id], (), said)
        for dn_YXC, patch_id, said in zip(pixels_NYXC, ids, titles, strict=True)
    ]
    look_alikes(patches[0], patches[1:], path, title)


def montage(
    patches: Sequence[LabeledPatch], path: str | Path, title: str = "", columns: int = 4
) -> None:
    """Draw patches with true and predicted labels as PNG: right, wrong and missed by color."""
    rows = -(-len(patches) // columns)
    figure = Figure(figsize=(columns * 2.9, rows * 4.0 + 0.8), layout="constrained")
    figure.suptitle(title, color=INK)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(patches) :]:
        axis.set_axis_off()
    pictures = stretched(np.stack([patch.dn_YXC for patch in patches]))
    for axis, patch, picture in zip(axes, patches, pictures, strict=False):
        _picture(axis, picture, patch.title)
        _labels(axis, _colored(patch.true, patch.predicted))
    _legend(figure, {RIGHT: "predicted and true", WRONG: "predicted, not true", MISSED: "missed"})
    _save(figure, path)


def look_alikes(
    query: LabeledPatch, ranks: Sequence[LabeledPatch], path: str | Path, title: str = ""
) -> None:
    """Draw a query and its neighbors, nearest first, as PNG; labels they share are green."""
    patches = [query, *ranks]
    figure = Figure(figsize=(len(patches) * 2.6, 4.7), layout="constrained")
    figure.suptitle(title, color=INK)
    axes = figure.subplots(1, len(patches), squeeze=False).ravel()
    pictures = stretched(np.stack([patch.dn_YXC for patch in patches]))
    for axis, patch, picture in zip(axes, patches, pictures, strict=True):
        _picture(axis, picture, patch.title)
        shared = set(query.true)
        _labels(axis, [(name, RIGHT if name in shared else MISSED) for name in patch.true])
    for spine in axes[0].spines.values():
        spine.set(color=INK, linewidth=2.5)
    _legend(figure, {RIGHT: "label of the query", MISSED: "other label"})
    _save(figure, path)


def _colored(true: Sequence[str], predicted: Sequence[str]) -> list[tuple[str, str]]:
    """Each class with its color: right ones first, then wrong, then missed."""
    right = [(name, RIGHT) for name in true if name in predicted]
    wrong = [(name, WRONG) for name in predicted if name not in true]
    return [*right, *wrong, *((name, MISSED) for name in true if name not in predicted)]


def _picture(axis: Axes, picture_YXC: NDArray[np.float64], title: str) -> None:
    axis.imshow(picture_YXC, interpolation="nearest")
    axis.set(xticks=[], yticks=[], anchor="N")
    axis.set_title(title, fontsize=9, color=INK)
    for spine in axis.spines.values():
        spine.set_color(FAINT)


def _labels(axis: Axes, colored: Sequence[tuple[str, str]]) -> None:
    """Write class names below a picture, a line each."""
    hidden = len(colored) - _MAX_LABELS
    lines = [
        (f"{_MARKS[color]} {textwrap.shorten(name, _LABEL_WIDTH, placeholder=' …')}", color)
        for name, color in (colored[: _MAX_LABELS - 1] if hidden > 0 else colored)
    ]
    if hidden > 0:
        lines.append((f"… {hidden + 1} more", INK))
    lines += [("", INK)] * (_MAX_LABELS - len(lines))  # pictures of a row stay aligned
    for place, (text, color) in enumerate(lines):
        axis.annotate(
            text,
            (0, 0),
            xycoords="axes fraction",
            xytext=(0, -12 - 11.5 * place),
            textcoords="offset points",
            fontsize=8.5,
            color=color,
            annotation_clip=False,
        )


def _legend(figure: Figure, meanings: dict[str, str]) -> None:
    handles = [Swatch(color=color, label=f"{_MARKS[color]} {m}") for color, m in meanings.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
