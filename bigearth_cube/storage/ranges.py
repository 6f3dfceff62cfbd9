"""Ranged GETs straight into the caller's memory, over connections that stay open.

Of a body that comes through obstore the bytes are copied three times, between threads that wake
each other; here the kernel puts them where they are decoded from. On loopback that is 33 us of a
core for 60 a Sentinel-2 patch, with TLS 114 for 218. Only the plain case is dealt with: whatever
else a server says is left to obstore, which knows what to make of it.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import struct
import time
import urllib.request
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

import httptools

Room = Callable[[int], memoryview]
_CONNECT_S, _SILENCE_S, _REQUEST_S = 5.0, 10.0, 30.0
"""To be connected, without a byte, and for a request in all; as long as reads are repeated."""
_KEPT_S = 15.0
"""Servers and what stands between close idle connections after 20 s or more, some without a word."""
_PIECE_BYTES, _MOST_HEAD_BYTES = 16 << 10, 64 << 10
_NO_TARGET = re.compile(r"[^!-~]")
_SILENT = (TimeoutError, BlockingIOError)
"""What sockets of Python's timeout and of the kernel's raise."""
_NO_ANSWER = (httptools.HttpParserError, httptools.HttpParserUpgrade)
_logger = logging.getLogger(__name__)


def is_busy(status: int) -> bool:
    """Whether a server that answers with this HTTP status may do what it is asked later."""
    return status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or status >= 500


class NotPlainError(Exception):
    """The server gave something else than the range, or is reached in another way; says what."""


class BusyError(Exception):
    """The server refused for now or broke off: the same request may succeed later; says what."""


class RangeReader:
    """Read ranges of the objects of one server; safe to share between threads.

    Connections are kept and used again, the latest first, so there are no more of them than there
    were requests at once.

    Parameters
    ----------
    address
        Key to the URL that a GET may be sent to, signed where the server wants that.
    """

    def __init__(self, address: Callable[[str], str]) -> None:
        self._address = address
        self._idle: deque[tuple[_Connection, float]] = deque()
        self._context: ssl.SSLContext | None = None
        self._is_refused = False
        weakref.finalize(self, _close_all, self._idle)

    def read(self, key: str, start: int, end: int, into: Room | None) -> memoryview:
        """Return the bytes ``start`` to ``end`` (exclusive); fewer where the object ends before.

        Parameters
        ----------
        key, start, end
            What to read.
        into
            Gives the room for so many bytes; None takes new memory.

        Raises
        ------
        BusyError
            If the request is worth repeating.
        NotPlainError
            If it has to be made in another way.
        """
        if self._is_refused:
            raise NotPlainError("the server has not answered plainly before")
        connection, answer = self._ask(urlsplit(self._address(key)), start, end)
        return self._body(connection, answer, start, end, into)

    def refuse(self, reason: str) -> None:
        """Be asked no more: what was no plain answer here is one to a request of another kind."""
        if not self._is_refused:
            _logger.warning("ranges are read through obstore, at more cost: %s", reason)
        self._is_refused = True

    def _ask(self, url: SplitResult, start: int, end: int) -> tuple[_Connection, _Answer]:
        while True:
            connection = self._kept()
            is_new = connection is None
            try:
                if connection is None:
                    connection = self._new(url)
                return connection, connection.ask(url, start, end)
            except ssl.SSLCertVerificationError as error:
                raise NotPlainError(str(error)) from None  # obstore may know who signed it
            except OSError as error:
                if isinstance(error, _SILENT):
                    _close_all(self._idle)  # dead as well, as like as not
                if is_new:
                    raise BusyError(f"{url.scheme}://{url.netloc}: {error}") from None
            except (*_NO_ANSWER, ValueError) as error:
                if is_new:
                    raise NotPlainError(str(error)) from None
            # It was closed since, or is dead; another is still open, or a new one is made.

    def _kept(self) -> _Connection | None:
        with suppress(IndexError):
            connection, since = self._idle.pop()
            if time.monotonic() - since < _KEPT_S:
                return connection
            connection.close()
            _close_all(self._idle)  # they are older
        return None

    def _new(self, url: SplitResult) -> _Connection:
        if _has_proxy(url):
            raise NotPlainError("a proxy is set")
        if url.scheme == "https" and self._context is None:
            self._context = ssl.create_default_context()
        return _Connection(url, self._context)

    def _body(
        self, connection: _Connection, answer: _Answer, start: int, end: int, into: Room | None
    ) -> memoryview:
        is_whole = False
        try:
            n_bytes = answer.plain_bytes(start, end)
            room = memoryview(bytearray(n_bytes)) if into is None else into(n_bytes)
            connection.fill(room, answer)
            is_whole = True
        except OSError as error:
            raise BusyError(f"connection broke: {error}") from None
        finally:
            if is_whole and answer.keeps_open:
                self._idle.append((connection, time.monotonic()))
            else:
                connection.close()
        return room


class _Answer:
    """Head of an answer, and what came of the body with it; httptools calls what begins with on."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.is_known = self.keeps_open = False
        self.body = b""

    def on_message_begin(self) -> None:
        self.reason = b""
        self._headers: dict[bytes, bytes] = {}

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.is_known = self.parser.get_status_code() >= HTTPStatus.OK  # below, another one follows
        self.keeps_open = self.parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def plain_bytes(self, start: int, end: int) -> int:
        """Return the bytes of the body; raise where they are not those that were asked for."""
        status = self.parser.get_status_code()
        if is_busy(status):
            raise BusyError(f"status code: {status} {self.reason.decode('latin-1')}")
        if status != HTTPStatus.PARTIAL_CONTENT:
            raise NotPlainError(f"status {status}")
        found = self._headers.get(b"content-range", b"").decode("latin-1")
        if not found.startswith(f"bytes {start}-"):
            raise NotPlainError(f"another range: {found}")
        n_bytes = self._headers.get(b"content-length")
        is_coded = self._headers.keys() & {b"content-encoding", b"transfer-encoding"}
        if n_bytes is None or is_coded or int(n_bytes) > end - start:
            raise NotPlainError("a body of another length")
        return int(n_bytes)


