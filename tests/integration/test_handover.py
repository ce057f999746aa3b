"""Re-execution of a real program: same pid, its child still its own, its sockets never away, no byte lost."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support.command import ROOT
from tests.support.poll import poll
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process

SECRET = "eyJ-a-token-that-nobody-may-see"
LOOPS = ["asyncio", "uvloop"]
COUNTING = "n=0; while [ ! -e {folder}/end ]; do n=$((n+1)); echo line $n; sleep 0.002; done; echo last $n; exit 7"


class Program:
    """A running `tests.support.reexec`."""

    def __init__(self, folder: Path, loop: str, fate: str, child: str) -> None:
        self.folder = folder
        self.tcp, self.udp = free_ports(2)
        plan = {"tcp": self.tcp, "udp": self.udp, "fate": fate, "child": child.format(folder=folder)}
        (folder / "plan.json").write_text(json.dumps(plan))
        self.output = (folder / "output").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.reexec", str(folder), loop],
            env={**os.environ, "PYTHONPATH": str(ROOT), "SECRET": SECRET, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    def state(self) -> dict[str, Any]:
        """What it says of itself; {} where it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.tcp, timeout=30)
        try:
            connection.request("GET", "/")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException):
            assert self.process.poll() is None, (self.folder / "output").read_text()
            return {}
        finally:
            connection.close()
        return found

    def start(self) -> dict[str, Any]:
        return poll(self.state, what="its answer", deadline=60)

    def again(self) -> dict[str, Any]:
        """Have it re-execute itself; its state after that."""
        before = self.start()["count"]
        self.process.send_signal(signal.SIGUSR1)
        return poll(lambda: self._after(before), what="the next program", deadline=60)

    def _after(self, count: int) -> dict[str, Any] | None:
        state = self.state()
        return state if state.get("count", -1) > count else None

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            self.process.kill()
        self.process.wait()
        self.output.close()


@contextlib.contextmanager
def program(loop: str, *, fate: str = "kill", child: str = COUNTING) -> Iterator[Program]:
    folder = Path(tempfile.mkdtemp(prefix="k"))
    running = Program(folder, loop, fate, child)
    try:
        yield running
    finally:
        running.close()
        shutil.rmtree(folder)


class Load:
    """Asks over TCP with a connection each, over the Unix socket and over UDP, until it is ended."""

    def __init__(self, running: Program) -> None:
        self.running = running
        self.done = threading.Event()
        self.asked = {"tcp": 0, "unix": 0, "udp": 0}
        self.failed: list[str] = []
        self.threads = [threading.Thread(target=self._ask, args=(name,)) for name in self.asked]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        for thread in self.threads:
            thread.join()

    def ask_more(self, number: int) -> None:
        """Return once that many more questions of each kind were asked."""
        wanted = {name: asked + number for name, asked in self.asked.items()}
        poll(lambda: all(self.asked[name] >= wanted[name] for name in wanted), what="questions")

    def _ask(self, name: str) -> None:
        while not self.done.wait(0.003):
            try:
                getattr(self, f"_{name}")()
            except OSError as error:
                self.failed.append(f"{name} {self.asked[name]}: {error!r}")
            self.asked[name] += 1

    def _tcp(self) -> None:
        with socket.create_connection(("127.0.0.1", self.running.tcp), timeout=30) as client:
            self._http(client)

    def _unix(self) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(self.running.folder / "s"))
            self._http(client)

    def _http(self, client: socket.socket) -> None:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = b""
        while part := client.recv(65536):
            answer += part
        if not answer.startswith(b"HTTP/1.1 200"):
            raise OSError(f"answered {answer!r}")

    def _udp(self) -> None:
        question = str(self.asked["udp"]).encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(30)
            client.connect(("127.0.0.1", self.running.udp))
            client.send(question)
            if client.recv(100) != question:
                raise OSError("another answer")


def assert_no_line_is_lost(running: Program) -> None:
    last = poll(lambda: re.search(r"child: last (\d+)$", running.log(), re.MULTILINE), what="its last line in the log")
    found = re.findall(r"child: line (\d+)$", running.log(), re.MULTILINE)
    assert [int(number) for number in found] == list(range(1, int(last[1]) + 1))


