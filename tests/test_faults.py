"""Whatever ends a run in the middle: the same command again makes the same objects."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest

from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.cube import open_cube
from bigearth_cube.errors import NotFoundError, StorageError
from bigearth_cube.ingest import ingest
from bigearth_cube.storage import Storage, backends
from tests.sources import MemorySource

N = 300  # two shards
SOURCE = MemorySource(N, with_views=False)


def objects_of(url: str, options: Any = None) -> dict[str, bytes]:
    """Every object of a cube but what holds the time of its release."""
    storage = Storage(url, options)
    content = {key: storage.read(key) for key, _ in storage.list()}
    root = json.loads(content["cube.zarr/zarr.json"])
    del root["attributes"]["crc32c"]  # of all of it, the time too
    for release in root["attributes"]["releases"]:
        release["created"] = ""
    return {**content, "cube.zarr/zarr.json": json.dumps(root).encode()}


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, dask_client: distributed.Client
) -> dict[str, bytes]:
    url = str(tmp_path_factory.mktemp("undisturbed") / "cube")
    ingest(SOURCE, url, client=dask_client)
    return objects_of(url)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, archive="v2", n_patches=N, seed=2, workers=1)
    return folder


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_is_killed_or_interrupted_goes_on_to_the_same_objects(
    end: signal.Signals, archive: Path, tmp_path: Path
) -> None:
    sources = [str(archive / "BigEarthNet-S2"), str(archive / "metadata.parquet")]

    def command(url: Path) -> list[str]:
        line = [sys.executable, "-m", "bigearth_cube", "ingest", *sources, str(url)]
        return [*line, "--workers", "1"]

    url = tmp_path / "cube"
    process = subprocess.Popen(
        command(url), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not list(url.glob("ingest/r1/shards/*.json")) and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(end)
    _, told = process.communicate(timeout=60)
    if (url / "cube.zarr/zarr.json").exists():  # it was faster than the signal
        assert open_cube(str(url)).n_patches == N
    elif end == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted; run the same command again to go on" in told
        assert "Traceback" not in told
    done = subprocess.run(command(url), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ingest(sources, str(tmp_path / "undisturbed"), workers=1)
    assert objects_of(str(url)) == objects_of(str(tmp_path / "undisturbed"))


REMARKS = """
import logging
from bigearth_cube.terminal import silence_dask
logging.basicConfig()
silence_dask()
import distributed
for name in ("distributed.scheduler", "distributed.client", "tornado.application"):
    logging.getLogger(name).error("of a call that was stopped")
print("silent")
"""


def test_dask_is_silent_of_calls_that_are_stopped() -> None:
    run = subprocess.run(
        [sys.executable, "-c", REMARKS], capture_output=True, text=True, check=True
    )
    assert (run.stdout, run.stderr) == ("silent\n", "")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; its size is given with the first mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=20m", "bec-test", str(folder)],
        capture_output=True,
        check=False,
    )
    if not done or done.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_a_run_in_one_line_and_the_next_goes_on(
    small_disk: Path, undisturbed: dict[str, bytes], dask_client: distributed.Client
) -> None:
    url = str(small_disk / "cube")
    with pytest.raises(StorageError, match=r"cannot write .* No space left") as caught:
        ingest(SOURCE, url, client=dask_client)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(NotFoundError):
        open_cube(url)
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    ingest(SOURCE, url, client=dask_client)
    assert objects_of(url) == undisturbed


LIMITED = """
import resource, sys
from bigearth_cube.errors import StorageError
from bigearth_cube.ingest import ingest
from tests.test_faults import SOURCE
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    ingest(SOURCE, sys.argv[1], workers=1)
except StorageError as error:
    print(error)
