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
    used = _used(storage, plans)
    if spill is None and not used:
        return storage.child(f"{plans[0].folder}/spill/{_name(storage, plans)}")
    url = used[-1] if spill is None else Storage(spill, storage.options).url
    if url not in used:
        storage.write(_record(plans), json.dumps([*used, url]).encode())
    return _within(storage, plans, url)


def clear(storage: Storage, plans: Sequence[Plan]) -> None:
    """Remove all that runs over these plans spilled, wherever, and the note of it."""
    for key, _ in storage.list(f"{plans[0].folder}/spill"):
        storage.delete(key)  # of runs over sources of other forms too
    for url in _used(storage, plans):
        place = _within(storage, plans, url)
        for key, _ in place.list():
            place.delete(key)
    storage.delete(_record(plans))


def _used(storage: Storage, plans: Sequence[Plan]) -> list[str]:
    try:
        urls: list[str] = json.loads(storage.read(_record(plans)))
    except NotFoundError:
        return []
    return urls


def _record(plans: Sequence[Plan]) -> str:
    return f"{plans[0].folder}/spill.json"


def _within(storage: Storage, plans: Sequence[Plan], url: str) -> Storage:
    return Storage(url, storage.options).child(_name(storage, plans))


def _name(storage: Storage, plans: Sequence[Plan]) -> str:
    lines = "\n".join([storage.url, *(plan.digest() for plan in plans)])
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
