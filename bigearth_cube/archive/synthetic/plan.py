"""Which patches a synthetic archive holds: invented on the real grid, or taken from a list."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigearth_cube.archive.base import PatchRecord
from bigearth_cube.archive.synthetic.landcover import choose_codes, choose_labels, labels_of
from bigearth_cube.archive.synthetic.places import COUNTRY_OF, invent_places
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import (
    NAMES_19,
    SPLITS,
    Archive,
    Tile,
    check_split,
    patch_origin,
    reben_split,
    tiles,
)

SCHEMA: Final = pa.schema(
    [
        ("patch_id", pa.string()),
        ("labels", pa.list_(pa.field("element", pa.string()))),
        ("split", pa.string()),
        ("country", pa.string()),
        ("s1_name", pa.string()),
        ("s2v1_name", pa.string()),
        ("contains_seasonal_snow", pa.bool_()),
        ("contains_cloud_or_shadow", pa.bool_()),
    ]
)
"""Columns of the official v2 parquets."""

_SNOW_MONTHS: Final = frozenset((11, 12, 1, 2, 3, 4, 5))
_SNOW_COUNTRIES: Final = frozenset(("Austria", "Finland", "Kosovo", "Lithuania", "Serbia"))
_SNOW_SHARE: Final = 0.022
_CLOUD_SHARE: Final = 0.011
"""Shares of flagged patches. The real archives flag 11 % and 1.6 %, most of them dusted; these
lie under bright snow and cloud, and fewer of them give the published standard deviations."""


@dataclass(frozen=True, slots=True)
class PlannedPatch:
    """One patch to draw and write.

    Attributes
    ----------
    record
        Everything the published metadata say of it.
    codes
        CLC level-3 classes its map holds.
    v1_id
        Name in v1.
    product
        L1C product it was cut from, without ``.SAFE``, name faults included.
    """

    record: PatchRecord
    codes: tuple[int, ...]
    v1_id: str
    product: str


def _rng(seed: int, purpose: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, zlib.crc32(name.encode())])


def place_rng(seed: int, record: PatchRecord) -> np.random.Generator:
    """Randomness shared by all dates of a place: its classes and its map."""
    return _rng(seed, 3, record.place)


def patch_rng(seed: int, record: PatchRecord) -> np.random.Generator:
    """Randomness of one patch alone: light, moisture, noise."""
    return _rng(seed, 4, f"{record.place} {record.acquired:%Y%m%dT%H%M%S}")


def v1_times(acquisitions: tuple[Tile, ...]) -> dict[str, str]:
    """Date and time that the v1 names of each acquisition carry.

    The authors told squares of one datatake apart by counting its time up as a bare integer,
    which is how the names came to lose leading zeros and to reach 60 seconds.

    Returns
    -------
    dict
        Product to ``YYYYMMDDT…``.

    Examples
    --------
    >>> times = v1_times(tiles())
    >>> times["S2B_MSIL1C_20180204T094159_N0206_R036_T35VPK_20180204T115809"]
    '20180204T94161'
    """
    seen: dict[tuple[str, str], int] = {}
    times: dict[str, str] = {}
    for tile in sorted(acquisitions, key=lambda tile: tile.product):
        platform, _, stamp = tile.product.split("_")[:3]
        rank = seen.get((platform, stamp), 0)
        seen[platform, stamp] = rank + 1
        day, time = stamp.split("T")
        times[tile.product] = f"{day}T{int(time) + rank}" if rank else stamp
    return times


def _v2_tile(product: str) -> str:
    platform, _, stamp, _, orbit, square = product.split("_")[:6]
    return f"{platform}_MSIL2A_{stamp}_N9999_{orbit}_{square}"


def _s1_scene(seed: int, tile: Tile) -> str:
    """Invent the Sentinel-1 scene that pairs with an acquisition.

    Sentinel-1 passes at about 6:00 and 17:45 local solar time; the published pairs lie within
    6 days, two thirds within one.
    """
    rng = _rng(seed, 5, tile.product)
    day = tile.acquired.replace(hour=0, minute=0, second=0)
    day += timedelta(days=int(rng.choice([-2, -1, 0, 1, 2], p=[0.1, 0.2, 0.4, 0.2, 0.1])))
    longitude_h = (6 * int(tile.mgrs[:2]) - 183) / 15
    local_h = (6.0, 17.75)[rng.integers(2)] + rng.uniform(-0.25, 0.25)
    when = day + timedelta(seconds=round(3600 * (local_h - longitude_h)))
    return f"S1{'AB'[rng.integers(2)]}_IW_GRDH_1SDV_{when:%Y%m%dT%H%M%S}"


def _v1_split(seed: int, product: str, col: int, row: int) -> str:
    """Deal each aligned 2 x 2 block of an acquisition 2 train, 1 validation, 1 test."""
    order = _rng(seed, 6, f"{product} {col // 2} {row // 2}").permutation(4)
    return ("train", "train", "validation", "test")[order[2 * (col % 2) + row % 2]]


def invent(archive: Archive, n_patches: int, seed: int) -> list[PlannedPatch]:
    """Plan patches on the real grid, cut from the real acquisitions, with invented contents.

    Parameters
    ----------
    archive
        Whose names, splits and labels.
    n_patches
        At least 1; at most what the archive's acquisitions can hold.
    seed
        Of everything drawn.

    Returns
    -------
    list of PlannedPatch
        Sorted by name.

    Raises
    ------
    InvalidInputError
        If the acquisitions can hold fewer.
    """
    rng = np.random.default_rng([seed, 0])
    times = v1_times(tiles())
    acquisitions = [tile for tile in tiles() if (tile.n_v1 if archive == "v1" else tile.n_v2)]
    places = itertools.islice(invent_places(rng, archive, n_patches, acquisitions), n_patches)
    planned = [
        _invent_patch(archive, seed, tile, col, row, times[tile.product])
        for tile, col, row in places
    ]
    planned.sort(key=lambda patch: patch.record.id)
    return _flag(rng, archive, planned)


def _invent_patch(
    archive: Archive, seed: int, tile: Tile, col: int, row: int, v1_time: str
) -> PlannedPatch:
    v1_id = f"{tile.product[:3]}_MSIL2A_{v1_time}_{col}_{row}"
    country = COUNTRY_OF[tile.mgrs]
    epsg, ulx, uly = patch_origin(tile.mgrs, col, row)
    product = tile.product.replace(tile.product.split("_")[2], v1_time, 1)
    v2_tile = _v2_tile(tile.product)
    record = PatchRecord(
        id=v1_id if archive == "v1" else f"{v2_tile}_{col:02d}_{row:02d}",
        tile=tile.product if archive == "v1" else v2_tile,
        mgrs=tile.mgrs,
        col=col,
        row=row,
        acquired=tile.acquired,
        epsg=epsg,
        ulx=ulx,
        uly=uly,
        country=country,
        split=(
            _v1_split(seed, tile.product, col, row) if archive == "v1" else reben_split(col, row)
        ),
        flagged_snow=False,
        flagged_cloud_or_shadow=False,
        s1_id=f"{_s1_scene(seed, tile)}_{tile.mgrs}_{col}_{row}",
    )
    rng = place_rng(seed, record)
    codes = choose_codes(rng, choose_labels(rng, country), country)
    return PlannedPatch(replace(record, labels=labels_of(codes, archive)), codes, v1_id, product)


def _flag(
    rng: np.random.Generator, archive: Archive, planned: list[PlannedPatch]
) -> list[PlannedPatch]:
    """Put snow on some patches of the cold countries and months, and cloud on a few others."""
    n = len(planned)
    cold = [
        i
        for i, patch in enumerate(planned)
        if patch.record.country in _SNOW_COUNTRIES and patch.record.acquired.month in _SNOW_MONTHS
    ]
    snow = set(rng.permutation(cold)[: min(round(_SNOW_SHARE * n), len(cold) // 2)].tolist())
    rest = [i for i in rng.permutation(n).tolist() if i not in snow]
    cloud = set(rest[: round(_CLOUD_SHARE * n)])
    flagged: list[PlannedPatch] = []
    for i, patch in enumerate(planned):
        record = replace(patch.record, flagged_snow=i in snow, flagged_cloud_or_shadow=i in cloud)
        if archive == "v1" and record.flagged:  # in none of the official lists
            record = replace(record, split=None)
        flagged.append(replace(patch, record=record))
    return flagged


def _choose_rows(rng: np.random.Generator, splits: list[str], n_patches: int) -> list[int]:
    """Rows for half train and a quarter each of the others, as far as a list has them."""
    column = np.array(splits)
    n_test = n_validation = n_patches // 4
    wanted = {"train": n_patches - n_test - n_validation, "validation": n_validation}
    wanted["test"] = n_test
    order = {split: rng.permutation(np.flatnonzero(column == split)) for split in SPLITS}
    chosen = np.concatenate([order[s][: wanted[s]] for s in SPLITS])
    spare = np.concatenate([order[s][wanted[s] :] for s in SPLITS])
    rows = np.concatenate([chosen, spare[: n_patches - chosen.size]])
    return [int(row) for row in np.sort(rows)]


def _read_table(metadata: Path) -> pa.Table:
    try:
        table = pq.read_table(metadata)
    except (OSError, pa.ArrowInvalid) as error:
        first = str(error).splitlines()[0]
        raise InvalidInputError(
            f"{metadata} cannot be read as parquet ({first}); expected the metadata.parquet of "
            "BigEarthNet v2: give that file"
        ) from error
    missing = [name for name in SCHEMA.names if name not in table.schema.names]
    if missing:
        raise InvalidInputError(
            f"{metadata} has no column {missing[0]!r}; expected the columns of BigEarthNet v2's "
            f"metadata.parquet ({', '.join(SCHEMA.names)}): give that file"
        )
    try:
        return table.select(SCHEMA.names).cast(SCHEMA)
    except pa.ArrowInvalid as error:
        raise InvalidInputError(
            f"{metadata} has columns of other types ({error}); expected those of BigEarthNet "
            "v2's metadata.parquet: give that file"
        ) from error


def from_metadata(
    archive: Archive, n_patches: int, seed: int, metadata: Path
) -> list[PlannedPatch]:
    """Plan patches with the names, labels, splits, countries and dates of an official list.

    Parameters
    ----------
    archive
        Whose names and labels; the splits are the list's in both.
    n_patches
        At least 1; at most the rows of the list.
    seed
        Of the choice of rows and of everything drawn.
    metadata
        A parquet file with the columns of v2's ``metadata.parquet``.

    Returns
    -------
    list of PlannedPatch
        Sorted by name.

    Raises
    ------
    InvalidInputError
        If the file is no such list, or has fewer rows, or names an unknown class or split.
    """
    table = _read_table(metadata)
    if table.num_rows < n_patches:
        raise InvalidInputError(
            f"{metadata} has {table.num_rows} rows, expected at least {n_patches}; ask for fewer "
            "patches or give a longer list"
        )
    rng = np.random.default_rng([seed, 0])
    splits = [check_split(str(split)) for split in table["split"].to_pylist()]
    rows = _choose_rows(rng, splits, n_patches)
    planned = [_listed_patch(archive, seed, row) for row in table.take(rows).to_pylist()]
    return sorted(planned, key=lambda patch: patch.record.id)


def _listed_patch(archive: Archive, seed: int, row: dict[str, Any]) -> PlannedPatch:
    v2_tile, col, row_index = row["patch_id"].rsplit("_", 2)
    mgrs = v2_tile[-5:]
    epsg, ulx, uly = patch_origin(mgrs, int(col), int(row_index))
    stamp = v2_tile.split("_")[2]
    unknown = [name for name in row["labels"] if name not in NAMES_19]
    if unknown:
        raise InvalidInputError(
            f"patch {row['patch_id']!r} has the label {unknown[0]!r}; expected names of the "
            "19-class nomenclature"
        )
    v1_id = row["s2v1_name"]
    day = stamp[:8]
    product = next(
        (t.product for t in tiles() if t.mgrs == mgrs and t.product[11:19] == day),
        f"{v2_tile[:3]}_MSIL1C_{stamp}_N0205_R000_T{mgrs}_{stamp}",
    )
    with_fault = product.replace(product.split("_")[2], v1_id.split("_")[2], 1)
    record = PatchRecord(
        id=v1_id if archive == "v1" else row["patch_id"],
        tile=product if archive == "v1" else v2_tile,
        mgrs=mgrs,
        col=int(col),
        row=int(row_index),
        acquired=datetime.strptime(stamp, "%Y%m%dT%H%M%S").replace(tzinfo=UTC),
        epsg=epsg,
        ulx=ulx,
        uly=uly,
        country=row["country"],
        split=row["split"],
        flagged_snow=row["contains_seasonal_snow"],
        flagged_cloud_or_shadow=row["contains_cloud_or_shadow"],
        s1_id=row["s1_name"],
    )
    if archive == "v1" and record.flagged:
        record = replace(record, split=None)
    codes = choose_codes(place_rng(seed, record), tuple(row["labels"]), row["country"])
    labels = tuple(row["labels"]) if archive == "v2" else labels_of(codes, archive)
    return PlannedPatch(replace(record, labels=labels), codes, v1_id, with_fault)
