"""A running `kumadp run --standalone` and the helpers of its tests."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from typing import TYPE_CHECKING, Any

from tests.support.daemon import Daemon, Ports, Workload, get, run_kumadp
from tests.support.mesh import Tree, dataplane, inbound, outbound, write
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@contextlib.contextmanager
def run_standalone(
    folder: Path,
    ports: Ports,
    name: str = "web",
    *,
    place: str = "",
    environment: Mapping[str, str] | None = None,
    more: tuple[str, ...] = (),
    dns: bool = False,
    prefix: tuple[str, ...] = (),
) -> Iterator[Daemon]:
    """Our Dataplane ``name`` of the folder (or file), READY; its other files go beside the folder, under ``place``."""
    home = folder.parent / f"home-{place or name}"
    home.mkdir()
    arguments = ("--standalone", str(folder), "--name", name, "--drain-time", "1s", *more)
    with run_kumadp(home, ports, *arguments, environment=environment, dns=dns, prefix=prefix) as daemon:
        daemon.wait_ready()
        yield daemon


@contextlib.contextmanager
def workloads(*names: str) -> Iterator[list[Workload]]:
    """Several running workloads."""
    servers = [Workload(name) for name in names]
    try:
        yield servers
    finally:
        for server in servers:
            server.close()


def answers(port: int, expected: tuple[int, str], what: str, host: str = "127.0.0.1") -> None:
    """Wait until a GET is answered like this."""
    poll(lambda: get(port, host=host) == expected, what=f"{what}: {expected}")


def logged(daemon: Daemon, *parts: str) -> str:
    """Wait for a log line that holds all parts; the line."""

    def find() -> str:
        lines = daemon.output().splitlines()
        return next((line for line in reversed(lines) if all(part in line for part in parts)), "")

    return poll(find, what=f"a line with {parts}")


def echo_of(port: int, data: bytes = b"ping\n") -> bytes:
    """What comes back for ``data`` on a TCP connection, empty where it was closed."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(data)
            return connection.recv(100)
    except ConnectionError:
        return b""


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(b"echo " + line)


class _EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is not worth a traceback."""


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    """The port of a running server that echoes lines."""
    with _EchoServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


class StandaloneStage:
    """A running data plane ``web`` whose outbound leads to the first of two backends."""

    def __init__(self, folder: Path, ports: Ports, servers: list[Workload]) -> None:
        self.folder, self.ports = folder, ports
        self.app, self.first, self.second = servers

    def web(self, *outbounds: Tree, inbounds: list[Tree] | None = None, **more: Any) -> Tree:
        mine = inbounds or [inbound(self.ports.inbound, self.app.port)]
        every = [outbound(self.ports.outbound, "backend"), *outbounds]
        return dataplane("web", mine, every, admin=self.ports.admin, **more)

    def backend(self, server: Workload) -> Tree:
        return dataplane("backend", [inbound(server.port, 0, "backend")])

    def write(self) -> Path:
        return write(self.folder, self.web(), self.backend(self.first))

    def leads_to(self, server: Workload) -> None:
        answers(self.ports.outbound, (200, server.name), "the outbound")
