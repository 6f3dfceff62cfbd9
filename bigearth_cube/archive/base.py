"""What an archive is to the rest of the package: records, and patches read by record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.nomenclature import Archive, season_of

Kind = Literal["s2", "s1", "reference"]
"""What is found and counted: Sentinel-2 patches, Sentinel-1 patches, reference maps."""
KINDS: Final[tuple[Kind, ...]] = ("s2", "s1", "reference")


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """What is known of one patch before a pixel is read: one future row of a cube.

    Attributes
    ----------
    id
        Name of the Sentinel-2 patch, as published.
    tile
        Acquisition the patch was cut from: in v2 the name of the L2A tile, in v1 the L1C
        product without ``.SAFE``.
    mgrs
        MGRS square, e.g. ``"33UUP"``.
    col, row
        Indices in the square, 0..90.
    acquired
        Sensing time of the Sentinel-2 view, UTC.
    epsg, ulx, uly
        UTM zone and the upper-left corner, meters.
    labels
        Class names in the archive's own nomenclature (v1: 43 classes, v2: 19), or None where
        no source says; an empty tuple says that the patch has no class.
    country, split, flagged_snow, flagged_cloud_or_shadow
        None where no source says.
    s1_id
        Name of the Sentinel-1 patch that pairs with it, or None where no source says.
    files
        URL of every file at hand, by band (``"B02"``, ``"VV"``) and ``"map"`` for the
        reference map. A band that is missing here makes the patch malformed.
    """

    id: str
    tile: str
    mgrs: str
    col: int
    row: int
    acquired: datetime
    epsg: int
    ulx: int
    uly: int
    labels: tuple[str, ...] | None = None
    country: str | None = None
    split: str | None = None
    flagged_snow: bool | None = None
    flagged_cloud_or_shadow: bool | None = None
    s1_id: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Footprint, shared by all dates of it: square and indices.

        Examples
        --------
        >>> when = datetime(2017, 6, 13, tzinfo=UTC)
        >>> PatchRecord("a", "t", "33UUP", 6, 57, when, 32633, 0, 0).place
        '33UUP_06_57'
        """
        return f"{self.mgrs}_{self.col:02d}_{self.row:02d}"

    @property
    def season(self) -> str:
        """Season by the calendar month of acquisition."""
        return season_of(self.acquired)

    @property
    def flagged(self) -> bool:
        """Whether a source flags snow, cloud or shadow."""
        return bool(self.flagged_snow) or bool(self.flagged_cloud_or_shadow)

    @property
    def s1_acquired(self) -> datetime | None:
        """Sensing time of the Sentinel-1 view, UTC, from its name."""
        if self.s1_id is None:
            return None
        return datetime.strptime(self.s1_id.split("_")[4], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Patch:
    """The pixels of one record.

    Attributes
    ----------
    s2
        Group path to uint16 array (band, y, x) in DN, for the three Sentinel-2 groups.
    s1
        float32 (polarization, y, x) in dB, VV then VH; None where the pair is not at hand.
    clc
        uint16 (y, x) CLC level-3 codes; None where there is no reference map.
    problems
        The Sentinel-1 patch or reference map that is at hand and cannot be read: ``s1`` or
        ``clc`` is None then, and the Sentinel-2 pixels are sound all the same.
    """

    s2: Mapping[str, NDArray[np.uint16]]
    s1: NDArray[np.float32] | None = None
    clc: NDArray[np.uint16] | None = None
    problems: tuple[SetAside, ...] = ()


@dataclass(frozen=True, slots=True)
class SetAside:
    """Something found that did not become a row, and why.

    Attributes
    ----------
    id
        Name of the patch, as far as it is known.
    file
        The file or folder.
    reason
        Why it was set aside.
    source
        What it is: ``"s2"``, ``"s1"`` or ``"reference"``.
    """

    id: str
    file: str
    reason: str
    source: Kind


@dataclass(frozen=True, slots=True)
class Unpaired:
    """A Sentinel-1 patch or reference map whose Sentinel-2 patch is not at hand.

    Attributes
    ----------
    aside
        What it is, and why it is an orphan here; a cube may hold its row.
    s2_id
        Name of its Sentinel-2 patch, or None where no source says.
    files
        Path of each of its files, by band.
    """

    aside: SetAside
    s2_id: str | None
    files: Mapping[str, str]


@runtime_checkable
class PatchSource(Protocol):
    """Whatever can name its patches and read one of them can be ingested.

    ``records`` may be called more than once and yields the same records in the same order.
    ``read`` is called in workers, so a source must pickle, and small: each worker gets it, and
    records travel on their own. Accounts balance for each kind: what is found is a record (or a
    part of one), an orphan or quarantined; what ``read`` then refuses, the caller counts as
    quarantined.
    """

    @property
    def archive(self) -> Archive:
        """Nomenclature and statistics to use."""

    def records(self) -> Iterator[PatchRecord]:
        """Yield each patch once."""

    def read(self, record: PatchRecord) -> Patch:
        """Read all pixels of ``record``.

        A Sentinel-1 patch or reference map that cannot be read stands in ``Patch.problems``.

        Raises
        ------
        MalformedPatchError
            If the Sentinel-2 pixels cannot be read or do not lie where the record says.
        """

    def found(self) -> Mapping[Kind, int]:
        """Count what lies in the source, of each kind."""

    def orphans(self) -> Sequence[SetAside]:
        """Sentinel-1 patches and reference maps that pair with no record."""

    def quarantined(self) -> Sequence[SetAside]:
        """Patches whose record itself could not be made (JSON, unknown label, duplicates)."""

    def absent(self) -> Sequence[str]:
        """Names that the official lists hold and the source lacks."""
