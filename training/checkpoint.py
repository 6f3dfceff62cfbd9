"""Checkpoints: one object that is there whole or not at all, and loads without running code.

A checkpoint is what ``torch.save`` writes, of tensors and plain values only, with the SHA-256 of
its bytes as the comment of the zip file. ``torch.load(..., weights_only=True)`` alone does not
see damage: of 400 files with one bit flipped it read 327 without an error and with other values.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import re
import struct
from dataclasses import dataclass, fields
from typing import Any, Final

import torch

from bigearth_cube.errors import CubeIntegrityError, InvalidInputError, NotFoundError
from bigearth_cube.storage import Storage, StorageOptions, normalized_url
from training.config import Config
from training.models import Network, build

BEST: Final = "best.pt"
_STEP: Final = re.compile(r"step-(\d{8})\.pt")
_FORMAT: Final = "bigearth_cube checkpoint 2"
_MAGIC: Final = b"PK"  # a checkpoint is a zip file, as torch writes it
_COMMENT: Final = b"sha256:"
_TRAILER_BYTES: Final = len(_COMMENT) + 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network with all that is needed to use it, or to go on training it.

    Attributes
    ----------
    config
        What it was trained with.
    archive
        ``"v1"`` or ``"v2"``.
    class_names
        Names of its outputs, in order.
    cube_id, release, selection, validation
        Cube, release and digests of the selections it was trained and validated on; None without
        validation.
    model
        State of the network.
    optimizer
        State of the optimizer; None in a checkpoint that is only for use.
    epoch
        Epochs done; in the best, which one it is.
    step
        Steps done, over all epochs; learning rates follow from it.
    threshold
        A class is predicted where its score is at least this.
    best_epoch, best_f1, best_score
        Epoch with the highest score on validation, its sample-averaged F1, and the score that the
        config chooses by; None without validation.
    average
        State of the averaged weights where the config has such: they are what is used.
    loader
        Where the loader is to go on; None where that is the start of an epoch.
    random
        State of torch's generators there: ``"cpu"``, and ``"cuda"`` where that was the device.
    so_far
        Sums over the steps of the epoch that is not done.
    commit
        Of the code that trained it, with ``+`` where files differed; of a run that went on under
        another, each, and ``unknown`` for those that are. None where no commit is known, as of an
        installed copy; see ``provenance.commit``.
    """

    config: Config
    archive: str
    class_names: tuple[str, ...]
    cube_id: str
    release: str
    selection: str
    model: dict[str, Any]
    optimizer: dict[str, Any] | None
    epoch: int
    threshold: float
    validation: str | None = None
    best_epoch: int | None = None
    best_f1: float | None = None
    best_score: float | None = None
    step: int = 0
    average: dict[str, Any] | None = None
    loader: dict[str, Any] | None = None
    random: dict[str, torch.Tensor] | None = None
    so_far: dict[str, float] | None = None
    commit: str | None = None

    def network(self) -> Network:
        """Build the network with its weights, in evaluation mode."""
        network = build(self.config.model, len(self.class_names), self.archive)
        network.load_state_dict(self.average or self.model)
        return arranged(network, self.config).eval()

    @functools.cached_property
    def weights_digest(self) -> str:
        """SHA-256 over names, shapes and values of the weights: what makes its answers its own."""
        digest = hashlib.sha256()
        for name, values in sorted((self.average or self.model).items()):
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """Serialize; the last bytes are the digest of the others."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {
            "format": _FORMAT,
            "config": self.config.to_json(),
            "class_names": list(self.class_names),
        }
        buffer = io.BytesIO()
        torch.save(values, buffer)
        # The last two bytes of a zip file are the length of its comment, 0 so far. Written in
        # place: with the optimizer a checkpoint is 200 MB, and a second copy as much again.
        buffer.seek(-2, io.SEEK_END)
        buffer.write(struct.pack("<H", _TRAILER_BYTES))
        digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
        buffer.write(_COMMENT + digest.encode())
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Checkpoint:
        """Read what `to_bytes` wrote.

        Raises
        ------
        InvalidInputError
            If it is no checkpoint of this package, or one of another version.
        CubeIntegrityError
            If its bytes are not those that were written.
        """
        if not data.startswith(_MAGIC):
            raise InvalidInputError(f"{name} is no checkpoint; expected a file that 'fit' wrote")
        body, trailer = memoryview(data)[:-_TRAILER_BYTES], data[-_TRAILER_BYTES:]
        if trailer != _COMMENT + hashlib.sha256(body).hexdigest().encode():
            raise CubeIntegrityError(
                name, "the checkpoint is damaged, or not one that 'fit' wrote: its digest differs"
            )
        values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if values.pop("format", None) != _FORMAT:
            raise InvalidInputError(
                f"{name} is a checkpoint of another version; expected {_FORMAT}"
            )
        values["config"] = Config.from_json(values["config"])
        values["class_names"] = tuple(values["class_names"])
        return cls(**values)


def arranged(network: Network, config: Config) -> Network:
    """Lay the weights out as the config says; outputs follow the layout of the weights."""
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def save(checkpoint: Checkpoint, storage: Storage, key: str) -> None:
    """Write a checkpoint in one request.

    Raises
    ------
    StorageError
        If storage refuses or cannot be reached.
    """
    storage.write(key, checkpoint.to_bytes())


def step_key(step: int) -> str:
    """Key in a run's folder of the checkpoint after so many steps."""
    return f"step-{step:08d}.pt"


