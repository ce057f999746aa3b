"""The little of HTTP/2 (RFC 9113) that shows who speaks it: a server that speaks nothing else, and a client."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
ACK = END_STREAM = 1
END_HEADERS = 4
# HPACK (RFC 7541): ":status: 200", and the trailer "grpc-status: 0" as a literal.
_STATUS_200 = b"\x88"
_TRAILER = b"\x00\x0bgrpc-status\x010"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def frames(connection: socket.socket) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, stream and payload of each frame until the other side closes."""
    with connection.makefile("rb") as stream:
        while len(head := stream.read(9)) == 9:
            length = int.from_bytes(head[:3], "big")
            yield head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, stream.read(length)


class Http2Server(socketserver.ThreadingTCPServer):
    """Answers every request with its name, and a gRPC trailer; closes on whoever speaks no HTTP/2."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def __enter__(self) -> Http2Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Handler(socketserver.BaseRequestHandler):
    server: Http2Server
    request: socket.socket

    def handle(self) -> None:
        connection = self.request
        if connection.recv(len(PREFACE), socket.MSG_WAITALL) != PREFACE:
            return
        connection.sendall(frame(SETTINGS, 0, 0))
        for kind, flags, stream, payload in frames(connection):
            if kind in {SETTINGS, PING} and not flags & ACK:
                connection.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind in {HEADERS, DATA} and flags & END_STREAM:
                connection.sendall(
                    frame(HEADERS, END_HEADERS, stream, _STATUS_200)
                    + frame(DATA, 0, stream, self.server.name.encode())
                    + frame(HEADERS, END_HEADERS | END_STREAM, stream, _TRAILER)
                )


def call(port: int, host: str = "127.0.0.1") -> tuple[str, bool]:
    """Body of the answer to ``GET /`` in HTTP/2, and whether trailers ended it."""
    with socket.create_connection((host, port), timeout=10) as connection:
        # ":method: GET", ":scheme: http", ":path: /", ":authority: test".
        request = frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x82\x86\x84\x41\x04test")
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0) + request)
        body = b""
        for kind, flags, stream, payload in frames(connection):
            if kind == SETTINGS and not flags & ACK:
                connection.sendall(frame(SETTINGS, ACK, 0))
            body += payload if kind == DATA else b""
            if stream == 1 and flags & END_STREAM:
                return body.decode(), kind == HEADERS
    raise AssertionError(f"the connection ended after {body!r}")
