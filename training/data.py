"""Which batches a training reads, and the first things that the device does to them.

Axes: B row of a batch, C band or class, Y and X pixel.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager
from typing import Final, Literal

import numpy as np
import torch
from distributed import Client
from numpy.typing import NDArray
from torch import Tensor, nn

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.nomenclature import S1_GROUP
from bigearth_cube.search import Selection
from training.config import Config, Precision
from training.distributed import ALONE, Team
from training.feed import Feed, TensorBatch
from training.models import Network
from training.models.layers import PerView

logger = logging.getLogger(__name__)

Engine = Literal["threads"] | Client
EVALUATION_BATCH: Final = 64
"""As fast on a CPU as 256, whose activations take 0.6 GB more; a GPU does not wait for it."""


def training_loader(
    cube: Cube,
    selection: Selection,
    config: Config,
    groups: tuple[str, ...],
    engine: Engine,
    team: Team = ALONE,
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
        shuffle=config.shuffle,
        last="join",
        rank=team.rank,
        world_size=team.world_size,
        engine=engine,
    )


def evaluation_loader(
    cube: Cube,
    selection: Selection | None,
    groups: tuple[str, ...],
    labels: str | None,
    engine: Engine = "threads",
    team: Team = ALONE,
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
        rank=team.rank,
        world_size=team.world_size,
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
            f"{missing} of {len(rows)} rows have no Sentinel-1 view; give a selection without them "
            f"(cube.search(ids=...) of those where cube.column({path + '/present'!r})[cube.rows] is "
            f"true), or choose a model that reads Sentinel-2 alone"
        )


def tensor_batches(
    source: BatchLoader | Feed, epoch: int, device: torch.device, *, augment: bool = False
) -> Generator[TensorBatch]:
    """Hand over an epoch, batch by batch.

    On a CPU the tensors of a loader lie on its own buffers: nothing is copied, and nothing
    outlives the next batch. A loader without labels gives ``labels_BC`` of no columns.
    """
    feed = source if isinstance(source, Feed) else Feed(source, device)
    yield from feed.epoch(epoch, augment=augment)


class Pass(nn.Module):
    """What a step runs forward on the device: turn each patch, normalize it, score it.

    Compiled, it reads the stored pixels once and writes them turned and normalized, in one kernel.

    Parameters
    ----------
    network
        What normalizes and scores.
    compiled_rows
        Rows of the batches that are compiled for; others, such as a shorter last batch, run as
        written. None compiles nothing.
    """

    def __init__(self, network: Network, *, compiled_rows: int | None = None) -> None:
        super().__init__()
        self.network = network
        self._compiled_rows = compiled_rows
        self._compiled = torch.compile(self._score, dynamic=False) if compiled_rows else self._score

    def forward(self, images: Mapping[str, Tensor], symmetry_B: Tensor | None) -> Tensor | PerView:
        """Score every class: what the network's ``outputs`` are."""
        n_rows = len(next(iter(images.values())))
        score = self._compiled if n_rows == self._compiled_rows else self._score
        return score(images, symmetry_B)

    def _score(self, images: Mapping[str, Tensor], symmetry_B: Tensor | None) -> Tensor | PerView:
        if symmetry_B is not None:
            images = {path: transformed(dn_BCYX, symmetry_B) for path, dn_BCYX in images.items()}
        return self.network.outputs(images)


def compiles(device: torch.device) -> bool:
    """Whether steps are to be compiled for a device: a GPU, where there is a C compiler.

    Kernels are called from C that is built here, so a machine without a compiler trains as
    written, which is slower and is said.
    """
    if device.type != "cuda":
        return False
    names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if any(map(shutil.which, names)):
        return True
    logger.warning(
        "no C compiler (%s), so steps are not compiled and are slower; install gcc",
        ", ".join(names),
    )
    return False


def transformed(dn_BCYX: Tensor, symmetry_B: Tensor) -> Tensor:
    """Turn and mirror each patch: the eight symmetries of the square, which keep its labels.

    Parameters
    ----------
    dn_BCYX
        Square patches as stored: uint16, or float32 for Sentinel-1.
    symmetry_B
        For each patch 0 to 7: quarter turns, plus 4 where it is mirrored first. The same for
        every group, so that resolutions stay aligned.
    """
    size = dn_BCYX.shape[-1]
    grid = torch.arange(size * size, device=dn_BCYX.device).view(size, size)
    turns = [(grid.flip(1) if s >= 4 else grid).rot90(s % 4, (0, 1)).flatten() for s in range(8)]
    from_B1P = torch.stack(turns)[symmetry_B][:, None]
    signed = dn_BCYX.dtype == torch.uint16  # which has few kernels, and moving needs no sign
    pixels_BCP = (dn_BCYX.view(torch.int16) if signed else dn_BCYX).flatten(2)
    turned_BCP = pixels_BCP.gather(2, from_B1P.expand(-1, pixels_BCP.shape[1], -1))
    return turned_BCP.view(dn_BCYX.shape).view(dn_BCYX.dtype)


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for bfloat16; emulated it is eight times slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN takes bfloat16 wherever there is AVX-512, and emulates it where that is all there is.
    able = torch.cpu.get_capabilities()
    mkldnn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return mkldnn and any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Context in which convolutions and products run in the precision a config asks for."""
    wanted = precision == "bfloat16" or (precision == "auto" and computes_in_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def default_device() -> torch.device:
    """Return the current GPU where there is one, which is the first unless set, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
