"""Object storage: a URL and its options become keys and bytes."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError
from obstore import exceptions as obstore_errors

from bigearth_cube.errors import InvalidInputError, NotFoundError, StorageError
from bigearth_cube.storage.backends import (
    Backend,
    OnRetry,
    first_line,
    is_for_fsspec,
    new_backend,
)
from bigearth_cube.storage.ranges import Room
from bigearth_cube.storage.s3 import S3_OPTIONS

StorageOptions = Mapping[str, Any]


def _ignore() -> None:
    """Do nothing when a read is sent again."""


class Storage:
    """Keys and bytes under one URL.

    Pickles as its URL and options, so it can travel to workers; connections are opened once
    per process and target, and only when first used.

    Parameters
    ----------
    url
        A local path, ``s3://bucket/prefix``, ``https://…`` (reading) or ``memory://…``.
    storage_options
        fsspec's names: key, secret, token, profile, anon, endpoint_url, region,
        requester_pays; paths and HTTP take them and need none. Without credentials the usual
        AWS chain is asked (environment, profiles, SSO, roles).

    Raises
    ------
    InvalidInputError
        If the URL or an option is not understood.
    """

    def __init__(self, url: str | Path, storage_options: StorageOptions | None = None) -> None:
        self.url = normalized_url(url)
        self.options = dict(storage_options or {})
        self._opened: tuple[Backend, int] | None = None
        unknown = sorted(set(self.options) - set(S3_OPTIONS))
        if unknown and not is_for_fsspec(self.url):
            raise InvalidInputError(
                f"unknown storage option {unknown[0]!r}; choose from: {', '.join(S3_OPTIONS)}"
            )

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def __reduce__(self) -> tuple[type[Storage], tuple[str, StorageOptions]]:
        return Storage, (self.url, self.options)

    @property
    def _backend(self) -> Backend:
        if self._opened is None:
            options = json.dumps(self.options, sort_keys=True, default=str)
            self._opened = _open_backend(self.url, options)
        backend, pid = self._opened
        refuse_fork(pid, f"{self.url} was opened")
        return backend

    @property
    def is_local(self) -> bool:
        """Whether objects are files of this machine, as far as the URL says."""
        return "://" not in self.url

    def child(self, path: str) -> Storage:
        """Return the same storage, one prefix deeper."""
        return Storage(f"{self.url}/{path.strip('/')}", self.options)

    def read(self, key: str, *, on_retry: OnRetry = _ignore) -> bytes:
        """Whole object at ``key``.

        Throttling, server errors and broken connections are waited out with jitter, half a minute
        in all; ``on_retry`` is called before each wait. So for the other reads.

        Raises
        ------
        NotFoundError
            If there is none.
        StorageError
            If storage refuses or cannot be reached.
        """
        with self._translated(key):
            return self._backend.get(key, on_retry)

    def read_range(
        self,
        key: str,
        start: int,
        end: int,
        *,
        on_retry: OnRetry = _ignore,
        into: Room | None = None,
    ) -> Any:
        """Bytes from ``start`` to before ``end`` of an object, as a buffer, in one request.

        An object that ends sooner gives less, or an error. ``into`` gives room for so many bytes,
        which it is read into where that is possible: fresh memory costs as much as the reading.

        Raises
        ------
        NotFoundError
            If there is no such object.
        StorageError
            If storage refuses or cannot be reached.
        """
        with self._translated(key):
            return self._backend.get_range(key, start, end, on_retry, into)

    def read_tail(self, key: str, n_bytes: int, *, on_retry: OnRetry = _ignore) -> bytes:
        """Last ``n_bytes`` of an object.

        Raises
        ------
        NotFoundError
            If there is no such object.
        StorageError
            If storage refuses or cannot be reached.
        """
        with self._translated(key):
            return self._backend.get_tail(key, n_bytes, on_retry)

    def write(self, key: str, data: bytes) -> None:
        """Put one object, whole or not at all.

        Raises
        ------
        StorageError
            If storage refuses or cannot be reached.
        """
        with self._translated(key, writing=True):
            self._backend.put(key, data, only_if_absent=False)

    def write_new(self, key: str, data: bytes) -> bool:
        """Put one object unless the key is taken; say whether it was put (conditional PUT).

        Raises
        ------
        StorageError
            If storage refuses or cannot be reached.
        """
        with self._translated(key, writing=True):
            try:
                self._backend.put(key, data, only_if_absent=True)
            except (obstore_errors.AlreadyExistsError, FileExistsError):
                return False
            return True

    def delete(self, key: str) -> None:
        """Remove one object; a key that is not there is no error.

        Raises
        ------
        StorageError
            If storage refuses or cannot be reached.
        """
        try:
            with self._translated(key):
                self._backend.delete(key)
        except NotFoundError:
            return

    def exists(self, key: str) -> bool:
        """Whether there is an object at ``key``.

        Raises
        ------
        StorageError
            If storage refuses or cannot be reached.
        """
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        """Size of an object in bytes.

        Raises
        ------
        NotFoundError
            If there is no such object.
        StorageError
            If storage refuses or cannot be reached.
        """
        with self._translated(key):
            return self._backend.size(key)

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """Keys under ``prefix`` and their sizes in bytes, sorted; empty where there are none.

        Raises
        ------
        NotFoundError
            If the bucket does not exist.
        StorageError
            If storage refuses or cannot be reached.
        """
        with self._translated(prefix):
            try:
                return sorted(self._backend.list(prefix))
            except FileNotFoundError:
                if self.url.startswith("s3://"):
                    raise
                return []

    def check_bucket(self) -> None:
        """Return if requests are answered; else say what is wrong, before any work is done.

        Raises
        ------
        NotFoundError
            If the bucket does not exist.
        StorageError
            If storage refuses or cannot be reached.
        """
        if not self.url.startswith("s3://"):
            return
        bucket = self.url.removeprefix("s3://").split("/")[0]
        root = Storage(f"s3://{bucket}", self.options)
        with root._translated(""):
            next(root._backend.list(self.url.removeprefix(f"s3://{bucket}").strip("/")), None)

    def remove_leftovers(self) -> int:
        """Remove what writes that were killed left behind; returns how many files that were.

        Only a local folder has such; nobody else may be writing below it.

        Raises
        ------
        StorageError
            If the file system refuses.
        """
        with self._translated(""):
            found = self._backend.leftovers()
            for path in found:
                path.unlink()
        return len(found)

    def zarr_store(self, *, read_only: bool = True) -> Any:
        """Return a zarr-python store on this prefix."""
        return self._backend.zarr_store(read_only=read_only)

    def zarr_array(self, path: str) -> Any:
        """Open one array by zarr-python, to read."""
        import zarr

        return zarr.open_array(self.zarr_store(), path=path, mode="r")

    @contextmanager
    def _translated(self, key: str, *, writing: bool = False) -> Iterator[None]:
        """Turn what clients raise into the errors this package promises."""
        place = f"{self.url}/{key}" if key else self.url
        try:
            yield
        except (OSError, obstore_errors.BaseError, BotoCoreError) as error:
            if "NoSuchBucket" in str(error):
                raise NotFoundError(
                    f"bucket {self.url.split('/')[2]!r} does not exist at this endpoint; "
                    f"create it, or check the URL and endpoint_url"
                ) from None
            if writing:
                raise StorageError(f"cannot write {place}: {_advice(error)}") from None
            if isinstance(error, FileNotFoundError | obstore_errors.NotFoundError):
                raise NotFoundError(f"no object at {place}") from None
            raise StorageError(f"{place}: {_advice(error)}") from None


def refuse_fork(pid: int, since: str) -> None:
    """Say what would else hang: a forked process has the clients of its parent, not their threads.

    Parameters
    ----------
    pid
        Process in which clients or threads were made.
    since
        What was done there.

    Raises
    ------
    InvalidInputError
        If this is another process.
    """
    if os.getpid() != pid:
        raise InvalidInputError(
            f"this process was forked after {since}, and would hang; start it by spawn or "
            f"forkserver, e.g. DataLoader(..., multiprocessing_context='forkserver')"
        )


def normalized_url(url: str | Path) -> str:
    """Turn a path into an absolute one and drop a trailing slash from a URL.

    Raises
    ------
    InvalidInputError
        If the URL names no bucket, is empty, or holds credentials: it stands in logs and items.

    Examples
    --------
    >>> normalized_url("s3://bucket/cube/")
    's3://bucket/cube'
    """
    text = str(url)
    if not text:
        raise InvalidInputError("empty URL; give a path or a URL such as s3://bucket/prefix")
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if re.match(r"[a-z0-9+.-]+://", text):
        if text.startswith("s3://") and not text.removeprefix("s3://").strip("/"):
            raise InvalidInputError(f"{text!r} names no bucket; expected s3://bucket/prefix")
        scheme, rest = text.split("://", 1)
        if "@" in rest.split("/", 1)[0]:
            raise InvalidInputError(
                f"a URL of {scheme}:// holds credentials; pass them as storage_options, or by the "
                f"environment: URLs stand in logs and items"
            )
        return f"{scheme}://{rest.rstrip('/')}"
    return str(Path(text).expanduser().absolute())


@functools.lru_cache(maxsize=64)
def _open_backend(url: str, options_json: str) -> tuple[Backend, int]:
    # One connection pool per process and target: opening an S3 client costs milliseconds and
    # its connections are worth keeping. Keyed by value, so it carries no state of its own; with
    # the process that opened it, whose threads a fork does not have.
    return new_backend(url, json.loads(options_json)), os.getpid()


def _advice(error: BaseException) -> str:
    """One line: what storage said, and what to do."""
    text = first_line(error)
    # Listing has no exception classes of its own: its text ends with the status, after the URL.
    if "error sending request" in str(error) or "Connection refused" in str(error):
        url = re.search(r"https?://[^/\s)]+", str(error))
        endpoint = f"the endpoint {url[0]}" if url else "the endpoint"
        return f"{endpoint} cannot be reached; check endpoint_url and the network"
    if isinstance(error, obstore_errors.PermissionDeniedError) or "403 Forbidden" in text:
        return "access denied; check the credentials and the bucket's policy"
    if isinstance(error, obstore_errors.UnauthenticatedError) or "401 Unauthorized" in text:
        return "credentials refused; check key and secret, or pass anon=True for a public bucket"
    return text
