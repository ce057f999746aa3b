"""Server of one backend: a gRPC server that forwards Envoy's messages to the collector and returns its responses."""

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
from kumadp.otel.senders import ExportRejected, method, sender_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from socket import socket

    from kumadp.grpc.call import Call
    from kumadp.host.net.connection_limit import ConnectionLimits
    from kumadp.otel.backend_spec import BackendSpec, PipeLimits
    from kumadp.otel.routes import Collector, Route
    from kumadp.otel.senders import Sender

FAILED_PRECONDITION, RESOURCE_EXHAUSTED = 9, 8
# How long messages under way may take once their backend was removed, or when kumadp stops (seconds).
_FINISH_SECONDS = 3.0


class _SignalState:
    """The route of a signal, and counts of its messages."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.sent = self.failed = self.refused = 0
        self.last_failure = ""
        self.failed_at: float | None = None

    def status(self) -> dict[str, object]:
        why_not = self.route.why_not
        return {
            "to": "" if why_not else str(self.route),
            "why_not": why_not,
            "sent": self.sent,
            "failed": self.failed,
            "refused": self.refused,
            "last_failure": self.last_failure,
            "last_failure_at": self.failed_at,
        }


class BackendServer:
    """Serves one backend. ``set_warning`` is called with its label and a text, empty when all signals are sent."""

    def __init__(
        self,
        spec: BackendSpec,
        sock: socket,
        set_warning: Callable[[str, str], None],
        limits: PipeLimits,
        connections: ConnectionLimits | None = None,
    ) -> None:
        self.spec = spec
        self.label = spec.name or spec.socket.name
        self._socket = sock
        self._set_warning = set_warning
        self._limits = limits
        self._signals = {signal: _SignalState(spec.routes[signal]) for signal in SIGNALS}
        self._senders: dict[Collector, Sender] = {}
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        handlers = {method(signal): self._handler(signal) for signal in SIGNALS}
        own_uid = os.getuid()
        self._server = GrpcServer(
            handlers, lambda uid: uid in {own_uid, 0}, name=f"OpenTelemetry {self.label}", connections=connections
        )

    async def start(self) -> None:
        """Accept connections."""
        self._server.start(self._socket)

    async def close(self) -> None:
        """Accept no more messages, give those under way a moment to finish, and close all connections."""
        self._server.stop()
        self._socket.close()
        with contextlib.suppress(OSError):
            self.spec.socket.unlink(missing_ok=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FINISH_SECONDS):
                await self._idle.wait()
        await self._server.close()
        await asyncio.gather(*(sender.close() for sender in self._senders.values()))

    def status(self) -> dict[str, object]:
        """Return JSON types, by signal; times in seconds since 1970."""
        return {"name": self.spec.name, "signals": {signal: state.status() for signal, state in self._signals.items()}}

    def _handler(self, signal: str) -> Callable[[Call, int], Awaitable[None]]:
        async def handle(call: Call, _pid: int) -> None:
            await self._handle(signal, call)

        return handle

    async def _handle(self, signal: str, call: Call) -> None:
        state = self._signals[signal]
        if state.route.why_not:
            state.refused += 1
            await call.finish(FAILED_PRECONDITION, f"OpenTelemetry {signal} are not sent: {state.route.why_not}")
            return
        if self._under_way >= self._limits.messages:
            state.refused += 1
            text = f"{self._limits.messages} messages are on their way to the collector"
            await call.finish(RESOURCE_EXHAUSTED, text)
            return
        self._under_way += 1
        self._idle.clear()
        try:
            await self._forward(signal, state, call)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _forward(self, signal: str, state: _SignalState, call: Call) -> None:
        try:
            message = await call.receive(unpack=True, largest=self._limits.message_size)
        except StreamEnded as ended:
            # Too large, or the client has disconnected and receives no status.
            state.refused += 1
            await call.finish(RESOURCE_EXHAUSTED, ended.text)
            return
        try:
            response = await self._sender(state.route.collector).send(signal, state.route, message)
        except ExportRejected as error:
            text = redact(" ".join(str(error).split()))
            state.failed += 1
            state.last_failure, state.failed_at = text, time.time()
            self._update_warning()
            await call.finish(error.status, text)
            return
        state.sent += 1
        state.last_failure = ""
        self._update_warning()
        await call.send(response)
        await call.finish(OK)

    def _sender(self, collector: Collector) -> Sender:
        if collector not in self._senders:
            self._senders[collector] = sender_for(collector)
        return self._senders[collector]

    def _update_warning(self) -> None:
        failures = {signal: state.last_failure for signal, state in self._signals.items() if state.last_failure}
        self._set_warning(self.label, "; ".join(f"{signal}: {failure}" for signal, failure in failures.items()))
