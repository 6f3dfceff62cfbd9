"""Object storage: a URL and its options become keys and bytes.

The only room that knows object storage. S3, HTTP(S) and local paths go through obstore, whose
requests cost a tenth of s3fs's CPU time, but for ranges, which cost less still (``ranges.py``);
``memory://`` and every other scheme go through fsspec. Option names are fsspec's; they are
translated here and nowhere else.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import SplitResult, quote, urlsplit

import obstore
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.exceptions import BotoCoreError, ProfileNotFound
from botocore.session import Session as BotocoreSession
from obstore import exceptions as obstore_errors
from obstore.store import HTTPStore, LocalStore, S3Store

from bigearth_cube.errors import InvalidInputError, NotFoundError, StorageError
from bigearth_cube.ranges import BusyError, NotPlainError, RangeReader, Room, is_busy

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Credential

StorageOptions = Mapping[str, Any]
OnRetry = Callable[[], None]
_T = TypeVar("_T")

_S3_OPTIONS = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "anon": "skip_signature",
    "endpoint_url": "endpoint",
    "region": "region",
    "requester_pays": "request_payer",
    "profile": None,  # resolved by botocore, which obstore does not have
}
# A refused connection is told within seconds; a throttled request may wait half a minute.
_RETRY: RetryConfig = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5)},
    "retry_timeout": timedelta(seconds=30),
}
_SIGNED_FOR = timedelta(minutes=15)
_ENDPOINT = re.compile(r"https?://[\w.:\[\]-]+(/[\w./~-]*)?", re.ASCII)
# obstore asks again when five minutes are left, so once a minute. That costs nothing until botocore
# has to renew them; keys of a role may have no more than those five minutes when new ones appear.
_CREDENTIALS_LIVE = timedelta(minutes=6)


def _ignore() -> None:
    """Do nothing when a read is sent again."""


class _Backend(Protocol):
    """The bytes under a prefix; every method may raise what ``_translated`` maps."""

    def get(self, key: str, on_retry: OnRetry) -> bytes: ...
    def get_range(
        self, key: str, start: int, end: int, on_retry: OnRetry, into: Room | None
    ) -> Any: ...
    def get_tail(self, key: str, n_bytes: int, on_retry: OnRetry) -> bytes: ...
    def size(self, key: str) -> int: ...
    def put(self, key: str, data: bytes, *, only_if_absent: bool) -> None: ...
    def delete(self, key: str) -> None: ...
    def list(self, prefix: str) -> Iterator[tuple[str, int]]: ...
    def zarr_store(self, *, read_only: bool) -> Any: ...


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
    text = _first_line(error)
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

    def leftovers(self) -> list[Path]:
        """Files beside their final names, in which LocalStore writes until it renames them."""
        return [p for p in self._path.rglob("*#*") if re.fullmatch(r".+#\d+", p.name)]

    def zarr_store(self, *, read_only: bool) -> Any:
        if not read_only:
            self._path.mkdir(parents=True, exist_ok=True)
        return super().zarr_store(read_only=read_only)


class _FsspecBackend:
    def __init__(self, url: str, options: StorageOptions) -> None:
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

    def zarr_store(self, *, read_only: bool) -> Any:
        import zarr.storage
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        fs = self._fs if self._fs.async_impl else AsyncFileSystemWrapper(self._fs)
        return zarr.storage.FsspecStore(fs, path=self._root.rstrip("/"), read_only=read_only)


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
        self._opened: tuple[_Backend, int] | None = None
        unknown = sorted(set(self.options) - set(_S3_OPTIONS))
        if unknown and not _is_for_fsspec(self.url):
            raise InvalidInputError(
                f"unknown storage option {unknown[0]!r}; choose from: {', '.join(_S3_OPTIONS)}"
            )

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def __reduce__(self) -> tuple[type[Storage], tuple[str, StorageOptions]]:
        return Storage, (self.url, self.options)

    @property
    def _backend(self) -> _Backend:
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
        if not isinstance(self._backend, _LocalBackend):
            return 0
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


def _is_for_fsspec(url: str) -> bool:
    return "://" in url and not url.startswith(("s3://", "http://", "https://"))


@functools.lru_cache(maxsize=64)
def _open_backend(url: str, options_json: str) -> tuple[_Backend, int]:
    # One connection pool per process and target: opening an S3 client costs milliseconds and
    # its connections are worth keeping. Keyed by value, so it carries no state of its own; with
    # the process that opened it, whose threads a fork does not have.
    return _new_backend(url, json.loads(options_json)), os.getpid()


def _new_backend(url: str, options: dict[str, Any]) -> _Backend:
    if url.startswith("s3://"):
        new_store, address = _s3_store(url, options)
        return _RemoteBackend(new_store, RangeReader(address))
    try:
        if _is_for_fsspec(url):
            return _FsspecBackend(url, options)
        if url.startswith(("http://", "https://")):
            allow: ClientConfig = {"allow_http": url.startswith("http://")}
            return _RemoteBackend(
                lambda retry: HTTPStore(url, client_options=allow, retry_config=retry),
                RangeReader(functools.partial(_address_below, urlsplit(url))),
            )
    except (ValueError, ImportError) as error:
        raise InvalidInputError(f"cannot open {url!r}: {_first_line(error)}") from None
    return _LocalBackend(url)


def _address_below(place: SplitResult, key: str) -> str:
    path = f"{quote(place.path, safe='/%')}/{quote(key)}"
    return place._replace(path=path).geturl()


def _s3_store(
    url: str, options: dict[str, Any]
) -> tuple[Callable[[RetryConfig], Any], Callable[[str], str]]:
    """Return what opens the bucket, and what addresses its objects; options are checked at once."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[\w.-]+", bucket, re.ASCII):  # obstore would panic
        raise InvalidInputError(f"{url!r} names no bucket; expected s3://bucket/prefix")
    config = {ours: options[name] for name, ours in _S3_OPTIONS.items() if ours and name in options}
    session = BotocoreSession(profile=options.get("profile"))
    try:
        config.setdefault("region", session.get_config_variable("region") or "us-east-1")
    except ProfileNotFound as error:
        raise InvalidInputError(f"{error}; name one of your AWS profiles") from None
    endpoint = config.pop("endpoint", None) or _configured_endpoint(session)
    if endpoint:
        config["endpoint"] = _checked_endpoint(str(endpoint))
    elif "AWS_ENDPOINT_URL" in os.environ:  # empty is unset, but S3Store would take it for a URL
        config["endpoint"] = f"https://s3.{config['region']}.amazonaws.com"
    provider = None
    if "access_key_id" not in config and not config.get("skip_signature"):
        provider = _Credentials(options.get("profile"))
    arguments = {
        "prefix": prefix or None,
        "credential_provider": provider,
        "client_options": {"allow_http": str(endpoint or "").startswith("http://")},
        **config,
    }

    def new_store(retry: RetryConfig, **others: Any) -> Any:
        return S3Store(bucket, retry_config=retry, **arguments | others)

    is_signed = not config.get("skip_signature")
    # Where an object is does not depend on the keys that its URL is signed with.
    anybody: dict[str, Any] = {
        "skip_signature": False,
        "access_key_id": "any",
        "secret_access_key": "any",
    }
    signing = functools.cache(lambda: new_store(_RETRY, **({} if is_signed else anybody)))

    def address(key: str) -> str:
        signed: str = obstore.sign(signing(), "GET", key, _SIGNED_FOR)  # 10 us: each has its own
        return signed if is_signed else signed.partition("?")[0]

    return new_store, address


