"""Hostile clients: they connect in numbers, send half of a request, and read nothing."""

from __future__ import annotations

import contextlib
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.support.needs import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOW_POST = b"POST /app/healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx"
KEEP_ALIVE = b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n"
LIMIT = 1024
"""What `limited` gives kumadp, and its children."""
limited = ("sh", "-c", f'ulimit -n {LIMIT}; exec "$@"', "sh")


def need_descriptors(count: int) -> None:
    """This process may open so many, or the test is skipped."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        missing(f"an attack needs {count} descriptors, and the hard limit is {hard}")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


@contextlib.contextmanager
def crowd(
    port: int, count: int, data: bytes, host: str = "127.0.0.1", source: str = ""
) -> Iterator[list[socket.socket]]:
    """Open ``count`` connections that have each sent ``data``; refused ones count too."""
    need_descriptors(count + 200)
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            client.settimeout(2)
            with contextlib.suppress(OSError):
                if source:
                    client.bind((source, 0))
                client.connect((host, port))
                client.sendall(data)
            clients.append(client)
        yield clients


def connections(pid: int, status: str) -> int:
    """How many TCP connections of a process are in this state."""
    return sum(connection.status == status for connection in psutil.Process(pid).net_connections("tcp"))


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def is_at_rest(pid: int) -> bool:
    """Whether a process used less than a fifth of a second of CPU in one second."""
    process = psutil.Process(pid)
    return process.cpu_percent(1.0) < 20


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    """In here nothing can be opened: all that the limit allows is open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[socket.socket] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 256), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(socket.socket())
        yield
    finally:
        for sock in taken:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
