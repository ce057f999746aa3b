"""A separate process with an application, and steady traffic through a data plane that counts what is lost.

Traffic is of five kinds: requests on new connections to the inbound and to the outbound, queries of a name, requests to
``/ready``, and a virtual probe. A kind whose port is 0 is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import uvloop

from kumadp.dns.message import encode_query
from tests.support.load import Pace
from tests.support.load_process import NAME, LoadProcess, orders, read_line, send

# Requests and queries per second.
RATES = {"inbound": 200.0, "outbound": 200.0, "names": 50.0, "readiness": 20.0, "probes": 20.0}
# Seconds: as a client, a resolver and a kubelet wait. A query is sent once more.
WITHIN = {"inbound": 2.0, "outbound": 2.0, "names": 1.0, "readiness": 1.0, "probes": 1.0}
PATHS = {"inbound": "/", "outbound": "/", "readiness": "/ready", "probes": "/app/healthz"}
NAME_QUERIED = "backend.mesh"
# As many answers of each kind show that traffic flows.
STEADY = 20
_STEADY_WITHIN = 60.0


@dataclass
class KindReport:
    """What became of one kind of traffic; ``outage`` is the longest time without an answer, in seconds."""

    sent: int = 0
    lost: int = 0
    outage: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)


@dataclass
class Traffic:
    """Where traffic is sent: ports by kind, and with mTLS the folder of `XdsControlPlane.issue_client`."""

    ports: dict[str, int]
    credentials: str = ""


class FaultLoad(LoadProcess):
    """The running process; its application serves on ``port`` at once."""

    module = "tests.support.fault_load"

    def begin(self, traffic: Traffic) -> None:
        """Start the traffic; returns once each kind is answered. What is counted begins here."""
        self._write(asdict(traffic))
        missing = self._read()["missing"]
        assert missing == [], f"no steady traffic: {missing}"

    def end(self) -> dict[str, KindReport]:
        """Stop the traffic, and return what became of it by kind."""
        self._write({})
        return {kind: KindReport(**report) for kind, report in self._read().items()}


class _Tally:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._longest = 0.0
        self._last = time.monotonic()

    def answered(self, what: str) -> None:
        self._note_gap()
        self._last = time.monotonic()
        self.answers[what] += 1

    def failed(self, why: str) -> None:
        self.failures[why] += 1

    def _note_gap(self) -> None:
        self._longest = max(self._longest, time.monotonic() - self._last)

    def report(self) -> KindReport:
        self._note_gap()
        lost = self.failures.total()
        return KindReport(
            self.answers.total() + lost, lost, round(self._longest, 3), dict(self.answers), dict(self.failures)
        )


class _Exchange(asyncio.Protocol):
    """Sends one request; ``done`` gets its status and body."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._received = b""
        self.done: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        request = f"GET {self._path} HTTP/1.1\r\nhost: load\r\nconnection: close\r\n\r\n"
        # uvloop's are not derived from asyncio's.
        cast("asyncio.Transport", transport).write(request.encode())

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or self.done.done():
            return
        lines = head.decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        if len(body) >= int(headers.get("content-length", "0")):
            self.done.set_result((lines[0].split()[1], body.decode().strip()))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc if isinstance(exc, OSError) else ConnectionError("closed without an answer"))


async def _get(port: int, path: str, context: ssl.SSLContext | None) -> tuple[str, str]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(lambda: _Exchange(path), "127.0.0.1", port, ssl=context)
    try:
        return await protocol.done
    finally:
        transport.abort()


class _Datagram(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _query(port: int, query: bytes) -> str:
    """Return the code of the answer and its last four bytes, which are the address; raises OSError, TimeoutError."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(_Datagram, remote_addr=("127.0.0.1", port))
    try:
        transport.sendto(query)
        async with asyncio.timeout(WITHIN["names"]):
            answer = await protocol.answer
        return f"code {answer[3] & 0xF}, {'.'.join(map(str, answer[-4:])) if answer[7] else 'no address'}"
    finally:
        transport.close()


class _Run:
    """The traffic of one order."""

    def __init__(self, traffic: Traffic) -> None:
        self.kinds = {kind: port for kind, port in traffic.ports.items() if port}
        self.tallies = {kind: _Tally() for kind in self.kinds}
        self.stopped = False
        self._context: ssl.SSLContext | None = None
        if traffic.credentials:
            self._context = ssl.create_default_context(cafile=f"{traffic.credentials}/mesh-ca.pem")
            self._context.check_hostname = False
            self._context.load_cert_chain(f"{traffic.credentials}/client.pem")
        self._query = encode_query(NAME_QUERIED, number=7)

    async def steadily(self, kind: str) -> None:
        """Send traffic of one kind at its rate until stopped; what is under way then is waited for."""
        once = self._resolve if kind == "names" else self._request
        pace = Pace(RATES[kind])
        async with asyncio.TaskGroup() as group:
            while not self.stopped:
                group.create_task(once(kind))
                await pace.wait()

    async def _request(self, kind: str) -> None:
        context = self._context if kind == "inbound" else None
        try:
            async with asyncio.timeout(WITHIN[kind]):
                status, body = await _get(self.kinds[kind], PATHS[kind], context)
        except TimeoutError:
            self.tallies[kind].failed(f"no answer within {WITHIN[kind]:.0f} s")
        except (OSError, ValueError) as error:
            self.tallies[kind].failed(f"{type(error).__name__}: {error}")
        else:
            # A readiness of 503 is an answer.
            if kind == "readiness" or (status, body) == ("200", NAME):
                self.tallies[kind].answered(f"{status} {body}"[:60])
            else:
                self.tallies[kind].failed(f"{status} {body}"[:60])

    async def _resolve(self, kind: str) -> None:
        tally = self.tallies[kind]
        try:
            answer = await self._first_or_second(self.kinds[kind])
        except (OSError, TimeoutError) as error:
            tally.failed(str(error) or f"no answer within {WITHIN['names']:.0f} s, twice")
            return
        (tally.answered if answer == "code 0, 127.0.0.1" else tally.failed)(answer)

    async def _first_or_second(self, port: int) -> str:
        with contextlib.suppress(OSError, TimeoutError):
            return await _query(port, self._query)
        return await _query(port, self._query)

    async def missing(self) -> list[str]:
        """Return the kinds that are not answered steadily, with their failures; none once all are."""
        end = time.monotonic() + _STEADY_WITHIN
        while time.monotonic() < end:
            if all(tally.answers.total() >= STEADY for tally in self.tallies.values()):
                return []
            await asyncio.sleep(0.05)
        few = {kind: tally for kind, tally in self.tallies.items() if tally.answers.total() < STEADY}
        return [f"{kind}: {dict(tally.failures)}" for kind, tally in few.items()]


async def _main() -> None:
    async for order in orders():
        run = _Run(Traffic(**order))
        async with asyncio.TaskGroup() as group:
            for kind in run.kinds:
                group.create_task(run.steadily(kind))
            missing = await run.missing()
            for tally in run.tallies.values():
                tally.reset()
            send({"missing": missing})
            await read_line()
            run.stopped = True
            reports = {kind: tally.report() for kind, tally in run.tallies.items()}
        for kind, tally in run.tallies.items():
            # Until the end: an outage that goes on counts, the wait for the last answers does not.
            reports[kind] = KindReport(**{**asdict(tally.report()), "outage": reports[kind].outage})
        send({kind: asdict(report) for kind, report in reports.items()})


if __name__ == "__main__":
    uvloop.run(_main())
