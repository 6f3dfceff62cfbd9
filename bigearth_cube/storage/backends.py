"""The bytes below one address, by what holds them: a bucket, a web site, a folder, or fsspec."""

from __future__ import annotations

import functools
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import SplitResult, quote, urlsplit

import obstore
from obstore import exceptions as obstore_errors
from obstore.store import HTTPStore, LocalStore

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.storage.ranges import (
    KEPT_S,
    BusyError,
    NotPlainError,
    RangeReader,
    Room,
    is_busy,
)
from bigearth_cube.storage.s3 import open_bucket

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

OnRetry = Callable[[], None]
_T = TypeVar("_T")
# A refused connection is told within seconds; a throttled request may wait half a minute.
_RETRY: RetryConfig = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5)},
    "retry_timeout": timedelta(seconds=30),
}
_CLIENT: ClientConfig = {"pool_idle_timeout": timedelta(seconds=KEPT_S)}


class Backend(Protocol):
    """The bytes under a prefix; every method may raise what ``Storage`` translates."""

    def get(self, key: str, on_retry: OnRetry) -> bytes:
        """Read an object; ``on_retry`` is called before each time it is asked for again."""

    def get_range(
        self, key: str, start: int, end: int, on_retry: OnRetry, into: Room | None
    ) -> Any:
        """Read from ``start`` to before ``end``, into the room it is given where that can be."""

    def get_tail(self, key: str, n_bytes: int, on_retry: OnRetry) -> bytes:
        """Read the last bytes."""

    def size(self, key: str) -> int:
        """Return the bytes of an object."""

    def put(self, key: str, data: bytes, *, only_if_absent: bool) -> None:
        """Write an object whole."""

    def delete(self, key: str) -> None:
        """Remove an object."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield key and size of the objects below a prefix."""

    def leftovers(self) -> Sequence[Path]:
        """Files that a write which was cut off has left."""

    def zarr_store(self, *, read_only: bool) -> Any:
        """Return the store by which zarr-python reads and writes."""


class _ObstoreBackend:
    def __init__(self, store: Any) -> None:
        self._store = store

    def get(self, key: str, on_retry: OnRetry) -> bytes:
        return bytes(obstore.get(self._store, key).bytes())

    def get_range(
        self, key: str, start: int, end: int, on_retry: OnRetry, into: Room | None
    ) -> Any:
        return obstore.get_range(self._store, key, start=start, end=end)

    def get_tail(self, key: str, n_bytes: int, on_retry: OnRetry) -> bytes:
        return _tail(self._store, key, n_bytes)

    def size(self, key: str) -> int:
        return int(obstore.head(self._store, key)["size"])

    def put(self, key: str, data: bytes, *, only_if_absent: bool) -> None:
        mode: Literal["create", "overwrite"] = "create" if only_if_absent else "overwrite"
        # One PUT an object: an upload in parts would leave parts behind when it is killed.
        obstore.put(self._store, key, data, mode=mode, use_multipart=False)

    def delete(self, key: str) -> None:
        obstore.delete(self._store, key)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        for page in obstore.list(self._store, prefix or None):
            yield from ((str(entry["path"]), int(entry["size"])) for entry in page)

    def leftovers(self) -> Sequence[Path]:
        return ()

    def zarr_store(self, *, read_only: bool) -> Any:
        import zarr.storage  # takes as long to import as to open a cube takes

        return zarr.storage.ObjectStore(self._store, read_only=read_only)


class _RemoteBackend(_ObstoreBackend):
    """A server. Reads are sent again here, where who reads is told of it; the rest by obstore.

    obstore's first wait is the same for everybody: requests that were refused together would come
    back together.
    """

    def __init__(self, new_store: Callable[[RetryConfig], Any], ranges: RangeReader) -> None:
        super().__init__(new_store(_RETRY))
        self._new_store = new_store
        self._ranges = ranges

    @functools.cached_property
    def _reading(self) -> Any:
        return self._new_store({**_RETRY, "max_retries": 0})

    def get(self, key: str, on_retry: OnRetry) -> bytes:
        return self._patiently(lambda: bytes(obstore.get(self._reading, key).bytes()), on_retry)

    def get_range(
        self, key: str, start: int, end: int, on_retry: OnRetry, into: Room | None
    ) -> Any:
        def request() -> Any:
            try:
                return self._ranges.read(key, start, end, into)
            except NotPlainError as error:
                data = obstore.get_range(self._reading, key, start=start, end=end)
                self._ranges.refuse(str(error))  # it need not be asked twice each time
                return data
            except BusyError as error:
                raise obstore_errors.GenericError(str(error)) from None

        return self._patiently(request, on_retry)

    def get_tail(self, key: str, n_bytes: int, on_retry: OnRetry) -> bytes:
        return self._patiently(lambda: _tail(self._reading, key, n_bytes), on_retry)

    def _patiently(self, request: Callable[[], _T], on_retry: OnRetry) -> _T:
        deadline = time.monotonic() + _RETRY["retry_timeout"].total_seconds()
        first, longest = (
            _RETRY["backoff"][k].total_seconds() for k in ("init_backoff", "max_backoff")
        )
        attempt = 0
        while True:
            try:
                return request()
            except obstore_errors.GenericError as error:
                wait = random.uniform(0, min(longest, first * 2**attempt))
                attempt += 1
                if not _may_pass(error, attempt) or time.monotonic() + wait > deadline:
                    raise
            on_retry()
            time.sleep(wait)


