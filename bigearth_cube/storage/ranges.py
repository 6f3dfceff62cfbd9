"""Ranged GETs straight into the caller's memory, over connections that stay open.

Of a body that comes through obstore the bytes are copied three times, between threads that wake
each other; here the kernel puts them where they are decoded from, at about half the cost. Only the plain case
is dealt with: whatever else a server says is left to obstore, which knows what to make of it.
"""

from __future__ import annotations

import logging
import re
import select
import socket
import ssl
import struct
import time
import urllib.request
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

import httptools

Room = Callable[[int], memoryview]
_CONNECT_S, _SILENCE_S, _REQUEST_S = 5.0, 10.0, 30.0
"""To be connected, without a byte, and for an answer in all; as long as reads are repeated."""
KEPT_S = 15.0
"""Servers and what stands between close idle connections after 20 s or more, some without a word."""
_PIECE_BYTES, _MOST_HEAD_BYTES = 16 << 10, 64 << 10
"""What is received at once until the head is known, and of a head at most. S3's have 1 KB."""
_NOT_IN_TARGET = re.compile(r"[^!-~]")
_logger = logging.getLogger(__name__)


def is_busy(status: int) -> bool:
    """Whether a server that answers with this HTTP status may do what it is asked later."""
    return status >= 500 or status in (408, 429)


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
        connection, answer = self._ask(url, _request(url, start, end))
        return self._body(connection, answer, start, end, into)

    def refuse(self, reason: str) -> None:
        """Be asked no more: what was no plain answer here is one to a request of another kind."""
        if not self._is_refused:
            _logger.warning("ranges are read through obstore, at more cost: %s", reason)
        self._is_refused = True

    def _ask(self, url: SplitResult, request: bytes) -> tuple[_Connection, _Answer]:
        while (kept := self._kept()) is not None:
            try:
                return kept, kept.ask(request)
            except TimeoutError:
                _close_all(self._idle)  # dead as well, as like as not
            except (OSError, NotPlainError):
                pass  # closed since; another is still open, or a new one is made
        try:
            connection = self._new(url)
            return connection, connection.ask(request)
        except (ssl.SSLCertVerificationError, ValueError) as error:
            raise NotPlainError(str(error)) from None  # obstore may know who signed it
        except OSError as error:
            raise BusyError(f"{url.scheme}://{url.netloc}: {error}") from None

    def _kept(self) -> _Connection | None:
        with suppress(IndexError):
            while True:
                connection, since = self._idle.pop()
                if time.monotonic() - since < KEPT_S and connection.is_quiet():
                    return connection
                connection.close()
        return None

    def _new(self, url: SplitResult) -> _Connection:
        if _has_proxy(url):
            raise NotPlainError("a proxy is set")
        if url.scheme == "http":
            return _Connection(url, None)
        self._context = self._context or ssl.create_default_context()
        return _Connection(url, self._context)

    def _body(
        self, connection: _Connection, answer: _Answer, start: int, end: int, into: Room | None
    ) -> memoryview:
        is_whole = False
        try:
            n_bytes = answer.n_plain_bytes(start, end)
            room = memoryview(bytearray(n_bytes)) if into is None else into(n_bytes)
            assert len(room) == n_bytes
            try:
                connection.fill(room, answer)
            except OSError as error:
                raise BusyError(f"connection broke: {error}") from None
            is_whole = True
        finally:
            if is_whole and answer.keeps_open:
                self._idle.append((connection, time.monotonic()))
            else:
                connection.close()
        return room


@dataclass(frozen=True, slots=True)
class _Answer:
    """Head of an answer, and what came of the body with it."""

    status: int
    reason: bytes
    headers: Mapping[bytes, bytes]
    keeps_open: bool
    body: bytes

    def n_plain_bytes(self, start: int, end: int) -> int:
        """Return how many bytes the body has, where they are those that were asked for.

        Raises
        ------
        BusyError
            If the server cannot answer now.
        NotPlainError
            If it gives something else.
        """
        if is_busy(self.status):
            raise BusyError(f"status code: {self.status} {self.reason.decode('latin-1')}")
        if self.status != HTTPStatus.PARTIAL_CONTENT:
            raise NotPlainError(f"status {self.status}")
        found = self.headers.get(b"content-range", b"").decode("latin-1")
        if not found.startswith(f"bytes {start}-"):
            raise NotPlainError(f"another range: {found}")
        n_bytes = self.headers.get(b"content-length")
        is_coded = self.headers.keys() & {b"content-encoding", b"transfer-encoding"}
        if n_bytes is None or is_coded or int(n_bytes) > end - start:
            raise NotPlainError("a body of another length")
        return int(n_bytes)