"""


def test_a_file_that_may_not_be_so_large_ends_a_run_and_the_next_goes_on(
    tmp_path: Path, undisturbed: dict[str, bytes], dask_client: distributed.Client
) -> None:
    url = str(tmp_path / "cube")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, url, str(12 << 20)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "cannot write" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 12 << 20
    ingest(SOURCE, url, client=dask_client)
    assert objects_of(url) == undisturbed


class _Gate(http.server.BaseHTTPRequestHandler):
    """Hands requests on to an S3 server, and refuses to write after some objects."""

    protocol_version = "HTTP/1.1"
    server: Any

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        gate = self.server.gate
        if self.command == "PUT":
            gate["puts"] += 1
            if gate["puts"] > gate["until"]:
                self.send_response(gate["status"])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        upstream = http.client.HTTPConnection(gate["host"])
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        size = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(data)
        upstream.close()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _hand_on

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def gate(s3_options: dict[str, str]) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """What the gate lets pass, and storage_options that go through it."""
    state = {
        "puts": 0,
        "until": 10**9,
        "status": 403,
        "host": s3_options["endpoint_url"].removeprefix("http://"),
    }
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gate) as server:
        server.daemon_threads = True
        server.gate = state  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield state, {**s3_options, "endpoint_url": f"http://127.0.0.1:{server.server_address[1]}"}
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "until"), [(403, 5), (503, 40)])
def test_storage_that_refuses_in_the_middle_ends_a_run_and_the_next_goes_on(
    status: int,
    until: int,
    gate: tuple[dict[str, Any], dict[str, str]],
    bucket: str,
    s3_options: dict[str, str],
    undisturbed: dict[str, bytes],
    dask_client: distributed.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backoff = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2)}
    hasty = {"max_retries": 2, "backoff": backoff, "retry_timeout": timedelta(seconds=5)}
    monkeypatch.setattr(backends, "_RETRY", hasty)
    state, options = gate
    state |= {"status": status, "until": until}
    url = f"{bucket}/cube"
    with pytest.raises(StorageError, match="cannot write") as caught:
        ingest(SOURCE, url, storage_options=options, client=dask_client)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(NotFoundError):
        open_cube(url, s3_options)
    state["until"] = 10**9
    ingest(SOURCE, url, storage_options=options, client=dask_client)
    assert objects_of(url, s3_options) == undisturbed


@pytest.fixture(scope="module")
def rich_cube(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cube with every kind of object: late views, restated columns, embeddings, orphans."""
    url = str(tmp_path_factory.mktemp("rich") / "cube")
    ingest(MemorySource(12, with_views=False, unlabeled=frozenset({2})), url, workers=1)
    ingest(MemorySource(15, malformed=frozenset({13})), url, workers=1)
    cube = open_cube(url)
    cube.write_embeddings("model", np.ones((cube.n_rows, 4), np.float32))
    return url


def kind_of(key: str) -> str:
    """What an object is."""
    path, _, chunk = key.removeprefix("cube.zarr/").partition("/c/")
    name = path.rpartition("/")[2]
    if not chunk:
        if key.endswith("zarr.json"):
            return "root" if key == "cube.zarr/zarr.json" else "document"
        return name.removesuffix(".parquet") if key.startswith("ingest/") else key.split("/")[0]
    if name in ("reflectance", "backscatter", "clc"):
        return "shard"
    if name in ("band", "polarization") or name.startswith("class_"):
        return "axis"
    return path.split("/")[0] if path.startswith(("labels/", "embeddings/")) else "column"


KINDS = (
    *("shard", "column", "axis", "labels", "embeddings", "document", "root", "items"),
    *("orphans", "quarantine", "collection.json", "intake.yaml"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_verify_finds_every_flipped_bit_and_truncated_or_missing_object(
    kind: str, rich_cube: str
) -> None:
    cube = open_cube(rich_cube)
    objects = [o for o in cube.recorded_objects() if kind_of(o.key) == kind]
    assert objects
    rng = np.random.default_rng(5)
    for stored in (objects[i] for i in rng.permutation(len(objects))[:3]):
        path = Path(rich_cube) / stored.key
        sound = path.read_bytes()
        for damaged in (*_flipped(sound, rng), sound[:-1], sound[: len(sound) // 2], b"", None):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            faults = [fault for _, fault in cube.verify([stored]) if fault]
            path.write_bytes(sound)
            assert [fault.key for fault in faults] == [stored.key]
            has_rows = kind in ("shard", "column", "labels", "embeddings")
            assert (faults[0].rows != ()) == has_rows
        assert [fault for _, fault in cube.verify([stored]) if fault] == []


def _flipped(sound: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    for at in rng.integers(len(sound), size=12):
        flipped = bytearray(sound)
        flipped[at] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)


def test_every_object_of_a_cube_is_of_a_kind_that_is_verified(rich_cube: str) -> None:
    cube = open_cube(rich_cube)
    assert {kind_of(o.key) for o in cube.recorded_objects()} == set(KINDS)
    recorded = {o.key for o in cube.recorded_objects()}
    kept = {key for key, _ in cube.storage.list()} - recorded
    assert {key.split("/")[0] for key in kept} == {"ingest"}
