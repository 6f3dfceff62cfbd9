"""A web server of a folder on loopback that can be slow, refuse, break off, and say what it sent."""

from __future__ import annotations

import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Fault = Literal["503", "429", "reset", "short"] | None


@dataclass
class FolderServer:
    """What to do, and what was done. ``fault`` is asked before each answer.

    Attributes
    ----------
    delay_s
        Before each answer.
    most
        Requests answered at once; others are refused with 503.
    sent
        Key, first byte and number of bytes of each answer.
    refused
        How often each fault happened.
    """

    folder: Path
    url: str = ""
    delay_s: float = 0.0
    most: int = 10**9
    fault: Callable[[str], Fault] = lambda key: None
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(folder: Path) -> Iterator[FolderServer]:
    """Serve a folder until left."""
    state = FolderServer(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet: else 40 ms are waited for
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            with state.lock:
                state.in_flight += 1
                is_too_many = state.in_flight > state.most
            try:
                time.sleep(state.delay_s)
                key = self.path.lstrip("/")
                fault = "503" if is_too_many else state.fault(key)
                if fault:
                    with state.lock:
                        state.refused[fault] = state.refused.get(fault, 0) + 1
                if fault in ("503", "429"):
                    self._answer(int(fault), b"")
                elif fault == "reset":
                    self._break_off()
                else:
                    self._send(key, is_short=fault == "short")
            finally:
                with state.lock:
                    state.in_flight -= 1

        do_HEAD = do_GET

        def _send(self, key: str, *, is_short: bool) -> None:
            path = state.folder / key
            if not path.is_file():
                self._answer(404, b"")
                return
            data = path.read_bytes()
            start, stop = 0, len(data)
            if asked := self.headers.get("Range"):
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start = int(first) if first else max(0, len(data) - int(last))
                stop = min(len(data), int(last) + 1) if first and last else len(data)
                if start >= len(data):
                    self._answer(416, b"")
                    return
            part = data[start:stop]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(part)))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if not is_short:
                with state.lock:
                    state.sent.append((key, start, len(part)))
            self.wfile.write(part[: len(part) // 2] if is_short else part)
            if is_short:
                self._break_off()

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _break_off(self) -> None:
            self.wfile.flush()
            # Closing with nothing to wait for sends a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def finish(self) -> None:
            try:
                super().finish()
            except (OSError, ValueError):
                return  # broken off

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
