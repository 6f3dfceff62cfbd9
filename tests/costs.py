"""Writes terraform/COSTS.md: what the whole costs, reckoned by the functions that do it.

``python -m tests.costs`` writes the page; a test holds it to what this gives.
"""

from __future__ import annotations

import re
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigearth_cube.layout import CubeLayout, hierarchy, shard_rows_for
from bigearth_cube.loader.blocks import BlockReader, PixelSource
from bigearth_cube.loader.cost import S2, Traffic, traffic
from bigearth_cube.loader.plan import OrderSpec, epoch_order, reading_of
from bigearth_cube.nomenclature import GROUPS
from bigearth_cube.prices import Prices, prices_of
from bigearth_cube.shards import ArrayLayout, array_layout
from bigearth_cube.storage import Storage

PAGE = Path(__file__).parents[1] / "terraform" / "COSTS.md"
SIZING = PAGE.parent / "modules" / "sizing" / "main.tf"
REGION = "eu-central-1"
V2, V2_TRAIN, LARGE = 549_488, 237_871, 100_000_000
TEN_TIMES = 10 * V2_TRAIN
BATCH = 256
HOURS = 730
# Measured on 18 real patches of v2 (16 radar views, one map), and on whole runs on two busy cores.
RATIOS = {"s2/r10m": 1.6, "s2/r20m": 1.41, "s2/r60m": 1.36, "s1/r10m": 1.31, "reference/r10m": 13.0}
INGEST_CPU_S = 0.0035
# Not measured: a GPU's pace depends on the machine, and the bill of machines with it.
GPU_PATCHES_PER_S = 3_000
PREFIX_GETS_PER_S = 5_500


@dataclass(frozen=True)
class Archive:
    """A cube of so many patches of all groups."""

    n_patches: int

    @property
    def layout(self) -> CubeLayout:
        return CubeLayout("v2", tuple(GROUPS), shard_rows_for(self.n_patches))

    @property
    def arrays(self) -> dict[str, ArrayLayout]:
        layout = self.layout
        documents = hierarchy(layout, layout.padded(self.n_patches))
        paths = {group: f"{group}/{GROUPS[group].array}" for group in layout.groups}
        return {group: array_layout(path, documents[path]) for group, path in paths.items()}

    @property
    def shards(self) -> int:
        """Objects of one group."""
        return self.layout.padded(self.n_patches) // self.layout.shard_rows

    @property
    def stored_gb(self) -> float:
        """All groups, as stored."""
        sizes = (a.patch_bytes / RATIOS[g] for g, a in self.arrays.items())
        return self.n_patches * sum(sizes) / 1e9


