"""What a source is called and how its bytes are read: a path, or any fsspec URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

import aiohttp
import fsspec

from bigearth_cube.errors import NotFoundError, StorageError

_REMOTE_BYTES: Final = 1 << 24  # a request; at 64 KB the round trips would be all there is
_WEB: Final = ("http://", "https://")


def is_remote(source: str) -> bool:
    """Whether a source lies on another machine, as its URL says."""
    return "://" in source and not source.startswith("file://")


def file_name(source: str) -> str:
    """Name of the file that a path or URL stands for.

    Examples
    --------
    >>> file_name("https://example.org/files/metadata.parquet?download=1")
    'metadata.parquet'
    """
    return os.path.basename(source.partition("?")[0] if source.startswith(_WEB) else source)


@contextmanager
def opened(source: str) -> Iterator[BinaryIO]:
    """Open a source to be read from its start to its end.

    Raises
    ------
    NotFoundError
        If there is no such object.
    StorageError
        If it cannot be opened, or reading fails.
    """
    try:
        with _open(source) as file:
            yield file
    except FileNotFoundError:
        raise NotFoundError(f"{source} does not exist") from None
    except (OSError, aiohttp.ClientError) as error:
        raise StorageError(f"{source} cannot be read: {error}; run again") from error


def size_of(source: str) -> int | None:
    """Bytes of a source, or None where its server does not say.

    Raises
    ------
    NotFoundError
        If there is no such object.
    StorageError
        If storage refuses or cannot be reached.
    """
    try:
        files, path = fsspec.url_to_fs(source)
        size = files.size(path)
    except FileNotFoundError:
        raise NotFoundError(f"{source} does not exist") from None
    except (OSError, aiohttp.ClientError, ValueError, ImportError) as error:
        raise StorageError(f"{source} cannot be read: {error}; run again") from error
    return None if size is None else int(size)


def _open(source: str) -> Any:
    try:
        if not source.startswith(_WEB):
            files, path = fsspec.url_to_fs(source)
            blocks = {"block_size": _REMOTE_BYTES, "cache_type": "readahead"}
            return files.open(path, "rb", **(blocks if "://" in source else {}))
        # Without a limit for the whole: an archive takes hours, and five minutes are the default.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        files, path = fsspec.url_to_fs(source, client_kwargs={"timeout": timeout})
        # A server that does not say that it gives ranges is read in one go.
        ranges = files.info(path).get("partial") is True
        return files.open(
            path, "rb", block_size=_REMOTE_BYTES if ranges else 0, cache_type="readahead"
        )
    except (ValueError, ImportError) as error:
        raise StorageError(f"{source} cannot be opened: {error}") from error
