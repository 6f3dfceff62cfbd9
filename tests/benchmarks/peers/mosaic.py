"""MosaicML Streaming from a signed S3 server; needs an environment of its own (requirements.txt).

Its torchvision is for its picture datasets, which are not used here; where its operators do not
load beside the CPU build of torch, a stand-in lets the package be imported.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from tests.benchmarks.peers.contender import BANDS, BATCH_SIZE, Batch, Setting, expected, serve

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        stand_in = types.ModuleType(f"torchvision{name}")
        stand_in.__spec__ = ModuleSpec(stand_in.__name__, None)
        vars(stand_in).update(VisionDataset=object, to_tensor=None)
        sys.modules[stand_in.__name__] = stand_in

from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

WORKERS = 2


class Streamed:
    """One dataset and its loader; a local cache that is new, or filled by an epoch before.

    One a process: a second dataset finds the shared memory of the first and reads wrong samples.
    """

    turn = WORKERS

    def __init__(self, local: Path) -> None:
        dataset = StreamingDataset(
            remote="s3://mds",
            local=str(local),
            shuffle=True,
            batch_size=BATCH_SIZE,
            num_canonical_nodes=1,
        )
        # The connection that read the index would be shared by forked workers, and each would get
        # parts of the other's shards (seen: the first 8 MB of a shard wrong).
        for stream in dataset.streams:
            stream._downloader.clean_up()
        self._loader: Any = DataLoader(
            dataset,
            batch_size=BATCH_SIZE,
            num_workers=WORKERS,
            persistent_workers=True,
            multiprocessing_context="fork",
        )

    def epoch(self, epoch: int) -> Iterator[Batch]:
        del epoch  # the dataset counts
        yield from self._loader


@contextmanager
def first_epoch(setting: Setting) -> Iterator[Streamed]:
    """Begin with an empty cache."""
    _connect(setting)
    with tempfile.TemporaryDirectory(dir=setting.folder) as local:
        yield Streamed(Path(local))


@contextmanager
def later_epochs(setting: Setting) -> Iterator[Streamed]:
    """Begin with the cache as the last measurement left it; the warm-up fills it at first."""
    _connect(setting)
    yield Streamed(setting.folder / "mds-cache")


def _connect(setting: Setting) -> None:
    options = setting.storage["rgw"]
    os.environ |= {
        "S3_ENDPOINT_URL": options["endpoint_url"],
        "AWS_ACCESS_KEY_ID": options["key"],
        "AWS_SECRET_ACCESS_KEY": options["secret"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    clean_stale_shared_memory()  # of a run that was killed


def prepare(setting: Setting) -> None:
    """Write shards of the default 64 MB from the raw arrays; they are uploaded by the parent."""
    raw = {group: expected(setting, group) for group in BANDS}
    columns = {
        group: f"ndarray:uint16:{','.join(map(str, pixels.shape[1:]))}"
        for group, pixels in raw.items()
    }
    shutil.rmtree(setting.folder / "mds", ignore_errors=True)
    with MDSWriter(out=str(setting.folder / "mds"), columns={"rows": "int", **columns}) as shards:
        for row in range(setting.n_patches):
            shards.write({"rows": row, **{group: pixels[row] for group, pixels in raw.items()}})


OPENERS = {"mosaic first": first_epoch, "mosaic later": later_epochs}

if __name__ == "__main__":
    sys.exit(serve(OPENERS, prepare))