def step_keys(storage: Storage) -> list[str]:
    """Keys of the checkpoints that a run can go on from, newest first.

    Raises
    ------
    StorageError
        If storage refuses or cannot be reached.
    """
    keys = [key for key, _ in storage.list("") if _STEP.fullmatch(key)]
    return sorted(keys, reverse=True)


def newest_whole(storage: Storage) -> tuple[str, Checkpoint] | None:
    """Read the newest checkpoint that a run can go on from; None where there is none.

    A damaged one is named in a warning, and the one before it is taken.

    Raises
    ------
    InvalidInputError
        If it is one of another version.
    CubeIntegrityError
        If all are damaged.
    StorageError
        If storage refuses or cannot be reached.
    """
    damage: CubeIntegrityError | None = None
    for key in step_keys(storage):
        try:
            found = _of_a_run(storage.read(key), f"{storage.url}/{key}")
        except CubeIntegrityError as error:
            logger.warning("%s; looking for the one before", error)
            damage = damage or error
            continue
        return key, found
    if damage is not None:
        raise damage
    return None


def _of_a_run(data: bytes, name: str) -> Checkpoint:
    if not data.startswith(_MAGIC):  # under a run's own names there is nothing but checkpoints
        raise CubeIntegrityError(name, "the checkpoint is damaged: it has another beginning")
    return Checkpoint.from_bytes(data, name)


def load(url: str, storage_options: StorageOptions | None = None) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    url
        A run's folder (its best epoch; its newest checkpoint where there is no best), or one file
        ending in ``.pt``.
    storage_options
        As for a cube.

    Raises
    ------
    NotFoundError
        If there is none.
    InvalidInputError
        If it is no checkpoint of this package, or one of another version.
    CubeIntegrityError
        If it is damaged.
    StorageError
        If storage refuses or cannot be reached.
    """
    name, data = located(url, storage_options)
    return Checkpoint.from_bytes(data, name)


def located(url: str, storage_options: StorageOptions | None = None) -> tuple[str, bytes]:
    """Find and read the bytes that ``load`` makes a checkpoint of; returns their URL too.

    Raises
    ------
    NotFoundError
        If there is none.
    StorageError
        If storage refuses or cannot be reached.
    """
    folder, key = normalized_url(url), BEST
    if folder.endswith(".pt"):
        folder, _, key = folder.rpartition("/")
    storage = Storage(folder, storage_options)
    try:
        return f"{folder}/{key}", storage.read(key)
    except NotFoundError:
        newest = None if key != BEST else newest_whole(storage)
    if newest is None:
        raise NotFoundError(
            f"no checkpoint at {url}; expected a run's folder with {BEST} or step-….pt, "
            f"or a .pt file"
        )
    return f"{folder}/{newest[0]}", storage.read(newest[0])
