"""Our loader beside what people use today, in one run: ``python -m tests.benchmarks.bench_peers``.

Contenders take turns, round after round, each in a process that lives through all of them, and
ratios are taken round by round: what disturbs the machine disturbs both sides. Everything, the
servers too, runs on the same two cores. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks import servers
from tests.benchmarks.comparison import FIRST_BATCH_S, ROWS, UNJUDGED, printed, table
from tests.benchmarks.inputs import BUCKET, PROFILES, upload, write_inputs

logger = logging.getLogger("bench_peers")
ROOT = Path(__file__).parents[2]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
CORES = 2
DELAY_MS = 50
# As the Makefile has them, for every contender.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "536870912",
    "MALLOC_TOP_PAD_": "16777216",
    "MALLOC_ARENA_MAX": "2",
}
MODULES = {
    "ours": "ours",
    "torch": "ours",
    "ceiling": "ours",
    "dask": "ours",
    "zarr": "zarr_readers",
    "xarray": "zarr_readers",
    "xbatcher": "zarr_readers",
    "geotiffs": "files",
    "lmdb": "files",
    "webdataset": "files",
    "mosaic": "mosaic",
}
_OF_RGW = r"rgw|cached|mosaic"
WARM_UPS = {"mosaic first": "none", "mosaic later": "whole", "ours cached": "whole"}
ONE_A_PROCESS = ("mosaic",)
"""Contenders that leave something behind, and get a new process for each measurement."""


class UnavailableError(Exception):
    """A contender cannot run here; says why."""


class ContenderProcess:
    """The process of a module of ``peers``, which answers one command at a time."""

    def __init__(self, module: str, setting: dict[str, Any], log: Path) -> None:
        python = PEERS_PYTHON if module == "mosaic" else Path(sys.executable)
        if not python.exists():
            raise UnavailableError("not installed; run: make bench-peers")
        self._setting = setting
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [str(python), "-m", f"tests.benchmarks.peers.{module}"],
                cwd=ROOT,
                env=os.environ | MALLOC | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command | {"setting": self._setting}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise UnavailableError("its process has ended") from None
        line = self._process.stdout.readline()
        if not line:
            raise UnavailableError(f"its process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UnavailableError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Run:
    """Everything that one run of the comparison has found."""

    def __init__(self, folder: Path, n_patches: int, names: list[str], log: Path) -> None:
        self.folder, self.n_patches, self.names, self._log = folder, n_patches, names, log
        self.storage: dict[str, dict[str, Any]] = {}
        self.rates: dict[str, list[float | None]] = {name: [] for name in names}
        self.cpu_us: dict[str, list[float]] = {}
        self.first_batch_s: dict[str, list[float]] = {}
        self.chunks_a_batch: dict[str, int] = {}
        self.failures: dict[str, str] = {}
        self._processes: dict[str, ContenderProcess] = {}

    def ask(self, name: str, **command: Any) -> dict[str, Any] | None:
        """Ask a contender's process; a failure is noted, and the contender left out from then."""
        if name in self.failures:
            return None
        try:
            process = self._process_of(name)
            try:
                return process.ask(name=name, **command)
            finally:
                if name.startswith(ONE_A_PROCESS):
                    process.close()
                    self._processes = {k: p for k, p in self._processes.items() if p is not process}
        except UnavailableError as error:
            self.failures[name] = str(error)
            logger.warning("%s: %s (log: %s)", name, error, self._log)
            return None

    def first_batch(self, name: str) -> None:
        """Measure the first batch in a process of its own."""
        process = ContenderProcess(MODULES[name.split()[0]], self._setting, self._log)
        try:
            found = process.ask(do="first batch", name=name)["first_batch_s"]
            self.first_batch_s.setdefault(name, []).append(found)
        except UnavailableError as error:
            self.failures[f"first batch of {name}"] = str(error)
        finally:
            process.close()

    def close(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    @property
    def _setting(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "n_patches": self.n_patches,
            "storage": self.storage,
        }

    def _process_of(self, name: str) -> ContenderProcess:
        kind = name.split()[0]
        # Dask has threads of its own; they should not be about while others are measured.
        key = "dask" if kind == "dask" else MODULES[kind]
        if key not in self._processes:
            self._processes[key] = ContenderProcess(MODULES[kind], self._setting, self._log)
        return self._processes[key]


def contenders(only: str) -> list[str]:
    """Names of all contenders of the rows whose label or sides match a pattern, each once."""
    names: dict[str, None] = {}
    for profile in PROFILES:
        for row in (row.of(profile) for row in ROWS):
            if re.search(only, f"{row.left} | {row.label} | {row.right}"):
                names |= dict.fromkeys((row.left, row.right))
    names |= {name: None for name in UNJUDGED if re.search(only, name)}
    return list(names)


def prepare(run: Run) -> None:
    """Write what peers read, once; those without inputs are left out."""
    for kind in dict.fromkeys(MODULES[name.split()[0]] for name in run.names):
        marker = run.folder / f"{kind}.complete"
        if marker.exists() or kind not in ("files", "mosaic"):
            continue
        name = next(name for name in run.names if MODULES[name.split()[0]] == kind)
        if run.ask(name, do="prepare") is not None:
            marker.touch()
            continue
        for other in run.names:
            if MODULES[other.split()[0]] == kind:
                run.failures[other] = run.failures[name]


def start_nginx(stack: ExitStack, run: Run, work: Path) -> None:
    """Start nginx and the proxies before it; contenders that need them are left out without."""
    try:
        endpoint = stack.enter_context(servers.nginx(run.folder, work / "nginx"))
        run.storage["nginx"] = {"anon": True, "endpoint_url": endpoint}
        for name, delay_ms in (("proxy", 0), ("proxy50", DELAY_MS)):
            proxy = stack.enter_context(servers.delaying_proxy(endpoint, delay_ms))
            run.storage[name] = {"anon": True, "endpoint_url": proxy}
    except servers.MissingError as error:
        _leave_out(run, r"nginx|proxy|dask", str(error))


def start_radosgw(stack: ExitStack, run: Run, work: Path) -> None:
    """Start Ceph's gateway with all objects; contenders that need it are left out without."""
    try:
        options = stack.enter_context(servers.radosgw(work / "rgw"))
        upload(run.folder / BUCKET, BUCKET, options)
        if (run.folder / "mds").exists():
            upload(run.folder / "mds", "mds", options)
        run.storage["rgw"] = options
    except servers.MissingError as error:
        _leave_out(run, _OF_RGW, str(error))


def _leave_out(run: Run, pattern: str, why: str) -> None:
    logger.warning("left out: %s", why)
    for name in run.names:
        if re.search(pattern, name):
            run.failures[name] = why


def measure(run: Run, names: list[str], rounds: int, seconds: float, until: float) -> None:
    """Let contenders take turns; stop early, after three rounds, when the time is up."""
    for name in names:
        answer = run.ask(name, do="check")
        if answer is not None:
            run.chunks_a_batch[name] = answer["chunks_a_batch"]
        logger.info("checked %s", name)
    for number in range(rounds):
        if number >= 3 and time.monotonic() > until:
            logger.warning("time is up after %d of %d rounds", number, rounds)
            return
        for name in names:
            warm_up = next((w for n, w in WARM_UPS.items() if name.startswith(n)), "short")
            answer = run.ask(name, do="measure", seconds=seconds, warm_up=warm_up)
            run.rates[name].append(None if answer is None else answer["patches_per_s"])
            if answer is not None:
                run.cpu_us.setdefault(name, []).append(answer["cpu_us"])
        for server in ("nginx", "rgw"):
            name = f"ours {server} fast"
            if name in names and name not in run.failures:
                run.first_batch(name)
        logger.info("round %d of %d", number + 1, rounds)


def report(run: Run, began: float) -> None:
    """Print the tables and write ``.benchmarks/peers.json``."""
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"\n{run.n_patches} patches, batches of 256, {CORES} cores; load average {load}")
    for profile in PROFILES:
        lines = table(run.rates, run.failures, profile)
        if len(lines) > 1:
            print(f"\ncubes of profile {profile}, patches a second, medians of rounds")
            print(printed(lines))
    for name, found in run.first_batch_s.items():
        median = statistics.median(found)
        verdict = "reached" if median <= FIRST_BATCH_S else "MISSED"
        print(
            f"\nfirst batch from a cold open, {name}: {median:.2f} s "
            f"({min(found):.2f}-{max(found):.2f}), at most {FIRST_BATCH_S:.1f} s: {verdict}"
        )
    print()
    for name, rates in run.rates.items():
        known = [rate for rate in rates if rate is not None]
        if known:
            print(
                f"{name:24} {statistics.median(known):8,.0f} ({min(known):,.0f}-{max(known):,.0f})"
                f" patches/s, {statistics.median(run.cpu_us[name]):6,.0f} us of a core a patch,"
                f" rows of {run.chunks_a_batch[name]} chunks in a batch"
            )
    for name, why in run.failures.items():
        print(f"{name:24} {why}")
    print(f"\n{time.monotonic() - began:.0f} s in all")
    out = ROOT / ".benchmarks" / "peers.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(
        json.dumps(
            {
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                "load_average": os.getloadavg(),
                "versions": {p: version(p) for p in ("zarr", "xarray", "obstore", "torch")},
                "n_patches": run.n_patches,
                "rates": run.rates,
                "cpu_us": run.cpu_us,
                "first_batch_s": run.first_batch_s,
                "chunks_a_batch": run.chunks_a_batch,
                "failures": run.failures,
                "tables": {p: table(run.rates, run.failures, p) for p in PROFILES},
            },
            indent=1,
        )
    )
    print(f"written to {out.relative_to(ROOT)}")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--minutes", type=float, default=18.0, help="then no further round begins")
    parser.add_argument("--only", default="", help="rows that match this pattern")
    parser.add_argument("--data", type=Path, help="folder of inputs, kept for the next run")
    options = parser.parse_args()
    logging.basicConfig(format="%(relativeCreated)7.0f ms  %(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave by the exits of the blocks
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    began = time.monotonic()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bec-bench-")))
        folder = (options.data or work / "inputs").absolute()
        log = ROOT / ".benchmarks" / "peers.log"
        log.parent.mkdir(exist_ok=True)
        log.write_bytes(b"")
        run = Run(folder, options.patches, contenders(options.only), log)
        stack.callback(run.close)
        write_inputs(folder, options.patches)
        logger.info("archive, cubes and raw arrays are written")
        prepare(run)
        logger.info("inputs of peers are written")
        run.close()  # they know no servers yet
        # No row sets Ceph against anything else, and at rest it takes from what else runs.
        of_rgw = [name for name in run.names if re.search(_OF_RGW, name)]
        others = [name for name in run.names if name not in of_rgw]
        parts = ((others, start_nginx, 0.6 if of_rgw else 1.0), (of_rgw, start_radosgw, 1.0))
        for names, start, share in parts:
            if not names:
                continue
            with ExitStack() as served:
                start(served, run, work)
                logger.info("servers are up")
                until = began + options.minutes * 60 * share
                measure(run, names, options.rounds, options.seconds, until)
                run.close()
        report(run, began)


if __name__ == "__main__":
    main()
