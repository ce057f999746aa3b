"""The relay as a component: the state machine, the stream to the control plane, the streams of the Envoys.

Everything runs on the event loop; the state machine decides, this executes. Imported late: it takes 40 ms and 2 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from math import inf
from typing import TYPE_CHECKING

from msgspec import Struct, field

from kumadp.grpc.call import LARGEST
from kumadp.grpc.server import GrpcServer
from kumadp.host.log.throttle import Throttle
from kumadp.host.memory_trim import trim_memory
from kumadp.host.net.serve import bind_unix
from kumadp.relay.actions import Note, QueryClusters, RelayAction, ResponseAccepted, ResponseRejected, SendDown, SendUp
from kumadp.relay.cluster_queries import ClusterQueries
from kumadp.relay.delta import LOST
from kumadp.relay.dialect import Sotw
from kumadp.relay.downstream import Downstream
from kumadp.relay.health import HDS, LARGEST_SPECIFIER, HealthRelay
from kumadp.relay.messages import BadMessage, outline
from kumadp.relay.present_dialect import LARGE, PresentDialect
from kumadp.relay.protocol_choice import ProtocolChoice
from kumadp.relay.rejections import Rejections, sockets_status, type_status
from kumadp.relay.texts import one_line, short_name
from kumadp.relay.unanswered import Unanswered
from kumadp.relay.upstream import Dial, UpstreamConnection, UpstreamOptions, UpstreamState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from kumadp.grpc.call import Oversized
    from kumadp.host.net.connection_limit import ConnectionLimits
    from kumadp.relay.cluster_queries import GetAdmin
    from kumadp.relay.cluster_report import ClusterReport
    from kumadp.relay.dialect import Arrival, XdsProtocol
    from kumadp.relay.messages import Request
    from kumadp.relay.snapshot import RelaySnapshot
    from kumadp.relay.state_machine import RelayStateMachine
    from kumadp.relay.upstream import UpstreamFacts

log = logging.getLogger("kumadp.relay")

# How long the stream stays open without an Envoy, in seconds: as long as Kuma itself waits before it deregisters.
HOLD = 10.0
# Seconds between two streams that are closed because a response was dropped.
RENEW_EVERY = 600.0
# Seconds after a large response, or after its answer, until freed memory is returned to the kernel.
TRIM_AFTER = 2.0


class RelayOptions(Struct, frozen=True):
    """Settings and callbacks of a `Relay`.

    ``choice`` chooses the protocol of each stream to the control plane.
    ``broken_at``: when a re-execution broke the stream to the control plane, by ``clock``; None if there was none.
    ``largest``: a response of more bytes is rejected, and Envoy keeps the previous one. ``on_change`` is called when
    the status changes, ``on_accepted`` with the type of a response that an Envoy accepted, ``on_answered`` with the
    type of one that it accepted or rejected: it may have applied parts of a rejected one. ``get_admin`` returns
    what the admin of the Envoy that serves answers to a GET of a path, None if it does not.
    """

    choice: ProtocolChoice = field(default_factory=ProtocolChoice)
    broken_at: float | None = None
    largest: int = LARGEST
    on_change: Callable[[], None] = lambda: None
    on_accepted: Callable[[str], None] = lambda _type_url: None
    on_answered: Callable[[str], None] = lambda _type_url: None
    clock: Callable[[], float] = time.monotonic
    connections: ConnectionLimits | None = None
    get_admin: GetAdmin | None = None


class Relay:
    """Holds one stream to the control plane and serves every Envoy from it, on a Unix socket at ``path``.

    ``dial`` returns how to reach the control plane, for each attempt. ``epoch_of`` returns the epoch of a peer's pid
    for which `envoy_started` was not called.
    """

    name = "relay"

    def __init__(
        self,
        path: Path,
        machine: RelayStateMachine,
        dial: Callable[[], Awaitable[Dial]],
        *,
        epoch_of: Callable[[int], int],
        options: RelayOptions | None = None,
    ) -> None:
        options = options or RelayOptions()
        self._path = path
        self._machine = machine
        self._epoch_of = epoch_of
        self._on_change = options.on_change
        self._on_accepted = options.on_accepted
        self._on_answered = options.on_answered
        self._clock = options.clock
        self._connections = options.connections
        self._upstream = UpstreamConnection(
            dial,
            self,
            UpstreamOptions(
                options.clock, options.on_change, options.choice, broken_at=options.broken_at, largest=options.largest
            ),
        )
        self._dialect = PresentDialect(machine.snapshot, options.largest)
        self._largest = options.largest
        self._large_seen = False
        self._downstream = Downstream(self, self._epoch)
        self._health = HealthRelay(self._upstream.call, self._epoch, min(options.largest, LARGEST_SPECIFIER))
        self._throttle = Throttle()
        self._updated = asyncio.Event()
        self._epochs: dict[int, int] = {}
        self._unanswered = Unanswered(options.clock, self._note_silence)
        self._renewed_at = -inf
        self._changed_at: dict[str, float] = {}
        self._rejections = Rejections(machine.withheld, machine.retries.at)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._queries = ClusterQueries(options.get_admin, self._clusters_reported)

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled; then end the stream to the control plane. Raises WorkDirError."""
        sock = bind_unix(self._path)
        server = GrpcServer(
            {Sotw.method: self._downstream.serve, HDS: self._health.serve},
            self._allowed,
            name="relay",
            connections=self._connections,
        )
        server.start(sock)
        up()
        try:
            await self._upstream.run()
        finally:
            server.stop()
            self._unanswered.clear()
            for timer in self._timers.values():
                timer.cancel()
            self._queries.cancel()
            await server.close()
            sock.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    # Events that the daemon reports.

    def envoy_started(self, epoch: int, pid: int) -> None:
        """An Envoy process runs: its streams belong to ``epoch``, and the stream to the control plane is needed."""
        self._epochs[pid] = epoch
        self._cancel("hold")
        self._upstream.reopen()

    def retry_upstream(self) -> None:
        """Connect at once if there is no stream."""
        self._upstream.retry()

    def envoy_live(self, epoch: int) -> None:
        """An Envoy is LIVE."""
        self._execute(self._machine.envoy_live(epoch, now=self._clock()))

    def envoy_ended(self, epoch: int, *, expected: bool) -> None:
        """An Envoy process has exited. After 10 s without any the stream is closed, so that the mesh forgets us."""
        self._epochs = {pid: other for pid, other in self._epochs.items() if other != epoch}
        self._execute(self._machine.envoy_ended(epoch, expected=expected))
        if not self._epochs:
            self._schedule("hold", HOLD, lambda: self._upstream.close(f"no Envoy has run for {HOLD:.0f} s"))

    def hold_health(self, hold: bool) -> None:
        """Hold back every health report, while one Envoy takes over from another."""
        self._health.hold = hold

    def restore(self, snapshot: RelaySnapshot) -> None:
        """Serve the memory of a previous run, unless the control plane has sent a response."""
        self._execute(self._machine.restore(snapshot))

    def close_upstream(self, reason: str) -> None:
        """Close the stream to the control plane until `reopen_upstream`."""
        self._upstream.close(reason)

    def reopen_upstream(self) -> None:
        """Open a stream to the control plane again."""
        self._upstream.reopen()

    # Queries.

    def snapshot(self) -> RelaySnapshot:
        """Return the memory for a new relay. It can hold private keys: it must not be written to disk as it is."""
        return self._machine.snapshot()

    async def until_supplied(self) -> None:
        """Return once an Envoy that starts now would be given at once all that the present ones have requested."""
        while not self._machine.supplied:
            await self._updated.wait()

    @property
    def facts(self) -> UpstreamFacts:
        """State of the stream to the control plane; times are of the relay's clock."""
        return self._upstream.facts

    @property
    def silence(self) -> float:
        """Seconds for which the control plane has left a first subscription unanswered; 0 if there is none."""
        return self._unanswered.silence

    def status(self) -> dict[str, object]:
        """Return the status section in JSON types; times in seconds since 1970."""
        facts, now = self._upstream.facts, self._clock()
        epoch = time.time() - now
        withheld, numbers = self._rejections.status(epoch)
        return {
            "state": facts.state.value,
            "since": round(epoch + facts.since, 3),
            "connected_since": round(epoch + facts.since, 3) if facts.state is UpstreamState.OPEN else None,
            "address": facts.address,
            "protocol": self._upstream.protocol.value,
            "last_error": facts.last_error,
            "refusal": None if facts.refusal is None else facts.refusal.value,
            "refused_since": None if facts.refused_since is None else round(epoch + facts.refused_since, 3),
            "silence": round(self._unanswered.silence, 1),
            "received": round(epoch + max(self._changed_at.values()), 3) if self._changed_at else None,
            "last_rejection": self._rejections.last,
            "withheld": withheld,
            "withheld_count": numbers.total(),
            **sockets_status(self._machine.kept_sockets()),
            "types": [
                type_status(view, numbers[view.type_url], epoch, self._changed_at.get(view.type_url))
                for view in self._machine.types()
            ],
        }

    # The stream to the control plane.

    async def upstream_opening(self, protocol: XdsProtocol) -> str:
        """Get ready for a stream of this protocol; return its gRPC method."""
        return await self._dialect.prepare(protocol)

    def upstream_opened(self) -> None:
        """Subscribe."""
        self._dialect.begin()
        self._unanswered.clear()
        self._execute(self._machine.upstream_opened())

    async def upstream_message(self, data: bytes) -> None:
        """Remember and pass on a response."""
        try:
            arrival = await self._dialect.read(data)
        except BadMessage as error:
            self._warn("unreadable", f"the control plane sent a message that is not a discovery response: {error}")
            return
        type_url = arrival.outline.type_url
        if all(view.type_url != type_url for view in self._machine.types()):
            self._warn("unrequested", f"the control plane sent {one_line(type_url)}, which was not requested")
            return
        self._unanswered.answered(type_url)
        for answer in self._dialect.take(arrival):
            self._upstream.send(answer)
        if arrival.refused:
            self._execute(self._machine.upstream_refused(arrival.outline, arrival.refused))
            self._renew_lost(arrival)
        elif arrival.response is not None:
            self._changed_at[type_url] = self._clock()
            self._execute(self._machine.upstream_message(arrival.response))
        if len(data) > LARGE:
            self._trim_soon()

    def upstream_oversized(self, message: Oversized) -> bool:
        """Reject it on our own behalf: holding it could exhaust the memory of this process, and of Envoy."""
        self._trim_soon()
        try:
            summary = outline(message.head, message.tail)
        except BadMessage as error:
            self._warn("oversized", f"the control plane sent {message.size} bytes, which are rejected: {error}")
            return False
        self._unanswered.answered(summary.type_url)
        self._dialect.drop(summary)
        reason = f"it has {message.size} bytes; at most {self._largest} are accepted with this memory limit"
        self._execute(self._machine.upstream_refused(summary, reason))
        return True

    def _renew_lost(self, arrival: Arrival) -> None:
        """Have a new stream bring what this one will not send again; seldom, since it costs 10 s in the mesh."""
        now = self._clock()
        if arrival.outdated and now - self._renewed_at >= RENEW_EVERY:
            self._renewed_at = now
            self._upstream.close(LOST)
            self._upstream.reopen()

    def _trim_soon(self) -> None:
        """Schedule it for when Envoy has answered and copies in flight are freed."""
        self._large_seen = True
        self._schedule("trim", TRIM_AFTER, self._trim)

    def _trim(self) -> None:
        asyncio.get_running_loop().run_in_executor(None, trim_memory)

    def upstream_closed(self) -> None:
        """Forget unanswered subscriptions."""
        self._unanswered.clear()
        self._execute(self._machine.upstream_closed())

    # The streams of the Envoys.

    def down_opened(self, stream: int, epoch: int) -> None:
        """An Envoy has opened a stream."""
        self._execute(self._machine.down_opened(stream, epoch))

    def down_message(self, stream: int, data: bytes) -> None:
        """An Envoy has sent a request."""
        self._execute(self._machine.down_message(stream, data))

    def down_closed(self, stream: int) -> None:
        """A stream of an Envoy has ended."""
        self._execute(self._machine.down_closed(stream))

    def _epoch(self, pid: int) -> int:
        epoch = self._epochs.get(pid)
        return self._epoch_of(pid) if epoch is None else epoch

    def _allowed(self, uid: int) -> bool:
        if uid in (0, os.geteuid()):
            return True
        self._warn("stranger", f"rejected a connection of user {uid} to {self._path}")
        return False

    # Actions.

    def _execute(self, actions: list[RelayAction]) -> None:
        for action in actions:
            match action:
                case SendUp(request):
                    self._send_up(request)
                case SendDown():
                    self._downstream.send(action.stream, action.type_url, action.raw, action.more)
                case ResponseAccepted(type_url):
                    if self._large_seen:
                        # The response that it replaces is freed.
                        self._trim_soon()
                    self._throttle.reset(f"rejected {type_url}")
                    self._on_accepted(type_url)
                    self._on_answered(type_url)
                case ResponseRejected(type_url):
                    self._warn(f"rejected {type_url}", self._rejections.add(action))
                    self._on_answered(type_url)
                case QueryClusters():
                    self._queries.start(action)
                case Note(text):
                    log.info("%s", text)
        due = self._machine.next_tick()
        if due is None:
            self._cancel("tick")
        else:
            self._schedule("tick", max(0.0, due - self._clock()), self._tick)
        self._updated.set()
        self._updated = asyncio.Event()
        if actions:
            self._on_change()

    def _clusters_reported(self, query: QueryClusters, report: ClusterReport) -> None:
        self._execute(self._machine.clusters_reported(query.stream, query.nonce, report))

    def _tick(self) -> None:
        self._execute(self._machine.tick(self._clock()))
        if self._large_seen:
            # Removed clusters are freed by time.
            self._trim_soon()

    def _send_up(self, request: Request) -> None:
        messages, answered = self._dialect.encode(request)
        for data in messages:
            self._upstream.send(data)
        if answered:
            self._unanswered.expect(request.type_url)

    def _note_silence(self, types: tuple[str, ...]) -> None:
        names, silence = ", ".join(map(short_name, types)), self._unanswered.silence
        self._warn("silence", f"the control plane has not answered for {silence:.0f} s: {names}")
        self._on_change()

    def _warn(self, kind: str, text: str) -> None:
        self._throttle.warn(log, kind, self._clock(), text)

    def _schedule(self, name: str, seconds: float, act: Callable[[], None]) -> None:
        self._cancel(name)
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, act)

    def _cancel(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
