"""The one discovery stream to the control plane: dialled, kept, and dialled again."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from kumadp.addresses import authority, server_name, with_port
from kumadp.errors import KumadpError
from kumadp.grpc.call import LARGEST, Call, StreamEnded
from kumadp.grpc.client import GrpcConnection, connect
from kumadp.host.log.secrets import redact, register
from kumadp.host.log.throttle import Throttle
from kumadp.host.net.host_lookup import numeric_addresses
from kumadp.relay.refusal import StreamBackoff, StreamRefusal, classify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kumadp.grpc.call import Oversized

log = logging.getLogger("kumadp.relay")

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
# Seconds between pings, and until a silent peer is given up. Kuma refuses more than one each 15 s.
PING = (20.0, 15.0)
# A stream that was open for so long (seconds) has earned a fresh back-off.
EARNED = 5.0
RESOLVE_SECONDS = 5.0
# Characters of what a control plane says that are kept.
LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class Dial:
    """How to reach the control plane, made anew for each attempt. The TLS context is the attempt's own."""

    addresses: tuple[tuple[str, int], ...]
    """Host or address, port; tried in this order, from the last good one on."""
    tls: ssl.SSLContext | None = None
    server_name: str = ""
    """Name to verify and send as SNI; empty is the host."""
    token: str = field(default="", repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further gRPC metadata, without the token's ``authorization``."""


class UpstreamState(enum.StrEnum):
    """What the upstream does."""

    CONNECTING = "connecting"
    OPEN = "open"
    """The control plane has answered on this stream."""
    BACKOFF = "backoff"
    HELD_CLOSED = "held-closed"


class UpstreamListener(Protocol):
    """Who owns the upstream."""

    def upstream_opened(self) -> None:
        """A stream can be written to."""

    async def upstream_message(self, data: bytes) -> None:
        """A response came; the next is read when this returns."""

    def upstream_oversized(self, message: Oversized) -> bool:
        """A response was too large and is dropped. Whether it can be refused, so that the stream may go on."""

    def upstream_closed(self) -> None:
        """The stream is over."""


@dataclass(slots=True)
class UpstreamFacts:
    """What the status shows of the upstream; times are the clock's."""

    state: UpstreamState = UpstreamState.CONNECTING
    since: float = 0.0
    address: str = ""
    last_error: str = ""
    refusal: StreamRefusal | None = None
    refused_since: float | None = None


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why there is no stream to a control plane, and to which."""

    error: Exception
    where: str = ""


class UpstreamConnection:
    """Keeps one ADS stream; further streams (health) go over the same connection."""

    def __init__(
        self,
        dial: Callable[[], Awaitable[Dial]],
        listener: UpstreamListener,
        *,
        clock: Callable[[], float],
        on_change: Callable[[], None],
        broken_at: float | None = None,
        largest: int = LARGEST,
    ) -> None:
        self._largest = largest
        self._dial = dial
        self._listener = listener
        self._clock = clock
        self._on_change = on_change
        self._backoff = StreamBackoff()
        self._throttle = Throttle()
        self._outgoing: asyncio.Queue[bytes] | None = None
        self._wire: GrpcConnection | None = None
        self._metadata: dict[str, str] = {}
        self._good = ("", 0, "")
        self._broken_at = broken_at
        self._held = False
        self._changed = asyncio.Event()
        self._round_task: asyncio.Task[_Failure] | None = None
        self.facts = UpstreamFacts(since=clock())

    def send(self, data: bytes) -> None:
        """Queue a request; without a stream it is dropped, as the next stream begins with subscriptions anew."""
        if self._outgoing is not None:
            self._outgoing.put_nowait(data)

    def close(self, reason: str) -> None:
        """End the stream, so that the control plane sees it at once, and stay closed until `reopen`."""
        if self._held:
            return
        if self.facts.state is UpstreamState.OPEN:
            log.info("the stream to the control plane is closed: %s", reason)
        self._held = True
        if self._round_task is not None:
            self._round_task.cancel()
        self._signal()

    def reopen(self) -> None:
        """Dial again after `close`."""
        if self._held:
            self._held = False
            self._backoff.reset()
            self._signal()

    async def call(self, path: str) -> Call:
        """A further stream on the connection, as soon as the control plane has answered on the first."""
        while True:
            if self._wire is None or self.facts.state is not UpstreamState.OPEN:
                await self._changed.wait()
                continue
            wire = self._wire
            try:
                return await wire.call(path, self._metadata)
            except StreamEnded:
                await self._changed.wait()

    async def run(self) -> None:
        """Dial and keep the stream until cancelled; then end it."""
        try:
            while True:
                if self._held:
                    self._move(UpstreamState.HELD_CLOSED)
                    await self._changed.wait()
                    continue
                self._move(UpstreamState.CONNECTING)
                self._round_task = asyncio.create_task(self._round(), name="relay upstream")
                await asyncio.wait({self._round_task})
                if self._round_task.cancelled():
                    continue
                wait = self._judge(self._ended(self._round_task))
                self._move(UpstreamState.BACKOFF)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
        finally:
            if self._round_task is not None:
                self._round_task.cancel()
                await asyncio.wait({self._round_task})

    def _ended(self, attempt: asyncio.Task[_Failure]) -> _Failure:
        """Why it ended. A bug is told and tried again too: without this stream no Envoy could be started any more."""
        error = attempt.exception()
        if error is None:
            return attempt.result()
        if not isinstance(error, Exception):
            raise error
        if self._throttle.admit("a bug", self._clock()) is not None:
            log.error("a bug in kumadp", exc_info=error)
        return _Failure(error)

    async def _round(self) -> _Failure:
        """Try each address once, from the last good one on; why there is no stream, or no longer."""
        failures: list[_Failure] = []
        try:
            dial = await self._dial()
        except (KumadpError, OSError) as error:
            return _Failure(error)
        if dial.token:
            register(dial.token)
        for host, port in sorted(dial.addresses, key=lambda address: address != self._good[:2]):
            where = with_port(host, port)
            try:
                found = await _resolve(host, port)
            except (OSError, UnicodeError) as error:
                failures.append(_Failure(error, where))
                continue
            for ip in sorted(found, key=lambda ip: ip != self._good[2]):
                try:
                    await self._stream(dial, host, port, ip, where)
                except (OSError, StreamEnded) as error:
                    failures.append(_Failure(error, where))
                    if self.facts.state is UpstreamState.OPEN:
                        return failures[-1]
        # What a control plane says tells more than that another one is not there.
        failures.sort(key=lambda failure: classify(failure.error) is StreamRefusal.UNREACHABLE)
        return failures[0] if failures else _Failure(OSError("no address of a control plane is known"))

    async def _stream(self, dial: Dial, host: str, port: int, ip: str, where: str) -> None:
        """Hold one stream to one address. Raises StreamEnded or OSError when it is over."""
        wire = await connect(
            (ip, port),
            authority=authority(host, port),
            tls=dial.tls,
            server_name=server_name(dial.server_name or host),
            ping=PING,
        )
        try:
            metadata = dict(dial.metadata)
            if dial.token:
                metadata["authorization"] = dial.token
            call = await wire.call(ADS, metadata)
            outgoing = self._outgoing = asyncio.Queue()
            self._listener.upstream_opened()
            writer = asyncio.create_task(_write(call, outgoing), name="relay upstream writer")
            try:
                while True:
                    data = await call.receive_or_skip(self._largest)
                    if self.facts.state is not UpstreamState.OPEN:
                        self._wire, self._metadata = wire, metadata
                        self._good = (host, port, ip)
                        self._established(where)
                    if isinstance(data, bytes):
                        await self._listener.upstream_message(data)
                    elif not self._listener.upstream_oversized(data):
                        raise StreamEnded(None, f"a message of {data.size} bytes, which cannot be read")
                    # Not to be held until the next one comes.
                    del data
            except BaseException as error:
                # A refusal leaves no stream behind; whatever else ends one, the control plane has to notice.
                if not (isinstance(error, StreamEnded) and error.status is not None and self._wire is None):
                    self._broken_at = self._clock()
                raise
            finally:
                writer.cancel()
                self._outgoing = self._wire = None
                self._listener.upstream_closed()
                call.close()
        finally:
            await wire.close()

    def _established(self, where: str) -> None:
        facts = self.facts
        facts.address, facts.last_error, facts.refusal, facts.refused_since = where, "", None, None
        self._move(UpstreamState.OPEN)
        if self._throttle.admit("open", self._clock()) is not None:
            log.info("the control plane at %s serves this data plane", where)

    def _judge(self, failure: _Failure) -> float:
        """Remember and tell a failure; how long to wait."""
        now, facts = self._clock(), self.facts
        was_open = facts.state is UpstreamState.OPEN
        if was_open and now - facts.since >= EARNED:
            self._backoff.reset()
            self._throttle.reset()
        refusal, reason = classify(failure.error), redact(_reason(failure.error))
        if facts.refusal is not refusal:
            facts.refused_since = now
        facts.refusal, facts.last_error = refusal, reason
        what = "the stream to the control plane broke" if was_open else "no stream to the control plane"
        where = f" at {failure.where}" if failure.where else ""
        self._throttle.warn(log, f"{what}: {refusal}", now, f"{what}{where}: {reason}; it is tried again")
        return self._backoff.wait(refusal, None if self._broken_at is None else now - self._broken_at)

    def _move(self, state: UpstreamState) -> None:
        if state is not self.facts.state:
            self.facts.state, self.facts.since = state, self._clock()
            self._signal()
            self._on_change()

    def _signal(self) -> None:
        """Wake everybody who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()


async def _resolve(host: str, port: int) -> list[str]:
    async with asyncio.timeout(RESOLVE_SECONDS):
        return await numeric_addresses(host, port)


async def _write(call: Call, outgoing: asyncio.Queue[bytes]) -> None:
    with contextlib.suppress(StreamEnded):
        while True:
            await call.send(await outgoing.get())


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "nothing answers in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    return " ".join(str(error).split())[:LONGEST_REASON]
