"""The doctor's checks of the host, each with something wrong."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.addresses import socket_address
from kumadp.dns.resolvconf import read
from kumadp.dns.resolver.server import Resolver
from kumadp.doctor import host
from kumadp.host.work_dir import LOCK_FILE
from tests.support.linklocal import SCOPED, on_its_own_network
from tests.support.poll import poll
from tests.support.ports import free_port, free_ports

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from kumadp.doctor.report import CheckResult


def look(work: Coroutine[object, object, list[CheckResult]]) -> list[tuple[str, str]]:
    return [(result.state, result.text) for result in asyncio.run(work)]


def test_memory(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    file.write_text("oom_kill 0\n")
    assert look(host.cgroup(0, file)) == [("ok", "no memory limit")]
    assert look(host.cgroup(512 << 20, file)) == [("ok", "memory limit 512 MiB")]
    file.write_text("oom_kill 2\n")
    assert look(host.cgroup(64 << 20, file)) == [
        ("warning", "memory limit 64 MiB"),
        ("warning", "the kernel has killed processes here 2 times: out of memory"),
    ]


def test_name_servers(tmp_path: Path) -> None:
    def work() -> None:
        file = tmp_path / "resolv.conf"
        for missing in (True, False):
            if not missing:
                file.write_text("search mesh\n")
            results = look(host.resolv_conf(file))
            assert results[0] == ("failed", f"{file} has no name server, and none answers at 127.0.0.1 and ::1")
            assert len(results) == 1 + missing
        file.write_text("nameserver nobody\n")
        assert look(host.resolv_conf(file))[1] == ("warning", f"{file}: line 1: nobody is not an address")
        with contextlib.closing(NameServer(port=53)):
            file.write_text("search mesh\n")
            assert look(host.resolv_conf(file)) == [
                ("warning", f"{file} has no name server: 127.0.0.1 and ::1 are queried"),
            ]

    on_its_own_network(work)


def test_options_and_link_local_servers(tmp_path: Path) -> None:
    def work() -> None:
        file = tmp_path / "resolv.conf"
        file.write_text(f"nameserver {SCOPED}\noptions timeout:1 fastest\n")
        with contextlib.closing(NameServer(SCOPED, port=53)) as server:
            assert look(host.resolv_conf(file)) == [
                ("ok", f"{file}: {SCOPED}"),
                ("warning", f"{file}: line 2: option fastest is not known"),
                ("ok", "options timeout:1"),
            ]
            assert server.queried == 1
        file.write_text("nameserver fe80::17%nowhere\n")
        assert look(host.resolv_conf(file))[1][1].startswith("fe80::17%nowhere cannot be queried: ")

    on_its_own_network(work)


def test_servers_that_are_queried_over_tcp(tmp_path: Path) -> None:
    """With use-vc a server needs no UDP; without it, no TCP."""
    file = tmp_path / "resolv.conf"

    async def send() -> list[str]:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            query = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            writer.write(len(query).to_bytes(2) + query[:2] + b"\x81\x83" + query[4:])
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        with contextlib.closing(NameServer()) as udp:
            names = (f"[127.0.0.1]:{server.sockets[0].getsockname()[1]}", udp.name)
            file.write_text("".join(f"nameserver {name}\n" for name in names) + "options use-vc\n")
            results = [result.text for result in await host.resolv_conf(file)]
        server.close()
        return [text.replace(names[1], "UDP") for text in results[1:]]

    assert asyncio.run(send()) == ["options use-vc", "UDP cannot be queried: Connection refused"]


def test_an_answer_of_kumadp_itself_does_not_count(tmp_path: Path) -> None:
    """Also if resolv.conf only has the address of kumadp: it answers, and name servers remain unknown."""
    file = tmp_path / "resolv.conf"

    async def send() -> list[tuple[str, str]]:
        (port,) = free_ports(1)
        file.write_text(f"nameserver [127.0.0.1]:{port}\n")
        async with Resolver([("127.0.0.1", port)]) as resolver:
            resolver.upstreams.conf = read(file)
            return [(result.state, result.text) for result in await host.resolv_conf(file)]

    results = asyncio.run(send())
    assert results[0][0] == "ok"
    assert results[1:] == [("warning", f"{file.read_text().split()[1]}: kumadp itself answers there")]


@pytest.mark.parametrize(("refuses_all", "ours"), [(True, False), (False, True)])
def test_a_coredns_of_kumadp_refuses_only_its_own_name(tmp_path: Path, refuses_all: bool, ours: bool) -> None:
    file = tmp_path / "resolv.conf"
    with contextlib.closing(NameServer(refuses=b"" if refuses_all else b"\x06health")) as server:
        file.write_text(f"nameserver {server.name}\n")
        results = look(host.resolv_conf(file))
    assert (len(results) == 2) is ours


class NameServer:
    """Answers that there is no such name, or not at all; on a port of loopback, in OpenBSD's form of resolv.conf."""

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, *, silent: bool = False, refuses: bytes | None = None
    ) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(socket_address(host, port))
        self.name = f"[{host}]:{self._socket.getsockname()[1]}"
        self.queried = 0
        self._refuses = refuses
        if not silent:
            threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            # Nothing from nobody: it is shut down.
            while (received := self._socket.recvfrom(512))[0]:
                query, client = received
                self.queried += 1
                refused = self._refuses is not None and self._refuses in query
                self._socket.sendto(query[:2] + (b"\x81\x85" if refused else b"\x81\x83") + query[4:], client)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def test_name_servers_that_answer_and_that_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_SERVER_TIMEOUT", 1.0)
    file = tmp_path / "resolv.conf"
    good, silent, fourth = NameServer(), NameServer(silent=True), NameServer()
    nobody = f"[127.0.0.1]:{free_port()}"
    servers = (good.name, silent.name, nobody, fourth.name)
    file.write_text("".join(f"nameserver {name}\n" for name in servers))
    assert look(host.resolv_conf(file)) == [
        ("ok", f"{file}: {', '.join(servers)}"),
        ("warning", "1 of these servers are never queried by the C library"),
        ("warning", f"{silent.name} does not answer within 1 s"),
        ("warning", f"{nobody} cannot be queried: Connection refused"),
    ]
    assert (good.queried, fourth.queried) == (1, 0)
    for server in (good, silent, fourth):
        server.close()


