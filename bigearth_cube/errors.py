"""What can go wrong, grouped by what the caller does about it.

Every error says what was found, what was expected and what to do, carries those values as
attributes, and survives pickling, so that it reads the same when it comes from a worker.
"""

from __future__ import annotations

from collections.abc import Sequence


class BigEarthCubeError(Exception):
    """Base of every error this package raises on purpose."""


class InvalidInputError(BigEarthCubeError, ValueError):
    """An argument, a file or a request is wrong: change the input (HTTP 400)."""


class NotFoundError(BigEarthCubeError, LookupError):
    """What was named does not exist: check the name or the URL (HTTP 404)."""


class MalformedPatchError(BigEarthCubeError):
    """One patch of an archive cannot be read: it is set aside, the rest goes on.

    Attributes
    ----------
    patch_id
        Name of the patch.
    file
        The file at fault, as the source names it.
    reason
        What was found and what was expected.
    """

    def __init__(self, patch_id: str, file: str, reason: str) -> None:
        super().__init__(patch_id, file, reason)
        self.patch_id = patch_id
        self.file = file
        self.reason = reason

    def __str__(self) -> str:
        return f"patch {self.patch_id!r}: {self.reason} ({self.file})"


class CubeIntegrityError(BigEarthCubeError):
    """Stored bytes are not what was written: restore the object or ingest it again (HTTP 500).

    Attributes
    ----------
    key
        Object at fault, relative to the cube.
    rows
        First and last row the object holds, or empty where it holds none.
    reason
        What was found and what was expected.
    """

    def __init__(self, key: str, reason: str, rows: Sequence[int] = ()) -> None:
        super().__init__(key, reason, tuple(rows))
        self.key = key
        self.reason = reason
        self.rows = tuple(rows)

    def __str__(self) -> str:
        where = f", rows {self.rows[0]} to {self.rows[-1]}" if self.rows else ""
        return f"{self.key}{where}: {self.reason}"


class StorageError(BigEarthCubeError):
    """Storage cannot be reached or refuses: check endpoint, credentials, bucket (HTTP 503)."""