class _Heard:
    """What a parser has found so far.

    It calls what begins with ``on``. Those are methods of lists and a dict, not of this: no
    interrupt comes within, and the parser and this do not hold each other.
    """

    def __init__(self) -> None:
        self._begun: list[None] = []
        self._known: list[None] = []
        self._reason: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self.on_message_begin = partial(self._begun.append, None)
        self.on_status = self._reason.append
        self.on_header = self._headers.__setitem__
        self.on_headers_complete = partial(self._known.append, None)
        self.on_body = self._body.append

    def answer(self, parser: httptools.HttpResponseParser) -> _Answer | None:
        """Return the one answer, once its head is there.

        Raises
        ------
        NotPlainError
            If another one has begun.
        """
        if not self._known:
            return None
        if len(self._begun) > 1:
            raise NotPlainError("more than one answer has come")
        headers = {name.lower(): value for name, value in self._headers.items()}
        closes = b"close" in headers.get(b"connection", b"").lower()
        return _Answer(
            status=parser.get_status_code(),
            reason=b"".join(self._reason),
            headers=headers,
            keeps_open=parser.get_http_version() == "1.1" and not closes,
            body=b"".join(self._body),
        )


class _Connection:
    """An open connection, asked one range after another; it closes itself where it fails.

    Raises
    ------
    OSError
        From every method, if it breaks or nothing comes: TimeoutError after silence.
    """

    def __init__(self, url: SplitResult, context: ssl.SSLContext | None) -> None:
        host, port = url.hostname or "", url.port
        if port is None:
            port = 80 if context is None else 443
        self._flags = 0
        self._ends = 0.0
        self._piece = memoryview(bytearray(_PIECE_BYTES))
        self._socket = socket.create_connection((host, port), _CONNECT_S)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is None:
                self._wait_for_all()
            else:
                self._secure(context, host)
            self._waiting = select.poll()
            self._waiting.register(self._socket, select.POLLIN)
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

    def _secure(self, context: ssl.SSLContext, host: str) -> None:
        secured = context.wrap_socket(
            self._socket, server_hostname=host, do_handshake_on_connect=False
        )
        self._socket = secured
        secured.do_handshake()
        secured.settimeout(_SILENCE_S)

    def close(self) -> None:
        """Close it; once or more."""
        self._socket.close()

    def is_quiet(self) -> bool:
        """Whether nothing has come unasked: no end, and no answer before its request.

        A server that closes a connection may say so (400, 408).
        """
        is_read = not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending())
        return is_read and not self._waiting.poll(0)

    def ask(self, request: bytes) -> _Answer:
        """Send a request, and return the head of the answer.

        Raises
        ------
        NotPlainError
            If what comes is no answer.
        """
        self._ends = time.monotonic() + _REQUEST_S
        try:
            self._socket.sendall(request)
            return self._head()
        except httptools.HttpParserError as error:
            self.close()
            raise NotPlainError(str(error)) from None
        except httptools.HttpParserUpgrade:
            self.close()
            raise NotPlainError("another protocol is to be spoken") from None
        except BaseException:
            self.close()
            raise

    def _head(self) -> _Answer:
        heard, n_bytes = _Heard(), 0
        parser = httptools.HttpResponseParser(heard)
        while n_bytes <= _MOST_HEAD_BYTES:
            came = self._receive(self._piece, 0)
            parser.feed_data(self._piece[:came])
            if (answer := heard.answer(parser)) is not None:
                return answer
            n_bytes += came
        raise NotPlainError(f"a head of more than {_MOST_HEAD_BYTES} bytes")

    def fill(self, room: memoryview, answer: _Answer) -> None:
        """Read the body in few calls: each gives the interpreter up and has to wait for it again."""
        done = len(answer.body)
        room[:done] = answer.body
        while done < len(room):
            try:
                done += self._receive(room[done:], self._flags)
            except ConnectionError as error:
                raise ConnectionError(f"{done} of {len(room)} bytes came, {error}") from None

    def _receive(self, room: memoryview, flags: int) -> int:
        if time.monotonic() > self._ends:
            raise ConnectionError(f"not all of it within {_REQUEST_S:.0f} s")
        try:
            n_bytes = self._socket.recv_into(room, 0, flags)
        except (BlockingIOError, TimeoutError):  # the kernel's, Python's
            raise TimeoutError(f"not a byte within {_SILENCE_S:.0f} s") from None
        if not n_bytes:
            raise ConnectionError("it ended")
        return n_bytes


def _request(url: SplitResult, start: int, end: int) -> bytes:
    target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
    host = url.netloc.rpartition("@")[2]
    if _NOT_IN_TARGET.search(target + host):
        raise NotPlainError(f"{url.path!r} and its query are no address")  # that may be a secret
    return (
        f"GET {target} HTTP/1.1\r\nHost: {host}\r\n"
        f"Range: bytes={start}-{end - 1}\r\nAccept-Encoding: identity\r\n\r\n"
    ).encode("ascii")


def _close_all(connections: deque[tuple[_Connection, float]]) -> None:
    with suppress(IndexError):
        while True:
            connections.pop()[0].close()


def _has_proxy(url: SplitResult) -> bool:
    is_set = {url.scheme, "all"} & urllib.request.getproxies().keys()
    return bool(is_set) and not urllib.request.proxy_bypass(url.netloc)
