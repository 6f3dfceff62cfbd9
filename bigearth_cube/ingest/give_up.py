"""Give an unfinished ingest up: the cube is again as its last release left it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from bigearth_cube import pending
from bigearth_cube.cube import open_cube
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.ingest.spill import clear_all
from bigearth_cube.layout import MODEL_ARRAYS
from bigearth_cube.lock import lock
from bigearth_cube.storage import Storage, StorageOptions
from bigearth_cube.writer import ZARR


@dataclass(frozen=True, slots=True)
class GivenUp:
    """What became of an unfinished ingest.

    Attributes
    ----------
    release
        That it would have published.
    n_restored
        Objects written back as the last release has them.
    n_removed
        Objects of it that are gone: shards, columns, accounts.
    """

    release: str
    n_restored: int
    n_removed: int


def give_up(
    cube_url: str, *, storage_options: StorageOptions | None = None, break_lock: bool = False
) -> GivenUp:
    """Remove what an ingest that did not end wrote, and restore what it wrote over.

    What models say of the patches is left alone. Killed in the middle, it goes on when it is run
    again.

    Parameters
    ----------
    cube_url, storage_options
        As of the ingest.
    break_lock
        Take the cube over from a run that holds it; that run stops before it publishes.

    Raises
    ------
    InvalidInputError
        If there is no unfinished ingest, or a run that lives holds the cube.
    StorageError
        If storage refuses or cannot be reached.
    """
    storage = Storage(cube_url, storage_options)
    storage.check_bucket()
    with lock(storage, break_lock=break_lock) as held:
        try:
            cube = open_cube(storage.url, storage_options)
        except NotFoundError:
            cube = None
        release = f"r{1 + (len(cube.releases) if cube else 0)}"
        folder = f"ingest/{release}"
        own = [key for key, _ in storage.list(folder)]
        if f"{folder}/plan.json" not in own:
            raise InvalidInputError(f"no unfinished ingest in {storage.url}: nothing to give up")
        held.confirm()
        restored = pending.restore(storage, release)
        published = {stored.key for stored in cube.recorded_objects()} if cube else set()
        models = tuple(f"{ZARR}/{kind}/" for kind in MODEL_ARRAYS)
        unpublished = [
            key
            for place in (ZARR, "items", "collection.json", "intake.yaml")
            for key, _ in storage.list(place)
            if key not in published and not key.startswith(models)
        ]
        digests = json.loads(storage.read(f"{folder}/plan.json"))["digests"]
        clear_all(storage, folder, digests)
        # The plan last: without it there is nothing to give up.
        own.sort(key=lambda key: key == f"{folder}/plan.json")
        for key in [*unpublished, *own]:
            storage.delete(key)
    return GivenUp(release, len(restored), len(unpublished) + len(own))
