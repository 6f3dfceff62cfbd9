"""Pictures of a run and of a comparison: the learning curve, figures beside the published ones.

Figures are made as objects and drawn by Agg, so nothing here needs a display or leaves state
behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bigearth_cube.errors import NotFoundError
from bigearth_cube.plots import RIGHT
from bigearth_cube.storage import Storage, StorageOptions
from training.history import EpochLine, read_history
from training.results import ResultRow

CURVE: Final = "learning-curve.png"


def learning_curve(
    history: Sequence[EpochLine], path: str | Path | BinaryIO, title: str = ""
) -> None:
    """Draw losses and validation F1 by epoch as PNG, into a file of any kind."""
    epochs = [line.epoch for line in history]
    figure = Figure(figsize=(7, 4), layout="constrained")
    losses = figure.subplots()
    losses.plot(epochs, [line.train_loss for line in history], color="#0969da", label="train loss")
    validated = [line for line in history if line.validation_f1 is not None]
    if validated:
        at = [line.epoch for line in validated]
        losses.plot(
            at,
            [line.validation_loss or 0.0 for line in validated],
            color="#0969da",
            linestyle="--",
            label="validation loss",
        )
        scores = losses.twinx()
        f1 = [line.validation_f1 or 0.0 for line in validated]
        scores.plot(at, f1, color=RIGHT, marker="o", markersize=4, label="validation F1 (sample)")
        best = int(np.argmax(f1))
        scores.annotate(
            f"{f1[best]:.3f}",
            (at[best], f1[best]),
            textcoords="offset points",
            xytext=(0, 7),
            ha="center",
            color=RIGHT,
        )
        scores.set_ylabel("F1", color=RIGHT)
        scores.set_ylim(0, 1)
        scores.legend(loc="lower right", frameon=False)
    losses.set_xlabel("epoch")
    losses.set_ylabel("loss", color="#0969da")
    losses.set_ylim(bottom=0)
    losses.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    losses.legend(loc="lower left", frameon=False)
    losses.set_title(title)
    figure.savefig(path, format="png", dpi=130)


def comparison_png(rows: Sequence[ResultRow], columns: Sequence[str], title: str = "") -> bytes:
    """Draw the figures of result rows as bars, published ones pale; returns a PNG.

    Parameters
    ----------
    rows
        In order, from the top.
    columns
        Keys of ``results.COLUMNS``, a panel each.
    title
        Above all.
    """
    height = 1.2 + 0.34 * len(rows)
    figure = Figure(figsize=(3 + 2.6 * len(columns), height), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    names = [f"{row.model} ({row.origin})" for row in rows]
    for panel, column in zip(panels, columns, strict=True):
        values = [row.figure(column) for row in rows]
        colors = ["#0969da" if row.origin == "measured" else "#c8d1da" for row in rows]
        panel.barh(range(len(rows)), [value or 0.0 for value in values], color=colors)
        for y, value in enumerate(values):
            text = _why_none(rows[y]) if value is None else f"{value:.3f}"
            panel.annotate(
                text, (value or 0.0, y), xytext=(3, 0), textcoords="offset points", va="center"
            )
        panel.set_xlim(0, 1.18)
        panel.set_title(column)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), names)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=130)
    return png.getvalue()


def _why_none(row: ResultRow) -> str:
    return row.note.split(":")[0] if row.origin == "measured" else ""


def draw_run(url: str, title: str, storage_options: StorageOptions | None = None) -> None:
    """Draw the learning curve of a run into its folder, however far it came.

    Raises
    ------
    StorageError
        If storage refuses or cannot be reached.
    """
    folder, picture = Storage(url, storage_options), BytesIO()
    try:
        history = read_history(folder)
    except NotFoundError:  # it was stopped before its first epoch was saved
        return
    if history:
        learning_curve(history, picture, title)
        folder.write(CURVE, picture.getvalue())
