"""A PostgreSQL server with PostGIS on loopback, from Debian's packages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root
SETTINGS = {"fsync": "off", "jit": "off", "max_locks_per_transaction": "256"}


def _program(name: str) -> str:
    found = shutil.which(name)
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if found is None and not installed:
        pytest.skip(f"no PostgreSQL server: {name} is not installed")
    return found or str(installed[-1])


@contextmanager
def postgres_server(more: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run an empty server with settings; yields its DSN. Skips a test where there is none."""
    psycopg = pytest.importorskip("psycopg", reason="pypgstac is not installed")
    initdb, postgres = _program("initdb"), _program("postgres")
    user = {"user": UNPRIVILEGED} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="bec-postgres-"))
    if user:
        shutil.chown(folder, UNPRIVILEGED)
    data = folder / "data"
    common: dict[str, Any] = {"cwd": folder, **user}
    subprocess.run(
        [initdb, "-D", str(data), "-A", "trust", "-U", "bec", "-E", "UTF8", "--no-sync"],
        check=True,
        stdout=subprocess.DEVNULL,
        **common,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        **SETTINGS,
        **(more or {}),
    }
    flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([postgres, "-D", str(data), *flags], stderr=log, **common)
    dsn = f"postgresql://bec@127.0.0.1:{port}/postgres"
    try:
        for _ in range(300):
            try:
                with psycopg.connect(dsn, autocommit=True) as connection:
                    connection.execute("CREATE EXTENSION postgis")
                break
            except psycopg.errors.UndefinedFile:
                pytest.skip("PostgreSQL has no PostGIS")
            except psycopg.OperationalError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield dsn
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder)