def _may_pass(error: Exception, attempt: int) -> bool:
    """Whether a request that failed may succeed when it is sent again."""
    text = first_line(error)
    if status := re.search(r"status code: (\d{3})", text):
        return is_busy(int(status[1]))
    # An endpoint that cannot be reached at all is told within seconds.
    return attempt <= _RETRY["max_retries"]


def _tail(store: Any, key: str, n_bytes: int) -> bytes:
    return bytes(obstore.get(store, key, options={"range": {"suffix": n_bytes}}).bytes())


class _LocalBackend(_ObstoreBackend):
    """A local folder, made by the first write and not by looking at a path that is not there."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._tried: set[Path] = set()

    @functools.cached_property
    def _store(self) -> Any:
        if not self._path.is_dir():
            raise FileNotFoundError(self._path)
        return LocalStore(self._path)

    def get_range(
        self, key: str, start: int, end: int, on_retry: OnRetry, into: Room | None
    ) -> Any:
        # In the calling thread: obstore would hand the read to threads of its own.
        file = os.open(os.path.join(self._path, key), os.O_RDONLY)
        try:
            room = memoryview(bytearray(end - start)) if into is None else into(end - start)
            done = 0
            while n := os.preadv(file, [room[done:]], start + done):
                done += n
            return room[:done]
        finally:
            os.close(file)

    def put(self, key: str, data: bytes, *, only_if_absent: bool) -> None:
        folder = (self._path / key).parent
        with suppress(FileExistsError):  # a file: the next line says so
            folder.mkdir(parents=True, exist_ok=True)
        if folder not in self._tried:
            # LocalStore tries for ever where a folder takes no files, as /proc.
            with tempfile.TemporaryFile(dir=folder):
                self._tried.add(folder)
        super().put(key, data, only_if_absent=only_if_absent)

    def leftovers(self) -> Sequence[Path]:
        """Files beside their final names, in which LocalStore writes until it renames them."""
        return [p for p in self._path.rglob("*#*") if re.fullmatch(r".+#\d+", p.name)]

    def zarr_store(self, *, read_only: bool) -> Any:
        if not read_only:
            self._path.mkdir(parents=True, exist_ok=True)
        return super().zarr_store(read_only=read_only)


class _FsspecBackend:
    def __init__(self, url: str, options: dict[str, Any]) -> None:
        import fsspec

        self._fs, self._root = fsspec.url_to_fs(url, **options)

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    def get(self, key: str, on_retry: OnRetry) -> bytes:
        return bytes(self._fs.cat_file(self._path(key)))

    def get_range(
        self, key: str, start: int, end: int, on_retry: OnRetry, into: Room | None
    ) -> Any:
        return self._fs.cat_file(self._path(key), start=start, end=end)

    def get_tail(self, key: str, n_bytes: int, on_retry: OnRetry) -> bytes:
        return bytes(self._fs.cat_file(self._path(key), start=-n_bytes))

    def size(self, key: str) -> int:
        return int(self._fs.size(self._path(key)))

    def put(self, key: str, data: bytes, *, only_if_absent: bool) -> None:
        if only_if_absent and self._fs.exists(self._path(key)):
            raise FileExistsError(key)
        self._fs.pipe_file(self._path(key), data)

    def delete(self, key: str) -> None:
        self._fs.rm_file(self._path(key))

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        root = self._path("")
        found = self._fs.find(self._path(prefix).rstrip("/"), detail=True)
        for path, info in sorted(found.items()):
            yield path.removeprefix(root), int(info["size"])

    def leftovers(self) -> Sequence[Path]:
        return ()

    def zarr_store(self, *, read_only: bool) -> Any:
        import zarr.storage
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        fs = self._fs if self._fs.async_impl else AsyncFileSystemWrapper(self._fs)
        return zarr.storage.FsspecStore(fs, path=self._root.rstrip("/"), read_only=read_only)


def is_for_fsspec(url: str) -> bool:
    """Whether a URL is left to fsspec."""
    return "://" in url and not url.startswith(("s3://", "http://", "https://"))


def new_backend(url: str, options: dict[str, Any]) -> Backend:
    """Open what holds the bytes below a URL.

    Raises
    ------
    InvalidInputError
        If the URL or an option is not understood.
    StorageError
        If there are no credentials.
    """
    if url.startswith("s3://"):
        new_store, address = open_bucket(url, options, _CLIENT)
        return _RemoteBackend(new_store, RangeReader(address))
    try:
        if is_for_fsspec(url):
            return _FsspecBackend(url, options)
        if url.startswith(("http://", "https://")):
            client: ClientConfig = {**_CLIENT, "allow_http": url.startswith("http://")}
            return _RemoteBackend(
                lambda retry: HTTPStore(url, client_options=client, retry_config=retry),
                RangeReader(functools.partial(_address_below, urlsplit(url))),
            )
    except (ValueError, ImportError) as error:
        raise InvalidInputError(f"cannot open {url!r}: {first_line(error)}") from None
    return _LocalBackend(url)


def _address_below(place: SplitResult, key: str) -> str:
    path = f"{quote(place.path, safe='/%')}/{quote(key)}"
    return place._replace(path=path).geturl()


def first_line(error: BaseException) -> str:
    """Return what a client says of an error, without what only its authors know."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip().split("\n")[0].removeprefix("Generic LocalFileSystem error: ")
    return re.sub(r"#\d+(?=: )", "", text)  # LocalStore writes to key#1 and renames
