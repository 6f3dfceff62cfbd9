"""Tables of aligned columns, which are Markdown too."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

_LEAST: Final = 4  # a figure such as .727


def aligned(
    head: Sequence[str], lines: Sequence[Sequence[str]], figures: Collection[int] = ()
) -> str:
    """Lay lines out under a head.

    Parameters
    ----------
    head, lines
        As many cells each.
    figures
        Columns of numbers, which end at the right.

    Examples
    --------
    >>> print(aligned(("model", "F1"), [("TB-CNN", ".652")], {1}))
    | model  |   F1 |
    |--------|------|
    | TB-CNN | .652 |
    """
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    widths = [max(w, _LEAST) if i in figures else w for i, w in enumerate(widths)]

    def text(line: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if i in figures else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text(head), rule, *map(text, lines)])


def figure(value: float | None) -> str:
    """Write a share with three digits, without the zero before the point; a dash for None."""
    return "-" if value is None else f"{value:.3f}".removeprefix("0")
