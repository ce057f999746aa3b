"""Addresses that cannot be bound, each with who holds it."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psutil
import pytest

from kumadp.errors import PortsTaken
from kumadp.host.net import listening
from kumadp.host.net.interfaces import interface_addresses, local_addresses
from kumadp.host.net.listening import hosts_by_both, is_held_by, listening_addresses, listening_sockets
from kumadp.host.net.ports import BindAddress, check_ports, holder_of
from tests.support.ports import free_port, free_ports
from tests.support.scripts import running_script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kumadp.host.net.ports import TransportProtocol


def address(port: int, host: str = "127.0.0.1", protocol: TransportProtocol = "tcp") -> BindAddress:
    return BindAddress(host, port, protocol, "the inbound", "networking.inbound[0].port")


@contextlib.contextmanager
def held(host: str = "127.0.0.1", protocol: TransportProtocol = "tcp", port: int = 0) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.bind((host, port))
        if protocol == "tcp":
            sock.listen()
        yield int(sock.getsockname()[1])


async def clash(*addresses: BindAddress) -> list[str]:
    try:
        await check_ports(addresses)
    except PortsTaken as taken:
        return [str(problem) for problem in taken.problems]
    return []


@pytest.mark.parametrize(
    ("holding", "expected", "protocol"),
    [
        ("127.0.0.1", "127.0.0.1", "tcp"),
        ("127.0.0.1", "127.0.0.1", "udp"),
        ("0.0.0.0", "127.0.0.1", "tcp"),
        ("127.0.0.1", "0.0.0.0", "tcp"),
        ("::1", "::1", "tcp"),
        ("::", "127.0.0.1", "tcp"),
    ],
)
async def test_a_taken_address_is_reported_with_its_holder(
    holding: str, expected: str, protocol: TransportProtocol
) -> None:
    with held(holding, protocol) as port:
        (line,) = await clash(address(port, expected, protocol))
    assert line.startswith("networking.inbound[0].port: ")
    assert f":{port}/{protocol} for the inbound is held by " in line
    assert f"(pid {os.getpid()})" in line


async def test_all_are_reported_at_once_and_free_ones_pass() -> None:
    free, *_ = free_ports(1)
    with held() as first, held() as second:
        lines = await clash(address(first), address(free), address(second), address(0), address(1, "a-name.example"))
    assert len(lines) == 2


@pytest.mark.parametrize(("holding", "expected"), [("127.0.0.1", "127.0.0.2"), ("127.0.0.1", "::1")])
async def test_another_address_is_no_clash(holding: str, expected: str) -> None:
    # Free on every address: a client of another test may have a port of 127.0.0.2.
    with held(holding, port=free_port("0.0.0.0")) as port:
        assert await clash(address(port, expected)) == []


async def test_another_protocol_is_no_clash() -> None:
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
        assert await clash(address(port)) == []


async def test_connections_that_linger_are_no_clash() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()
        client.close()
    assert await clash(address(port)) == []


async def test_an_address_of_another_host_is_reported() -> None:
    (line,) = await clash(address(free_port(), "192.0.2.1"))
    assert "not on this host" in line


LISTEN = """
import socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    print("up", flush=True)
    time.sleep(60)
