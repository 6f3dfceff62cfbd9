"""Where chunks go that do not fit into memory: found again by the next run, gone at the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from bigearth_cube.errors import NotFoundError
from bigearth_cube.ingest.plan import Plan
from bigearth_cube.storage import Storage


def place_of(storage: Storage, plans: Sequence[Plan], spill: str | None) -> Storage:
    """Say where the chunks of these very plans spill: no other run may take them for its own.

    Another place than below the cube is written down with the run, so that one that goes on
    without naming it takes up what lies there.

    Parameters
    ----------
    storage
        The cube's prefix.
    plans
        What is written.
    spill
        URL that was asked for, with the options of the cube; None for where the run that is gone
        on with spilled, or below the cube.
    """
    folder, digests = plans[0].folder, [plan.digest() for plan in plans]
    used = _used(storage, folder)
    if spill is None and not used:
        return storage.child(f"{folder}/spill/{_name(storage, digests)}")
    url = used[-1] if spill is None else Storage(spill, storage.options).url
    if url not in used:
        storage.write(_record(folder), json.dumps([*used, url]).encode())
    return _within(storage, digests, url)


def clear(storage: Storage, plans: Sequence[Plan]) -> None:
    """Remove all that runs over these plans spilled, wherever, and the note of it."""
    clear_all(storage, plans[0].folder, [plan.digest() for plan in plans])


def clear_all(storage: Storage, folder: str, digests: Sequence[str]) -> None:
    """Remove the same of plans of which only the digests are known."""
    for key, _ in storage.list(f"{folder}/spill"):
        storage.delete(key)  # of runs over sources of other forms too
    for url in _used(storage, folder):
        place = _within(storage, digests, url)
        for key, _ in place.list():
            place.delete(key)
    storage.delete(_record(folder))


def _used(storage: Storage, folder: str) -> list[str]:
    try:
        urls: list[str] = json.loads(storage.read(_record(folder)))
    except NotFoundError:
        return []
    return urls


def _record(folder: str) -> str:
    return f"{folder}/spill.json"


def _within(storage: Storage, digests: Sequence[str], url: str) -> Storage:
    return Storage(url, storage.options).child(_name(storage, digests))


def _name(storage: Storage, digests: Sequence[str]) -> str:
    lines = "\n".join([storage.url, *digests])
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
