"""From the cube's batches to tensors on the device, and what is done to them on the way.

Pixels stay uint16 until the network normalizes them on the device: half the bytes to move.

Axes: B row of a batch, C band or class, Y and X pixel.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from distributed import Client
from numpy.typing import NDArray
from torch import Tensor

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.nomenclature import S1_GROUP
from bigearth_cube.search import Selection
from training.config import Config, Precision

logger = logging.getLogger(__name__)

Engine = Literal["threads"] | Client
EVALUATION_BATCH: Final = 64
"""As fast on a CPU as 256, whose activations take 0.6 GB more; a GPU does not wait for it."""


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """One batch on the device; valid until the next one is asked for.

    Attributes
    ----------
    images
        Group to DN_BCYX, uint16.
    labels_BC
        float32, 0 or 1.
    rows
        Rows of the cube, on the host.
    """

    images: dict[str, Tensor]
    labels_BC: Tensor
    rows: NDArray[np.int64]


def training_loader(
    cube: Cube, selection: Selection, config: Config, groups: tuple[str, ...], engine: Engine
) -> BatchLoader:
    """Shuffled batches; a single row left over joins the batch before, as batch norm needs two.

    Raises
    ------
    InvalidInputError
        If the selection is empty, a single row, or has rows without labels or without a view.
    """
    refuse_missing_views(cube, selection.rows, groups)
    if len(selection) == 1:
        raise InvalidInputError("a selection of one row; batch norm needs at least two to train on")
    if config.batch_size == 1:
        raise InvalidInputError("batch size 1; batch norm needs at least two rows in a batch")
    batch_size = config.batch_size
    if batch_size > len(selection) > 0:
        logger.warning(
            "batch size %d is larger than the selection; cut to its %d rows",
            batch_size,
            len(selection),
        )
        batch_size = len(selection)
    return BatchLoader(
        cube,
        selection,
        batch_size=batch_size,
        groups=groups,
        labels=config.labels,
        seed=config.seed,
        last="join",
        engine=engine,
    )


def evaluation_loader(
    cube: Cube,
    selection: Selection | None,
    groups: tuple[str, ...],
    labels: str | None,
    engine: Engine = "threads",
) -> BatchLoader:
    """Batches in the order of the rows, every one once.

    Raises
    ------
    InvalidInputError
        If the selection is empty or has rows without the labels asked for or without a view.
    """
    refuse_missing_views(cube, cube.rows if selection is None else selection.rows, groups)
    return BatchLoader(
        cube,
        selection,
        batch_size=EVALUATION_BATCH,
        groups=groups,
        labels=labels,
        shuffle="none",
        engine=engine,
    )


def refuse_missing_views(cube: Cube, rows: NDArray[np.int64], groups: tuple[str, ...]) -> None:
    """Let no network see the fill of a view that is not there: NaN, of which nothing is learned.

    Raises
    ------
    InvalidInputError
        If some rows have no Sentinel-1 view and the groups ask for it.
    """
    path = S1_GROUP.path
    if path not in groups:
        return
    cube.pixel_layout(path)  # refuses a cube without the group
    missing = int((~cube.column(f"{path}/present")[rows]).sum())
    if missing:
        raise InvalidInputError(
            f"{missing} of {len(rows)} rows have no Sentinel-1 view; leave them out, or choose a "
            f"model that reads Sentinel-2 alone"
        )


def tensor_batches(
    loader: BatchLoader, epoch: int, device: torch.device, *, augment: bool = False
) -> Generator[TensorBatch]:
    """Hand over an epoch, batch by batch.

    On a CPU the tensors lie on the loader's own buffers: nothing is copied, and nothing outlives
    the next batch. A loader without labels gives ``labels_BC`` of no columns.
    """
    for batch in loader.epoch(epoch):
        images = {path: torch.from_numpy(dn).to(device) for path, dn in batch.images.items()}
        if augment:
            symmetry_B = torch.randint(8, (len(batch.rows),))
            images = {path: transformed(dn_BCYX, symmetry_B) for path, dn_BCYX in images.items()}
        labels = np.empty((len(batch.rows), 0)) if batch.labels is None else batch.labels
        labels_BC = torch.from_numpy(labels).to(device, torch.float32)
        yield TensorBatch(images, labels_BC, batch.rows)


def transformed(dn_BCYX: Tensor, symmetry_B: Tensor) -> Tensor:
    """Turn and mirror each patch: the eight symmetries of the square, which keep its labels.

    Parameters
    ----------
    dn_BCYX
        Square patches: uint16, or float32 for Sentinel-1.
    symmetry_B
        For each patch 0 to 7: quarter turns, plus 4 where it is mirrored first. The same for
        every group, so that resolutions stay aligned.
    """
    # Moving values needs no sign, and uint16 lacks kernels.
    source = dn_BCYX.view(torch.int16) if dn_BCYX.dtype == torch.uint16 else dn_BCYX
    target = torch.empty_like(source)
    for symmetry in range(8):
        rows = torch.nonzero(symmetry_B == symmetry).squeeze(1).to(source.device)
        part_BCYX = source[rows]
        if symmetry >= 4:
            part_BCYX = part_BCYX.flip(-1)
        target[rows] = part_BCYX.rot90(symmetry % 4, (-2, -1))
    return target.view(dn_BCYX.dtype)


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for bfloat16; emulated it is eight times slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Context in which convolutions and products run in the precision a config asks for."""
    wanted = precision == "bfloat16" or (precision == "auto" and computes_in_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def default_device() -> torch.device:
    """Return the first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
