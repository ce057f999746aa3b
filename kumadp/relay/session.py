"""A session with the control plane: the relay, made from bootstrap and settings, and what its state means."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from msgspec import Struct

from kumadp.addresses import server_name
from kumadp.bootstrap.comparison import same_node
from kumadp.bootstrap.fields import get
from kumadp.bootstrap.generation import requires_delta
from kumadp.bootstrap.prepare import Fetched
from kumadp.errors import ControlPlaneRefused
from kumadp.relay.dialect import XdsProtocol
from kumadp.relay.last_good import LastGoodContent
from kumadp.relay.node import encode_node
from kumadp.relay.plane_condition import UNREACHABLE_AFTER, assess
from kumadp.relay.protocol_choice import ProtocolChoice
from kumadp.relay.refusal import StreamRefusal
from kumadp.relay.relay import Relay, RelayOptions
from kumadp.relay.state_machine import DRAIN_TIME, RelayStateMachine
from kumadp.relay.texts import short_name
from kumadp.relay.upstream import Dial, UpstreamState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from ssl import SSLContext

    from kumadp.bootstrap.prepare import Prepared
    from kumadp.bootstrap.rewrite import Upstream
    from kumadp.core.status import Status
    from kumadp.relay.cluster_queries import GetAdmin
    from kumadp.relay.last_good import LastGood, LastGoodStore
    from kumadp.relay.snapshot import RelaySnapshot

log = logging.getLogger("kumadp.relay")

# Of the memory limit, and in bytes. gRPC's own default is 4 MiB; a mesh of 10,000 services needs some 30 MB.
SHARE = 8
SMALLEST_BOUND, LARGEST_BOUND = 4 << 20, 128 << 20


class ControlPlaneAccess(Protocol):
    """What a connection to the control plane needs, as it is now."""

    @property
    def urls(self) -> Sequence[str]:
        """The addresses of the control plane that the settings name."""

    @property
    def pending(self) -> bool:
        """Whether Envoy has a bootstrap that is not the control plane's of this run, which has sent none yet."""

    def advise(self, text: str) -> str:
        """Return what to change after a refusal with this text; an empty text if it is not known."""

    async def query_bootstrap(self, *, renewed: bool) -> Fetched | None:
        """Request the bootstrap, once of each address; None if there is none, with the reason in the status.

        ``renewed``: that of the Envoy that a reload starts.
        """

    def token(self) -> str:
        """Return the data plane token, empty without one. May block. Raises ControlPlaneRefused."""

    def tls(self, ca_inline: bytes | None) -> SSLContext:
        """Return the context by the CA as it is now, else by the bootstrap's. May block. Raises ControlPlaneRefused."""


class SessionObserver(Protocol):
    """Follows a session with the control plane; methods are called on the event loop."""

    def on_refused(self, error: ControlPlaneRefused) -> None:
        """Handle that the control plane rejects this data plane permanently."""

    def on_opened(self) -> None:
        """Handle that the control plane has accepted the stream."""

    def on_accepted(self, type_url: str) -> None:
        """Handle that Envoy has accepted a response of this type."""

    def on_answered(self, type_url: str) -> None:
        """Handle that Envoy has accepted or rejected a response of this type."""


class Resumption(Struct, frozen=True):
    """What a session continues from.

    ``memory`` is served from at once; ``stale`` if it is from disk. ``earlier`` is what an earlier run kept: it serves
    if the control plane rejects the stream because it still has that run's, which it frees after 10 s
    (Kuma 2.8 to 2.13), and if there is no stream for `UNREACHABLE_AFTER` seconds for another reason.
    ``broken_at``: when the program before this one was replaced, by the monotonic clock.
    """

    memory: RelaySnapshot | None = None
    earlier: LastGood | None = None
    stale: bool = False
    broken_at: float | None = None


class SessionOptions(Struct, frozen=True):
    """``path`` is the socket that Envoy connects to, ``memory_limit`` that of our cgroup in bytes (0: none).

    ``drain_time`` is that of Envoy's listeners, in seconds. ``get_admin`` as in `RelayOptions`.
    """

    path: Path
    status: Status
    epoch_of: Callable[[int], int]
    resumption: Resumption
    memory_limit: int = 0
    drain_time: float = DRAIN_TIME
    get_admin: GetAdmin | None = None