@pytest.mark.process
def test_an_init_that_does_not_reap() -> None:
    """In a new PID namespace: process 1 is a Python that never waits, and its grandchild exits."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-p", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no PID namespaces here: needs root")
    inside = (
        "import asyncio, os, subprocess\n"
        "from kumadp.doctor import host\n"
        # The middle one ends first: its child is process 1's then.
        "subprocess.run(['sh', '-c', '(exec sleep 0.1) &'])\n"
        "import time\n"
        "end = time.monotonic() + 20\n"
        "while (result := asyncio.run(host.process_1()))[0].state != 'warning' or 'zombies' not in result[0].text:\n"
        "    assert time.monotonic() < end, result\n"
        "    time.sleep(0.02)\n"
        "print(result[0].text)\n"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", inside]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert "is process 1 and leaves 1 zombies" in done.stdout, done.stderr


def test_leftovers_of_dead_runs(tmp_path: Path) -> None:
    leftover, alive = tmp_path / "kumadp-left", tmp_path / "kumadp-alive"
    for folder in (leftover, alive):
        folder.mkdir()
        (folder / LOCK_FILE).touch()
    with tempfile.TemporaryDirectory() as runtime, (alive / LOCK_FILE).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        environ = {"XDG_RUNTIME_DIR": runtime}
        sockets = Path(runtime) / "kumadp"
        sockets.mkdir()
        with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as living:
            dead.bind(str(sockets / "dead.control"))
            living.bind(str(sockets / "living.control"))
            living.listen()
            dead.close()
            results = look(host.leftovers(environ, (), tmp_path))
    texts = [text for _, text in results]
    assert f"{leftover} was left by a dead run" in texts
    assert not any(str(alive) in text or "living" in text for text in texts)
    assert any("dead.control: nothing listens there any more" in text for text in texts)


class Systemd:
    """A host whose systemctl prints what a test sets."""

    def __init__(self, folder: Path) -> None:
        self.booted, self.shipped, self.installed = folder / "booted", folder / "shipped", folder / "installed"
        for created in (self.booted, self.shipped, self.installed):
            created.mkdir()
        self._folder = folder
        self.unit = "# a comment\n[Service]\nExecStart=/usr/bin/kumadp run\n"
        (self.shipped / "kumadp.service").write_text(self.unit)
        self.prints("")

    def prints(self, text: str) -> None:
        script = self._folder / "systemctl"
        script.write_text(f'#!/bin/sh\ncase "$*" in *" kumadp.service") printf "{text}";; esac\n')
        script.chmod(0o755)

    def look(self) -> list[tuple[str, str]]:
        return look(host.systemd("", self.booted, self.shipped, {"PATH": f"{self._folder}:{os.defpath}"}))


def test_units_of_systemd(tmp_path: Path) -> None:
    assert look(host.systemd("", tmp_path / "none")) == [("skipped", "systemd is not the init system here")]
    at = Systemd(tmp_path)
    assert at.look() == [("skipped", "neither kumadp.service nor kumadp@.service is installed")]
    file = at.installed / "kumadp.service"
    file.write_text(at.unit + "\n; another comment\n")
    at.prints(f"FragmentPath={file}\\nNeedDaemonReload=no\\nDropInPaths=\\n")
    assert at.look() == [("ok", "kumadp.service is the unit of this kumadp")]
    file.write_text(at.unit.replace("/usr/bin/", "/opt/venv/bin/"))
    assert at.look() == [("ok", "kumadp.service is the unit of this kumadp")]
    file.write_text(at.unit.replace("run", "run --drain-time=1s"))
    at.prints(f"FragmentPath={file}\\nNeedDaemonReload=yes\\nDropInPaths=\\n")
    assert at.look() == [
        ("warning", "kumadp.service has changed on disk"),
        ("warning", f"{file} is not the unit of this kumadp"),
    ]
    (tmp_path / "systemctl").write_text("#!/bin/sh\nexec sleep 60\n")
    assert poll(at.look, what="an answer")[0][1].startswith("kumadp.service: systemctl does not answer")
