"""What a run is about to write over, noted before the first of it is.

A release grows columns and documents where they lie, and is published by the PUT of the root. In
between, objects of the published release are already those of the next one, while readers, who
take only the rows they know, see no difference. The note tells verify both states, and the copies
beside it let the run be given up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from bigearth_cube.errors import NotFoundError
from bigearth_cube.release import StoredObject
from bigearth_cube.storage import Storage


def note(
    storage: Storage, release: str, staged: Mapping[str, bytes], published: Sequence[StoredObject]
) -> None:
    """Copy what will change of the published release, then note what it will change to.

    Parameters
    ----------
    storage
        The cube's prefix.
    release
        That is about to be published.
    staged
        By key, what will be written.
    published
        Every object of the published release.

    Raises
    ------
    StorageError
        If storage refuses or cannot be reached.
    """
    will_be = [StoredObject.of(key, data) for key, data in staged.items()]
    is_now = {stored.key: stored for stored in published}
    changes = [after for after in will_be if is_now.get(after.key, after) != after]
    for after in changes:
        # Only what no run before this one has copied: it may have been written over since.
        storage.write_new(f"{_copies(release)}/{after.key}", storage.read(after.key))
    lines = [asdict(stored) for stored in {*noted(storage, release), *changes}]
    lines.sort(key=lambda line: (line["key"], line["crc32c"]))
    storage.write(_note(release), json.dumps(lines, indent=1).encode())


def noted(storage: Storage, release: str) -> list[StoredObject]:
    """Return what objects of the published release may be by now, for the next one."""
    try:
        return [StoredObject(**entry) for entry in json.loads(storage.read(_note(release)))]
    except NotFoundError:
        return []


def restore(storage: Storage, release: str) -> list[str]:
    """Write everything back as it was, and name it."""
    copies = f"{_copies(release)}/"
    keys = [key.removeprefix(copies) for key, _ in storage.list(copies.rstrip("/"))]
    for key in keys:
        storage.write(key, storage.read(copies + key))
    return keys


def forget(storage: Storage, release: str) -> None:
    """Remove note and copies: the release is published, or everything is as it was."""
    for key in [_note(release), *(key for key, _ in storage.list(_copies(release)))]:
        storage.delete(key)


def _note(release: str) -> str:
    return f"ingest/{release}/pending.json"


def _copies(release: str) -> str:
    return f"ingest/{release}/before"
