"""Ranged GETs straight into the caller's memory, over connections that stay open.

Of a body that comes through obstore the bytes are copied three times, between threads that wake
each other; here the kernel puts them where they are decoded from, at about half the cost. Only the plain case
is dealt with: whatever else a server says is left to obstore, which knows what to make of it.
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
"""What sockets raise whose timeout is Python's, or the kernel's."""
_LATER = frozenset(map(int, (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)))
_logger = logging.getLogger(__name__)


def is_busy(status: int) -> bool:
    """Whether a server that answers with this HTTP status may do what it is asked later."""
    return status >= 500 or status in _LATER


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
        url = urlsplit(self._address(key))
        connection, answer = self._ask(url, start, end)
        try:
            return self._body(connection, answer, start, end, into)
        except NotPlainError:
            if connection.n_asked == 1:
                raise
        # A server that is to close a connection may say so (400, 408) before it is asked again.
        return self._body(*self._ask(url, start, end, anew=True), start, end, into)

    def refuse(self, reason: str) -> None:
        """Be asked no more: what was no plain answer here is one to a request of another kind."""
        if not self._is_refused:
            _logger.warning("ranges are read through obstore, at more cost: %s", reason)
        self._is_refused = True

    def _ask(
        self, url: SplitResult, start: int, end: int, *, anew: bool = False
    ) -> tuple[_Connection, _Answer]:
        while True:
            connection = None if anew else self._kept()
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
                    raise BusyError(f"{url.scheme}://{url.netloc}: {_said(error)}") from None
            except (httptools.HttpParserError, ValueError) as error:
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
            assert len(room) == n_bytes
            connection.fill(room, answer)
            is_whole = True
        except OSError as error:
            raise BusyError(f"connection broke: {_said(error)}") from None
        finally:
            if is_whole and answer.keeps_open:
                self._idle.append((connection, time.monotonic()))
            else:
                connection.close()
        return room


class _Answer:
    """Head of an answer, and what came of the body with it; a parser calls what begins with on."""

    def __init__(self) -> None:
        self.status = 0
        self.is_known = self.keeps_open = False
        self.body = b""
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: memoryview) -> None:
        """Take what has come; a head that it completes is known then.

        Raises
        ------
        httptools.HttpParserError
            If it is no HTTP.
        ValueError
            If it is HTTP, and no answer or more than one.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise ValueError("another protocol is to be spoken") from None
        except httptools.HttpParserCallbackError as error:
            raise (error.__context__ or error) from None  # an interrupt, say
        if self.is_known:
            del self._parser  # it holds this, and this it: nobody else would

    def on_message_begin(self) -> None:
        if self.is_known:
            raise ValueError("more than one answer has come")
        self.reason = self.body = b""
        self._headers: dict[bytes, bytes] = {}

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.keeps_open = self._parser.should_keep_alive()
        self.is_known = self.status >= HTTPStatus.OK  # below, another one follows

    def on_body(self, body: bytes) -> None:
        self.body += body

    def plain_bytes(self, start: int, end: int) -> int:
        """Return the bytes of the body; raise where they are not those that were asked for."""
        if is_busy(self.status):
            raise BusyError(f"status code: {self.status} {self.reason.decode('latin-1')}")
        if self.status != HTTPStatus.PARTIAL_CONTENT:
            raise NotPlainError(f"status {self.status}")
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
        is_bare = url.scheme != "https"
        port = url.port if url.port is not None else 80 if is_bare else 443
        host = url.hostname or ""
        self.n_asked = 0
        self._ends = 0.0
        self._flags = 0
        self._piece = memoryview(bytearray(_PIECE_BYTES))
        self._socket = socket.create_connection((host, port), _CONNECT_S)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if is_bare:
                self._wait_for_all()
                return
            assert context is not None
            secured = context.wrap_socket(
                self._socket, server_hostname=host, do_handshake_on_connect=False
            )
            self._socket = secured
            secured.do_handshake()
            secured.settimeout(_SILENCE_S)
        except BaseException:
            self.close()
            raise

    def _wait_for_all(self) -> None:
        # A socket with a timeout of Python's gives what is there; only one without waits for all.
        limit = struct.pack("ll", int(_SILENCE_S), int(_SILENCE_S % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, limit)
        self._socket.settimeout(None)
        self._flags = socket.MSG_WAITALL

    def close(self) -> None:
        """Close it; once or more."""
        self._socket.close()

    def ask(self, url: SplitResult, start: int, end: int) -> _Answer:
        """Ask for a range, and return the head of the answer; else close.

        Raises
        ------
        httptools.HttpParserError, ValueError
            If the URL cannot be asked for, or what comes is no answer.
        """
        self.n_asked += 1
        self._ends = time.monotonic() + _REQUEST_S
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
            answer.feed(self._piece[:came])
            if time.monotonic() > self._ends:
                raise TimeoutError(f"no answer within {_REQUEST_S:.0f} s")
        return answer

    def fill(self, room: memoryview, answer: _Answer) -> None:
        """Read the body in few calls: each gives the interpreter up and has to wait for it again."""
        done = len(answer.body)
        room[:done] = answer.body
        while done < len(room):
            n_bytes = self._socket.recv_into(room[done:], 0, self._flags)
            if not n_bytes:
                raise BusyError(f"connection ended after {done} of {len(room)} bytes")
            done += n_bytes
            if done < len(room) and time.monotonic() > self._ends:
                raise BusyError(f"{done} of {len(room)} bytes came within {_REQUEST_S:.0f} s")


def _said(error: OSError) -> str:
    is_kernels = isinstance(error, BlockingIOError)
    return f"not a byte within {_SILENCE_S:.0f} s" if is_kernels else str(error)


def _request(url: SplitResult, start: int, end: int) -> bytes:
    target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
    if _NO_TARGET.search(target):
        raise ValueError(f"{url.path!r} and its query are no address")  # the query may be a secret
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