"""

# A user id that nobody has a name for.
STRANGER = 65533


@contextlib.contextmanager
def somebody_else(host: str, port: int) -> Iterator[None]:
    """Another user's process that listens there."""
    source = (
        f"import os, socket, sys; os.setuid({STRANGER}); s = socket.create_server((sys.argv[1], int(sys.argv[2])));"
        "print('up', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", source, host, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_ports_below_1024_and_holders_that_may_not_be_seen() -> None:
    source = f"""
import asyncio, concurrent.futures.thread, os, sys
sys.path[:0] = {sys.path!r}
from kumadp.host.net.ports import BindAddress, check_ports
from kumadp.errors import PortsTaken
import psutil
os.setgid(65534); os.setuid(65534)
try:
    pairs = [one.split(":") for one in sys.argv[1:]]
    asyncio.run(check_ports([BindAddress(host, int(port), "tcp", "x", "y") for host, port in pairs]))
except PortsTaken as taken:
    print(*taken.problems, sep="\\n")
"""
    port = free_port()
    ours, theirs = f"127.0.0.1:{port}", f"127.0.0.7:{port}"
    with socket.create_server(("127.0.0.1", port)), somebody_else("127.0.0.7", port):
        command = [sys.executable, "-c", source, ours, theirs, "127.0.0.1:1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    reported = done.stdout
    assert f"{ours}/tcp for x is held by a process of user {pwd.getpwuid(0).pw_name}" in reported, done.stderr
    assert f"{theirs}/tcp for x is held by a process of user id {STRANGER}" in reported
    # Where the kernel lets everybody bind low ports there is nothing to report.
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) > 1:
        assert "CAP_NET_BIND_SERVICE" in reported


def test_the_holder_is_a_program_and_a_pid() -> None:
    with held() as port:
        assert f"(pid {os.getpid()})" in holder_of(address(port))
    assert holder_of(address(port)) == "a process that is not visible here"


def test_addresses_of_this_host() -> None:
    listed = psutil.net_if_addrs().values()
    families = {socket.AF_INET, socket.AF_INET6}
    expected = {entry.address for entries in listed for entry in entries if entry.family in families}
    assert interface_addresses() == sorted(expected)
    assert local_addresses() == {address.partition("%")[0] for address in expected}
    assert "127.0.0.1" in local_addresses()


@pytest.fixture(params=["sock_diag", "proc"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "proc":
        monkeypatch.setattr(listening, "SockDiag", unavailable(errno.EPERM))


def unavailable(number: int) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.usefixtures("source")
def test_where_a_process_listens() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        running_script(LISTEN, "0") as other,
    ):
        ours = {four.getsockname()[:2], six.getsockname()[:2]}
        assert ours <= listening_addresses(os.getpid())
        theirs = listening_addresses(other)
        assert len(theirs) == 1
        assert not theirs & ours
        port = four.getsockname()[1]
        assert ("127.0.0.1", port) in {(row.host, row.port) for row in listening_sockets(port)}
        assert {row.port for row in listening_sockets(port)} == {port}
    assert not listening_addresses(other)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(("host", "family"), [("127.0.0.7", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_where_a_process_has_a_port_by_udp_and_tcp(host: str, family: socket.AddressFamily) -> None:
    port = free_port()
    with socket.socket(family, socket.SOCK_DGRAM) as udp, running_script(LISTEN, "0") as other:
        udp.bind((host, port))
        assert not hosts_by_both(os.getpid(), port)
        with socket.create_server((host, port), family=family):
            assert hosts_by_both(os.getpid(), port) == {host}
            assert not hosts_by_both(other, port)
        assert not hosts_by_both(os.getpid(), port)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_process_whose_descriptors_are_not_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> NoReturn:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(listening, "descriptors", refuse)
    with socket.create_server(("127.0.0.1", 0)) as ours, somebody_else("127.0.0.7", port := free_port()):
        seen = listening_addresses(1)
        assert ours.getsockname() in seen
        assert ("127.0.0.7", port) not in seen


def test_without_a_free_descriptor_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "SockDiag", unavailable(errno.EMFILE))
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        listening_addresses(os.getpid())
    assert not is_held_by([os.getpid()], "127.0.0.1", 1)


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::"])
def test_who_would_answer_a_connection(bound: str) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    ours, parent = os.getpid(), os.getppid()
    with socket.create_server((bound, 0), family=family) as sock:
        port = sock.getsockname()[1]
        assert is_held_by([parent, ours], "127.0.0.1", port)
        assert not is_held_by([parent], "127.0.0.1", port)
        assert is_held_by([ours], "127.0.0.9", port) is (bound != "127.0.0.1")
    assert not is_held_by([ours], "127.0.0.1", port)


def test_who_listens_on_the_address_itself_answers_before_who_listens_on_all() -> None:
    port = free_port()
    with (
        running_script(LISTEN, str(port)) as other,
        socket.create_server(("::", port), family=socket.AF_INET6),
    ):
        assert is_held_by([other], "127.0.0.1", port)
        assert not is_held_by([os.getpid()], "127.0.0.1", port)
        assert is_held_by([os.getpid()], "127.0.0.9", port)
