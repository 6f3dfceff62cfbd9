"""What worker processes of Dask do with freed memory, counted in page faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from bigearth_cube.ingest import ingest
from tests.sources import MemorySource

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
FAULTS = """
import ctypes, resource, sys
from bigearth_cube.heap import keep_freed_memory
from bigearth_cube.ingest import ingest
from tests.sources import MemorySource

PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # a page is one page

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        bytearray(8 << 20)  # zeroed: every page of it is touched
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
if len(sys.argv) == 1:
    keep_freed_memory()
else:
    ingest(MemorySource(4), sys.argv[1], workers=1)
faults()
print(before, faults())
"""


def faults_before_and_after(*arguments: str) -> tuple[int, int]:
    """Run apart, as Dask starts its worker processes."""
    inherited = {name: value for name, value in os.environ.items() if "MALLOC_" not in name}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={
            **inherited,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "MALLOC_TRIM_THRESHOLD_": "65536",
        },
    )
    before, after = map(int, done.stdout.split())
    return before, after


def test_freed_memory_is_used_again_instead_of_fresh_pages() -> None:
    before, after = faults_before_and_after()
    assert after < before / 10


def test_writing_shards_keeps_freed_memory(tmp_path: Path) -> None:
    before, after = faults_before_and_after(str(tmp_path))
    assert after < before / 10


def test_adding_views_to_shards_keeps_freed_memory(tmp_path: Path) -> None:
    ingest(MemorySource(4, with_views=False), str(tmp_path), workers=1)
    before, after = faults_before_and_after(str(tmp_path))
    assert after < before / 10
