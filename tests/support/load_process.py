"""A separate process with an application, load on it through the mesh, and probes that must never fail.

It counts without waiting for the test, nor for the control plane in the test's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kumadp.dns.message import encode_query
from tests.support.file_lock import file_lock
from tests.support.load import REQUEST, load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Self

NAME = "backend"
RATE, CONNECTIONS, PAUSE = 1000.0, 4, 0.01
# Seconds between two probes, and how long an answer may take.
EVERY, WITHIN = 0.01, 10.0
ROOT = Path(__file__).parents[2]
_QUERY = encode_query("localhost", number=7)


@dataclass
class LoadReport:
    """Answers and failures of the load, and answers of the probes, by text with their number."""

    answers: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    watched: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def answered(self) -> int:
        """Return how many requests of the load were answered with 200."""
        return sum(self.answers.values())


class LoadProcess:
    """The running process; its application serves on ``port`` at once."""

    name = NAME
    module = "tests.support.load_process"

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self.port = int(self._read()["port"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        message: dict[str, Any] = json.loads(self._process.stdout.readline())
        return message

    def _write(self, what: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    @contextlib.contextmanager
    def on(
        self,
        port: int,
        *,
        watch: dict[str, tuple[int, str]] | None = None,
        names: int = 0,
        rate: float = RATE,
        also: tuple[int, ...] = (),
    ) -> Iterator[LoadReport]:
        """Put load on ``port`` while the block runs; the report is complete when the block is left.

        ``also`` are ports that get the same load, ``watch`` probes by name, port and path, ``names`` is the port of a
        DNS server.
        """
        # Two loads at a time would measure the host.
        with file_lock("load"):
            yield from self._load({"ports": [port, *also], "watch": watch or {}, "names": names, "rate": rate})

    def _load(self, what: dict[str, Any]) -> Iterator[LoadReport]:
        report = LoadReport()
        self._write(what)
        self._read()
        try:
            yield report
        finally:
            self._write({})
            results = self._read()
            report.answers, report.failures, report.watched = (
                results["answers"],
                results["failures"],
                results["watched"],
            )

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LoadedApplication(asyncio.Protocol):
    """Answers each request with its name."""

    _answer = f"HTTP/1.1 200 OK\r\ncontent-length: {len(NAME)}\r\n\r\n{NAME}".encode()

    def __init__(self) -> None:
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are not derived from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._read += data
        while b"\r\n\r\n" in self._read:
            self._read = self._read.partition(b"\r\n\r\n")[2]
            self._transport.write(self._answer)


async def _request(port: int, path: str) -> str:
    """Return status and body, or the error."""
    try:
        async with asyncio.timeout(WITHIN):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(REQUEST.replace(b"GET / ", f"GET {path} ".encode()))
                head, _, rest = (await reader.readuntil(b"\r\n\r\n")).decode().lower().partition("\r\n")
                length = int(rest.partition("content-length: ")[2].split("\r\n")[0] or "0")
                return f"{head.split()[1]} {(await reader.readexactly(length)).decode().strip()}"
            finally:
                writer.close()
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"


class _Datagram(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self.answered.done():
            self.answered.set_result(None)

    def error_received(self, exc: Exception) -> None:
        pass


async def _resolve(port: int) -> str:
    """Query a name, once more if there is no answer within a second."""
    loop = asyncio.get_running_loop()
    for tries in (1, 2):
        transport, protocol = await loop.create_datagram_endpoint(_Datagram, remote_addr=("127.0.0.1", port))
        try:
            transport.sendto(_QUERY)
            async with asyncio.timeout(1.0):
                await protocol.answered
                return "answered" if tries == 1 else "answered the second time"
        except TimeoutError:
            continue
        finally:
            transport.close()
    return "lost"


class _Watch:
    def __init__(self) -> None:
        self.stopped = False
        self.counts: dict[str, Counter[str]] = {}

    async def http(self, name: str, port: int, path: str) -> None:
        counts = self.counts[name] = Counter()
        while not self.stopped:
            counts[await _request(port, path)] += 1
            await asyncio.sleep(EVERY)

    async def dns(self, port: int) -> None:
        counts = self.counts["names"] = Counter()
        while not self.stopped:
            counts[await _resolve(port)] += 1
            await asyncio.sleep(EVERY)


def send(what: object) -> None:
    """Write one message to the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def read_line() -> str:
    """Read one message of the test; empty once it is gone."""
    return await asyncio.to_thread(sys.stdin.readline)


async def orders() -> AsyncIterator[dict[str, Any]]:
    """Serve the application, send its port, and yield what the test orders."""
    server = await asyncio.get_running_loop().create_server(LoadedApplication, "127.0.0.1", 0, backlog=1024)
    send({"port": server.sockets[0].getsockname()[1]})
    while line := await read_line():
        yield json.loads(line)


async def _main() -> None:
    async for order in orders():
        watch = _Watch()
        async with asyncio.TaskGroup() as group:
            for name, (port, path) in order["watch"].items():
                group.create_task(watch.http(name, port, path))
            if order["names"]:
                group.create_task(watch.dns(order["names"]))
            async with contextlib.AsyncExitStack() as stack:
                tallies = [
                    await stack.enter_async_context(
                        load(port, rate=order["rate"], connections=CONNECTIONS, pause=PAUSE)
                    )
                    for port in order["ports"]
                ]
                send({})
                await read_line()
            watch.stopped = True
        answers = sum((tally.answers for tally in tallies), Counter[str]())
        failures = sum((tally.failures for tally in tallies), Counter[str]())
        send({"answers": answers, "failures": failures, "watched": watch.counts})


if __name__ == "__main__":
    asyncio.run(_main())
