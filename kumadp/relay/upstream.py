"""The one discovery stream to the control plane: opened, kept open, and opened again with backoff."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import ssl
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct, field

from kumadp.addresses import authority, server_name, with_port
from kumadp.errors import KumadpError
from kumadp.grpc.call import LARGEST, Call, StreamEnded
from kumadp.grpc.client import GrpcConnection, connect
from kumadp.host.log.secrets import redact, register
from kumadp.host.log.throttle import Throttle
from kumadp.host.net.host_lookup import numeric_addresses
from kumadp.records import hiding
from kumadp.relay.first_response import FirstResponse, WrongProtocol
from kumadp.relay.protocol_choice import ProtocolChoice
from kumadp.relay.refusal import StreamBackoff, StreamRefusal, classify
from kumadp.relay.texts import one_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kumadp.grpc.call import Oversized
    from kumadp.relay.dialect import XdsProtocol

log = logging.getLogger("kumadp.relay")

# Seconds between pings, and until an unresponsive peer is disconnected. Kuma rejects more than one ping per 15 s.
PING = (20.0, 15.0)
# After a stream that was open for so long (seconds) the backoff begins with the first wait again.
STABLE_AFTER = 5.0
RESOLVE_SECONDS = 5.0


class Dial(Struct, frozen=True):
    """How to reach the control plane, created for each attempt. The TLS context is used for one attempt only."""

    addresses: tuple[tuple[str, int], ...]
    """Host or address, and port; tried in this order, beginning with the last one that worked."""
    tls: ssl.SSLContext | None = None
    server_name: str = ""
    """Name to verify and send as SNI; empty: the host."""
    token: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Further gRPC metadata, without the token's ``authorization``."""

    __repr__ = hiding("token", "metadata")


class UpstreamState(enum.StrEnum):
    """State of the stream to the control plane."""

    CONNECTING = "connecting"
    OPEN = "open"
    """The control plane has answered on this stream."""
    BACKOFF = "backoff"
    HELD_CLOSED = "held-closed"


class UpstreamListener(Protocol):
    """The owner of the connection."""

    async def upstream_opening(self, protocol: XdsProtocol) -> str:
        """Get ready for a stream of this protocol; return its gRPC method."""

    def upstream_opened(self) -> None:
        """A stream is open for requests."""

    async def upstream_message(self, data: bytes) -> None:
        """A response was received; the next one is read when this returns."""

    def upstream_oversized(self, message: Oversized) -> bool:
        """A response was too large and is dropped. Return True if it can be rejected, so that the stream stays open."""

    def upstream_closed(self) -> None:
        """The stream has ended."""


class UpstreamFacts(Struct):
    """State of the stream for the status; times are of the relay's clock."""

    state: UpstreamState = UpstreamState.CONNECTING
    since: float = 0.0
    address: str = ""
    last_error: str = ""
    refusal: StreamRefusal | None = None
    refused_since: float | None = None


class _Failure(Struct, frozen=True):
    """Why there is no stream to a control plane, and to which."""

    error: Exception
    where: str = ""


class UpstreamOptions(Struct, frozen=True):
    """Settings and a callback of an `UpstreamConnection`.

    ``choice`` chooses the protocol of each stream. ``broken_at``: when a re-execution broke a stream, by ``clock``.
    Responses of more than ``largest`` bytes are dropped.
    """

    clock: Callable[[], float]
    on_change: Callable[[], None] = lambda: None
    choice: ProtocolChoice = field(default_factory=ProtocolChoice)
    broken_at: float | None = None
    largest: int = LARGEST


