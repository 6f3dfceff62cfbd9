"""Ranges read straight from a socket: the plain case, and every other, against scripted servers."""

from __future__ import annotations

import gc
import logging
import queue
import socket
import ssl
import subprocess
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bigearth_cube.errors import NotFoundError, StorageError
from bigearth_cube.storage import Storage, backends
from bigearth_cube.storage.ranges import KEPT_S, BusyError, NotPlainError, RangeReader, _Heard

OBJECT = bytes(range(256)) * 40
HEAD = b"HTTP/1.1 206 Partial Content\r\nCONTENT-RANGE: bytes 0-8/9\r\ncontent-length:9\r\n\r\n"
LONG_AGO = "Thu, 01 Jan 2026 00:00:00 GMT"
Script = Callable[[BaseHTTPRequestHandler, int], None]
"""What a server does with a request, told which one it is, from 0."""


class Server(ThreadingHTTPServer):
    """A server that does what its script says, and counts."""

    daemon_threads = True  # a connection that stays open has one that waits for more
    block_on_close = False

    def __init__(self, script: Script) -> None:
        self.paths: list[str] = []
        self.ranges: list[str | None] = []
        self.n_connections = 0
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with lock:
                    served.n_connections += 1

            def do_GET(self) -> None:
                with lock:
                    served.paths.append(self.path)
                    served.ranges.append(self.headers["Range"])
                    number = len(served.paths) - 1
                script(self, number)

            def log_message(self, *_: object) -> None:
                pass

        served = self
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(script: Script, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server(script) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def promise(
    request: BaseHTTPRequestHandler, n_bytes: int, first: int = 0, *, closes: bool = False
) -> None:
    """Send the head of an answer."""
    request.send_response(206)
    last = first + n_bytes - 1
    request.send_header("Content-Range", f"bytes {first}-{last}/{len(OBJECT)}")
    request.send_header("Content-Length", str(n_bytes))
    if closes:
        request.send_header("Connection", "close")
    request.end_headers()


def part(request: BaseHTTPRequestHandler, number: int = 0) -> None:
    """Answer as a server should."""
    first, last = (int(x) for x in request.headers["Range"].removeprefix("bytes=").split("-"))
    body = OBJECT[first : last + 1]
    promise(request, len(body), first)
    request.wfile.write(body)


def refusal(status: int) -> Script:
    def script(request: BaseHTTPRequestHandler, number: int) -> None:
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return script


@contextmanager
def answering(*pieces: bytes) -> Iterator[str]:
    """Give each connection these bytes, piece by piece, and close it; yields where it listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):  # it is closed
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(30)
                        connection.recv(4096)
                        for piece in pieces:
                            connection.sendall(piece)
                            threading.Event().wait(0.02)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)


def test_ranges_come_into_the_room_given_over_one_connection() -> None:
    with serving(part) as server:
        reader = RangeReader(lambda key: f"{server.url}/{key}?signed=1")
        room = bytearray(5000)
        for start, end in ((0, 5000), (77, 80), (9000, 10240)):
            got = reader.read("a/b", start, end, lambda n: memoryview(room)[:n])
            assert got == OBJECT[start:end]
            assert got.obj is room
        assert reader.read("a/b", 10000, 20000, None) == OBJECT[10000:]
    assert server.paths == ["/a/b?signed=1"] * 4
    assert server.n_connections == 1


def test_a_connection_that_was_closed_since_is_no_fault() -> None:
    def once(request: BaseHTTPRequestHandler, number: int) -> None:
        part(request)
        request.close_connection = True  # and does not say so

    with serving(once) as server:
        reader = RangeReader(lambda key: f"{server.url}/{key}")
        for _ in range(3):
            assert reader.read("a", 1, 9, None) == OBJECT[1:9]
    assert server.n_connections == 3


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_a_connection_that_serves_once_is_closed_and_not_asked_again(version: str) -> None:
    more: queue.Queue[bytes] = queue.Queue()

    def last(request: BaseHTTPRequestHandler, number: int) -> None:
        request.protocol_version = version
        first, end = (int(x) for x in request.headers["Range"].removeprefix("bytes=").split("-"))
        promise(request, end + 1 - first, first, closes=version == "HTTP/1.1")
        request.wfile.write(OBJECT[first : end + 1])
        more.put(request.rfile.read(1))  # until the other side closes, or asks again
        request.close_connection = True

    with serving(last) as server:
        reader = RangeReader(lambda key: f"{server.url}/{key}")
        for start, end in ((1, 9), (0, 10240), (500, 500 + 9000)):
            assert reader.read("a", start, end, None) == OBJECT[start:end]
            assert more.get(timeout=30) == b""
    assert server.n_connections == 3


@pytest.mark.parametrize("status", [400, 408])
@pytest.mark.parametrize("closes", [True, False])
def test_what_was_said_before_it_was_asked_is_no_answer(status: int, closes: bool) -> None:
    arrived, said = threading.Event(), threading.Event()

    def hang_up(request: BaseHTTPRequestHandler, number: int) -> None:
        part(request)
        if number == 0:
            assert arrived.wait(30)
            request.wfile.write(b"HTTP/1.1 %d Early\r\nContent-Length: 0\r\n\r\n" % status)
            request.close_connection = closes
            said.set()

    told: list[int] = []
    with serving(hang_up) as server:
        storage = Storage(server.url)
        assert bytes(storage.read_range("a", 1, 9)) == OBJECT[1:9]
        arrived.set()
        assert said.wait(30)
        got = storage.read_range("a", 1, 9, on_retry=lambda: told.append(1))
        assert bytes(got) == OBJECT[1:9]
        assert bytes(storage.read_range("a", 2, 9)) == OBJECT[2:9]
    assert told == []
    assert server.n_connections == 2
    assert len(server.paths) == 3  # none of them by way of obstore


def test_no_interrupt_can_come_within_the_parser() -> None:
    heard = _Heard()
    called = [name for name in vars(heard) if name.startswith("on_")]
    assert len(called) == 5
    for name in called:  # of C, all of them: signals are looked at between lines of Python
        assert not isinstance(getattr(heard, name), types.FunctionType | types.MethodType)


def test_an_interrupted_handshake_leaves_no_socket_open(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[ssl.SSLSocket] = []

    def interrupted(self: ssl.SSLSocket, block: bool = False) -> None:
        opened.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(ssl.SSLSocket, "do_handshake", interrupted)
    with answering() as place, pytest.raises(KeyboardInterrupt):
        RangeReader(lambda _: f"https://{place}/a").read("a", 0, 9, None)
    assert [one.fileno() for one in opened] == [-1]


def test_answers_are_given_back_without_the_collector() -> None:
    def any_of(request: BaseHTTPRequestHandler, number: int) -> None:
        if number == 2:
            request.connection.sendall(b"no HTTP at all\r\n")
            request.close_connection = True
        else:
            part(request)

    gc.collect()
    gc.disable()
    try:
        with serving(any_of) as server:
            reader = RangeReader(lambda key: f"{server.url}/{key}")
            for _ in range(5):
                with suppress(NotPlainError):
                    reader.read("a", 0, 9, None)
        kept = [thing for thing in gc.get_objects() if type(thing) is _Heard]
    finally:
        gc.enable()
    assert len(server.paths) >= 5
    assert kept == []


def test_a_head_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigearth_cube.storage.ranges._REQUEST_S", 1.0)
    drops = [HEAD[i : i + 1] for i in range(len(HEAD))]
    with answering(*drops) as place, pytest.raises(BusyError, match="not all of it within 1 s"):
        RangeReader(lambda _: f"http://{place}/a").read("a", 0, 9, None)


def test_a_body_that_comes_drop_by_drop_comes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(request: BaseHTTPRequestHandler, number: int) -> None:
        promise(request, 10240)
        for at in range(0, 10240, 2048):
            try:
                request.wfile.write(OBJECT[at : at + 2048])
            except OSError:  # it was given up
                return
            threading.Event().wait(0.02)
            if number == 1:
                threading.Event().wait(3)

    monkeypatch.setattr("bigearth_cube.storage.ranges._SILENCE_S", 1.0)
    with serving(slow) as server:
        reader = RangeReader(lambda key: f"{server.url}/{key}")
        assert reader.read("a", 0, 10240, None) == OBJECT
        with pytest.raises(BusyError, match="not a byte within 1 s"):  # a server that hangs
            reader.read("a", 0, 10240, None)


def test_a_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(request: BaseHTTPRequestHandler, number: int) -> None:
        promise(request, 10240)
        for at in range(10240):
            try:
                request.wfile.write(OBJECT[at : at + 1])
            except OSError:
                return
            threading.Event().wait(0.05)

    monkeypatch.setattr("bigearth_cube.storage.ranges._SILENCE_S", 1.0)
    monkeypatch.setattr("bigearth_cube.storage.ranges._REQUEST_S", 2.0)
    with (
        serving(endless) as server,
        pytest.raises(BusyError, match="of 10240 bytes came, not all of it within 2 s"),
    ):
        RangeReader(lambda key: f"{server.url}/{key}").read("a", 0, 10240, None)


def test_requests_at_once_have_a_connection_each_and_leave_it_to_the_next() -> None:
    together = threading.Barrier(4)

    def wait(request: BaseHTTPRequestHandler, number: int) -> None:
        together.wait(30)
        part(request)

    with serving(wait) as server:
        reader, found = RangeReader(lambda key: f"{server.url}/{key}"), []

        def read() -> None:
            found.extend(reader.read("a", 5, 4000, None) == OBJECT[5:4000] for _ in range(5))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found == [True] * 20
    assert server.n_connections <= 8  # one may ask again before another has given its own back


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD + OBJECT[:9],),
        (HEAD + OBJECT[:4], OBJECT[4:9]),
        (HEAD, OBJECT[:9]),
        (HEAD[:3], HEAD[3:50], HEAD[50:-1], HEAD[-1:] + OBJECT[:1], OBJECT[1:9]),
        (HEAD.replace(b"206", b"206" + b" " * 20_000), OBJECT[:9]),
    ],
)
def test_an_answer_may_come_in_any_pieces(pieces: tuple[bytes, ...]) -> None:
    with answering(*pieces) as place:
        assert RangeReader(lambda _: f"http://{place}/a").read("a", 0, 9, None) == OBJECT[:9]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"220 a mail server, ready\r\n", "(?i)http"),
        (b"HTTP/1.1 206 Partial\r\nX: " + b"x" * 100_000, "a head of more than 65536 bytes"),
        (HEAD + OBJECT[:90], "(?i)expected"),
        (2 * (HEAD + OBJECT[:9]), "more than one answer"),
        (HEAD.replace(b"h:9", b"h:3") + OBJECT[:3] + HEAD + OBJECT[:2], "more than one answer"),
        (HEAD.replace(b"length:9", b"length:9\r\nContent-Length: 8"), "(?i)content-length"),
        (HEAD.replace(b"length:9", b"length:nine"), "(?i)content-length"),
        (HEAD.replace(b"length:9", b"encoding: gzip\r\nContent-Length: 9"), "another length"),
        (HEAD.replace(b"content-length:9", b"Transfer-Encoding: chunked"), "(?i)length"),
        (HEAD.replace(b"content-length:9", b"Connection: close"), "another length"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n", "status 103"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + OBJECT[:9], "more than one answer"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", "protocol"),
    ],
)
def test_what_is_no_plain_answer_is_left_to_another(answer: bytes, reason: str) -> None:
    with answering(answer) as place, pytest.raises(NotPlainError, match=reason):
        RangeReader(lambda _: f"http://{place}/a").read("a", 0, 9, None)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a b", "http://127.0.0.1:1/\u00df", "http://x:y/"]
)
def test_an_address_that_cannot_be_asked_is_left_to_another(url: str) -> None:
    with answering() as place, pytest.raises(NotPlainError):
        RangeReader(lambda _: url.replace("127.0.0.1:1", place)).read("a", 0, 9, None)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_hangs_up_is_to_be_asked_again(scheme: str) -> None:
    with answering() as place:
        reader = RangeReader(lambda _: f"{scheme}://{place}/a")
        for _ in range(2):  # over TLS too: one broken handshake says nothing of the next
            with pytest.raises(BusyError, match=place):
                reader.read("a", 0, 9, None)


@pytest.mark.parametrize(
    ("url", "at", "name"),
    [
        ("http://[::1]:9000/a", ("::1", 9000), "[::1]:9000"),
        ("http://[::1]/a", ("::1", 80), "[::1]"),
        ("http://user:word@Example.org/a", ("example.org", 80), "Example.org"),
    ],
)
def test_the_server_is_called_by_the_name_in_the_address(
    url: str, at: tuple[str, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, names, connect = [], [], socket.create_connection
    monkeypatch.setenv("no_proxy", "*")

    def named(request: BaseHTTPRequestHandler, number: int) -> None:
        names.append(request.headers["Host"])
        part(request)

    with serving(named) as server:

        def here(address: tuple[str, int], timeout: float) -> socket.socket:
            asked.append(address)
            return connect(("127.0.0.1", server.server_port), timeout)

        monkeypatch.setattr(socket, "create_connection", here)
        assert RangeReader(lambda _: url).read("a", 0, 9, None) == OBJECT[:9]
    assert (asked, names) == ([at], [name])


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_is_busy_is_to_be_asked_again(status: int) -> None:
    with serving(refusal(status)) as server, pytest.raises(BusyError, match=str(status)):
        RangeReader(lambda key: f"{server.url}/{key}").read("a", 0, 9, None)


def test_a_body_that_ends_before_its_length_is_to_be_asked_again() -> None:
    def short(request: BaseHTTPRequestHandler, number: int) -> None:
        promise(request, 100)
        request.wfile.write(OBJECT[:60])
        request.close_connection = True

    with serving(short) as server, pytest.raises(BusyError, match="60 of 100 bytes"):
        RangeReader(lambda key: f"{server.url}/{key}").read("a", 0, 100, None)


@pytest.mark.parametrize("status", [400, 403, 404, 416])
def test_what_is_refused_for_good_is_left_to_another(status: int) -> None:
    with serving(refusal(status)) as server:
        reader = RangeReader(lambda key: f"{server.url}/{key}")
        for _ in range(2):
            with pytest.raises(NotPlainError, match=str(status)):
                reader.read("a", 0, 9, None)
    assert len(server.paths) == 2  # the next object may be there


@pytest.mark.parametrize("header", ["bytes 8-16/10240", "", "items 0-8/9"])
def test_another_range_than_asked_for_is_not_taken(header: str) -> None:
    def other(request: BaseHTTPRequestHandler, number: int) -> None:
        request.send_response(206)
        request.send_header("Content-Range", header)
        request.send_header("Content-Length", "9")
        request.end_headers()
        request.wfile.write(OBJECT[:9])

    with serving(other) as server, pytest.raises(NotPlainError, match="another range"):
        RangeReader(lambda key: f"{server.url}/{key}").read("a", 0, 9, None)


def test_a_server_that_only_obstore_can_read_is_left_to_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_queries(request: BaseHTTPRequestHandler, number: int) -> None:
        (refusal(403) if "?" in request.path else part)(request, number)

    keys = {"key": "K", "secret": "S"}
    with serving(no_queries) as server, caplog.at_level(logging.WARNING):
        storage = Storage("s3://bucket", {"endpoint_url": server.url} | keys)
        for _ in range(3):
            assert bytes(storage.read_range("a", 7, 70)) == OBJECT[7:70]
    assert len(server.paths) == 4
    assert [record.getMessage() for record in caplog.records] == [
        "ranges are read through obstore, at more cost: status 403"
    ]


def test_a_redirect_is_followed_by_obstore() -> None:
    def moved(request: BaseHTTPRequestHandler, number: int) -> None:
        if request.path == "/there":
            part(request)
            return
        request.send_response(307)
        request.send_header("Location", "/there")
        request.send_header("Content-Length", "0")
        request.end_headers()

    with serving(moved) as server:
        for _ in range(2):
            assert bytes(Storage(server.url).read_range("a", 7, 70)) == OBJECT[7:70]
    assert server.paths == ["/a", "/a", "/there", "/a", "/there"]


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_a_proxy_is_left_to_obstore(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(part) as server:
        assert RangeReader(lambda _: server.url).read("a", 0, 9, None) == OBJECT[:9]
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(NotPlainError, match="proxy"):
            RangeReader(lambda _: server.url).read("a", 0, 9, None)


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("", "/c/0%20%C3%9F"),
        ("/gr\u00f6sse/a b", "/gr%C3%B6sse/a%20b/c/0%20%C3%9F"),
        ("/a%20b", "/a%20b/c/0%20%C3%9F"),
        ("/a?sig=x%2F", "/a/c/0%20%C3%9F?sig=x%2F"),
    ],
)
def test_a_web_address_may_hold_what_addresses_hold(place: str, path: str) -> None:
    with serving(part) as server:
        assert bytes(Storage(server.url + place).read_range("c/0 \u00df", 1, 9)) == OBJECT[1:9]
    assert server.paths == [path]


def test_a_connection_that_died_without_a_word_costs_a_wait_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[BaseHTTPRequestHandler] = []

    def once_a_connection(request: BaseHTTPRequestHandler, number: int) -> None:
        if request in seen:
            threading.Event().wait(5)  # whatever lies between has forgotten it
            return
        seen.append(request)
        part(request)

    monkeypatch.setattr("bigearth_cube.storage.ranges._SILENCE_S", 1.0)
    told: list[int] = []
    with serving(once_a_connection) as server:
        storage = Storage(server.url)
        for _ in range(2):
            got = storage.read_range("a", 3, 700, on_retry=lambda: told.append(1))
            assert bytes(got) == OBJECT[3:700]
    assert told == []
    assert server.n_connections == 2


def test_connections_that_died_together_cost_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BaseHTTPRequestHandler] = []
    together = threading.Barrier(4)

    def once_a_connection(request: BaseHTTPRequestHandler, number: int) -> None:
        if request in seen:
            threading.Event().wait(5)
            return
        seen.append(request)
        if number < 4:
            together.wait(30)
        part(request)

    monkeypatch.setattr("bigearth_cube.storage.ranges._SILENCE_S", 1.5)
    with serving(once_a_connection) as server:
        reader = RangeReader(lambda key: f"{server.url}/{key}")
        arguments = ("a", 3, 700, None)
        threads = [threading.Thread(target=reader.read, args=arguments) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert reader.read(*arguments) == OBJECT[3:700]
    assert len(server.paths) == 6


def test_a_connection_does_not_rest_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(part) as server:
        reader = RangeReader(lambda key: f"{server.url}/{key}")
        reader.read("a", 0, 9, None)
        monkeypatch.setattr("bigearth_cube.storage.ranges.KEPT_S", 0.0)
        for _ in range(2):
            assert reader.read("a", 0, 9, None) == OBJECT[:9]
    assert server.n_connections == 3


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_no_connection_rests_for_long_whoever_has_it(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """obstore keeps connections for 90 s: what has dropped them would be waited for, one by one."""
    assert {"pool_idle_timeout": timedelta(seconds=KEPT_S)} == backends._CLIENT
    monkeypatch.setattr(backends, "_CLIENT", {"pool_idle_timeout": timedelta(milliseconds=50)})

    def whole(request: BaseHTTPRequestHandler, number: int) -> None:
        request.send_response(200)
        for name, value in (("Content-Length", str(len(OBJECT))), ("Last-Modified", LONG_AGO)):
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(OBJECT)

    with serving(whole) as server:
        options = {"endpoint_url": server.url, "anon": True}
        storage = Storage(server.url) if scheme == "http" else Storage("s3://bucket", options)
        for n_connections in (1, 2):
            assert storage.read("a") == OBJECT
            assert server.n_connections == n_connections
            threading.Event().wait(0.3)


def test_a_certificate_of_nobody_known_is_refused_and_taken_where_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the program openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(part, context) as server:
        url = server.url.replace("http:", "https:")
        with pytest.raises(NotPlainError, match="CERTIFICATE_VERIFY_FAILED"):
            RangeReader(lambda _: url).read("a", 0, 9, None)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        reader = RangeReader(lambda _: url)
        before = server.n_connections
        for start in (7, 8000):
            assert reader.read("a", start, 9000, None) == OBJECT[start:9000]
    assert server.n_connections == before + 1


def test_storage_asks_again_what_was_refused_or_broke_and_tells_of_it() -> None:
    def later(request: BaseHTTPRequestHandler, number: int) -> None:
        if number == 0:
            refusal(503)(request, number)
        elif number == 1:
            request.connection.shutdown(socket.SHUT_RDWR)
        else:
            part(request)

    told: list[int] = []
    with serving(later) as server:
        got = Storage(server.url).read_range("a", 3, 700, on_retry=lambda: told.append(1))
    assert bytes(got) == OBJECT[3:700]
    assert len(told) == 2


def test_storage_says_what_it_says_without_the_short_way() -> None:
    with serving(refusal(404)) as server, pytest.raises(NotFoundError, match="no object at"):
        Storage(server.url).read_range("a", 0, 9)
    with serving(refusal(403)) as server, pytest.raises(StorageError, match="access denied"):
        Storage(server.url).read_range("a", 0, 9)


def test_an_address_is_signed_with_the_keys_or_bare_where_anybody_may_read() -> None:
    with serving(part) as server:
        keys = {"key": "K", "secret": "S", "token": "T", "requester_pays": True}
        for options in ({"anon": True}, keys):
            storage = Storage("s3://bucket/a b", {"endpoint_url": server.url} | options)
            assert bytes(storage.read_range("c/0/0", 5, 6000)) == OBJECT[5:6000]
    bare, signed = server.paths
    assert bare == "/bucket/a%20b/c/0/0"
    assert signed.startswith(bare + "?")
    for expected in ("X-Amz-Credential=K%2F", "X-Amz-Security-Token=T", "X-Amz-Signature="):
        assert expected in signed
    assert "x-amz-request-payer=requester" in signed
    assert server.ranges == ["bytes=5-5999"] * 2
