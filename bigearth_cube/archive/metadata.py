"""The JSON file of a v1 patch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from bigearth_cube.archive.grid import Corner
from bigearth_cube.archive.names import mgrs_of_product
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import NAMES_43, PATCH_M

METADATA_TAIL: Final = "labels_metadata.json"
_KNOWN_LABELS: Final = {name: name for name in NAMES_43}  # one string for all patches
T = TypeVar("T")
_MAX_M: Final = 20_000_000  # no UTM coordinate is larger
_EPSG: Final = re.compile(r'AUTHORITY\["EPSG","(\d+)"\]\]$')


@dataclass(frozen=True, slots=True)
class S2Metadata:
    """What the JSON of a v1 Sentinel-2 patch says.

    Attributes
    ----------
    labels
        Names among the 43, in the order of the file.
    tile
        L1C product, without ``.SAFE``.
    mgrs
        Square, from the name of the product.
    acquired
        Sensing time, UTC; right where the names are not.
    corner
        EPSG code and upper-left corner.
    """

    labels: tuple[str, ...]
    tile: str
    mgrs: str
    acquired: datetime
    corner: Corner


def parse_s2_metadata(data: bytes) -> S2Metadata:
    """Parse the JSON of a Sentinel-2 patch.

    Raises
    ------
    InvalidInputError
        If it does not parse, a field is missing or of the wrong type, a label is unknown or the
        corners do not span a patch.
    """
    fields = _parse(data)
    labels = _get(fields, "labels", list)
    unknown = [x for x in labels if not isinstance(x, str) or x not in _KNOWN_LABELS]
    if unknown:
        raise InvalidInputError(
            f"unknown label {unknown[0]!r:.60}; expected one of the 43 CLC names"
        )
    tile_source = _get(fields, "tile_source", str)
    return S2Metadata(
        labels=tuple(_KNOWN_LABELS[label] for label in labels),
        tile=tile_source.removesuffix(".SAFE"),
        mgrs=mgrs_of_product(tile_source),
        acquired=_time(_get(fields, "acquisition_date", str)),
        corner=_corner(_get(fields, "coordinates", dict), _get(fields, "projection", str)),
    )


def parse_s1_metadata(data: bytes) -> str:
    """Name of the Sentinel-2 patch in the JSON of a Sentinel-1 patch.

    Raises
    ------
    InvalidInputError
        If it does not parse or names none.
    """
    return _get(_parse(data), "corresponding_s2_patch", str)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"does not parse as JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidInputError(f"holds a JSON {type(fields).__name__}, expected an object")
    return fields


def _get(fields: dict[str, Any], name: str, kind: type[T]) -> T:
    value = fields.get(name)
    if not isinstance(value, kind):
        found = "is missing" if value is None else f"is {value!r:.60}"
        raise InvalidInputError(f"{name} {found}, expected a {kind.__name__}")
    return value


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        raise InvalidInputError(f"acquisition_date {text!r:.60} is no time") from None


def _corner(coordinates: dict[str, Any], projection: str) -> Corner:
    epsg = _EPSG.search(projection)
    if epsg is None:
        raise InvalidInputError("projection names no EPSG code")
    ulx, uly, lrx, lry = (_meters(coordinates, name) for name in ("ulx", "uly", "lrx", "lry"))
    if (lrx - ulx, uly - lry) != (PATCH_M, PATCH_M):
        raise InvalidInputError(
            f"is off the grid: {lrx - ulx} x {uly - lry} m, expected {PATCH_M} x {PATCH_M} m"
        )
    return int(epsg[1]), ulx, uly


def _meters(coordinates: dict[str, Any], name: str) -> int:
    value = coordinates.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or not is_number or not abs(value) < _MAX_M or value != int(value):
        raise InvalidInputError(f"coordinate {name} is {value!r:.40}, expected whole meters")
    return int(value)
