"""The relay as a component: the state machine, the stream to the control plane, the streams of the Envoys.

Everything runs on the event loop; the machine decides, this does. Imported late: grpclib costs 40 ms and 2 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.grpc.call import LARGEST
from kumadp.grpc.server import GrpcServer
from kumadp.host.log.secrets import redact
from kumadp.host.log.throttle import Throttle
from kumadp.host.memory_trim import trim_memory
from kumadp.host.net.serve import bind_unix
from kumadp.relay.actions import Note, RelayAction, ResponseAccepted, ResponseRejected, SendDown, SendUp
from kumadp.relay.downstream import Downstream
from kumadp.relay.health import HDS, LARGEST_SPECIFIER, HealthRelay
from kumadp.relay.messages import SECRET, BadMessage, Request, Response, outline
from kumadp.relay.upstream import ADS, LONGEST_REASON, Dial, UpstreamConnection, UpstreamState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from kumadp.grpc.call import Oversized
    from kumadp.relay.snapshot import RelaySnapshot
    from kumadp.relay.state_machine import RelayStateMachine
    from kumadp.relay.upstream import UpstreamFacts

log = logging.getLogger("kumadp.relay")

# How long the stream is kept without an Envoy, in seconds: as long as Kuma itself waits before it deregisters.
HOLD = 10.0
# How long the control plane may leave a first subscription unanswered, in seconds, before that is told.
SILENCE = 15.0
# From this size on, in bytes, a response is taken apart in a thread: digests cost 3 ms a megabyte.
LARGE = 256 << 10
# Seconds after a large response, or after its answer, until what it took is given back to the kernel.
GIVE_BACK_AFTER = 2.0


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """Settings and callbacks of a `Relay`.

    ``broken_at``: when a re-execution broke the stream to the control plane, by ``clock``; None if there was none.
    ``largest``: a response of more bytes is rejected, and Envoy keeps the previous one. ``on_change`` is called when
    the status changes, ``on_accepted`` with the type of a response that an Envoy accepted, ``on_answered`` with the
    type of one that it accepted or rejected: it may have applied parts of a rejected one.
    """

    broken_at: float | None = None
    largest: int = LARGEST
    on_change: Callable[[], None] = lambda: None
    on_accepted: Callable[[str], None] = lambda _type_url: None
    on_answered: Callable[[str], None] = lambda _type_url: None
    clock: Callable[[], float] = time.monotonic


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
        self._upstream = UpstreamConnection(
            dial,
            self,
            clock=options.clock,
            on_change=options.on_change,
            broken_at=options.broken_at,
            largest=options.largest,
        )
        self._largest = options.largest
        self._had_large = False
        self._downstream = Downstream(self, self._epoch)
        self._health = HealthRelay(self._upstream.call, self._epoch, min(options.largest, LARGEST_SPECIFIER))
        self._throttle = Throttle()
        self._moved = asyncio.Event()
        self._epochs: dict[int, int] = {}
        self._unanswered: dict[str, float] = {}
        self._changed_at: dict[str, float] = {}
        self._rejection: dict[str, object] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled; then end the stream to the control plane. Raises WorkDirError."""
        sock = bind_unix(self._path)
        server = GrpcServer({ADS: self._downstream.serve, HDS: self._health.serve}, self._allowed, name="relay")
        server.start(sock)
        up()
        try:
            await self._upstream.run()
        finally:
            server.stop()
            for timer in self._timers.values():
                timer.cancel()
            await server.close()
            sock.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    # What the daemon reports.

    def envoy_started(self, epoch: int, pid: int) -> None:
        """An Envoy process runs: its streams count for ``epoch``, and the stream to the control plane is wanted."""
        self._epochs[pid] = epoch
        self._cancel("hold")
        self._upstream.reopen()

    def envoy_live(self, epoch: int) -> None:
        """An Envoy is LIVE."""
        self._do(self._machine.envoy_live(epoch, now=self._clock()))

    def envoy_ended(self, epoch: int, *, expected: bool) -> None:
        """An Envoy process has ended. Without any for 10 s the stream is closed, so that the mesh forgets us."""
        self._epochs = {pid: known for pid, known in self._epochs.items() if known != epoch}
        self._do(self._machine.envoy_ended(epoch, expected=expected))
        if not self._epochs:
            self._later("hold", HOLD, lambda: self._upstream.close(f"no Envoy has run for {HOLD:.0f} s"))

    def hold_health(self, hold: bool) -> None:
        """Hold back every health report, while one Envoy takes over from another."""
        self._health.hold = hold

    def restore(self, memory: RelaySnapshot) -> None:
        """Begin with what an earlier run left, unless the control plane has given something."""
        self._do(self._machine.restore(memory))

    def close_upstream(self, reason: str) -> None:
        """End the stream to the control plane, and stay without."""
        self._upstream.close(reason)

    def reopen_upstream(self) -> None:
        """Have a stream to the control plane again."""
        self._upstream.reopen()

    # What others may know.

    def snapshot(self) -> RelaySnapshot:
        """What a new relay needs to go on. It may hold keys: never to disk as it is."""
        return self._machine.snapshot()

    async def until_supplied(self) -> None:
        """Return once an Envoy that starts now would be given at once all that those there are have asked for."""
        while not self._machine.supplied:
            await self._moved.wait()

    @property
    def facts(self) -> UpstreamFacts:
        """What is known of the stream to the control plane; times are the clock's."""
        return self._upstream.facts

    @property
    def silence(self) -> float:
        """For how many seconds the control plane has left a first subscription unanswered; 0 when it has not."""
        return self._silence()

    def status(self) -> dict[str, object]:
        """JSON types; times in seconds since 1970."""
        facts, now = self._upstream.facts, self._clock()
        epoch = time.time() - now
        return {
            "state": facts.state.value,
            "since": round(epoch + facts.since, 3),
            "connected_since": round(epoch + facts.since, 3) if facts.state is UpstreamState.OPEN else None,
            "address": facts.address,
            "last_error": facts.last_error,
            "refusal": None if facts.refusal is None else facts.refusal.value,
            "refused_since": None if facts.refused_since is None else round(epoch + facts.refused_since, 3),
            "silence": round(self._silence(), 1),
            "received": round(epoch + max(self._changed_at.values()), 3) if self._changed_at else None,
            "last_rejection": self._rejection,
            "types": [
                {
                    "type": view.type_url,
                    "accepted": view.accepted,
                    "latest": view.latest,
                    "open": view.open,
                    "names": view.names,
                    "rejected": view.rejections,
                    "withheld": view.withheld,
                    "changed": round(epoch + changed, 3) if (changed := self._changed_at.get(view.type_url)) else None,
                }
                for view in self._machine.types()
            ],
        }

    # The stream to the control plane.

    def upstream_opened(self) -> None:
        """Subscribe."""
        self._unanswered.clear()
        self._do(self._machine.upstream_opened())

    async def upstream_message(self, data: bytes) -> None:
        """Remember and pass on a response."""
        try:
            response = await asyncio.to_thread(_take_apart, data) if len(data) > LARGE else Response.parse(data)
        except BadMessage as error:
            self._tell("unreadable", f"the control plane sent what is no discovery response: {error}")
            return
        if all(view.type_url != response.type_url for view in self._machine.types()):
            self._tell("unasked", f"the control plane sent {_line(response.type_url)}, which was not requested")
            return
        self._unanswered.pop(response.type_url, None)
        self._changed_at[response.type_url] = self._clock()
        self._do(self._machine.upstream_message(response))
        if len(data) > LARGE:
            self._give_back_soon()

    def upstream_oversized(self, message: Oversized) -> bool:
        """Refuse it in our own name: no memory is held for what could end this process, and Envoy beside it."""
        self._give_back_soon()
        try:
            found = outline(message.head, message.tail)
        except BadMessage as error:
            self._tell("oversized", f"the control plane sent {message.size} bytes that are refused: {error}")
            return False
        self._unanswered.pop(found.type_url, None)
        reason = f"it has {message.size} bytes; at most {self._largest} are taken with this memory limit"
        self._do(self._machine.upstream_refused(found, reason))
        return True

    def _give_back_soon(self) -> None:
        """Once more a little later, when Envoy has answered and copies on the way are gone."""
        self._had_large = True
        self._later("give back", GIVE_BACK_AFTER, self._give_back)

    def _give_back(self) -> None:
        asyncio.get_running_loop().run_in_executor(None, trim_memory)

    def upstream_closed(self) -> None:
        """Nothing is asked any more."""
        self._unanswered.clear()
        self._cancel("silence")
        self._do(self._machine.upstream_closed())

    # The streams of the Envoys.

    def down_opened(self, stream: int, epoch: int) -> None:
        """A stream of an Envoy."""
        self._do(self._machine.down_opened(stream, epoch))

    def down_message(self, stream: int, data: bytes) -> None:
        """A request of an Envoy."""
        self._do(self._machine.down_message(stream, data))

    def down_closed(self, stream: int) -> None:
        """The end of a stream."""
        self._do(self._machine.down_closed(stream))

    def _epoch(self, pid: int) -> int:
        known = self._epochs.get(pid)
        return self._epoch_of(pid) if known is None else known

    def _allowed(self, uid: int) -> bool:
        if uid in (0, os.geteuid()):
            return True
        self._tell("stranger", f"a process of user {uid} was turned away from {self._path}")
        return False

    # Doing.

    def _do(self, actions: list[RelayAction]) -> None:
        for action in actions:
            match action:
                case SendUp(data):
                    self._upstream.send(data)
                    self._expect(Request.parse(data))
                case SendDown():
                    self._downstream.send(action.stream, action.type_url, action.raw, action.more)
                case ResponseAccepted(type_url):
                    if self._had_large:
                        # What it takes the place of is free now.
                        self._give_back_soon()
                    self._throttle.reset(f"rejected {type_url}")
                    self._on_accepted(type_url)
                    self._on_answered(type_url)
                case ResponseRejected(type_url, version, reason, by_guard):
                    who = "held back" if by_guard else "rejected by Envoy"
                    # Envoy may quote what it rejects.
                    why = "" if type_url == SECRET and not by_guard else _line(redact(reason))
                    told = f"{_short(type_url)} {_line(version)} is {who}{why and ': '}{why}"
                    self._tell(f"rejected {type_url}", told)
                    self._rejection = {
                        "type": type_url,
                        "version": _line(version),
                        "reason": why,
                        "at": round(time.time(), 3),
                        "by_guard": by_guard,
                    }
                    self._on_answered(type_url)
                case Note(text):
                    log.info("%s", text)
        due = self._machine.next_tick()
        if due is None:
            self._cancel("tick")
        else:
            self._later("tick", max(0.0, due - self._clock()), self._tick)
        self._moved.set()
        self._moved = asyncio.Event()
        if actions:
            self._on_change()

    def _tick(self) -> None:
        self._do(self._machine.tick(self._clock()))

    def _expect(self, request: Request) -> None:
        """A first subscription is answered in any case; what follows may not be."""
        if request.nonce:
            return
        self._unanswered.setdefault(request.type_url, self._clock())
        if "silence" not in self._timers:
            self._later("silence", SILENCE, self._note_silence)

    def _note_silence(self) -> None:
        self._cancel("silence")
        if self._unanswered:
            names = ", ".join(map(_short, self._unanswered))
            self._tell("silence", f"the control plane has not answered for {self._silence():.0f} s: {names}")
            self._on_change()
            self._later("silence", SILENCE, self._note_silence)

    def _silence(self) -> float:
        return self._clock() - min(self._unanswered.values()) if self._unanswered else 0.0

    def _tell(self, kind: str, text: str) -> None:
        self._throttle.warn(log, kind, self._clock(), text)

    def _later(self, name: str, seconds: float, act: Callable[[], None]) -> None:
        self._cancel(name)
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, act)

    def _cancel(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()


def _take_apart(data: bytes) -> Response:
    """Parse a response and work out its digest, which is kept. For a thread."""
    response = Response.parse(data)
    _ = response.digest
    return response


def _short(type_url: str) -> str:
    return type_url.rpartition(".")[2]


def _line(text: str) -> str:
    """The beginning of what a peer says, as one line."""
    return " ".join(text[: 2 * LONGEST_REASON].split())[:LONGEST_REASON]
