"""What an epoch will ask of storage, and what that costs, before anything is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.batches import S2
from bigearth_cube.loader.blocks import BlockReader, PixelSource
from bigearth_cube.loader.plan import Block, OrderSpec, Shuffle, epoch_order, reading_of
from bigearth_cube.loader.sources import Groups, Patches
from bigearth_cube.prices import DEFAULT_REGION, prices_of
from bigearth_cube.search import Selection
from bigearth_cube.shards import chunk_place, read_index

OUTSIDE: Final = "outside"
"""Region of compute that is not in the cloud of the bucket."""
_INDICES_READ: Final = 16
_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What reading asks of storage.

    Attributes
    ----------
    requests
        GETs.
    bytes
        Of what they bring.
    """

    requests: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What reading for a training would cost.

    Attributes
    ----------
    patches
        Delivered in an epoch.
    batches
        Of an epoch.
    epochs
        How many.
    first, later
        Traffic of the first epoch, which reads the index of every shard, and of each other one.
    memory_bytes
        Of the patches as they are kept in memory, where they are.
    kept
        Whether they are: each other epoch then asks nothing.
    total
        Of all epochs.
    bucket_region, region
        Of the bucket and of the compute.
    dollars_of_requests, dollars_of_transfer
        Of all epochs, by ``prices``.
    prices
        Whose.
    warning
        What makes it dear, or None.
    """

    patches: int
    batches: int
    epochs: int
    first: Traffic
    later: Traffic
    memory_bytes: int
    kept: bool
    total: Traffic
    bucket_region: str
    region: str
    dollars_of_requests: float
    dollars_of_transfer: float
    prices: str
    warning: str | None

    @property
    def dollars(self) -> float:
        """Requests and transfer of all epochs; not the machines."""
        return self.dollars_of_requests + self.dollars_of_transfer

    @property
    def dollars_an_epoch(self) -> float:
        """Mean over the epochs."""
        return self.dollars / self.epochs


def plan_training(
    cube: Cube,
    selection: Selection | None = None,
    *,
    batch_size: int,
    epochs: int = 1,
    groups: Groups = S2,
    seed: int = 0,
    shuffle: Shuffle = "pool",
    pool_chunks: int = 32,
    kept: bool = False,
    region: str | None = None,
    bucket_region: str = DEFAULT_REGION,
) -> TrainingPlan:
    """Say what a ``BatchLoader`` with the same arguments would ask of storage in some epochs.

    Requests are those of one process that reads; every further one reads the index of its shards
    for itself. They are counted for the first two epochs; each later one is taken to be like the
    second, from which it differs by its shuffle alone. Bytes are those that the index of up to 16
    shards of each group states, and exact where a group has no more.

    Parameters
    ----------
    cube, selection, batch_size, groups, seed, shuffle, pool_chunks
        As of ``BatchLoader``.
    epochs
        How many, at least 1.
    kept
        Whether patches stay in memory after the first epoch, as trainings of this project keep
        them where three quarters of what is free hold ``memory_bytes``. A loader without
        ``cache_bytes`` reads every epoch anew.
    region
        Of the compute, as AWS names it; that of the bucket where it is None. ``"outside"`` is not
        in the cloud.
    bucket_region
        Of the bucket; one that the table of prices has.

    Raises
    ------
    InvalidInputError
        If the loader would refuse the arguments, the table has no such region, the compute's is
        no name of one, or a group is stored in a way whose requests are zarr-python's own affair.
    CubeIntegrityError
        If the index of a shard is damaged or missing.
    StorageError
        If storage refuses or cannot be reached.
    """
    if epochs < 1:
        raise InvalidInputError(f"epochs is {epochs}, expected at least 1")
    prices = prices_of(bucket_region)
    compute = region or bucket_region
    if compute != OUTSIDE and not _REGION.fullmatch(compute):
        raise InvalidInputError(
            f"region is {compute!r}; expected one as AWS names it, e.g. {bucket_region!r}, or "
            f"{OUTSIDE!r}"
        )
    patches = Patches([cube], [selection], groups, None)
    spec = OrderSpec(batch_size, patches.chunk_rows, seed, shuffle, pool_chunks)
    reader = BlockReader(patches.sources)
    for group, (source,) in patches.sources.items():
        if source.by_zarr:
            raise InvalidInputError(
                f"{group} is stored in a way that zarr-python reads; its requests are not known "
                f"beforehand: leave it out of the groups"
            )
    sizes = {
        group: _chunk_bytes(source, patches.rows, spec.chunk_rows)
        for group, (source,) in patches.sources.items()
    }
    known: set[tuple[str, int]] = set()
    counted = []
    for epoch in range(min(epochs, 1 if kept else 2)):
        order = epoch_order(patches.rows, spec, epoch)
        blocks = reading_of(order, spec.chunk_rows, window_rows=spec.window_rows).blocks
        counted.append(traffic(reader, blocks, sizes, known))
    first, later = counted[0], Traffic(0, 0) if kept else counted[-1]
    total = Traffic(
        first.requests + (epochs - 1) * later.requests, first.bytes + (epochs - 1) * later.bytes
    )
    per_gb, warning = 0.0, None
    read = "the first epoch" if kept else "every epoch"
    if compute == OUTSIDE:
        per_gb = prices.gb_to_internet
        warning = f"compute outside AWS: {read} is paid as traffic to the internet"
    elif compute != bucket_region:
        per_gb = prices.gb_to_region
        warning = f"compute in {compute}, bucket in {bucket_region}: {read} is paid as traffic"
    if warning:
        warning += f", ${per_gb:.2f} a GB; move it to {bucket_region}, or copy the cube once"
    return TrainingPlan(
        patches=len(patches.rows),
        batches=spec.n_batches(len(patches.rows)),
        epochs=epochs,
        first=first,
        later=later,
        memory_bytes=len(patches.rows)
        * sum(s.layout.patch_bytes for (s,) in patches.sources.values()),
        kept=kept,
        total=total,
        bucket_region=bucket_region,
        region=compute,
        dollars_of_requests=total.requests / 1000 * prices.gets_1000,
        dollars_of_transfer=total.bytes / 1e9 * per_gb,
        prices=prices.label,
        warning=warning,
    )


def traffic(
    reader: BlockReader,
    blocks: Iterable[Block],
    sizes: dict[str, NDArray[np.float64]],
    known: set[tuple[str, int]],
) -> Traffic:
    """Count what reading some blocks asks; ``known`` are the shards whose index was read."""
    requests, n_bytes = 0, 0.0
    for block in blocks:
        for group, (source,) in reader.sources.items():
            for read in reader.reads(group, block.chunks.tolist()):
                if not source.is_filled(source.rows_of(read.chunks[0])[0]):
                    continue
                requests += 1
                n_bytes += float(sizes[group][list(read.chunks)].sum())
                whole = len(read.chunks) == source.layout.chunks_per_shard
                if whole:
                    n_bytes += source.layout.index_bytes
                elif (group, read.shard) not in known:
                    requests += 1
                    n_bytes += source.layout.index_bytes
                known.add((group, read.shard))
    return Traffic(requests, round(n_bytes))


def _chunk_bytes(
    source: PixelSource, rows: NDArray[np.int64], chunk_rows: int
) -> NDArray[np.float64]:
    """Return the stored bytes of each chunk with wanted rows: as its index states, or their mean."""
    layout = source.layout
    chunks = np.unique(rows // chunk_rows)
    shards = np.unique(chunks // layout.chunks_per_shard)
    shards = np.array([s for s in shards if source.is_filled(int(s) * layout.shard_rows)], int)
    found = np.full(int(chunks[-1]) + 1 + layout.chunks_per_shard, np.nan)
    step = max(1, -(-len(shards) // _INDICES_READ))
    for shard in shards[::step].tolist():
        key = layout.key(shard)
        first = shard * layout.chunks_per_shard
        if not layout.sharded:
            found[first] = source.storage.size(key)
            continue
        index = read_index(layout, source.storage.read_tail(key, layout.index_bytes), key)
        for at in range(layout.chunks_per_shard):
            if first + at < len(found):
                found[first + at] = chunk_place(index, at, key)[1]
    stated = found[chunks][~np.isnan(found[chunks])]
    return np.where(np.isnan(found), stated.mean() if len(stated) else 0.0, found)
