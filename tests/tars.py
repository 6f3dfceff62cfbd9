"""Tars for tests: made of files, in any format and compression."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import zstandard

Files = dict[str, bytes]


def tar_bytes(files: Files, format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, files: Files) -> str:
    data = tar_bytes(files)
    if path.suffix == ".zst":
        data = zstandard.compress(data, 1)
    elif path.suffix == ".gz":
        data = gzip.compress(data, 1)
    path.write_bytes(data)
    return str(path)


def files_of(folder: Path) -> Files:
    """Every file below a folder, sorted by its path from the folder's parent."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder.parent)): path.read_bytes() for path in paths}
