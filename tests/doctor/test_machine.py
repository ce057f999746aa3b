"""What the doctor finds on the machine: each thing made wrong."""

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

from kumadp.doctor import machine
from kumadp.host.workdir import LOCK
from tests.support.poll import poll
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from kumadp.doctor.report import Told


def look(work: Coroutine[object, object, list[Told]]) -> list[tuple[str, str]]:
    return [(told.state, told.text) for told in asyncio.run(work)]


def test_memory(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    file.write_text("oom_kill 0\n")
    assert look(machine.cgroup(0, file)) == [("ok", "no memory limit")]
    assert look(machine.cgroup(512 << 20, file)) == [("ok", "memory limit 512 MiB")]
    file.write_text("oom_kill 2\n")
    assert look(machine.cgroup(64 << 20, file)) == [
        ("warning", "memory limit 64 MiB"),
        ("warning", "the kernel has killed 2 times for want of memory here"),
    ]


def test_name_servers(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    assert look(machine.resolv_conf(file))[0][0] == "failed"
    file.write_text("search mesh\n")
    assert look(machine.resolv_conf(file)) == [("warning", f"{file} names no server")]
    file.write_text("nameserver nobody\n")
    assert look(machine.resolv_conf(file))[1] == ("warning", f"{file}: line 1: nobody is no address")


class NameServer:
    """Says that there is no such name, or nothing; on a port of loopback, as resolv.conf of OpenBSD names it."""

    def __init__(self, *, silent: bool = False) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.name = f"[127.0.0.1]:{self._socket.getsockname()[1]}"
        self.asked = 0
        if not silent:
            threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            # Nothing from nobody: it is shut down.
            while (received := self._socket.recvfrom(512))[0]:
                query, client = received
                self.asked += 1
                self._socket.sendto(query[:2] + b"\x81\x83" + query[4:], client)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def test_name_servers_that_answer_and_that_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_SERVER_WITHIN", 1.0)
    file = tmp_path / "resolv.conf"
    good, silent, fourth = NameServer(), NameServer(silent=True), NameServer()
    nobody = f"[127.0.0.1]:{free_port()}"
    servers = (good.name, silent.name, nobody, fourth.name)
    file.write_text("".join(f"nameserver {name}\n" for name in servers))
    assert look(machine.resolv_conf(file)) == [
        ("ok", f"{file}: {', '.join(servers)}"),
        ("warning", "1 of these servers are never asked by the C library"),
        ("warning", f"{silent.name} does not answer within 1 s"),
        ("warning", f"{nobody} cannot be asked: Connection refused"),
    ]
    assert (good.asked, fourth.asked) == (1, 0)
    for server in (good, silent, fourth):
        server.close()


@pytest.mark.process
def test_an_init_that_does_not_reap() -> None:
    """In a PID namespace of its own: process 1 is a Python that waits for nobody, and its grandchild ends."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-p", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no PID namespaces here: needs root")
    inside = (
        "import asyncio, os, subprocess\n"
        "from kumadp.doctor import machine\n"
        # The middle one ends first: its child is process 1's then.
        "subprocess.run(['sh', '-c', '(exec sleep 0.1) &'])\n"
        "import time\n"
        "end = time.monotonic() + 20\n"
        "while (told := asyncio.run(machine.process_1()))[0].state != 'warning' or 'zombies' not in told[0].text:\n"
        "    assert time.monotonic() < end, told\n"
        "    time.sleep(0.02)\n"
        "print(told[0].text)\n"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", inside]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert "is process 1 and leaves 1 zombies" in done.stdout, done.stderr


def test_what_dead_runs_left(tmp_path: Path) -> None:
    left, alive = tmp_path / "kumadp-left", tmp_path / "kumadp-alive"
    for folder in (left, alive):
        folder.mkdir()
        (folder / LOCK).touch()
    with tempfile.TemporaryDirectory() as runtime, (alive / LOCK).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        environ = {"XDG_RUNTIME_DIR": runtime}
        sockets = Path(runtime) / "kumadp"
        sockets.mkdir()
        with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as living:
            dead.bind(str(sockets / "dead.control"))
            living.bind(str(sockets / "living.control"))
            living.listen()
            dead.close()
            found = look(machine.leftovers(environ, (), tmp_path))
    texts = [text for _, text in found]
    assert f"{left} is left of a dead run" in texts
    assert not any(str(alive) in text or "living" in text for text in texts)
    assert any("dead.control: nobody listens there any more" in text for text in texts)


class Systemd:
    """A host whose systemctl says what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.booted, self.shipped, self.installed = folder / "booted", folder / "shipped", folder / "installed"
        for made in (self.booted, self.shipped, self.installed):
            made.mkdir()
        self._folder = folder
        self.unit = "# a comment\n[Service]\nExecStart=/usr/bin/kumadp run\n"
        (self.shipped / "kumadp.service").write_text(self.unit)
        self.says("")

    def says(self, text: str) -> None:
        script = self._folder / "systemctl"
        script.write_text(f'#!/bin/sh\ncase "$*" in *" kumadp.service") printf "{text}";; esac\n')
        script.chmod(0o755)

    def look(self) -> list[tuple[str, str]]:
        return look(machine.systemd("", self.booted, self.shipped, {"PATH": f"{self._folder}:{os.defpath}"}))


def test_units_of_systemd(tmp_path: Path) -> None:
    assert look(machine.systemd("", tmp_path / "none")) == [("skipped", "systemd is not the init here")]
    at = Systemd(tmp_path)
    assert at.look() == [("skipped", "neither kumadp.service nor kumadp@.service is installed")]
    file = at.installed / "kumadp.service"
    file.write_text(at.unit + "\n; another comment\n")
    at.says(f"FragmentPath={file}\\nNeedDaemonReload=no\\nDropInPaths=\\n")
    assert at.look() == [("ok", "kumadp.service is the one that was shipped")]
    file.write_text(at.unit.replace("/usr/bin/", "/opt/venv/bin/"))
    assert at.look() == [("ok", "kumadp.service is the one that was shipped")]
    file.write_text(at.unit.replace("run", "run --drain-time=1s"))
    at.says(f"FragmentPath={file}\\nNeedDaemonReload=yes\\nDropInPaths=\\n")
    assert at.look() == [
        ("warning", "kumadp.service has changed on disk"),
        ("warning", f"{file} is not the one that comes with this kumadp"),
    ]
    (tmp_path / "systemctl").write_text("#!/bin/sh\nexec sleep 60\n")
    assert poll(at.look, what="an answer")[0][1].startswith("kumadp.service: systemctl does not answer")
