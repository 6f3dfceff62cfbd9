"""Batches as a torch dataset, for users with their own training loop.

The only module of this package that imports torch, and none of the others imports it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.search import Selection

try:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info
except ModuleNotFoundError as error:
    raise ImportError(
        'TorchBatches needs torch; run: pip install "bigearth-cube[train]"'
    ) from error


class TorchBatches(IterableDataset[dict[str, Any]]):
    """Whole batches of a selection as torch tensors, in the order of ``BatchLoader``.

    An item is a batch, so give it to ``DataLoader(..., batch_size=None)``. It reads in threads of
    its own: iterate over it directly, or with one DataLoader worker to keep the decoding out of
    the process that trains. Several workers take turns and deliver the same batches in the same
    order, but each reads the chunks of its own batches: with a shuffle, nearly all of them.

    Parameters
    ----------
    cube
        Where the patches are, one or several as for ``BatchLoader``; each worker opens them anew,
        at the same release.
    selection
        Which patches; every one where it is None.
    options
        As for ``BatchLoader``, but for ``engine`` and ``cache_bytes``.

    Raises
    ------
    InvalidInputError
        If ``BatchLoader`` refuses the selection or the options; when iterated, if the process was
        forked: use ``multiprocessing_context="spawn"`` or ``"forkserver"``.

    Notes
    -----
    An item has ``images`` (group to (B, band, y, x) in the stored dtype), ``rows`` and
    ``cubes`` (B,) int64 and, where labels were asked for, ``labels`` (B, n_classes) uint8. Its tensors are the caller's.
    """

    def __init__(
        self,
        cube: Cube | Sequence[Cube],
        selection: Selection | Sequence[Selection | None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if "engine" in options:
            raise InvalidInputError("TorchBatches reads in threads; use BatchLoader for an engine")
        if options.get("cache_bytes"):
            raise InvalidInputError(
                "TorchBatches opens everything anew for an epoch, so a cache would be lost; "
                "use BatchLoader with cache_bytes"
            )
        self._is_one = isinstance(cube, Cube)
        self._cubes = [
            (one.url, one.storage.options, one.release.name)
            for one in ([cube] if isinstance(cube, Cube) else cube)
        ]
        self._selection, self._options = selection, options
        with BatchLoader(cube, selection, **options) as loader:  # refuse here, not in a worker
            self._n_batches = loader.n_batches
        # Shared with workers, those that outlive an epoch too.
        self._position = torch.zeros(2, dtype=torch.int64)
        self._position.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return self._n_batches

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose what the next iteration delivers; without it, the same epoch comes again.

        Parameters
        ----------
        epoch
            Number of the epoch, from 0.
        first_batch
            Where to begin, to go on after a stop: how many batches of it were used.

        Raises
        ------
        InvalidInputError
            If there is no such batch.
        """
        if epoch < 0 or not 0 <= first_batch <= self._n_batches:
            raise InvalidInputError(
                f"epoch {epoch}, batch {first_batch}; expected an epoch of 0 or more and "
                f"a batch of 0..{self._n_batches}"
            )
        self._position[:] = torch.tensor([epoch, first_batch])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        turn, n_turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch, first_batch = self._position.tolist()
        cubes = [
            open_cube(url, storage_options=storage_options, release=release)
            for url, storage_options, release in self._cubes
        ]
        source = cubes[0] if self._is_one else cubes
        with BatchLoader(source, self._selection, **self._options) as loader:
            for batch in loader.epoch(epoch, first=first_batch + turn, step=n_turns):
                parts = {
                    field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)
                }
                yield {name: _tensors(part) for name, part in parts.items() if part is not None}


def _tensors(part: Any) -> Any:
    """Copy arrays to tensors of their own: the loader's are overwritten by later batches."""
    if isinstance(part, np.ndarray):
        return torch.from_numpy(part.copy())
    return {name: _tensors(array) for name, array in part.items()}
