"""Pictures of a run: the learning curve, patches with their labels, look-alikes.

Figures are made as objects and drawn by Agg, so nothing here needs a display or leaves state
behind.

Axes: N patch, Y and X pixel, C color.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from training.train import EpochLine

RIGHT, WRONG, MISSED, INK, FAINT = "#1a7f37", "#cf222e", "#9a6700", "#1f2328", "#d0d7de"
_MARKS: Final = {RIGHT: "✓", WRONG: "✗", MISSED: "○"}
_LABEL_WIDTH: Final = 30
_MAX_LABELS: Final = 6


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


def learning_curve(history: Sequence[EpochLine], path: str | Path, title: str = "") -> None:
    """Draw losses and validation F1 by epoch as PNG."""
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
    losses.set_ylabel("binary cross-entropy", color="#0969da")
    losses.set_ylim(bottom=0)
    losses.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    losses.legend(loc="lower left", frameon=False)
    losses.set_title(title)
    figure.savefig(path, format="png", dpi=130)


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
    figure.savefig(path, format="png", dpi=130)


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
    figure.savefig(path, format="png", dpi=130)


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
    handles = [Patch(color=color, label=f"{_MARKS[color]} {m}") for color, m in meanings.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
