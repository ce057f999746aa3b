"""A running `tests.support.reexec_program`, and load on it."""

from __future__ import annotations

import contextlib
import http.client
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
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.support.command import ROOT
from tests.support.poll import poll
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "eyJ-a-token-that-nobody-may-see"
LOOPS = ["asyncio", "uvloop"]
COUNTING = "n=0; while [ ! -e {folder}/end ]; do n=$((n+1)); echo line $n; sleep 0.002; done; echo last $n; exit 7"


class Program:
    """A running `tests.support.reexec_program`."""

    def __init__(self, folder: Path, loop: str, fate: str, child: str) -> None:
        self.folder = folder
        self.tcp, self.udp = free_ports(2)
        plan = {"tcp": self.tcp, "udp": self.udp, "fate": fate, "child": child.format(folder=folder)}
        (folder / "plan.json").write_text(json.dumps(plan))
        self.output = (folder / "output").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.reexec_program", str(folder), loop],
            env={**os.environ, "PYTHONPATH": str(ROOT), "SECRET": SECRET, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    def state(self) -> dict[str, Any]:
        """Return its state; {} if it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.tcp, timeout=30)
        try:
            connection.request("GET", "/")
            state: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException):
            assert self.process.poll() is None, (self.folder / "output").read_text()
            return {}
        finally:
            connection.close()
        return state

    def start(self) -> dict[str, Any]:
        return poll(self.state, what="its answer", deadline=60)

    def again(self) -> dict[str, Any]:
        """Make it re-execute itself; return its state after that."""
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
    """Load over TCP with a connection per request, over the Unix socket and over UDP, until the block ends.

    ``longest`` is the time of the slowest answer in seconds.
    """

    def __init__(self, running: Program) -> None:
        self.running = running
        self.done = threading.Event()
        self.counts = {"tcp": 0, "unix": 0, "udp": 0}
        self.failed: list[str] = []
        self.longest = 0.0
        self.threads = [threading.Thread(target=self._request, args=(name,)) for name in self.counts]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        for thread in self.threads:
            thread.join()

    def request_more(self, number: int) -> None:
        """Return once that many more requests of each kind were sent."""
        targets = {name: count + number for name, count in self.counts.items()}
        poll(lambda: all(self.counts[name] >= targets[name] for name in targets), what="requests")

    def _request(self, name: str) -> None:
        while not self.done.wait(0.003):
            begun = time.monotonic()
            try:
                getattr(self, f"_{name}")()
            except OSError as error:
                self.failed.append(f"{name} {self.counts[name]}: {error!r}")
            self.longest = max(self.longest, time.monotonic() - begun)
            self.counts[name] += 1

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
        question = str(self.counts["udp"]).encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(30)
            client.connect(("127.0.0.1", self.running.udp))
            client.send(question)
            if client.recv(100) != question:
                raise OSError("another answer")


def assert_no_line_is_lost(running: Program) -> None:
    last = poll(lambda: re.search(r"child: last (\d+)$", running.log(), re.MULTILINE), what="its last line in the log")
    numbers = re.findall(r"child: line (\d+)$", running.log(), re.MULTILINE)
    assert [int(number) for number in numbers] == list(range(1, int(last[1]) + 1))
