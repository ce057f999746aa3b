"""Both sides of a probe proxy, each as a process that costs little: kubelets, and an application that is well.

``python -m tests.bench.probe_traffic serve PORT``, and ``... probe PORT PATH CONCURRENT SECONDS``, which prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import sys
import time
from dataclasses import dataclass
from typing import cast

import uvloop

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class Healthy(asyncio.Protocol):
    """Answers the first bytes of a connection, and closes it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(RESPONSE)
        self._transport.close()


async def serve(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Healthy, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


@dataclass
class Probe:
    """One probe under way."""

    sock: socket.socket
    started: float
    received: bytes = b""


class Kubelets:
    """Probes, each on a new connection as kubelet does, a number of them at the same time."""

    def __init__(self, port: int, path: str) -> None:
        self._address = ("127.0.0.1", port)
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: kube-probe/1.31\r\nAccept: */*\r\n"
            "Connection: close\r\n\r\n"
        ).encode()
        self._epoll = select.epoll()
        self._probes: dict[int, Probe] = {}
        self.took: list[float] = []
        self.failed = 0

    def run(self, concurrent: int, seconds: float) -> None:
        """Send probes for a time."""
        for _ in range(concurrent):
            self._begin()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for descriptor, _ in self._epoll.poll(1):
                self._receive(descriptor)

    def _begin(self) -> None:
        started = time.perf_counter()
        sock = socket.create_connection(self._address, timeout=20)
        probe = Probe(sock, started)
        sock.sendall(self._request)
        sock.setblocking(False)
        self._epoll.register(sock, select.EPOLLIN)
        self._probes[sock.fileno()] = probe

    def _receive(self, descriptor: int) -> None:
        probe = self._probes[descriptor]
        try:
            part = probe.sock.recv(1 << 16)
        except ConnectionError:
            part = b""
        probe.received += part
        if part:
            return
        self.took.append(time.perf_counter() - probe.started)
        self.failed += not probe.received.startswith(b"HTTP/1.1 200 ")
        self._epoll.unregister(probe.sock)
        probe.sock.close()
        del self._probes[descriptor]
        self._begin()


def probe(port: int, path: str, concurrent: int, seconds: float) -> None:
    """Send probes and print what they took."""
    kubelets = Kubelets(port, path)
    kubelets.run(concurrent, seconds)
    took = sorted(kubelets.took)
    result = {
        "count": len(took),
        "failed": kubelets.failed,
        "rate": len(took) / seconds,
        "p50": took[len(took) // 2] * 1000,
        "p99": took[int(len(took) * 0.99)] * 1000,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    what, number, *arguments = sys.argv[1:]
    if what == "serve":
        uvloop.run(serve(int(number)))
    else:
        probe(int(number), arguments[0], int(arguments[1]), float(arguments[2]))
