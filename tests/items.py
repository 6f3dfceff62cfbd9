"""400 items that tests ask questions about: known or unknown at random, over four squares."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import shapely
import shapely.geometry

from bigearth_cube import stac
from bigearth_cube.archive.base import PatchRecord
from bigearth_cube.item_index import ItemIndex
from bigearth_cube.nomenclature import COUNTRIES, NAMES_19, SPLITS, patch_origin, tiles

Item = dict[str, Any]


def _records(n: int = 400) -> list[PatchRecord]:
    """Patches of four neighboring squares with everything known or unknown at random."""
    draw = np.random.default_rng(5)
    squares = [t.mgrs for t in tiles() if t.mgrs in ("29SND", "33UUP", "33UVP", "35VPK")]
    made: dict[str, PatchRecord] = {}
    while len(made) < n:
        mgrs = squares[draw.integers(len(squares))]
        col, row = (int(v) for v in draw.integers(0, 91, 2))
        when = datetime(2017, 6, 1, 10, 0, 0, tzinfo=UTC) + timedelta(
            days=int(draw.integers(0, 365)), seconds=int(draw.integers(0, 3600))
        )
        epsg, ulx, uly = patch_origin(mgrs, col, row)
        labels = draw.choice(NAMES_19[:6], size=draw.integers(0, 4), replace=False).tolist()
        identifier = f"S2A_{when:%Y%m%dT%H%M%S}_{mgrs}_{col}_{row}"
        made[identifier] = PatchRecord(
            identifier,
            f"tile_{mgrs}",
            mgrs,
            col,
            row,
            when,
            epsg,
            ulx,
            uly,
            labels=None if draw.random() < 0.1 else tuple(labels),
            country=None if draw.random() < 0.1 else str(draw.choice(COUNTRIES[:3])),
            split=None if draw.random() < 0.1 else str(draw.choice(SPLITS)),
            flagged_snow=None if draw.random() < 0.1 else bool(draw.random() < 0.3),
        )
    return list(made.values())


ROWS = np.random.default_rng(6).permutation(400).astype(np.int64) * 3 + 64
TABLE = stac.items_table(_records(), ROWS, collection="mine", archive="v2")
INDEX = ItemIndex(TABLE)
ITEMS: list[Item] = stac.items(TABLE, cube_url="memory://mine")
SHAPES = [shapely.geometry.shape(item["geometry"]) for item in ITEMS]
TIMES = [datetime.fromisoformat(item["properties"]["datetime"]) for item in ITEMS]
