"""Hosts of their own (network namespaces): one is cut off in mid-training, and nothing changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

HOSTS = {"scheduler": 1, "store": 2, "one": 3, "two": 4, "trainer": 5}
S3 = "http://10.77.0.2:5000"
SCHEDULER = "tcp://10.77.0.1:8786"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.getcwd(),
    "AWS_ENDPOINT_URL": S3,
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
}
MAKE_BUCKET = """
import botocore.config, botocore.session
patient = botocore.config.Config(retries={"total_max_attempts": 20, "mode": "standard"})
botocore.session.get_session().create_client("s3", config=patient).create_bucket(Bucket="bucket")
"""
N_PATCHES, N_EPOCHS, BATCH = 600, 4, 60
A_EPOCH = N_PATCHES // BATCH  # steps


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def netns(host: str) -> str:
    return f"bec-{os.getpid()}-{host}"


class Host:
    """A network and a process table of its own on this machine's disk."""

    def __init__(self, name: str) -> None:
        # `unshare`: on a host of its own, a worker does not see the trainer's process.
        self._inside = ["ip", "netns", "exec", netns(name)]
        self._inside += ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

    def start(self, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._inside, sys.executable, *arguments],
            env=ENVIRONMENT,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )

    def run(self, *arguments: str) -> None:
        with self.start(*arguments) as process:
            _, told = process.communicate(timeout=600)
        assert process.returncode == 0, told


@pytest.fixture
def hosts() -> Iterator[dict[str, Host]]:
    """Five hosts behind one switch."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root and the commands ip and unshare")
    switch = netns("switch")
    with ExitStack() as stack:
        for name in ("switch", *HOSTS):
            ip("netns", "add", netns(name))
            stack.callback(ip, "netns", "delete", netns(name))
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for name, number in HOSTS.items():
            inside = ("netns", netns(name))
            ip("-n", switch, "link", "add", name, "type", "veth", "peer", "eth0", *inside)
            ip("-n", switch, "link", "set", name, "master", "bridge", "up")
            ip("-n", netns(name), "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            ip("-n", netns(name), "link", "set", "eth0", "up")
            ip("-n", netns(name), "link", "set", "lo", "up")
        yield {name: Host(name) for name in HOSTS}


def epochs(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder: Path) -> int:
    """Steps that a run has taken, by the newest checkpoint that it goes on from."""
    return max((int(path.stem[5:]) for path in folder.glob("step-*.pt")), default=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training_goes_on_with_the_same_losses_when_a_host_is_cut_off(
    hosts: dict[str, Host], tmp_path: Path
) -> None:
    url, archive = "s3://bucket/cube", str(tmp_path / "archive")
    fit = ["-m", "training", "fit", url, "--recipe", "tb-cnn-small", "--epochs", str(N_EPOCHS)]
    fit += ["--train-split", "all", "--validation-split", "none", "--batch-size", str(BATCH)]
    fit += ["--save-every", "1", "--cache", "none"]  # every epoch is read from storage
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with ExitStack() as stack:

        def serve(host: str, *arguments: str) -> None:
            # Nobody reads what a server says, and a full pipe would stop it.
            process = hosts[host].start("-m", *arguments, stderr=subprocess.DEVNULL)
            stack.enter_context(process)
            stack.callback(process.kill)

        serve("store", "moto.server", "-H", "10.77.0.2", "-p", "5000")
        address = ["--host", "10.77.0.1", "--port", "8786", "--dashboard-address", "127.0.0.1:0"]
        serve("scheduler", "distributed.cli.dask_scheduler", *address)
        for name in ("one", "two"):
            own = ["--host", f"10.77.0.{HOSTS[name]}", "--nthreads", "1", "--no-dashboard"]
            serve(name, "distributed.cli.dask_worker", SCHEDULER, *own)
        trainer = hosts["trainer"]
        trainer.run("-c", MAKE_BUCKET)
        trainer.run("-m", "bigearth_cube", "synth", archive, "--patches", str(N_PATCHES))
        trainer.run("-m", "bigearth_cube", "ingest", archive, url, "--scheduler", SCHEDULER)
        trainer.run(*fit, "--out", str(whole))
        with trainer.start(*fit, "--scheduler", SCHEDULER, "--out", str(cut)) as run:
            while steps(cut) <= A_EPOCH and run.poll() is None:
                time.sleep(0.01)
            ip("-n", netns("switch"), "link", "set", "one", "down")
            assert run.poll() is None
            at = steps(cut)
            assert A_EPOCH < at < 2 * A_EPOCH, "not in the middle of the second epoch"
            _, told = run.communicate(timeout=600)
        assert run.returncode == 0, told
    found, expected = epochs(cut), epochs(whole)
    assert len(expected) == N_EPOCHS
    assert [e["train_loss"] for e in found] == [e["train_loss"] for e in expected]
    # What was read ahead when the host was cut off is one epoch at most.
    assert all(e["loader_requests"] > 0 for e in found)