class UpstreamConnection:
    """Keeps one ADS stream open; further streams (health) use the same connection.

    ``dial`` is awaited for each attempt.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[Dial]],
        listener: UpstreamListener,
        options: UpstreamOptions,
    ) -> None:
        self._choice = options.choice
        self._largest = options.largest
        self._first = FirstResponse(options.choice, options.largest)
        self._dial = dial
        self._listener = listener
        self._clock = options.clock
        self._on_change = options.on_change
        self._backoff = StreamBackoff()
        self._throttle = Throttle()
        self._outgoing: asyncio.Queue[bytes] | None = None
        self._connection: GrpcConnection | None = None
        self._metadata: dict[str, str] = {}
        self._last_good = ("", 0, "")
        self._broken_at = options.broken_at
        self._held = False
        self._outdated = False
        self._changed = asyncio.Event()
        self._round_task: asyncio.Task[_Failure] | None = None
        self.facts = UpstreamFacts(since=options.clock())

    def send(self, data: bytes) -> None:
        """Queue a request; without a stream it is dropped, as the next stream begins with subscriptions."""
        if self._outgoing is not None:
            self._outgoing.put_nowait(data)

    def close(self, reason: str) -> None:
        """Close the stream, which the control plane notices at once, until `reopen`."""
        if self._held:
            return
        if self.facts.state is UpstreamState.OPEN:
            log.info("the stream to the control plane is closed: %s", reason)
        self._held = True
        self._choice.note_closed()
        if self._round_task is not None:
            self._round_task.cancel()
        self._notify()

    def reopen(self) -> None:
        """Connect again after `close`."""
        if self._held:
            self._held = False
            self._backoff.reset()
            self._notify()

    def retry(self) -> None:
        """Connect at once instead of at the end of a wait: a reason why it failed may be gone.

        An attempt that is under way may have read the former token or CA: if it fails, the next one follows at once.
        """
        self._first.hurry()
        if self.facts.state in (UpstreamState.CONNECTING, UpstreamState.BACKOFF):
            self._outdated = True
            self._backoff.reset()
            self._notify()

    @property
    def protocol(self) -> XdsProtocol:
        """The protocol of the present stream, or of the last one."""
        return self._choice.present

    async def call(self, path: str) -> Call:
        """Open a further stream on the connection, once the control plane has answered on the first one."""
        while True:
            if self._connection is None or self.facts.state is not UpstreamState.OPEN:
                await self._changed.wait()
                continue
            connection = self._connection
            try:
                return await connection.call(path, self._metadata)
            except StreamEnded:
                await self._changed.wait()

    async def run(self) -> None:
        """Connect and keep the stream open until cancelled; then close it."""
        try:
            while True:
                if self._held:
                    self._set_state(UpstreamState.HELD_CLOSED)
                    await self._changed.wait()
                    continue
                self._set_state(UpstreamState.CONNECTING)
                self._round_task = asyncio.create_task(self._round(), name="relay upstream")
                await asyncio.wait({self._round_task})
                if self._round_task.cancelled():
                    continue
                wait = self._note_failure(self._failure_of(self._round_task))
                self._set_state(UpstreamState.BACKOFF)
                if self._outdated:
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
        finally:
            if self._round_task is not None:
                self._round_task.cancel()
                await asyncio.wait({self._round_task})

    def _failure_of(self, attempt: asyncio.Task[_Failure]) -> _Failure:
        """Return why an attempt ended. A bug is logged and retried too: without this stream no Envoy could start."""
        error = attempt.exception()
        if error is None:
            return attempt.result()
        if not isinstance(error, Exception):
            raise error
        if self._throttle.admit("a bug", self._clock()) is not None:
            log.error("a bug in kumadp", exc_info=error)
        return _Failure(error)

    async def _round(self) -> _Failure:
        """Try each address once, the last one that worked first; return why there is no stream, or no longer."""
        failures: list[_Failure] = []
        self._outdated = False
        self._first.calm()
        try:
            dial = await self._dial()
        except (KumadpError, OSError) as error:
            return _Failure(error)
        if dial.token:
            register(dial.token)
        for host, port in sorted(dial.addresses, key=lambda address: address != self._last_good[:2]):
            where = with_port(host, port)
            try:
                addresses = await _resolve(host, port)
            except (OSError, UnicodeError) as error:
                failures.append(_Failure(error, where))
                continue
            for ip in sorted(addresses, key=lambda ip: ip != self._last_good[2]):
                try:
                    await self._streams(dial, host, port, ip, where)
                except (OSError, StreamEnded) as error:
                    failures.append(_Failure(error, where))
                    if self.facts.state is UpstreamState.OPEN:
                        return failures[-1]
        # The answer of a control plane is more useful than the error of an unreachable one.
        failures.sort(key=lambda failure: classify(failure.error) is StreamRefusal.UNREACHABLE)
        return failures[0] if failures else _Failure(OSError("no address of a control plane is known"))

    async def _streams(self, dial: Dial, host: str, port: int, ip: str, where: str) -> None:
        """Keep a stream to one address, and replace one of the wrong protocol. Raises StreamEnded or OSError."""
        while True:
            former = self._choice.present
            try:
                await self._stream(dial, host, port, ip, where)
            except WrongProtocol:
                pass
            except StreamEnded as error:
                status = error.status if self.facts.state is not UpstreamState.OPEN else None
                if not self._choice.note_end(classify(error), status):
                    raise
            log.info("the control plane does not serve %s xDS: changing to %s", former, self._choice.present)

    async def _stream(self, dial: Dial, host: str, port: int, ip: str, where: str) -> None:
        """Keep one stream to one address. Raises StreamEnded, WrongProtocol or OSError when it has ended."""
        connection = await connect(
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
            former = self._choice.present
            protocol = await self._choice.before_stream()
            if protocol is not former:
                log.info("the control plane speaks %s xDS now: the stream changes from %s", protocol, former)
            call = await connection.call(await self._listener.upstream_opening(protocol), metadata)
            outgoing = self._outgoing = asyncio.Queue()
            self._listener.upstream_opened()
            writer = asyncio.create_task(_write(call, outgoing), name="relay upstream writer")
            try:
                while True:
                    if self.facts.state is UpstreamState.OPEN:
                        data = await call.receive_or_skip(self._largest)
                    else:
                        data = await self._first.receive(call)
                    if self.facts.state is not UpstreamState.OPEN:
                        self._connection, self._metadata = connection, metadata
                        self._last_good = (host, port, ip)
                        self._established(where)
                    if isinstance(data, bytes):
                        await self._listener.upstream_message(data)
                    elif not self._listener.upstream_oversized(data):
                        raise StreamEnded(None, f"a message of {data.size} bytes, which cannot be read")
                    # Free it before the next one is received.
                    del data
            except BaseException as error:
                # A refused stream is freed at once; after any other end the control plane holds it until it notices.
                refused = isinstance(error, StreamEnded) and error.status is not None and self._connection is None
                if not refused and not isinstance(error, WrongProtocol):
                    self._broken_at = self._clock()
                raise
            finally:
                writer.cancel()
                self._outgoing = self._connection = None
                self._listener.upstream_closed()
                call.close()
        finally:
            await connection.close()

    def _established(self, where: str) -> None:
        facts = self.facts
        facts.address, facts.last_error, facts.refusal, facts.refused_since = where, "", None, None
        self._outdated = False
        self._set_state(UpstreamState.OPEN)
        if self._throttle.admit("open", self._clock()) is not None:
            log.info("the control plane at %s serves this data plane", where)

    def _note_failure(self, failure: _Failure) -> float:
        """Record and log a failure; return how long to wait, in seconds."""
        now, facts = self._clock(), self.facts
        was_open = facts.state is UpstreamState.OPEN
        if was_open and now - facts.since >= STABLE_AFTER:
            self._backoff.reset()
            self._throttle.reset()
        refusal, reason = classify(failure.error), redact(_reason(failure.error))
        if facts.refusal is not refusal:
            facts.refused_since = now
        facts.refusal, facts.last_error = refusal, reason
        what = "the stream to the control plane broke" if was_open else "no stream to the control plane"
        where = f" at {failure.where}" if failure.where else ""
        self._throttle.warn(log, f"{what}: {refusal}", now, f"{what}{where}: {reason}; retrying")
        return self._backoff.wait(refusal, None if self._broken_at is None else now - self._broken_at, now)

    def _set_state(self, state: UpstreamState) -> None:
        if state is not self.facts.state:
            self.facts.state, self.facts.since = state, self._clock()
            self._notify()
            self._on_change()

    def _notify(self) -> None:
        """Wake all that wait for a change."""
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
    return one_line(str(error))
