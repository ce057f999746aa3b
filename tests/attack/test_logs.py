"""Nobody reads the log, or a client floods it: kumadp serves, and the log has a few lines about it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from kumadp.daemon.control_client import query_status
from kumadp.errors import ExitCode
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.daemon import Daemon, Ports, get, workload, write_mesh
from tests.support.poll import poll
from tests.support.standalone import run_standalone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANY = 3000
BAD = (
    b"GET /\0 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET " + b"/a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /app/healthz HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"GET /app/healthz HTTP/1.1\r\nhost: x\r\nhost: y\r\ncontent-length: -1\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET //[::1:x HTTP/1.1\r\nhost: [\r\n\r\n",
    b"POST /app/healthz HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd",
    b"GET /app/%zz%00?%ff=%c0%af HTTP/1.1\r\nhost: \xff\xfe\r\nx-kuma-probes-timeout: \xb2\r\n\r\n",
)


@contextlib.contextmanager
def running(tmp_path: Path, prefix: tuple[str, ...] = ()) -> Iterator[Daemon]:
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        folder = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        with run_standalone(folder, ports, prefix=prefix) as daemon:
            yield daemon


def send(port: int, data: bytes) -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass


@pytest.mark.process
@pytest.mark.attack
def test_bad_requests_are_counted_and_logged_in_a_line_a_minute(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        before = len(daemon.output().splitlines())
        for number in range(MANY):
            send(daemon.ports.probes, BAD[number % len(BAD)])
        status = query_status(control_socket_path("web", daemon.environment))
        assert status["connections"]["virtual probes"]["bad_requests"] >= MANY / len(BAD) * 5
        for port in (daemon.ports.readiness, daemon.ports.probes):
            for bad in BAD:
                send(port, bad)
        assert get(daemon.ports.readiness, "/ready") == (200, "READY")
        assert "Traceback" not in daemon.output()
        assert len(daemon.output().splitlines()) - before < 10
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


@pytest.mark.process
@pytest.mark.attack
def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    fifo = tmp_path / "unread"
    os.mkfifo(fifo)
    unread = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(unread, b"x" * 4096)
        with running(tmp_path, ("sh", "-c", f'exec "$@" >{fifo} 2>&1', "sh")) as daemon:
            for number in range(MANY):
                send(daemon.ports.probes, BAD[number % len(BAD)])
            assert get(daemon.ports.readiness, "/ready") == (200, "READY")
            assert get(daemon.ports.probes, "/app/healthz") == (200, "ok")
            assert get(daemon.ports.inbound) == (200, "web")
            daemon.terminate()
            assert daemon.wait() == ExitCode.OK
    finally:
        os.close(unread)


# What libraries do on the loop, with standard error a pipe that nobody reads and that is full.
NOISE = """
import asyncio, ctypes, gc, logging, os, sys, threading, warnings
from kumadp.host.log.output import setup_logging
read, write = os.pipe()
os.dup2(write, 2)
os.set_blocking(2, False)
try:
    while True:
        os.write(2, b"x" * 4096)
except BlockingIOError:
    pass
os.set_blocking(2, True)
made = setup_logging(level="info", fmt="text", output_path="", max_files=1, max_size_mb=1, max_age_days=1)
out = os.fdopen(os.dup(1), "w")
made.capture()

class Broken:
    def __del__(self):
        raise ValueError("unraisable")

async def fails():
    raise ValueError("not retrieved")

async def main():
    loop = asyncio.get_running_loop()
    for number in range(2000):
        print("to standard output", number)
        print("to standard error", number, file=sys.stderr)
        warnings.warn(f"warning {number}", DeprecationWarning)
        for name in ("asyncio", "aiohttp.server", "httpx", "grpclib", "hpack", "h2", "opentelemetry.sdk", "grpc"):
            logging.getLogger(name).error("a library's line %d", number)
        Broken()
        loop.call_exception_handler({"message": f"called {number}"})
        if number % 100 == 0:
            asyncio.create_task(fails())
            thread = threading.Thread(target=lambda: 1 / 0)
            thread.start()
            await asyncio.to_thread(thread.join)
        await asyncio.sleep(0)
    gc.collect()

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
made.close()
out.write("done")
out.flush()
os._exit(0)
"""


@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=pytest.mark.attack)])
def test_nothing_that_a_library_prints_or_logs_blocks_the_loop(loop: str) -> None:
    done = subprocess.run([sys.executable, "-c", NOISE, loop], stdout=subprocess.PIPE, timeout=60, check=True)
    assert done.stdout == b"done"


def test_errors_of_libraries_are_logged_in_few_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    program = NOISE.replace("while True:\n        os.write", "while False:\n        os.write")
    program = program.replace('output_path=""', f"output_path={str(path)!r}")
    done = subprocess.run([sys.executable, "-c", program, "asyncio"], stdout=subprocess.PIPE, timeout=60, check=True)
    assert done.stdout == b"done"
    text = path.read_text()
    for part in ("to standard output 0", "to standard error 0", "warning 0", "a library's line 0", "unraisable"):
        assert part in text
    for part in ("called 0", "division by zero", "not retrieved", "aiohttp.server: "):
        assert part in text
    # On a slow machine they take longer than lines are held back for, or come faster than they are written.
    lines = [line for line in text.splitlines() if "aiohttp.server: a library's line" in line]
    counts = [re.search(r"\((\d+) more like this in \d+ s\)", line) for line in lines]
    reported = sum(int(count[1]) if count else 1 for count in counts)
    assert reported == 2000 or (reported > 0 and "lines were lost" in text)
    assert len(lines) < 20
    assert len(text.splitlines()) < 200


def test_lines_that_were_lost_are_reported_once_the_log_is_read_again() -> None:
    program = """
import logging, os
from kumadp.host.log.output import QUEUE_LENGTH, setup_logging
made = setup_logging(level="info", fmt="text", output_path="", max_files=1, max_size_mb=1, max_age_days=1)
for number in range(QUEUE_LENGTH * 2):
    logging.getLogger("kumadp.child.envoy").info("%s", f"line {number} " + "x" * 10_000)
print(made.dropped, flush=True)
input()
logging.getLogger("kumadp.test").info("the last line")
made.close()
os._exit(0)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        # 16 MiB of them may wait, not 10,000.
        assert int(process.stdout.readline()) > 15_000
        lines: list[str] = []
        reading = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
        reading.start()
        poll(lambda: len(lines) > 1000, what="lines that waited")
        process.stdin.write("\n")
        process.stdin.flush()
        reading.join(30)
        assert any("lines were lost" in line for line in lines)
