"""What a release is, and how its objects were written: pure data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.shards import checksum


@dataclass(frozen=True, slots=True)
class Release:
    """One published state of a cube: everything up to its last row.

    Attributes
    ----------
    name
        ``"r1"``, ``"r2"``, … in order.
    start, stop
        First row and end of the rows it added, padding included; both on shard boundaries.
    runs
        Half-open runs of rows in it that hold a patch; the rest is padding.
    arrays
        Pixel groups it filled.
    tables
        Its part of the items table, keys below the cube.
    label_arrays
        Root columns that it states anew, complete up to ``stop``: paths of their arrays,
        ``labels/<release>/<column>``.
    source
        What was ingested.
    created
        Time of publishing, UTC, ISO 8601.
    digest
        SHA-256 over its sorted patch ids, the views it added to older rows, and what it learned
        of them.
    late
        Views that it added to rows of older releases: group, and half-open runs of rows on shard
        boundaries, whose shards it wrote.
    restates
        Whether its tables hold every row up to it, not only its own: those of older releases are
        of the past then.
    """

    name: str
    start: int
    stop: int
    runs: tuple[tuple[int, int], ...]
    arrays: tuple[str, ...]
    tables: tuple[str, ...]
    source: str
    created: str
    digest: str
    label_arrays: tuple[str, ...] = ()
    late: tuple[tuple[str, int, int], ...] = ()
    restates: bool = False

    @property
    def n_patches(self) -> int:
        """Patches it added."""
        return sum(stop - start for start, stop in self.runs)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Release:
        """Read a release from the root attributes."""
        fields = dict(document)
        fields["runs"] = tuple((start, stop) for start, stop in fields["runs"])
        for name in ("arrays", "tables", "label_arrays"):
            fields[name] = tuple(fields[name])
        fields["late"] = tuple((group, start, stop) for group, start, stop in fields["late"])
        return Release(**fields)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it was written: what verify compares.

    Attributes
    ----------
    key
        Place below the cube.
    size
        Bytes.
    crc32c
        CRC-32C of all of them.
    """

    key: str
    size: int
    crc32c: int

    @staticmethod
    def of(key: str, data: bytes) -> StoredObject:
        """Describe bytes about to be written."""
        return StoredObject(key, len(data), checksum(data))


def current_tables(releases: Sequence[Release]) -> list[str]:
    """Keys of the items tables that together hold every row once."""
    whole = [i for i, release in enumerate(releases) if release.restates]
    return [key for release in releases[whole[-1] if whole else 0 :] for key in release.tables]


def patch_rows(releases: Sequence[Release]) -> NDArray[np.int64]:
    """Rows that hold a patch, increasing."""
    runs = [np.arange(*run, dtype=np.int64) for r in releases for run in r.runs]
    return np.concatenate(runs) if runs else np.empty(0, np.int64)


def filled_runs(releases: Sequence[Release], group: str) -> list[tuple[int, int]]:
    """Half-open runs of rows whose shards of a pixel group were written."""
    own = [(r.start, r.stop) for r in releases if group in r.arrays]
    late = [(start, stop) for r in releases for path, start, stop in r.late if path == group]
    return sorted(own + late)


def restated(releases: Sequence[Release], name: str) -> tuple[str, int] | None:
    """Path of the newest array that states a root column anew, and the end of its rows."""
    for release in reversed(releases):
        path = f"labels/{release.name}/{name}"
        if path in release.label_arrays:
            return path, release.stop
    return None


def release_digest(patch_ids: Sequence[str]) -> str:
    """SHA-256 over sorted names, one a line."""
    return hashlib.sha256("\n".join(sorted(patch_ids)).encode()).hexdigest()


def runs_of(rows: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Return increasing rows as half-open runs.

    Examples
    --------
    >>> runs_of(np.array([0, 1, 2, 5]))
    ((0, 3), (5, 6))
    """
    if not len(rows):
        return ()
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    starts = [0, *breaks.tolist()]
    stops = [*breaks.tolist(), len(rows)]
    return tuple((int(rows[a]), int(rows[b - 1]) + 1) for a, b in zip(starts, stops, strict=True))