class _Connection:
    """An open connection, asked one range after another.

    Raises
    ------
    OSError
        From every method, if it breaks or nothing comes.
    """

    def __init__(self, url: SplitResult, context: ssl.SSLContext | None) -> None:
        host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
        bare = socket.create_connection((host, port), _CONNECT_S)
        self._piece = memoryview(bytearray(_PIECE_BYTES))
        self._flags = 0
        bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if url.scheme == "https":
            assert context is not None
            try:
                self._socket: socket.socket = context.wrap_socket(bare, server_hostname=host)
            except BaseException:
                bare.close()
                raise
            self._socket.settimeout(_SILENCE_S)
            return
        # A socket with a timeout of Python's gives what is there; only one without waits for all.
        limit = struct.pack("ll", int(_SILENCE_S), int(_SILENCE_S % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            bare.setsockopt(socket.SOL_SOCKET, option, limit)
        bare.settimeout(None)
        self._socket, self._flags = bare, socket.MSG_WAITALL

    def close(self) -> None:
        """Close it; once or more."""
        self._socket.close()

    def ask(self, url: SplitResult, start: int, end: int) -> _Answer:
        """Ask for a range, and return the head of the answer; else close.

        Raises
        ------
        httptools.HttpParserError, httptools.HttpParserUpgrade
            If what comes is no HTTP, or no more.
        ValueError
            If the URL cannot be asked for.
        """
        try:
            self._socket.sendall(_request(url, start, end))
            return self._head()
        except BaseException:
            self.close()
            raise

    def _head(self) -> _Answer:
        answer, n_bytes = _Answer(), 0
        while not answer.is_known:
            came = self._socket.recv_into(self._piece)
            n_bytes += came
            if not came:
                raise ConnectionError("it ended before the answer")
            if n_bytes > _MOST_HEAD_BYTES:
                raise ValueError(f"a head of more than {_MOST_HEAD_BYTES} bytes")
            answer.parser.feed_data(self._piece[:came])
        return answer

    def fill(self, room: memoryview, answer: _Answer) -> None:
        """Read the body in as few calls as may be; each gives the interpreter up and waits for it."""
        done = len(answer.body)
        room[:done] = answer.body
        end = time.monotonic() + _REQUEST_S
        while done < len(room):
            if time.monotonic() > end:
                raise BusyError(f"{done} of {len(room)} bytes came within {_REQUEST_S:.0f} s")
            n_bytes = self._socket.recv_into(room[done:], 0, self._flags)
            if not n_bytes:
                raise BusyError(f"connection ended after {done} of {len(room)} bytes")
            done += n_bytes


def _request(url: SplitResult, start: int, end: int) -> bytes:
    target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
    if _NO_TARGET.search(target):
        raise ValueError(f"{target!r} is no path of a URL")
    return (
        f"GET {target} HTTP/1.1\r\nHost: {url.netloc.rpartition('@')[2]}\r\n"
        f"Range: bytes={start}-{end - 1}\r\nAccept-Encoding: identity\r\n\r\n"
    ).encode("ascii")


def _close_all(connections: deque[tuple[_Connection, float]]) -> None:
    with suppress(IndexError):
        while True:
            connections.pop()[0].close()


def _has_proxy(url: SplitResult) -> bool:
    is_set = {url.scheme, "all"} & urllib.request.getproxies().keys()
    return bool(is_set) and not urllib.request.proxy_bypass(url.netloc)