class RelaySession:
    """Owns the relay: made for ``prepared``, connected by ``access``; ``observer`` follows it."""

    def __init__(
        self, options: SessionOptions, access: ControlPlaneAccess, prepared: Prepared, observer: SessionObserver
    ) -> None:
        status, resumption = options.status, options.resumption
        self._access = access
        self._status = status
        self._observer = observer
        self._store: LastGoodStore | None = None
        self._grace: asyncio.TimerHandle | None = None
        # What is remembered comes from it.
        self._had_us = resumption.memory is not None
        self._open_since = -1.0
        # While a reload has another one sent: that of the Envoy that runs.
        self._former: Fetched | None = None
        self._stale = resumption.stale
        self.use(prepared)
        self._reported = _reported(prepared)
        self._machine = machine = RelayStateMachine(
            _node(self._reported.tree),
            snapshot=resumption.memory,
            withhold_secrets=resumption.stale,
            drain_time=options.drain_time,
            queries=options.get_admin is not None,
        )
        self.relay = Relay(
            options.path,
            machine,
            self._dial,
            epoch_of=options.epoch_of,
            options=RelayOptions(
                choice=ProtocolChoice(_protocol(self._reported.tree), self._query_protocol, stale=access.pending),
                broken_at=resumption.broken_at,
                largest=largest_message(options.memory_limit),
                on_change=self._changed,
                on_accepted=self._accepted,
                on_answered=observer.on_answered,
                connections=status.connections,
                get_admin=options.get_admin,
            ),
        )
        self._earlier = None
        # An upgraded kumadp is served too; the copy is bound to Envoy's version.
        earlier = resumption.earlier
        if earlier is not None and same_node(earlier.bootstrap, self._reported.tree):
            self._earlier = earlier.memory

    def use(self, prepared: Prepared) -> None:
        """Take the way to the control plane, from the next attempt on, from this bootstrap."""
        assert prepared.upstream is not None  # noqa: S101 - without one there is no relay
        self._prepared = prepared
        self._upstream: Upstream = prepared.upstream

    def renew(self, prepared: Prepared) -> bool:
        """Continue with this bootstrap; True if its Node requests another configuration: the stream is opened again.

        A control plane reads the Node once a stream (Kuma 2.8 to 2.13).
        """
        self.use(prepared)
        self._former = None
        self._schedule_write()
        return self._renew_node(_reported(prepared))

    def renew_early(self, prepared: Prepared) -> None:
        """Send another Node already now if there is no stream that it would break."""
        if self.relay.facts.state is not UpstreamState.OPEN:
            self._former = self._reported
            self._renew_node(_reported(prepared))

    def go_back(self) -> None:
        """Continue with the Envoy that runs: if the control plane got another Node early, take it back.

        What it sent for that one is not what this Envoy can do; the stream is opened again.
        """
        former, self._former = self._former, None
        if former is not None and self._renew_node(former):
            log.warning("the Dataplane is the former one again: reporting it to the control plane by a new stream")

    def _renew_node(self, reported: Fetched) -> bool:
        former, self._reported = self._reported, reported
        self._machine.renew_node(_node(reported.tree))
        # Versions are but shown (Kuma 2.8 to 2.13): the next stream will do.
        if same_node(former.tree, reported.tree):
            return False
        self.relay.close_upstream("the Dataplane, or other data that is sent to the control plane, has changed")
        self.relay.reopen_upstream()
        return True

    async def _query_protocol(self) -> XdsProtocol | None:
        """Return what the control plane speaks now, None if it gives no bootstrap.

        The next stream reports the Node of that bootstrap, unless a reload has begun or ended since, or it is for
        another Dataplane than Envoy runs with: a kumadp that adopts Envoy can have one that was edited since.
        """
        renewed = self._former is not None
        fetched = await self._access.query_bootstrap(renewed=renewed)
        if fetched is None:
            return None
        same_dataplane = not self._reported.dataplane or fetched.dataplane == self._reported.dataplane
        if renewed == (self._former is not None) and same_dataplane:
            self._reported = fetched
            self._machine.renew_node(_node(fetched.tree))
        return _protocol(fetched.tree)

    def set_drain_time(self, drain_time: float) -> None:
        """Keep removed clusters for this time, in seconds, after listeners have been replaced."""
        self._machine.held.set_drain_time(drain_time)

    def keep_in(self, store: LastGoodStore) -> None:
        """Keep what is accepted on disk from now on."""
        self._store = store

    def content(self) -> LastGoodContent | None:
        """What is kept on disk: None while nothing was accepted."""
        fetched, memory = self._prepared.fetched, self.relay.snapshot()
        if fetched is None or not any(one.accepted for one in memory.types):
            return None
        return LastGoodContent(fetched.tree, fetched.corefile_template, memory, fetched.dataplane)

    async def _dial(self) -> Dial:
        return await asyncio.to_thread(self._make_dial)

    def _make_dial(self) -> Dial:
        upstream = self._upstream
        return Dial(
            addresses=addresses(upstream.host, upstream.port, self._access.urls),
            tls=self._access.tls(upstream.ca_inline) if upstream.tls else None,
            server_name=upstream.server_name if upstream.server_name != upstream.host else "",
            token=self._access.token(),
            metadata=upstream.metadata,
        )

    def _accepted(self, type_url: str) -> None:
        self._schedule_write()
        self._observer.on_accepted(type_url)

    def _schedule_write(self) -> None:
        if self._store is not None:
            self._store.schedule_write()

    def _changed(self) -> None:
        """Follow the state of the relay, and set the warnings for the operator."""
        facts = self.relay.facts
        if facts.refusal is StreamRefusal.ACTIVE:
            self._serve_earlier()
        self._status.set_warning("last good", self._lacking())
        if facts.state is UpstreamState.OPEN:
            self._had_us, self._stale, self._earlier = True, False, None
            if facts.since != self._open_since:
                self._open_since = facts.since
                self._observer.on_opened()
            self._end_grace()
            self._report()
        elif facts.state is UpstreamState.HELD_CLOSED:
            self._end_grace()
            self._report()
        elif self._grace is None:
            self._grace = asyncio.get_running_loop().call_later(UNREACHABLE_AFTER, self._on_grace_over)

    def _serve_earlier(self) -> None:
        """Serve what an earlier run kept, if nothing else can be."""
        earlier, self._earlier = self._earlier, None
        if earlier is not None:
            log.info("the configuration of the last run serves until the control plane accepts this data plane again")
            self._stale = self._had_us = True
            self.relay.restore(earlier)

    def _lacking(self) -> str:
        """Return what Envoy requests and cannot get before the control plane is reachable: what is never on disk."""
        if not self._stale or self.relay.facts.state is UpstreamState.OPEN:
            return ""
        types = [short_name(view.type_url) for view in self._machine.types() if not view.latest]
        return f"{', '.join(types)}: not kept on disk, what needs it waits for the control plane" if types else ""

    def _end_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _on_grace_over(self) -> None:
        # A control plane may give a bootstrap and no stream: another signing key, which rejects the token, for one.
        self._serve_earlier()
        self._report()
        self._grace = asyncio.get_running_loop().call_later(UNREACHABLE_AFTER, self._on_grace_over)

    def _report(self) -> None:
        relay = self.relay
        condition = assess(relay.facts, silence=relay.silence, was_connected=self._had_us, now=time.monotonic())
        advice = self._access.advise(condition.warning) if condition.warning else ""
        warning = f"{condition.warning} ({advice})" if advice else condition.warning
        self._status.set_warning("control plane", warning)
        if condition.permanent:
            self._observer.on_refused(ControlPlaneRefused(condition.warning, advice))


