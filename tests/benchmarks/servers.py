"""Servers on loopback for benchmarks: nginx, Ceph's gateway, and a proxy that delays requests.

Each is a context manager; a server ends with its block, or with this process however that ends.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DIES_WITH_US = ("setpriv", "--pdeathsig", "TERM")
_NGINX = """
daemon off; worker_processes 2; pid {run}/pid; error_log {run}/error.log; {user}
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush off; keepalive_requests 1000000; types {{ }}
  client_body_temp_path {run}/1; proxy_temp_path {run}/2; fastcgi_temp_path {run}/3;
  uwsgi_temp_path {run}/4; scgi_temp_path {run}/5;
  server {{ listen 127.0.0.1:{port} backlog=512; root {root}; }}
}}
"""


class MissingError(Exception):
    """Something that a benchmark needs is not on this machine; says what and how to get it."""


@contextmanager
def nginx(root: Path, run: Path) -> Iterator[str]:
    """Serve a folder of buckets for reading; yields the endpoint."""
    _need({"nginx": "nginx-light", "setpriv": "util-linux"})
    run.mkdir(parents=True)
    port = free_port()
    # Workers of a root's nginx become nobody, who may not read a temporary folder.
    user = "user root;" if Path("/proc/self").stat().st_uid == 0 else ""
    config = run / "nginx.conf"
    config.write_text(_NGINX.format(run=run, root=root, port=port, user=user))
    command = [*_DIES_WITH_US, _where("nginx"), "-c", str(config), "-p", str(run)]
    command += ["-e", str(run / "error.log")]
    with _running(command, run / "out"):
        _wait_until_open(port)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def radosgw(run: Path) -> Iterator[dict[str, str]]:
    """Start Ceph's gateway over an object store in memory; yields storage_options."""
    programs = {"ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "radosgw": "radosgw"}
    _need(programs | {"uuidgen": "uuid-runtime", "setpriv": "util-linux", "curl": "curl"})
    port, mon_port = free_port(), free_port()
    script = Path(__file__).with_name("radosgw.sh")
    command = [*_DIES_WITH_US, str(script), str(run), str(port), str(mon_port)]
    with _running(command, run.with_suffix(".out")) as process:
        for _ in range(600):
            if "ready" in run.with_suffix(".out").read_text():
                break
            if process.poll() is not None:
                raise MissingError(f"radosgw did not start; see {run}/log")
            time.sleep(0.1)
        else:
            raise MissingError(f"radosgw did not answer within a minute; see {run}/log")
        endpoint = f"http://127.0.0.1:{port}"
        yield {"key": "bench", "secret": "bench-secret", "endpoint_url": endpoint}


@contextmanager
def delaying_proxy(endpoint: str, delay_ms: int) -> Iterator[str]:
    """Pass HTTP requests on, each after a delay; yields the proxy's endpoint."""
    port = free_port()
    script = Path(__file__).with_name("delaying_proxy.py")
    upstream = endpoint.rsplit(":", 1)[1]
    command = [*_DIES_WITH_US, sys.executable, str(script), str(port), upstream, str(delay_ms)]
    with _running(command, None):
        _wait_until_open(port)
        yield f"http://127.0.0.1:{port}"


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _running(command: list[str], out: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    with (out or Path("/dev/null")).open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _where(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def _need(programs: dict[str, str]) -> None:
    absent = [program for program in programs if _where(program) is None]
    if absent:
        packages = " ".join(dict.fromkeys(programs[program] for program in absent))
        raise MissingError(
            f"needs {', '.join(absent)}; on Debian: "
            f"apt-get install --no-install-recommends {packages}"
        )


def _wait_until_open(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise MissingError(f"the server on port {port} did not start within 10 s")
