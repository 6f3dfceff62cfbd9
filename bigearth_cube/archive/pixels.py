"""A record to its pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.archive.base import Kind, Patch, PatchRecord, SetAside
from bigearth_cube.archive.geotiff import Georeference, read_geotiff
from bigearth_cube.archive.grid import Corner
from bigearth_cube.errors import InvalidInputError, MalformedPatchError, StorageError
from bigearth_cube.nomenclature import MAP_GROUP, S1_GROUP, S2_GROUPS, Group

BANDS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "s2": tuple(band for group in S2_GROUPS for band in group.bands),
    "s1": S1_GROUP.bands,
    "reference": ("map",),
}
"""What a view of each kind is made of."""
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
    views = dict(read_view(record, "s2", record.files))
    kinds: tuple[Kind, Kind] = ("s1", "reference")
    for kind in kinds:
        if not record.files.keys().isdisjoint(BANDS[kind]):
            try:
                views |= read_view(record, kind, record.files)
            except MalformedPatchError as error:
                problems.append(set_aside_view(record, kind, error))
    s1, clc = views.pop(S1_GROUP.path, None), views.pop(MAP_GROUP.path, None)
    return Patch(views, s1, clc, tuple(problems))


def read_view(
    record: PatchRecord,
    kind: Kind,
    files: Mapping[str, str],
    read: Callable[[str], bytes] | None = None,
) -> dict[str, NDArray[Any]]:
    r"""Read the pixels of one kind.

    Parameters
    ----------
    record
        Where they must lie.
    kind
        What to read.
    files
        Its files by band.
    read
        Gives the bytes of a file; from disk where it is None.

    Returns
    -------
    dict
        Group to \*patch_shape, each value as stored.

    Raises
    ------
    MalformedPatchError
        If a file is missing, cannot be read, has another shape or dtype, or does not lie where
        the record says.
    StorageError
        If the file system fails.
    """
    groups = {"s2": S2_GROUPS, "s1": (S1_GROUP,), "reference": (MAP_GROUP,)}[kind]
    return {
        group.path: _read_bands(record, group, files, read or read_file).reshape(group.patch_shape)
        for group in groups
    }


def set_aside_view(record: PatchRecord, kind: Kind, error: MalformedPatchError) -> SetAside:
    """Say which view of a record cannot be read, and why."""
    name = (record.s1_id or record.id) if kind == "s1" else record.id
    return SetAside(name, error.file, error.reason, kind)


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


def measure_corner(data: bytes, group: Group) -> Corner:
    """Where the file of one band says that its patch lies.

    Raises
    ------
    InvalidInputError
        If it cannot be read, or does not lie on whole meters in a CRS with an EPSG code.
    """
    shape = (group.size_px, group.size_px)
    _, found = read_geotiff(data, shape=shape, dtype=group.dtype)
    if found.epsg is None or not (found.ulx.is_integer() and found.uly.is_integer()):
        raise InvalidInputError(f"lies at {_describe(found)}, expected whole meters in UTM")
    return found.epsg, int(found.ulx), int(found.uly)


def _read_bands(
    record: PatchRecord, group: Group, files: Mapping[str, str], read: Callable[[str], bytes]
) -> NDArray[Any]:
    """Stack the bands of one group, in its order."""
    bands = group.bands or ("map",)
    shape = (group.size_px, group.size_px)
    place = Georeference(record.epsg, record.ulx, record.uly, group.resolution_m)
    stack = np.empty((len(bands), *shape), group.dtype)
    for i, band in enumerate(bands):
        path = files.get(band)
        if path is None:
            raise MalformedPatchError(record.id, _folder(record, files), f"lacks {band}")
        try:
            pixels, found = read_geotiff(read(path), shape=shape, dtype=group.dtype)
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


def _folder(record: PatchRecord, files: Mapping[str, str]) -> str:
    return os.path.dirname(next(iter(files.values()), record.id))


def _describe(place: Georeference) -> str:
    return f"({place.ulx:.10g}, {place.uly:.10g}) in EPSG:{place.epsg}, {place.resolution_m:.10g} m"
