"""A record to its pixels."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.archive.base import Kind, Patch, PatchRecord, SetAside
from bigearth_cube.archive.geotiff import Georeference, read_geotiff
from bigearth_cube.archive.grid import Corner
from bigearth_cube.errors import InvalidInputError, MalformedPatchError, StorageError
from bigearth_cube.nomenclature import MAP_GROUP, S1_GROUP, S2_GROUPS, Group

_READ_BYTES = 1 << 16  # the largest published file has 58,024: one read takes it whole
_MAX_FILE_BYTES = 1 << 24


def read_patch(record: PatchRecord) -> Patch:
    """Read all pixels of ``record``, each value as stored.

    Raises
    ------
    MalformedPatchError
        If a Sentinel-2 file is missing, cannot be read, has another shape or dtype, or does not
        lie where the record says. A Sentinel-1 patch or reference map with such a fault is left
        out and stands in ``Patch.problems``: the Sentinel-2 row is not lost with it.
    StorageError
        If the file system fails.
    """
    problems: list[SetAside] = []
    s2 = {group.path: _read_bands(record, group, group.bands) for group in S2_GROUPS}
    s1 = clc = None
    if not record.files.keys().isdisjoint(S1_GROUP.bands):
        try:
            s1 = _read_bands(record, S1_GROUP, S1_GROUP.bands)
        except MalformedPatchError as error:
            problems.append(_problem(record.s1_id or record.id, error, "s1"))
    if "map" in record.files:
        try:
            clc = _read_bands(record, MAP_GROUP, ("map",))[0]
        except MalformedPatchError as error:
            problems.append(_problem(record.id, error, "reference"))
    return Patch(s2, s1, clc, tuple(problems))


def read_file(path: str) -> bytes:
    """Read a small file whole.

    Raises
    ------
    InvalidInputError
        If it is missing, no file, not readable or larger than any file of a patch.
    StorageError
        If the file system fails.
    """
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            data = os.read(file, _READ_BYTES)
            if len(data) < _READ_BYTES:
                return data
            parts = [data]
            while parts[-1] and sum(map(len, parts)) <= _MAX_FILE_BYTES:
                parts.append(os.read(file, _MAX_FILE_BYTES))
        finally:
            os.close(file)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise InvalidInputError(f"cannot be read: {error.strerror}") from None
    except OSError as error:  # a dropped mount or a full table of files: no fault of the patch
        raise StorageError(f"{path} cannot be read: {error.strerror}; run again") from error
    data = b"".join(parts)
    if len(data) > _MAX_FILE_BYTES:
        raise InvalidInputError(f"has more than {_MAX_FILE_BYTES} bytes")
    return data


def measure_corner(path: str, group: Group) -> Corner:
    """Where the file of one band says that its patch lies.

    Raises
    ------
    InvalidInputError
        If it cannot be read, or does not lie on whole meters in a CRS with an EPSG code.
    """
    shape = (group.size_px, group.size_px)
    _, found = read_geotiff(read_file(path), shape=shape, dtype=group.dtype)
    if found.epsg is None or not (found.ulx.is_integer() and found.uly.is_integer()):
        raise InvalidInputError(f"lies at {_describe(found)}, expected whole meters in UTM")
    return found.epsg, int(found.ulx), int(found.uly)


def _read_bands(record: PatchRecord, group: Group, bands: tuple[str, ...]) -> NDArray[Any]:
    """Stack the bands of one group, in the order of ``bands``."""
    shape = (group.size_px, group.size_px)
    place = Georeference(record.epsg, record.ulx, record.uly, group.resolution_m)
    stack = np.empty((len(bands), *shape), group.dtype)
    for i, band in enumerate(bands):
        path = record.files.get(band)
        if path is None:
            raise MalformedPatchError(record.id, _folder(record), f"lacks {band}")
        try:
            pixels, found = read_geotiff(read_file(path), shape=shape, dtype=group.dtype)
        except InvalidInputError as error:
            raise MalformedPatchError(record.id, path, f"{band} {error}") from None
        if found != place:
            raise MalformedPatchError(
                record.id,
                path,
                f"{band} is off the grid: it lies at {_describe(found)}, "
                f"expected {_describe(place)}",
            )
        stack[i] = pixels
    return stack


def _problem(patch_id: str, error: MalformedPatchError, kind: Kind) -> SetAside:
    return SetAside(patch_id, error.file, error.reason, kind)


def _folder(record: PatchRecord) -> str:
    return os.path.dirname(next(iter(record.files.values()), record.id))


def _describe(place: Georeference) -> str:
    return f"({place.ulx:.10g}, {place.uly:.10g}) in EPSG:{place.epsg}, {place.resolution_m:.10g} m"