@pytest.mark.parametrize("fate", ["kill", "keep"])
@pytest.mark.parametrize("loop", LOOPS)
def test_the_same_process_goes_on_and_nothing_is_lost(loop: str, fate: str) -> None:
    with program(loop, fate=fate) as running:
        first = running.start()
        inode = (running.folder / "s").stat().st_ino
        after = running.again()
        with Load(running) as load:
            for _ in range(6):
                running.again()
                load.ask_more(10)
        assert load.failed == []
        later = running.start()
        assert later["pid"] == first["pid"] == running.process.pid
        assert later["child"] == first["child"]
        assert psutil.Process(later["child"]).ppid() == running.process.pid
        assert (later["count"], later["failed"], later["unclaimed"]) == (7, "", [])
        assert later["secret"] == len(SECRET)
        assert later["work"] == first["work"]
        assert later["descriptors"] <= after["descriptors"]
        assert (running.folder / "s").stat().st_ino == inode
        (running.folder / "end").touch()
        ended = poll(lambda: found if (found := running.state())["ended"] else None, what="the child's end")
        assert ended["ended"] == "exit code 7"
        assert_no_line_is_lost(running)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_handed_over_is_seen_nowhere_and_no_child_has_it(loop: str) -> None:
    with program(loop, child="ls -l /proc/self/fd; sleep 60") as running:
        running.start()
        running.again()
        pid = running.process.pid
        process = Path(f"/proc/{pid}")
        state = running.again()
        for name in ("cmdline", "environ"):
            assert SECRET.encode() not in (process / name).read_bytes().replace(f"SECRET={SECRET}".encode(), b"")
        assert not [one for one in process.joinpath("fd").iterdir() if "memfd" in points_to(one)]
        for path in running.folder.rglob("*"):
            if path.is_file():
                assert SECRET not in path.read_text(errors="replace"), path
        assert inheritable(pid) <= {0, 1, 2}
        descriptors = list(Path(f"/proc/{state['child']}/fd").iterdir())
        assert len(descriptors) == 3


def inheritable(pid: int) -> set[int]:
    """Descriptors of a process that its children would get."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            flags = re.findall(r"^flags:\s+(\d+)", entry.read_text(), re.MULTILINE)[0]
            if not int(flags, 8) & os.O_CLOEXEC:
                found.add(int(entry.name))
    return found


def points_to(path: Path) -> str:
    try:
        return str(path.readlink())
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize("loop", LOOPS)
def test_a_child_that_ends_meanwhile_tells_its_exit_code(loop: str) -> None:
    # It ends while the old program has its last moments or the new one its first: the next answer knows.
    with program(loop, child="while kill -0 $PPID; do [ -e {folder}/end ] && exit 3; done") as running:
        running.start()
        running.process.send_signal(signal.SIGUSR1)
        (running.folder / "end").touch()
        found = poll(lambda: state if (state := running.state()).get("ended") else None, what="its end")
        assert found["ended"] == "exit code 3"


@pytest.mark.parametrize("loop", LOOPS)
def test_no_signal_is_lost(loop: str) -> None:
    with program(loop, child="sleep 60") as running:
        count = running.start()["count"]
        for sent in itertools.count(1):
            if sent % 10 == 1:
                running.process.send_signal(signal.SIGUSR1)
            running.process.send_signal(signal.SIGUSR2)
            poll(lambda sent=sent: running.state().get("usr2") == sent, what=f"signal {sent}")  # type: ignore[misc]
            if running.start()["count"] >= count + 6:
                break


@pytest.mark.parametrize("fate", ["kill", "keep"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_child_s_fate_is_as_before(loop: str, fate: str) -> None:
    with program(loop, fate=fate, child="exec sleep 60") as running:
        running.start()
        running.again()
        child = psutil.Process(running.again()["child"])
        running.process.kill()
        running.process.wait()
        if fate == "kill":
            poll(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, what="its end")
        else:
            assert child.status() != psutil.STATUS_ZOMBIE
            child.kill()


@pytest.mark.parametrize("loop", LOOPS)
def test_where_the_exec_fails_the_old_program_goes_on(loop: str) -> None:
    with program(loop) as running:
        first = running.start()
        (running.folder / "refuse").touch()
        with Load(running) as load:
            for _ in range(5):
                running.process.send_signal(signal.SIGUSR1)
                load.ask_more(10)
                failed = poll(lambda: found if (found := running.state())["failed"] else None, what="the failure")
        assert load.failed == []
        assert failed["failed"] == "/none/python cannot be run: No such file or directory"
        assert (failed["count"], failed["pid"]) == (0, first["pid"])
        assert inheritable(first["pid"]) <= {0, 1, 2}
        (running.folder / "refuse").unlink()
        assert running.again()["child"] == first["child"]
        (running.folder / "end").touch()
        poll(lambda: running.state()["ended"] == "exit code 7", what="the child's end")
        assert_no_line_is_lost(running)