def epoch_of(n_rows: int) -> Traffic:
    """What an epoch of all Sentinel-2 bands asks, planned as the loader plans it."""
    arrays = {group: Archive(n_rows).arrays[group] for group in S2}
    storage = Storage("memory://never-read")
    filled = ((0, n_rows),)
    reader = BlockReader({g: (PixelSource(storage, a, filled),) for g, a in arrays.items()})
    chunk_rows = reader.chunk_rows
    order = epoch_order(np.arange(n_rows), OrderSpec(BATCH, chunk_rows), 0)
    blocks = reading_of(order, chunk_rows).blocks
    n_chunks = -(-n_rows // chunk_rows)
    sizes = {
        group: np.full(n_chunks, array.patch_bytes * chunk_rows / RATIOS[group])
        for group, array in arrays.items()
    }
    return traffic(reader, blocks, sizes, set())


def plan_bytes_a_row(n_rows: int) -> int:
    """Memory at the peak of planning an epoch, in bytes a row, to the next 10."""
    tracemalloc.start()
    order = epoch_order(np.arange(n_rows), OrderSpec(BATCH, 64), 0)
    reading_of(order, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return 10 * round(peak / n_rows / 10)


def replica_gib(n_items: int) -> float:
    """Memory of a replica by the formula of the sizing module."""
    match = re.search(r"2 \* \(var\.n_items \* (\d+) / 1048576 \+ (\d+)\)", SIZING.read_text())
    assert match is not None
    return 2 * (n_items * int(match[1]) / 2**20 + int(match[2])) / 1024


def serving_a_month(prices: Prices) -> dict[str, float]:
    """Two replicas of 1 vCPU and 2 GiB, a load balancer, seven endpoints in two zones."""
    replica = prices.vcpu_hour + 2 * prices.gb_hour
    return {
        "two replicas": 2 * HOURS * replica,
        "load balancer": HOURS * prices.balancer_hour,
        "endpoints": 7 * 2 * HOURS * prices.endpoint_hour,
    }


def page() -> str:
    """Return the text of COSTS.md."""
    prices = prices_of(REGION)
    machine = prices.machine_hour["g6.4xlarge"]
    v2, large = Archive(V2), Archive(LARGE)
    epoch, ten_times = epoch_of(V2_TRAIN), epoch_of(TEN_TIMES)
    gets = {n: t.requests / n for n, t in ((V2_TRAIN, epoch), (TEN_TIMES, ten_times))}
    vcpu = prices.vcpu_hour + 4 * prices.gb_hour
    rows = []
    for archive in (v2, large):
        hours = archive.n_patches * INGEST_CPU_S / 3600
        puts = archive.shards * len(archive.arrays)
        rows.append(
            f"| {archive.n_patches:,} | {archive.shards:,} | {puts:,} | "
            f"{archive.stored_gb:,.0f} GB | {hours:,.1f} | "
            f"${hours * vcpu:,.2f} | ${puts / 1000 * prices.puts_1000:,.2f} | "
            f"${archive.stored_gb * prices.gb_month:,.2f} |"
        )
    epochs = []
    for said, n_epochs, n_read in (
        ("1", 1, 1),
        ("100, kept", 100, 1),
        ("100, read anew", 100, 100),
    ):
        hours = n_epochs * V2_TRAIN / GPU_PATCHES_PER_S / 3600
        total_gb = n_read * epoch.bytes / 1e9
        epochs.append(
            f"| {said} | {n_read * epoch.requests:,} | {total_gb:,.0f} GB | "
            f"${n_read * epoch.requests / 1000 * prices.gets_1000:,.3f} | $0 | "
            f"${total_gb * prices.gb_to_region:,.2f} | ${total_gb * prices.gb_to_internet:,.2f} | "
            f"{hours:,.2f} | ${hours * machine:,.2f} |"
        )
    serving = serving_a_month(prices)
    chunks = large.shards * large.layout.shard_rows // large.layout.chunk_rows
    a_group = gets[TEN_TIMES] / len(S2)
    kept_gb = V2_TRAIN * sum(v2.arrays[group].patch_bytes for group in S2) / 1e9
    row_bytes = plan_bytes_a_row(V2_TRAIN)
    return f"""# What it costs, on paper

Reckoned by `python -m tests.costs` from the functions that write and read cubes; a test holds this page to them.
{prices.label}, before taxes, discounts and free tiers. `bec plan` and `bec plan-training` say the same of
your archive and your selection. Stored sizes take ratios measured on 18 real pairs, of one map
({", ".join(f"{g} {r}" for g, r in RATIOS.items())}), ingest {INGEST_CPU_S * 1000:.1f} ms of a core a pair, measured on a busy machine.
The pace of a GPU, {GPU_PATCHES_PER_S:,} patches/s, is an assumption: hours and dollars of machines go with its inverse.
Not reckoned: keeping the archives themselves, which move to cheaper storage after 30 days, public addresses of the load
balancer, logs and metrics, and what leaves AWS to whoever looks at the explorer.

## Ingest, and keeping what it wrote

| pairs | shards a group | PUTs of pixels | stored | vCPU hours | on Fargate | PUTs cost | kept, a month |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

A tar is one stream: more workers do not make its ingest shorter, which is one task of 4 vCPU and takes what
decompression and the network take.

## Training on the {V2_TRAIN:,} patches of the v2 training split, all Sentinel-2 bands, batches of {BATCH}

| epochs | GETs | read | GETs cost | same region | another region | outside | hours | g6.4xlarge |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(epochs)}

`training fit` keeps patches in memory after the first epoch where three quarters of what is free hold them:
{kept_gb:,.0f} GB here, which the 64 GiB of a g6.4xlarge have. Where each epoch reads everything again, 100 of them in another
region cost more than copying the cube there, once for ${v2.stored_gb * prices.gb_to_region:,.2f}. Spot machines cost about a third; a job that
loses its machine goes on after the last step saved.

## Serving a month

| {" | ".join(serving)} | in all |
|{"---|" * (len(serving) + 1)}
| {" | ".join(f"${d:,.0f}" for d in serving.values())} | ${sum(serving.values()):,.0f} |

The endpoints serve ingest and training too; `n_workers = 0` and an empty queue cost nothing but the scheduler's
${HOURS * (prices.vcpu_hour + 4 * prices.gb_hour):,.0f} a month.

## To 100 million patches

Simulated: the loader's own plan of an epoch, at {V2_TRAIN:,} and at {TEN_TIMES:,} rows.

- **Requests** grow with the rows: {gets[V2_TRAIN] * 1000:.1f} and {gets[TEN_TIMES] * 1000:.1f} GETs for 1,000 patches.
  An epoch of 100 million asks {LARGE * gets[TEN_TIMES] / 1e6:,.1f} million, ${LARGE * gets[TEN_TIMES] / 1000 * prices.gets_1000:,.2f}.
- **Rates.** S3 begins to refuse above {PREFIX_GETS_PER_S:,} GETs a second below one prefix, once it has divided the bucket so, which
  takes minutes of such load. A group is a prefix of its own and is asked {a_group * 1000:.1f} times for 1,000 patches, so one bears {PREFIX_GETS_PER_S / a_group:,.0f} patches/s, as many as
  {PREFIX_GETS_PER_S / a_group / GPU_PATCHES_PER_S:,.0f} GPUs of the pace above take. What is refused is waited out with jitter.
- **Objects.** {large.shards:,} shards a group, {large.shards * len(large.arrays):,} in all; nothing lists them to read.
- **Shard indices** held by a reader: {chunks:,} chunks of 16 bytes a group, {16 * chunks / 1e6:,.0f} MB; {16 * chunks * len(S2) / 1e6:,.0f} MB for Sentinel-2.
- **Plan of an epoch**: {row_bytes} bytes a row at its peak, {row_bytes * V2_TRAIN / 1e6:,.0f} MB for the v2 training split, {row_bytes * LARGE / 1e9:,.0f} GB for 100 million rows
  in each rank. Above some 10 million rows take a `subset`, or a machine with that memory.
- **Items.** A replica needs {replica_gib(V2):.1f} GiB for v2 by the sizing module and {replica_gib(LARGE):.0f} GiB for 100 million, more than a Fargate
  task has (and more than the module takes): several cubes, several services.
"""


if __name__ == "__main__":
    PAGE.write_text(page())