def largest_message(memory_limit: int) -> int:
    """Bytes that one response of the control plane may have, by the memory limit of our cgroup (bytes, 0: none).

    A message is held twice while it comes and while the next one replaces it, and Envoy needs many times its size.
    """
    return max(SMALLEST_BOUND, min(memory_limit // SHARE, LARGEST_BOUND)) if memory_limit else LARGEST_BOUND


def _reported(prepared: Prepared) -> Fetched:
    """Return the bootstrap whose Node the control plane gets."""
    return prepared.fetched or Fetched({}, None, 0.0)


def _protocol(tree: Mapping[str, Any]) -> XdsProtocol:
    """Return what the control plane that sent this bootstrap speaks."""
    return XdsProtocol.DELTA if requires_delta(tree) else XdsProtocol.SOTW


def _node(tree: Mapping[str, Any]) -> bytes:
    return encode_node(get(tree, "node") or {})


def addresses(host: str, port: int, urls: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Return where the stream may go: the bootstrap's address, and the others of the same control plane.

    If the bootstrap's is one of the addresses that the user named, the others are as good.
    """
    parsed = []
    for url in urls:
        parts = urlsplit(url)
        parsed.append((parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)))
    # The control plane knows the name in the request: without final dot and zone, which dialling needs.
    names = [(server_name(name), number) for name, number in parsed]
    if (server_name(host), port) not in names:
        return ((host, port),)
    at = names.index((server_name(host), port))
    return tuple(dict.fromkeys((*parsed[at:], *parsed[:at])))
