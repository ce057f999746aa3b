"""The relay of one run: made from bootstrap and settings, dialled with what is true now, kept on disk."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kumadp.addresses import server_name
from kumadp.bootstrap.comparison import same_node
from kumadp.bootstrap.fields import get
from kumadp.errors import ControlPlaneRefused
from kumadp.relay.grace_period import UNREACHABLE_AFTER, assess
from kumadp.relay.last_good import LastGoodContent
from kumadp.relay.node import encode_node
from kumadp.relay.refusal import StreamRefusal
from kumadp.relay.relay import Relay, RelayOptions
from kumadp.relay.state_machine import RelayStateMachine
from kumadp.relay.upstream import Dial, UpstreamState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from kumadp.bootstrap.rewrite import Upstream
    from kumadp.controlplane.bootstrap_client import KumaClient
    from kumadp.core.status import Status
    from kumadp.daemon.sources import Prepared
    from kumadp.relay.last_good import LastGood, LastGoodStore
    from kumadp.relay.snapshot import RelaySnapshot

log = logging.getLogger("kumadp.relay")

# Of the memory limit, and in bytes. gRPC's own default is 4 MiB; a mesh of 10,000 services needs some 30 MB.
SHARE = 8
SMALLEST_BOUND, LARGEST_BOUND = 4 << 20, 128 << 20


class Relaying:
    """Owns the relay. ``refused`` hears that the control plane refuses for good, ``opened`` that it has us.

    ``memory`` is served from at once. ``earlier`` is what an earlier run left: it serves where the control plane does
    not take us yet since it still has that run's stream, which it frees after 10 s (Kuma 2.8 to 2.13).
    """

    def __init__(
        self,
        path: Path,
        client: KumaClient,
        prepared: Prepared,
        status: Status,
        *,
        epoch_of: Callable[[int], int],
        refused: Callable[[ControlPlaneRefused], None],
        opened: Callable[[], None],
        memory: RelaySnapshot | None = None,
        earlier: LastGood | None = None,
        stale: bool = False,
        broken_at: float | None = None,
        memory_limit: int = 0,
    ) -> None:
        self._client = client
        self._status = status
        self._refused = refused
        self._opened = opened
        self._store: LastGoodStore | None = None
        self._patience: asyncio.TimerHandle | None = None
        # What is remembered comes from it.
        self._had_us = memory is not None
        self._open_since = -1.0
        self.accepted: Callable[[str], None] = lambda _type_url: None
        """Hears the type of which Envoy has accepted a response."""
        self.answered: Callable[[str], None] = lambda _type_url: None
        """Called with the type of which Envoy has accepted or rejected a response."""
        self._stale = stale
        self.use(prepared)
        self._told = _tree(prepared)
        self._machine = machine = RelayStateMachine(_node(self._told), snapshot=memory, withhold_secrets=stale)
        self.relay = Relay(
            path,
            machine,
            self._dial,
            epoch_of=epoch_of,
            options=RelayOptions(
                broken_at=broken_at,
                largest=largest_message(memory_limit),
                on_change=self._changed,
                on_accepted=self._accepted,
                on_answered=lambda type_url: self.answered(type_url),
            ),
        )
        status.asked["relay"] = self.relay.status
        self._earlier = None
        # An upgraded kumadp is served too; to Envoy's version the copy is bound.
        if earlier is not None and same_node(earlier.bootstrap, self._told):
            self._earlier = earlier.memory

    def use(self, prepared: Prepared) -> None:
        """Take the way to the control plane, from the next attempt on, from this bootstrap."""
        assert prepared.upstream is not None  # noqa: S101 - without one there is no relay
        self._prepared = prepared
        self._upstream: Upstream = prepared.upstream

    def renew(self, prepared: Prepared) -> bool:
        """Go on with this bootstrap; True when its Node asks for another configuration: the stream is opened anew.

        A control plane reads the Node once a stream (Kuma 2.8 to 2.13).
        """
        self.use(prepared)
        self._kept()
        return self._renew_node(prepared)

    def renew_early(self, prepared: Prepared) -> None:
        """Tell of another Node already now where that breaks no stream, as there is none."""
        if self.relay.facts.state is not UpstreamState.OPEN:
            self._renew_node(prepared)

    def go_back(self, prepared: Prepared) -> None:
        """The Envoy with this bootstrap runs on: where the control plane was told of another Node early, take it back.

        What it sent for that one is not what this Envoy can do; the stream is opened anew.
        """
        if self._renew_node(prepared):
            log.warning("the control plane is told by a new stream that the Dataplane is what it was")

    def _renew_node(self, prepared: Prepared) -> bool:
        former, self._told = self._told, _tree(prepared)
        self._machine.renew_node(_node(self._told))
        # Versions are but shown (Kuma 2.8 to 2.13): the next stream will do.
        if same_node(former, self._told):
            return False
        self.relay.close_upstream("the Dataplane, or what else the control plane is told of it, is another one")
        self.relay.reopen_upstream()
        return True

    def keep_in(self, store: LastGoodStore) -> None:
        """Keep what is accepted on disk from now on."""
        self._store = store
        self._status.asked["last_good"] = store.status

    def content(self) -> LastGoodContent | None:
        """What is kept on disk: None while nothing was accepted."""
        fetched, memory = self._prepared.fetched, self.relay.snapshot()
        if fetched is None or not any(one.accepted for one in memory.types):
            return None
        return LastGoodContent(fetched.tree, fetched.corefile_template, memory)

    async def _dial(self) -> Dial:
        return await asyncio.to_thread(self._make_dial)

    def _make_dial(self) -> Dial:
        from kumadp.controlplane.trust import Trust, make_context

        upstream, settings = self._upstream, self._client.settings
        trust = self._client.trust()
        if not trust.ca and upstream.ca_inline is not None:
            trust = Trust(upstream.ca_inline.decode("utf-8", "surrogateescape"), verify=trust.verify)
        return Dial(
            addresses=addresses(upstream.host, upstream.port, settings.cp_addresses),
            tls=make_context(trust) if upstream.tls else None,
            server_name=upstream.server_name if upstream.server_name != upstream.host else "",
            token=self._client.token(),
            metadata=upstream.metadata,
        )

    def _accepted(self, type_url: str) -> None:
        self._kept()
        self.accepted(type_url)

    def _kept(self) -> None:
        if self._store is not None:
            self._store.schedule_write()

    def _changed(self) -> None:
        """Read what the relay says of itself, and tell what an operator should know."""
        facts = self.relay.facts
        if facts.refusal is StreamRefusal.ACTIVE and self._earlier is not None:
            earlier, self._earlier = self._earlier, None
            log.info("until the control plane takes this data plane again, what it gave the last one serves")
            self._stale = self._had_us = True
            self.relay.restore(earlier)
        self._status.set_warning("last good", self._lacking())
        if facts.state is UpstreamState.OPEN:
            self._had_us, self._stale = True, False
            if facts.since != self._open_since:
                self._open_since = facts.since
                self._opened()
            self._calm()
            self._tell()
        elif facts.state is UpstreamState.HELD_CLOSED:
            self._calm()
            self._tell()
        elif self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(UNREACHABLE_AFTER, self._impatient)

    def _lacking(self) -> str:
        """What Envoy asks for and cannot have before the control plane is back: what is never kept on disk."""
        if not self._stale or self.relay.facts.state is UpstreamState.OPEN:
            return ""
        types = [view.type_url.rpartition(".")[2] for view in self._machine.types() if not view.latest]
        return f"{', '.join(types)}: not kept on disk, what needs it waits for the control plane" if types else ""

    def _calm(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _impatient(self) -> None:
        self._tell()
        self._patience = asyncio.get_running_loop().call_later(UNREACHABLE_AFTER, self._impatient)

    def _tell(self) -> None:
        relay = self.relay
        condition = assess(relay.facts, silence=relay.silence, was_connected=self._had_us, now=time.monotonic())
        self._status.set_warning("control plane", condition.warning)
        if condition.permanent:
            self._refused(ControlPlaneRefused(condition.warning))


def largest_message(memory_limit: int) -> int:
    """Bytes that one response of the control plane may have, by the memory limit of our cgroup (bytes, 0: none).

    A message is held twice while it comes and while the next one replaces it, and Envoy needs many times its size.
    """
    return max(SMALLEST_BOUND, min(memory_limit // SHARE, LARGEST_BOUND)) if memory_limit else LARGEST_BOUND


def _tree(prepared: Prepared) -> Mapping[str, Any]:
    """The bootstrap whose Node the control plane is told."""
    return prepared.fetched.tree if prepared.fetched is not None else {}


def _node(tree: Mapping[str, Any]) -> bytes:
    return encode_node(get(tree, "node") or {})


def addresses(host: str, port: int, urls: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Where the stream may go: what the bootstrap says, and the other addresses of the same control plane.

    Where the bootstrap leads to one of the addresses that the user named, the others are as good.
    """
    named = []
    for url in urls:
        parts = urlsplit(url)
        named.append((parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)))
    # The control plane knows the name in the request: without final dot and zone, which dialling needs.
    names = [(server_name(name), number) for name, number in named]
    if (server_name(host), port) not in names:
        return ((host, port),)
    at = names.index((server_name(host), port))
    return tuple(dict.fromkeys((*named[at:], *named[:at])))
