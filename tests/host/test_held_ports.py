"""Sockets that listen, as the kernel reports them, and what is remembered of them."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from kumadp.host.net import held_ports, listening
from kumadp.host.net.held_ports import HeldPorts
from kumadp.host.net.sock_diag import ListeningSocket, SockDiag
from tests.support.ports import free_port
from tests.support.scripts import running_script

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUND = [("127.0.0.1", socket.AF_INET), ("0.0.0.0", socket.AF_INET), ("::1", socket.AF_INET6), ("::", socket.AF_INET6)]


@pytest.fixture
def diag() -> Iterator[SockDiag]:
    try:
        diag = SockDiag()
    except OSError:
        pytest.skip("this kernel has no sock_diag")
    yield diag
    diag.close()


@pytest.mark.parametrize(("host", "family"), BOUND)
def test_a_socket_that_listens(diag: SockDiag, host: str, family: socket.AddressFamily) -> None:
    with socket.create_server((host, 0), family=family) as listening:
        port = listening.getsockname()[1]
        expected = ListeningSocket(host, port, os.geteuid(), os.fstat(listening.fileno()).st_ino)
        for queried in ("::1" if family == socket.AF_INET6 else "127.0.0.1", host):
            assert diag.listener(queried, port) == expected
        # Others may listen on the same port of another address.
        assert expected in diag.listeners(port)
    assert diag.listener(host, port) != expected
    assert expected not in diag.listeners(port)


def test_the_more_specific_address_accepts(diag: SockDiag) -> None:
    port = free_port()
    with (
        socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=True) as every,
        socket.create_server(("127.0.0.9", port), reuse_port=True) as one,
    ):
        for host, sock in (("127.0.0.9", one), ("127.0.0.1", every)):
            listener = diag.listener(host, port)
            assert listener is not None
            assert listener.inode == os.fstat(sock.fileno()).st_ino
        assert {"::", "127.0.0.9"} <= {listener.host for listener in diag.listeners(port)}


def test_answers_to_an_earlier_request_are_skipped(diag: SockDiag) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        diag._send(socket.AF_INET, port, b"", dump=True)
        listener = diag.listener("127.0.0.1", port)
        assert listener is not None
        assert listener.port == port
        assert {row.port for row in diag.listeners(port)} == {port}


class Counted:
    """Counts how often the descriptors of processes are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0

        def is_held_by(pids: tuple[int, ...], host: str, port: int) -> bool:
            self.count += 1
            return listening.is_held_by(pids, host, port)

        monkeypatch.setattr(held_ports, "is_held_by", is_held_by)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


LISTEN = """
import socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    print("up", flush=True)
    time.sleep(60)
"""


async def test_a_socket_of_another_process_is_remembered_until_something_changes(reads: Counted) -> None:
    pids: list[int] = [os.getpid()]
    held = HeldPorts(lambda: tuple(pids))
    port = free_port()
    with running_script(LISTEN, str(port)) as pid:
        for _ in range(3):
            assert not await held.holds("127.0.0.1", port)
        # Without sock_diag(7), at each request.
        assert reads.count == (1 if held._available else 3)
        # The process becomes one of ours.
        pids.append(pid)
        assert await held.holds("127.0.0.1", port)
    # Another socket on the same port, ours.
    with socket.create_server(("127.0.0.1", port)):
        pids.pop()
        for _ in range(2):
            assert await held.holds("127.0.0.1", port)
    assert not await held.holds("127.0.0.1", port)
    held.close()


async def test_what_is_remembered_expires(reads: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_ports, "_VALID", 0.0)
    held = HeldPorts(lambda: (os.getpid(),))
    port = free_port()
    with running_script(LISTEN, str(port)):
        for count in (1, 2):
            assert not await held.holds("127.0.0.1", port)
            assert reads.count == count
    held.close()


async def test_without_the_kernel_s_help_every_request_reads_descriptors(
    reads: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable() -> SockDiag:
        raise PermissionError(1, "no netlink here")

    monkeypatch.setattr(held_ports, "SockDiag", unavailable)
    monkeypatch.setattr(listening, "SockDiag", unavailable)
    held = HeldPorts(lambda: (os.getpid(),))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        for _ in range(2):
            assert await held.holds("127.0.0.1", sock.getsockname()[1])
    assert not await held.holds("127.0.0.1", free_port())
    assert reads.count == 3
    held.close()
