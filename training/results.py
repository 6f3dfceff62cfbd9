"""Rows of a result table: what was published and what was measured, never confused.

Precision, recall and F are averaged by sample: each patch counts alike. Of the published tables
only that reading fits, as their F values lie below the harmonic mean of their P and R.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from training.tables import aligned, figure

Origin = Literal["published", "measured"]

PRF: Final = ("P", "R", "F1", "F2")
COLUMNS: Final[Mapping[str, str]] = {
    "P": "sample_precision",
    "R": "sample_recall",
    "F1": "sample_f1",
    "F2": "sample_f2",
    "AP macro": "ap_macro",
    "AP micro": "ap_micro",
}
"""Columns of a table, and the metric in each."""


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
        Every metric of a measured row, by name; of a published one what the source has besides.
    note
        What a reader must know beside the figures, such as why there are none.
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
    note: str = ""

    @classmethod
    def measured(
        cls, model: str, data: str, metrics: Mapping[str, float], source: str = ""
    ) -> ResultRow:
        """Make a row of what ``MultiLabelMetrics.compute`` gives."""
        precision, recall, f1, f2 = (
            metrics[f"sample_{name}"] for name in ("precision", "recall", "f1", "f2")
        )
        return cls(model, "measured", data, precision, recall, f1, f2, source, metrics)

    def figure(self, column: str) -> float | None:
        """Return what stands in a column of a table, a key of `COLUMNS`; None where unknown."""
        own = {"P": self.precision, "R": self.recall, "F1": self.f1, "F2": self.f2}
        return own[column] if column in own else self.metrics.get(COLUMNS[column])

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


def _published(
    model: str, data: str, source: str, *prf: float | None, ap: tuple[float, float] | None = None
) -> ResultRow:
    precision, recall, f1, f2 = prf or (None,) * 4
    metrics = {} if ap is None else {"ap_macro": ap[0], "ap_micro": ap[1]}
    return ResultRow(model, "published", data, precision, recall, f1, f2, source, metrics)


_PAPER: Final = "Sumbul et al., IGARSS 2019"
PAPER_2019: Final = (
    _published("Inception-v2, last layer", _V1, _PAPER, 0.4823, 0.5679, 0.4988, 0.5301),
    _published("S-CNN RGB", _V1, _PAPER, 0.6506, 0.7557, 0.6759, 0.7139),
    _published("S-CNN all bands", _V1, _PAPER, 0.6993, 0.7710, 0.7098, 0.7384),
)
"""The rows of the paper of the same year, which has no TB-CNN."""

_WEIGHTS: Final = "released weights"
RELEASED: Final = (
    _published("TB-CNN", f"{_V1}, official test", _WEIGHTS, 0.7651, 0.7701, 0.7435, 0.7530),
    _published("ResNet50 S2", f"{_V1}, official test", _WEIGHTS, 0.7935, 0.7539, 0.7500, 0.7470),
)
"""What the weights that the authors released score on the official test split."""

_MM: Final = "BigEarthNet-MM, arXiv 2105.07921"
_MM_DATA: Final = "real: v1, 19 classes"
MM: Final = (
    _published("VGG16 S1+S2", _MM_DATA, _MM, None, 0.7697, None, 0.7618),
    _published("ResNet50 S1+S2", _MM_DATA, _MM, None, 0.8005, None, 0.7873),
    _published("ResNet152 S1+S2", _MM_DATA, _MM, None, 0.7813, None, 0.7746),
)

_REBEN: Final = "model cards of reBEN, arXiv 2407.03653"
_REBEN_DATA: Final = "real: v2, 19 classes"
REBEN: Final = (
    _published("ResNet50 S1", _REBEN_DATA, _REBEN, ap=(0.628, 0.801)),
    _published("ResNet50 S1+S2", _REBEN_DATA, _REBEN, ap=(0.703, 0.861)),
    _published("ConvNeXtV2 S1+S2", _REBEN_DATA, _REBEN, ap=(0.692, 0.857)),
    _published("RDNet S2", _REBEN_DATA, _REBEN, ap=(0.689, 0.854)),
)


def as_text(rows: Sequence[ResultRow], columns: Sequence[str] = PRF) -> str:
    """Lay rows out as a table of aligned columns, which is Markdown too.

    Parameters
    ----------
    rows
        What to show; notes make a column of their own where a row has one.
    columns
        Keys of `COLUMNS`.

    Examples
    --------
    >>> print(as_text(TALK_2019[3:]))
    | model  |    P |    R |   F1 |   F2 | origin    | data                 |
    |--------|------|------|------|------|-----------|----------------------|
    | TB-CNN |    - | .706 | .652 | .676 | published | real: v1, 43 classes |
    """
    noted = any(row.note for row in rows)
    head = ("model", *columns, "origin", "data", *(("note",) if noted else ()))
    lines = [
        (
            row.model,
            *(figure(row.figure(column)) for column in columns),
            row.origin,
            row.data,
            *((row.note,) if noted else ()),
        )
        for row in rows
    ]
    return aligned(head, lines, range(1, 1 + len(columns)))


def per_class_text(per_class: Mapping[str, Mapping[str, float]]) -> str:
    """Lay the figures of each class out as a table; none of them is averaged."""
    columns = {"P": "precision", "R": "recall", "F1": "f1", "F2": "f2", "AP": "ap"}
    lines = [
        (name, f"{values['n']:,.0f}", *(figure(values[column]) for column in columns.values()))
        for name, values in per_class.items()
    ]
    return aligned(("class", "patches", *columns), lines, range(1, 2 + len(columns)))
