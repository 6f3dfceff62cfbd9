"""What every contender of the comparison is, and the loop that measures it in its own process.

A contender delivers shuffled batches of all Sentinel-2 bands as torch tensors. Its process reads
commands from stdin, a JSON object a line, and answers each with one; so it can be of another
virtual environment, and contenders can take turns. Imports only what every environment has.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

BATCH_SIZE = 256
CHUNK_ROWS = 64
BANDS = {
    "r10m": ("B02", "B03", "B04", "B08"),
    "r20m": ("B05", "B06", "B07", "B8A", "B11", "B12"),
    "r60m": ("B01", "B09"),
}
ALL_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_WARM_UP_S = 1.0
_TOUCHED = 2 << 30

Batch = Mapping[str, Tensor]
"""``rows`` and either a group each (uint16, as stored) or ``image`` (B, 12, 120, 120)."""


@dataclass(frozen=True)
class Setting:
    """What is the same for every contender.

    Attributes
    ----------
    folder
        Where the inputs are, each contender's in its own format.
    n_patches
        Rows 0..n_patches - 1 make an epoch.
    storage
        Name of a server to storage_options with fsspec's names.
    """

    folder: Path
    n_patches: int
    storage: Mapping[str, Mapping[str, Any]]


class Contender(Protocol):
    """One way to load."""

    @property
    def turn(self) -> int:
        """Batches that are made at a time, side by side."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield every row once, shuffled."""


Opener = Callable[[Setting], AbstractContextManager[Contender]]


def expected(setting: Setting, group: str) -> np.ndarray[Any, Any]:
    """Pixels of a group, all rows, as the cube was read once in the order of its rows."""
    return np.load(setting.folder / "raw" / f"{group}.npy", mmap_mode="r")  # type: ignore[no-any-return]


def serve(openers: Mapping[str, Opener], prepare: Callable[[Setting], None] | None = None) -> None:
    """Answer commands until stdin ends.

    Parameters
    ----------
    openers
        Name of a contender to what opens it.
    prepare
        Writes what they read, where that is not the cube.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        command = json.loads(line)
        given = command["setting"]
        setting = Setting(Path(given["folder"]), given["n_patches"], given["storage"])
        try:
            answer: dict[str, Any] = {}
            if command["do"] == "prepare":
                if prepare is not None:
                    prepare(setting)
            elif command["do"] == "check":
                answer = _check(openers[command["name"]], setting)
            elif command["do"] == "first batch":
                answer = _first_batch(openers[command["name"]], setting)
            else:
                opener = openers[command["name"]]
                answer = _measure(opener, setting, command["seconds"], command["warm_up"])
        # The outermost edge of this process: the parent reports it and goes on.
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".split("\n")[0]}
        answers.write(json.dumps(answer) + "\n")


def _check(opener: Opener, setting: Setting) -> dict[str, Any]:
    """Hold one epoch, or as much of it as 10 s allow, to the expected pixels and order."""
    with opener(setting) as contender:
        began, rows, chunks, complete = time.perf_counter(), [], [], True
        for index, batch in enumerate(contender.epoch(0)):
            if index in (0, 2):
                _compare(batch, setting)
            rows.append(batch["rows"].clone())
            chunks.append(len(torch.unique(rows[-1] // CHUNK_ROWS)))
            if time.perf_counter() - began > 10:
                complete = False
                break
    delivered = torch.cat(rows)
    assert len(torch.unique(delivered)) == len(delivered), "a row came twice in an epoch"
    assert not (torch.diff(delivered) > 0).all(), "rows are not shuffled"
    sizes = sorted(len(part) for part in rows)
    assert sizes[len(sizes) // 2] == min(BATCH_SIZE, setting.n_patches), f"batches of {sizes}"
    if complete:
        assert len(delivered) == setting.n_patches, f"{len(delivered)} rows in an epoch"
    return {"chunks_a_batch": round(float(np.mean(chunks)))}


def _compare(batch: Batch, setting: Setting) -> None:
    rows = batch["rows"].numpy()
    for group, bands in BANDS.items():
        wanted = expected(setting, group)[rows]
        if "image" not in batch:
            assert batch[group].dtype == torch.uint16, f"{group} is {batch[group].dtype}"
            np.testing.assert_array_equal(batch[group].numpy(), wanted)
            continue
        at = [ALL_BANDS.index(band) for band in bands]
        got = batch["image"][:, at].float()
        assert got.shape[-2:] == (120, 120), f"image is {tuple(got.shape)}"
        # Whatever way of resampling, a block's mean stays near the pixel that it was made of.
        shrunk = torch.nn.functional.avg_pool2d(got, 120 // wanted.shape[-1]).numpy()
        inside = (..., slice(1, -1), slice(1, -1))
        error = np.abs(shrunk[inside] - wanted[inside].astype(np.float32))
        spread = wanted.astype(np.float32).std()
        bound = 0.0 if group == "r10m" else float(0.35 * spread)
        assert error.mean() <= bound, f"{group} is {error.mean():.1f} off, at most {bound:.1f}"


def _first_batch(opener: Opener, setting: Setting) -> dict[str, Any]:
    """Measure from nothing open to the first batch; worth something in a new process only."""
    # A virtual machine may get its memory only as it is touched: 2 s a GB, of whoever comes first.
    np.ones(_TOUCHED, np.uint8)
    began = time.perf_counter()
    with opener(setting) as contender:
        batches = iter(contender.epoch(0))  # let go of at once, it would end the epoch and wait
        batch = next(batches)
        took = time.perf_counter() - began
    assert len(batch["rows"]) == min(BATCH_SIZE, setting.n_patches)
    return {"first_batch_s": took}


def _measure(opener: Opener, setting: Setting, seconds: float, warm_up: str) -> dict[str, Any]:
    """Measure whole epochs, or at least whole turns, for about so many seconds.

    Without a warm-up the first epoch is what is measured, all of it and nothing else.
    """
    with opener(setting) as contender:
        epoch = 0
        if warm_up != "none":
            began = time.perf_counter()
            for _ in contender.epoch(epoch):
                if warm_up == "short" and time.perf_counter() - began > _WARM_UP_S:
                    break
            epoch = 1
        n_patches, cpu_s, began = 0, _cpu_s(), time.perf_counter()
        took = 0.0
        while took <= seconds:
            for index, batch in enumerate(contender.epoch(epoch)):
                n_patches += len(batch["rows"])
                took = time.perf_counter() - began
                whole_turn = (index + 1) % contender.turn == 0
                if warm_up != "none" and took > 2 * seconds and whole_turn:
                    break
            took = time.perf_counter() - began
            if warm_up == "none":
                break
            epoch += 1
        cpu_s = _cpu_s() - cpu_s
    return {"patches_per_s": n_patches / took, "cpu_us": 1e6 * cpu_s / n_patches}


def _cpu_s() -> float:
    """Seconds of core time that this process and those below it have used."""
    ticks, waiting = 0, [os.getpid()]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        with suppress(OSError):  # it has just ended
            fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
            for task in (process / "task").iterdir():
                with suppress(OSError):
                    waiting += map(int, (task / "children").read_text().split())
    return ticks / os.sysconf("SC_CLK_TCK")
