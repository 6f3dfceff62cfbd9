"""What a run says about each epoch: one flat line in ``metrics.jsonl``, by choice in TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable

METRICS: Final = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class EpochLine:
    """One line of ``metrics.jsonl``.

    Attributes
    ----------
    epoch
        Counted from 1.
    train_loss
        What the config minimizes, mean over rows and classes, as the steps saw it.
    validation_loss
        Binary cross-entropy after the epoch, mean over rows and classes; None without validation.
    validation_f1
        Sample-averaged F1 at the threshold; None without validation.
    threshold
        Chosen on validation where the config says so, else .5.
    learning_rate
        Of the last step.
    patches_per_s
        Of training, validation left out, over all ranks.
    wait_share
        Share of training time spent waiting for batches, 0 to 1; mean over ranks.
    seconds
        Training and validation.
    validation_ap_macro
        Mean over classes of average precision; None where it does not choose the best epoch.
    loader_requests, loader_bytes, loader_decode_s, loader_wait_s
        What loading the training batches cost, over all ranks: GETs, bytes received, seconds of
        threads spent on decoding, seconds spent waiting. All 0 where a cache delivered.
    """

    epoch: int
    train_loss: float
    validation_loss: float | None
    validation_f1: float | None
    threshold: float
    learning_rate: float
    patches_per_s: float
    wait_share: float
    seconds: float
    validation_ap_macro: float | None = None
    loader_requests: int = 0
    loader_bytes: int = 0
    loader_decode_s: float = 0.0
    loader_wait_s: float = 0.0

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch}: train loss {self.train_loss:.4f}"]
        if self.validation_f1 is not None:
            parts += [f"validation loss {self.validation_loss:.4f}", f"F1 {self.validation_f1:.4f}"]
        if self.validation_ap_macro is not None:
            parts.append(f"AP {self.validation_ap_macro:.4f}")
        return ", ".join([*parts, f"{self.patches_per_s:.0f} patches/s, {self.seconds:.0f} s"])


def read_history(folder: Storage, n_epochs: int | None = None) -> list[EpochLine]:
    """Read the lines of a run, or its first ``n_epochs``.

    Raises
    ------
    NotFoundError
        If the folder has none.
    StorageError
        If storage refuses or cannot be reached.
    """
    lines = folder.read(METRICS).decode().splitlines()
    return [EpochLine(**json.loads(line)) for line in lines[:n_epochs]]


def write_history(folder: Storage, history: Sequence[EpochLine]) -> None:
    """Write all lines anew, in one request.

    Raises
    ------
    StorageError
        If storage refuses or cannot be reached.
    """
    text = "".join(json.dumps(asdict(line)) + "\n" for line in history)
    folder.write(METRICS, text.encode())


@contextmanager
def tensorboard(folder: str | Path) -> Iterator[Callable[[EpochLine], None]]:
    """Yield what writes every figure of a line as a scalar by epoch, into a local folder.

    Raises
    ------
    InvalidInputError
        If the package ``tensorboard`` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise InvalidInputError(
            'TensorBoard figures need the package tensorboard: pip install "bigearth-cube[tensorboard]"'
        ) from None

    writer = SummaryWriter(str(folder))

    def write(line: EpochLine) -> None:
        for name, value in asdict(line).items():
            if value is not None and name != "epoch":
                writer.add_scalar(name, value, line.epoch)
        writer.flush()

    try:
        yield write
    finally:
        writer.close()
