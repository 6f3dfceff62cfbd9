"""A proxy on loopback that waits before it passes a request on: PORT UPSTREAM_PORT DELAY_MS.

A thread a connection; bodies go from socket to socket inside the kernel, so that the proxy takes
little of the cores that are being measured. Requests have no body (GET, HEAD).
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time

_SPLICE_BYTES = 1 << 20
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def serve(port: int, upstream_port: int, delay_s: float) -> None:
    """Accept connections until the process ends."""
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    while True:
        client, _ = listener.accept()
        arguments = (client, upstream_port, delay_s)
        threading.Thread(target=_relay, args=arguments, daemon=True).start()


def _relay(client: socket.socket, upstream_port: int, delay_s: float) -> None:
    pipe = os.pipe()
    with client, socket.create_connection(("127.0.0.1", upstream_port)) as upstream:
        for end in (client, upstream):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while request := _head(client):
                time.sleep(delay_s)
                upstream.sendall(request)
                answer = _head(upstream)
                if not answer:  # it has closed a connection that rested for long
                    break
                client.sendall(answer)
                if request.startswith(b"HEAD"):
                    continue
                head, _, body = answer.partition(b"\r\n\r\n")
                length = _LENGTH.search(head)
                _splice(upstream, client, pipe, int(length[1]) - len(body) if length else 0)
        except (ConnectionError, TimeoutError):
            pass  # the other side hung up; so do we
    for end_of_pipe in pipe:
        os.close(end_of_pipe)


def _head(source: socket.socket) -> bytes:
    """Read up to the end of the headers, and what of the body came with them; empty at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = source.recv(16_384)
        if not part:
            return b""
        data += part
    return data


def _splice(source: socket.socket, target: socket.socket, pipe: tuple[int, int], n: int) -> None:
    while n > 0:
        held = os.splice(source.fileno(), pipe[1], min(n, _SPLICE_BYTES))
        if not held:
            raise ConnectionError("the upstream server closed the connection within a body")
        n -= held
        while held:
            held -= os.splice(pipe[0], target.fileno(), held)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000)
