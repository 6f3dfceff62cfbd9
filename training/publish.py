"""A checkpoint as a STAC Item, so that a catalog tells what it is, reads and was trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from bigearth_cube.catalog import Model, model_item
from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.stac import collection
from bigearth_cube.storage import Storage, StorageOptions, normalized_url
from training.checkpoint import Checkpoint, located


def publish(
    cube: Cube,
    checkpoint_url: str,
    *,
    name: str | None = None,
    storage_options: StorageOptions | None = None,
    now: datetime | None = None,
) -> str:
    """Write the STAC Item of a checkpoint beside it, as ``<name>.json``.

    Parameters
    ----------
    cube
        The cube it was trained on, at any release.
    checkpoint_url
        A run's folder (its best epoch; its last where there is no best), or a ``.pt`` file.
    name
        Id of the item; by default recipe, cube and release.
    storage_options
        Of the checkpoint.
    now
        Time of publishing; the clock's where it is None.

    Returns
    -------
    str
        URL of the item.

    Raises
    ------
    NotFoundError
        If there is no checkpoint.
    InvalidInputError
        If it was trained on another cube, or the name is no name for a file.
    CubeIntegrityError
        If it is damaged.
    StorageError
        If storage refuses or cannot be reached.
    """
    url, data = located(checkpoint_url, storage_options)
    checkpoint = Checkpoint.from_bytes(data, url)
    if checkpoint.cube_id != cube.id:
        raise InvalidInputError(
            f"{url} was trained on cube {checkpoint.cube_id!r}, this is {cube.id!r}; open that one"
        )
    network = checkpoint.network()
    metrics = {"threshold": checkpoint.threshold}
    if checkpoint.best_f1 is not None:
        metrics["validation_f1"] = checkpoint.best_f1
    model = Model(
        name=name or f"{checkpoint.config.recipe}-{cube.id}-{checkpoint.release}",
        architecture=checkpoint.config.model,
        n_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        groups=network.groups,
        class_names=checkpoint.class_names,
        threshold=checkpoint.threshold,
        trained=now or datetime.now(UTC),
        cube=cube.id,
        release=checkpoint.release,
        selection=checkpoint.selection,
        hyperparameters={**asdict(checkpoint.config), "epochs_done": checkpoint.epoch},
        metrics=metrics,
        framework_version=torch.__version__,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    described: dict[str, Any] = collection(cube.id, archive=cube.archive, items=cube.items)
    item = model_item(model, described, checkpoint_url=url, cube_url=cube.url)
    folder = normalized_url(url).rpartition("/")[0]
    Storage(folder, storage_options).write(
        f"{model.name}.json", json.dumps(item, indent=2).encode()
    )
    return f"{folder}/{model.name}.json"
