"""Store the features of every patch in its cube, where retrieval finds them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.search import Selection
from training.checkpoint import Checkpoint
from training.data import Engine, autocast, default_device, evaluation_loader, tensor_batches


def embed(
    cube: Cube,
    checkpoint: Checkpoint,
    *,
    name: str | None = None,
    engine: Engine = "threads",
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Compute the features of all patches and write them as ``embeddings/<name>/vector``.

    Labels are not needed: patches without them are embedded too.

    Parameters
    ----------
    cube
        Where the patches are and the vectors go.
    checkpoint
        Whose features.
    name
        Name of the embeddings; that of the recipe where it is None.
    engine
        ``"threads"``, or a Dask client to load with.
    device
        The first GPU where there is one, else the CPU.
    progress
        Told after every batch.

    Returns
    -------
    ndarray
        (n_rows, n_features) float32; rows without a patch are NaN.

    Raises
    ------
    InvalidInputError
        If the cube is of another archive than the checkpoint.
    StorageError
        If storage refuses or cannot be reached.
    """
    if cube.archive != checkpoint.archive:
        raise InvalidInputError(
            f"the checkpoint normalizes as archive {checkpoint.archive} needs, this cube is "
            f"{cube.archive}; embed a cube of that archive"
        )
    vectors = features(cube, checkpoint, None, engine=engine, device=device, progress=progress)
    about = {
        "recipe": checkpoint.config.recipe,
        "trained_on": checkpoint.cube_id,
        "selection": checkpoint.selection,
        "epoch": checkpoint.epoch,
    }
    cube.write_embeddings(name or checkpoint.config.recipe, vectors, about)
    return vectors


@torch.inference_mode()
def features(
    cube: Cube,
    checkpoint: Checkpoint,
    selection: Selection | None,
    *,
    engine: Engine = "threads",
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Features of some patches, or of all, by row of the cube; NaN elsewhere.

    Raises
    ------
    InvalidInputError
        If the selection is empty.
    """
    device = device or default_device()
    network = checkpoint.network().to(device)
    vectors = np.full((cube.n_rows, network.n_features), np.nan, np.float32)
    with evaluation_loader(cube, selection, network.groups, None, engine) as loader:
        bar = progress.add_task("embed", total=len(loader.rows)) if progress else None
        for batch in tensor_batches(loader, 0, device):
            with autocast(checkpoint.config.precision, device):
                features_BF = network.features(batch.images)
            vectors[batch.rows] = features_BF.float().cpu().numpy()
            if progress and bar is not None:
                progress.advance(bar, len(batch.rows))
    return vectors
