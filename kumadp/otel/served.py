"""One backend of the pipe: a gRPC server that passes on what Envoy sends, and answers as the collector does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING

from kumadp.grpc.call import OK, StreamEnded
from kumadp.grpc.server import GrpcServer
from kumadp.host.log.secrets import redact
from kumadp.otel.environment import SIGNALS
from kumadp.otel.senders import Refused, method, sender_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from socket import socket

    from kumadp.grpc.call import Call
    from kumadp.otel.pipe import Wanted
    from kumadp.otel.routes import Route, Target
    from kumadp.otel.senders import Sender

FAILED_PRECONDITION, RESOURCE_EXHAUSTED = 9, 8
# Messages of one backend that are on their way at once; more are refused, so that a slow collector costs no memory.
MOST_AT_ONCE = 64
# Of one message, unpacked, in bytes; Envoy and the SDK send less than the 4 MB that gRPC's servers take by default.
LARGEST_MESSAGE = 16 << 20
# How long what is on its way may take once its backend is not wanted any more, or at the stop (seconds).
_FINISH = 3.0


class _Line:
    """A signal of a backend, and what has become of its messages."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.sent = self.failed = self.refused = 0
        self.why = ""
        self.failed_at: float | None = None

    def status(self) -> dict[str, object]:
        why_not = self.route.why_not
        return {
            "to": "" if why_not else str(self.route),
            "why_not": why_not,
            "sent": self.sent,
            "failed": self.failed,
            "refused": self.refused,
            "last_failure": self.why,
            "last_failure_at": self.failed_at,
        }


class Served:
    """One backend."""

    def __init__(self, wanted: Wanted, sock: socket, concern: Callable[[str, str], None]) -> None:
        self.wanted = wanted
        self.label = wanted.name or wanted.socket.name
        self._socket = sock
        self._concern = concern
        self._lines = {signal: _Line(wanted.routes[signal]) for signal in SIGNALS}
        self._senders: dict[Target, Sender] = {}
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        handlers = {method(signal): self._handler(signal) for signal in SIGNALS}
        own = os.getuid()
        self._server = GrpcServer(handlers, lambda uid: uid in {own, 0}, name=f"OpenTelemetry {self.label}")

    async def start(self) -> None:
        """Accept connections."""
        self._server.start(self._socket)

    async def close(self) -> None:
        """Take nothing more; what is on its way has a moment to arrive."""
        self._server.stop()
        self._socket.close()
        with contextlib.suppress(OSError):
            self.wanted.socket.unlink(missing_ok=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FINISH):
                await self._idle.wait()
        await self._server.close()
        await asyncio.gather(*(sender.close() for sender in self._senders.values()))

    def status(self) -> dict[str, object]:
        """JSON types, by signal; times in seconds since 1970."""
        return {"name": self.wanted.name, "signals": {signal: line.status() for signal, line in self._lines.items()}}

    def _handler(self, signal: str) -> Callable[[Call, int], Awaitable[None]]:
        async def handle(call: Call, _pid: int) -> None:
            await self._take(signal, call)

        return handle

    async def _take(self, signal: str, call: Call) -> None:
        line = self._lines[signal]
        if line.route.why_not:
            line.refused += 1
            await call.finish(FAILED_PRECONDITION, f"OpenTelemetry {signal} are not sent: {line.route.why_not}")
            return
        if self._under_way >= MOST_AT_ONCE:
            line.refused += 1
            await call.finish(RESOURCE_EXHAUSTED, f"{MOST_AT_ONCE} messages are on their way to the collector")
            return
        self._under_way += 1
        self._idle.clear()
        try:
            await self._pass_on(signal, line, call)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _pass_on(self, signal: str, line: _Line, call: Call) -> None:
        try:
            message = await call.receive(unpack=True, largest=LARGEST_MESSAGE)
        except StreamEnded as ended:
            # Too large, or its sender has gone and hears nothing.
            line.refused += 1
            await call.finish(RESOURCE_EXHAUSTED, ended.text)
            return
        try:
            answer = await self._sender(line.route.target).send(signal, line.route, message)
        except Refused as error:
            text = redact(" ".join(str(error).split()))
            line.failed += 1
            line.why, line.failed_at = text, time.time()
            self._tell()
            await call.finish(error.status, text)
            return
        line.sent += 1
        line.why = ""
        self._tell()
        await call.send(answer)
        await call.finish(OK)

    def _sender(self, target: Target) -> Sender:
        if target not in self._senders:
            self._senders[target] = sender_for(target)
        return self._senders[target]

    def _tell(self) -> None:
        failing = {signal: line.why for signal, line in self._lines.items() if line.why}
        text = "; ".join(f"{signal}: {why}" for signal, why in failing.items())
        self._concern(self.label, text)
