"""Rows of a result table: what was published and what was measured, never confused.

Precision, recall and F are averaged by sample: each patch counts alike. Of the published tables
only that reading fits, as their F values lie below the harmonic mean of their P and R.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

Origin = Literal["published", "measured"]


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One model on one set of patches.

    Attributes
    ----------
    model
        Name for a reader.
    origin
        ``"published"`` by others, or ``"measured"`` here.
    data
        What it was tested on, ``real`` or ``synthetic`` first.
    precision, recall, f1, f2
        Averaged by sample, 0..1; None where the source does not say.
    source
        Where a published row stands; how a measured one was made.
    metrics
        Every metric of a measured row, by name.
    """

    model: str
    origin: Origin
    data: str
    precision: float | None
    recall: float | None
    f1: float | None
    f2: float | None
    source: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def measured(
        cls, model: str, data: str, metrics: Mapping[str, float], source: str = ""
    ) -> ResultRow:
        """Make a row of what ``MultiLabelMetrics.compute`` gives."""
        precision, recall, f1, f2 = (
            metrics[f"sample_{name}"] for name in ("precision", "recall", "f1", "f2")
        )
        return cls(model, "measured", data, precision, recall, f1, f2, source, metrics)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, every metric included."""
        return asdict(self)


_TALK: Final = "talk at IGARSS 2019"
_V1: Final = "real: v1, 43 classes"
TALK_2019: Final = (
    ResultRow("Inception-v2, last layer", "published", _V1, None, 0.4075, 0.4171, 0.4085, _TALK),
    ResultRow("S-CNN RGB", "published", _V1, None, 0.5472, 0.5543, 0.5451, _TALK),
    ResultRow("S-CNN all bands", "published", _V1, None, 0.5720, 0.6083, 0.5812, _TALK),
    ResultRow("TB-CNN", "published", _V1, None, 0.7062, 0.6519, 0.6763, _TALK),
)
"""The four rows of the talk that introduced TB-CNN."""


def as_text(rows: Sequence[ResultRow]) -> str:
    """Lay rows out as a table of aligned columns, which is Markdown too.

    Examples
    --------
    >>> print(as_text(TALK_2019[3:]))
    | model  |    P |    R |   F1 |   F2 | origin    | data                 |
    |--------|------|------|------|------|-----------|----------------------|
    | TB-CNN |    - | .706 | .652 | .676 | published | real: v1, 43 classes |
    """
    head = ("model", "P", "R", "F1", "F2", "origin", "data")
    numeric = range(1, 5)
    cells = [
        (
            row.model,
            *(_figure(value) for value in (row.precision, row.recall, row.f1, row.f2)),
            row.origin,
            row.data,
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head))]
    widths = [max(w, 4) if i in numeric else w for i, w in enumerate(widths)]

    def line(values: Sequence[str]) -> str:
        padded = [
            v.rjust(w) if i in numeric else v.ljust(w)
            for i, (v, w) in enumerate(zip(values, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(head), rule, *map(line, cells)])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".removeprefix("0")