def _configured_endpoint(session: BotocoreSession) -> str | None:
    """Endpoint from AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the profile, as botocore has it."""
    provider = ConfiguredEndpointProvider(
        full_config=session.full_config,
        scoped_config=session.get_scoped_config(),
        client_name="s3",
    )
    endpoint: str | None = provider.provide()
    return endpoint


def _checked_endpoint(endpoint: str) -> str:
    """Return the endpoint if it is a URL; obstore would panic where it is none."""
    try:
        parts = urlsplit(endpoint)
        is_url = _ENDPOINT.fullmatch(endpoint) and parts.hostname and parts.port != 0
    except ValueError:  # no number, or above 65535
        is_url = False
    if not is_url:
        shown = re.sub(r"//[^/]*@", "//", endpoint)
        raise InvalidInputError(f"endpoint_url {shown!r} is no URL; expected http://host:port")
    return endpoint


@dataclass(frozen=True)
class _Credentials:
    """Credentials from botocore's chain, asked again before they expire.

    Pickles as the profile's name, never with the keys: a store that travels to a worker asks the
    chain there.
    """

    profile: str | None

    def __post_init__(self) -> None:
        if self._found is None:
            raise StorageError(
                "no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or pass storage_options with key and secret, profile, or anon=True"
            )

    def __reduce__(self) -> tuple[type[_Credentials], tuple[str | None]]:
        return _Credentials, (self.profile,)

    @functools.cached_property
    def _found(self) -> Any:
        return BotocoreSession(profile=self.profile).get_credentials()

    def __call__(self) -> S3Credential:
        frozen = self._found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LIVE,
        }


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip().split("\n")[0].removeprefix("Generic LocalFileSystem error: ")
    return re.sub(r"#\d+(?=: )", "", text)  # LocalStore writes to key#1 and renames


def _advice(error: BaseException) -> str:
    """One line: what storage said, and what to do."""
    text = _first_line(error)
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
