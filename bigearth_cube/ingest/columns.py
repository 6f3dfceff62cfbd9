"""Columns of a release: what the cube keeps of each row beside its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.archive import PatchRecord
from bigearth_cube.ingest.plan import Plan
from bigearth_cube.ingest.shard import VIEWS, ShardAccount
from bigearth_cube.layout import LABELS
from bigearth_cube.nomenclature import (
    NOMENCLATURES,
    S1_GROUP,
    Archive,
    labels_43_to_19,
    multi_hot,
)


def columns_of(
    plan: Plan,
    records: Sequence[PatchRecord],
    rows: NDArray[np.int64],
    accounts: Sequence[ShardAccount],
) -> dict[str, NDArray[Any]]:
    """Return every column of the release, padding rows holding fill values."""
    n_rows = plan.stop - plan.start
    at = rows - plan.start

    def column(values: Sequence[Any], dtype: Any, fill: Any = 0) -> NDArray[Any]:
        full = np.full((n_rows, *np.shape(values)[1:]), fill, dtype)
        full[at] = values
        return full

    def seconds(when: datetime | None) -> int:
        return 0 if when is None else int(when.timestamp())

    columns: dict[str, NDArray[Any]] = {
        name: column([getattr(r, name) or "" for r in records], object, "")
        for name in ("id", "tile", "place", "country", "season", "split")
    }
    columns["acquired"] = column([seconds(r.acquired) for r in records], np.int64)
    for name in ("flagged_snow", "flagged_cloud_or_shadow"):
        columns[name] = column([bool(getattr(r, name)) for r in records], bool)
    columns["has_labels"] = column([r.labels is not None for r in records], bool)
    for name in ("epsg", "ulx", "uly"):
        columns[name] = column([getattr(r, name) for r in records], np.int32)
    for name in LABELS[plan.writer.layout.archive]:
        hot = [
            multi_hot(_labels(r, name, plan.writer.layout.archive), NOMENCLATURES[name])
            for r in records
        ]
        columns[name] = column(hot, np.uint8)
    for kind, path in VIEWS.items():
        if path in plan.writer.layout.groups:
            present = np.zeros(n_rows, bool)
            have = [row for account in accounts for row in getattr(account, kind)]
            present[np.array(have, np.int64) - plan.start] = True
            columns[f"{path}/present"] = present
    if S1_GROUP.path in plan.writer.layout.groups:
        columns[f"{S1_GROUP.path}/id"] = column([r.s1_id or "" for r in records], object, "")
        acquired = [seconds(r.s1_acquired) for r in records]
        columns[f"{S1_GROUP.path}/acquired"] = column(acquired, np.int64)
    return columns


def _labels(record: PatchRecord, name: str, archive: Archive) -> tuple[str, ...]:
    labels = record.labels or ()
    return labels_43_to_19(labels) if archive == "v1" and name == "label_19" else labels
