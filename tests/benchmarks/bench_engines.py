"""Patches a second by who reads: threads, Dask in this process, Dask worker processes."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import Any

import distributed
import psutil
import pytest

from bigearth_cube.cube import open_cube
from bigearth_cube.loader.batches import BatchLoader

_ROUNDS = 7
_COPIES = 8  # of 1,024 patches: an epoch long enough that its beginning does not count


def cpu_s() -> float:
    """CPU seconds of this process and of the workers below it."""
    here = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in [here, *here.children(recursive=True)])


@pytest.mark.benchmark(group="load 8,192 S2 patches, shuffled, batches of 256, by engine")
def test_engines_in_turn(
    benchmark: Any, bench_cube: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cubes = [open_cube(bench_cube)] * _COPIES
    with ExitStack() as stack:

        def client(*, processes: bool) -> distributed.Client:
            cluster = distributed.LocalCluster(
                n_workers=2 if processes else 1,  # as Dask itself divides two cores
                threads_per_worker=1 if processes else 2,
                processes=processes,
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                memory_limit=0,
            )
            return stack.enter_context(distributed.Client(stack.enter_context(cluster)))

        workers = client(processes=True)
        options: dict[str, dict[str, Any]] = {
            "threads": {},
            "in process": {"engine": client(processes=False)},
            "shared memory": {"engine": workers},
            "network": {"engine": workers, "shared_memory": False},
        }
        loaders = {
            name: stack.enter_context(BatchLoader(cubes, batch_size=256, pool_chunks=8, **chosen))
            for name, chosen in options.items()
        }
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        cpu_us: dict[str, list[float]] = {name: [] for name in loaders}

        def in_turn(epoch: int) -> None:
            for name, loader in loaders.items():
                cpu, began = cpu_s(), time.perf_counter()
                n_patches = sum(len(batch.rows) for batch in loader.epoch(epoch))
                rates[name].append(n_patches / (time.perf_counter() - began))
                cpu_us[name].append(1e6 * (cpu_s() - cpu) / n_patches)

        in_turn(0)  # memory is mapped, shard indices are read
        for measured in (rates, cpu_us):
            for values in measured.values():
                values.clear()
        epochs = iter(range(1, 1 + _ROUNDS))
        benchmark.pedantic(lambda: in_turn(next(epochs)), rounds=_ROUNDS)
        for name, loader in loaders.items():
            assert set(loader.worker_paths.values()) <= {name}
    with capsys.disabled():
        print()  # noqa: T201
        for name, values in rates.items():
            ratios = [rate / base for rate, base in zip(values, rates["threads"], strict=True)]
            line = (
                f"{name:14} {statistics.median(values):8,.0f} patches/s "
                f"({min(values):,.0f}-{max(values):,.0f}), {statistics.median(ratios):.2f} of "
                f"threads ({min(ratios):.2f}-{max(ratios):.2f}), "
                f"{statistics.median(cpu_us[name]):.0f} us of CPU a patch"
            )
            print(line)  # noqa: T201
            benchmark.extra_info[name] = line
