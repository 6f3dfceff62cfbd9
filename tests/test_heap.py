"""What worker processes of Dask do with freed memory, counted in page faults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource, sys
from bigearth_cube.heap import keep_freed_memory
from bigearth_cube.ingest import ingest
from tests.sources import MemorySource

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        bytearray(8 << 20)  # zeroed: every page of it is touched
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "alone":
    found = [faults()]
    keep_freed_memory()
else:
    found = []
    ingest(MemorySource(4), sys.argv[1], workers=1)
faults()
print(*found, faults())
"""


def count_faults(what: str) -> list[int]:
    """Run apart, as Dask starts its worker processes."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, what],
        capture_output=True,
        text=True,
        check=True,
        env={
            **{name: value for name, value in os.environ.items() if "MALLOC_" not in name},
            "PYTHONPATH": os.pathsep.join(sys.path),
            "MALLOC_TRIM_THRESHOLD_": "65536",
        },
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_used_again_instead_of_fresh_pages() -> None:
    before, after = count_faults("alone")
    assert before > 10_000  # 2,048 pages a buffer
    assert after < 1_000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_writing_shards_keeps_freed_memory(tmp_path: Path) -> None:
    assert count_faults(str(tmp_path)) < [1_000]
