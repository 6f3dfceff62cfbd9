"""Ranged GETs straight into the caller's memory, over connections that stay open.

Of a body that comes through obstore the bytes are copied three times, between threads that wake
each other; here the kernel puts them where they are decoded from. On loopback that is 33 us of a
core for 60 a Sentinel-2 patch, with TLS 114 for 218. Only the plain case is dealt with: whatever
else a server says is left to obstore, which knows what to make of it.
"""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import struct
import time
import urllib.request
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

Room = Callable[[int], memoryview]
_CONNECT_S, _SILENCE_S, _REQUEST_S = 5.0, 10.0, 30.0
"""To be connected, without a byte, and for a request in all; as long as reads are repeated."""
_KEPT_S = 15.0
"""Servers and what stands between close idle connections after 20 s or more, some without a word."""
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
        self._idle: deque[tuple[http.client.HTTPConnection, float]] = deque()
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
        connection, answer = self._ask(url, {"Range": f"bytes={start}-{end - 1}"})
        return self._body(connection, answer, start, end, into)

    def refuse(self, reason: str) -> None:
        """Be asked no more: what was no plain answer here is one to a request of another kind."""
        if not self._is_refused:
            _logger.warning("ranges are read through obstore, at more cost: %s", reason)
        self._is_refused = True

    def _ask(
        self, url: SplitResult, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        while True:
            connection = self._kept()
            is_new = connection is None
            if connection is None:
                connection = self._new(url)
            try:
                if is_new:
                    _connect(connection)
                connection.request("GET", _target(url), headers=headers)
                return connection, connection.getresponse()
            except ssl.SSLCertVerificationError as error:
                connection.close()
                raise NotPlainError(str(error)) from None  # obstore may know who signed it
            except OSError as error:
                connection.close()
                if isinstance(error, TimeoutError):
                    _close_all(self._idle)  # dead as well, as like as not
                if is_new:
                    raise BusyError(f"{url.scheme}://{url.netloc}: {error}") from None
            except (http.client.HTTPException, ValueError) as error:
                connection.close()
                if is_new:
                    raise NotPlainError(str(error)) from None
            # It was closed since, or is dead; another is still open, or a new one is made.

    def _kept(self) -> http.client.HTTPConnection | None:
        with suppress(IndexError):
            connection, since = self._idle.pop()
            if time.monotonic() - since < _KEPT_S:
                return connection
            connection.close()
            _close_all(self._idle)  # they are older
        return None

    def _new(self, url: SplitResult) -> http.client.HTTPConnection:
        if _has_proxy(url):
            raise NotPlainError("a proxy is set")
        if url.scheme == "http":
            return http.client.HTTPConnection(url.netloc, timeout=_CONNECT_S)
        self._context = self._context or ssl.create_default_context()
        return http.client.HTTPSConnection(url.netloc, timeout=_CONNECT_S, context=self._context)

    def _body(
        self,
        connection: http.client.HTTPConnection,
        answer: http.client.HTTPResponse,
        start: int,
        end: int,
        into: Room | None,
    ) -> memoryview:
        is_whole = False
        try:
            n_bytes = _plain_bytes(answer, start, end)
            room = memoryview(bytearray(n_bytes)) if into is None else into(n_bytes)
            _fill(room, answer, connection.sock)
            is_whole = True
        except (OSError, http.client.HTTPException) as error:
            raise BusyError(f"connection broke: {error}") from None
        finally:
            if is_whole and not answer.will_close:
                self._idle.append((connection, time.monotonic()))
            else:
                connection.close()
        return room


def _close_all(connections: deque[tuple[http.client.HTTPConnection, float]]) -> None:
    with suppress(IndexError):
        while True:
            connections.pop()[0].close()


def _connect(connection: http.client.HTTPConnection) -> None:
    connection.connect()
    connection.sock.settimeout(_SILENCE_S)
    # A socket with a timeout of Python's gives what is there; only one without waits for all.
    limit = struct.pack("ll", int(_SILENCE_S), int(_SILENCE_S % 1 * 1e6))
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _has_proxy(url: SplitResult) -> bool:
    is_set = {url.scheme, "all"} & urllib.request.getproxies().keys()
    return bool(is_set) and not urllib.request.proxy_bypass(url.netloc)


def _target(url: SplitResult) -> str:
    return f"{url.path}?{url.query}" if url.query else url.path


def _fill(
    room: memoryview, answer: http.client.HTTPResponse, open_socket: socket.socket | None
) -> None:
    """Read the body: what came with the head from the answer, the rest in as few calls as may be.

    Each call gives the interpreter up and has to wait for it again. Where the server will close
    the connection, the socket belongs to the answer.
    """
    receive: Callable[[memoryview], int] = answer.readinto
    done = answer.readinto(room[: len(answer.fp.peek())]) if room else 0
    if isinstance(open_socket, ssl.SSLSocket):
        receive = open_socket.recv_into
    elif open_socket is not None:
        bare = open_socket
        bare.settimeout(None)  # the kernel has one, see _connect
        receive = lambda part: bare.recv_into(part, 0, socket.MSG_WAITALL)
    end = time.monotonic() + _REQUEST_S
    while done < len(room):
        if time.monotonic() > end:
            raise BusyError(f"{done} of {len(room)} bytes came within {_REQUEST_S:.0f} s")
        n_bytes = receive(room[done:])
        if not n_bytes:
            raise BusyError(f"connection ended after {done} of {len(room)} bytes")
        done += n_bytes
    if open_socket is not None:
        open_socket.settimeout(_SILENCE_S)
    answer.close()


def _plain_bytes(answer: http.client.HTTPResponse, start: int, end: int) -> int:
    """Return the bytes that come; raise where they are not those that were asked for."""
    status = answer.status
    if is_busy(status):
        raise BusyError(f"status code: {status} {answer.reason}")
    if status != HTTPStatus.PARTIAL_CONTENT:
        raise NotPlainError(f"status {status}")
    if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise NotPlainError(f"another range: {answer.headers.get('Content-Range')}")
    if answer.length is None or answer.length > end - start or answer.headers["Content-Encoding"]:
        raise NotPlainError("a body of another length")
    return answer.length
