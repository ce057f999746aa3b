"""What is around kumadp misbehaves: resolv.conf, the application's probe targets, clients and the log's reader."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from kumadp.host.net.socket_paths import control_socket_path
from tests.support.daemon import get
from tests.support.faults import OWN, Row, fault_rows
from tests.support.hostile_clients import crowd
from tests.support.ports import free_ports
from tests.support.readonly import over
from tests.support.rig import NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.faults import FaultRig

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

GROUP = "Around it"
BAD_PATH = "/bad/healthz"


def emptied_resolvconf(rig: FaultRig) -> None:
    (rig.folder / "resolv.conf").write_text("")
    time.sleep(4.0)


def with_resolvconf(rig: FaultRig) -> None:
    file = rig.folder / "resolv.conf"
    file.write_text("nameserver 127.0.0.1\n")
    rig.prefix = over("/etc/resolv.conf", file)


@contextlib.contextmanager
def bad_server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Run a server whose connections are handled by this, each in a thread; return its port."""

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(4096)
            answer(client)

    def accept(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def hang(_client: socket.socket) -> None:
    time.sleep(20)


def endless(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    until = time.monotonic() + 20
    while time.monotonic() < until:
        client.sendall(chunk)
        time.sleep(0.01)


def looping(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 302 Found\r\nlocation: /healthz\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


def probed(rig: FaultRig) -> None:
    """Send 40 probes to a bad target, eight at a time."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: get(rig.ports.probes, BAD_PATH, timeout=15.0), range(40)))


TARGETS = {
    "probe target hangs": hang,
    "probe target answers without an end": endless,
    "probe target redirects to itself": looping,
}


@fault_rows([Row(name, probed, loses=()) for name in TARGETS])
def test_probe_target(fault_rig: FaultRig, row: Row) -> None:
    with bad_server(TARGETS[row.name]) as port:
        endpoint = {"inboundPort": port, "inboundPath": "/healthz", "path": BAD_PATH}
        fault_rig.dataplane["probes"]["endpoints"].append(endpoint)
        inbound = {"port": free_ports(1)[0], "servicePort": port, "tags": {"kuma.io/service": "bad"}}
        fault_rig.dataplane["networking"]["inbound"].append(inbound)
        row.run(fault_rig)


def unread_clients(rig: FaultRig) -> None:
    """Hold clients that request again and again, and read nothing."""
    request = b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n" * 5
    with crowd(rig.ports.readiness, 100, request), crowd(rig.ports.probes, 100, request):
        time.sleep(4.0)


def unread_metrics(rig: FaultRig) -> None:
    """Have scrapers of kumadp's own metrics that read nothing."""
    path = control_socket_path(NAME, rig.last.environment)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(2)
            with contextlib.suppress(OSError):
                client.connect(str(path))
                client.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 5)
        time.sleep(4.0)


# Standard output and error are a pipe of the process itself, which it never reads, and which is full.
UNREAD = """
import os, sys
read, write = os.pipe()
os.set_blocking(write, False)
try:
    while True:
        os.write(write, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(write, True)
os.set_inheritable(read, True)
os.dup2(write, 1)
os.dup2(write, 2)
os.execv(sys.argv[1], sys.argv[1:])
"""


def with_unread_log(rig: FaultRig) -> None:
    rig.prefix = (sys.executable, "-c", UNREAD)


def noisy(rig: FaultRig) -> None:
    """Have kumadp and Envoy log a lot, and replace both."""
    for _ in range(3):
        rig.plane.drop_connections()
        time.sleep(1.0)
    rig.reload(rig.last)
    assert rig.status(rig.last)["log"]["dropped"] > 0
    rig.try_reexec(rig.last)
    rig.wait_serving(rig.last)


# Readiness and probes of one that is replaced, or imports what its first scraper needs, may take more than a second.
ROWS = (
    Row("resolv.conf emptied", emptied_resolvconf, loses=(), prepare=with_resolvconf),
    Row("clients of readiness and probes read nothing", unread_clients, loses=()),
    Row("scrapers of kumadp's metrics read nothing", unread_metrics, loses=OWN),
    Row(
        "nobody reads the log, with a reload and a re-execution",
        noisy,
        loses=OWN,
        flags=("--log-level=debug",),
        prepare=with_unread_log,
    ),
)


@fault_rows(ROWS)
def test_surroundings(fault_rig: FaultRig, row: Row) -> None:
    row.run(fault_rig)
