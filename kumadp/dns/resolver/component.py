"""The embedded resolver in a run: where it listens, which servers it queries, and where its names come from."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from kumadp.addresses import LOOPBACK, with_port
from kumadp.bootstrap.generation import Generation
from kumadp.dns.message import encode_query, question_of
from kumadp.dns.resolvconf import read
from kumadp.dns.resolver.access import Access
from kumadp.dns.resolver.exchange import SentQueries, query_udp
from kumadp.dns.resolver.server import Resolver
from kumadp.dns.resolver.table import HandedNames, Table
from kumadp.host.net.interfaces import local_addresses
from kumadp.resources.dns_defaults import DEFAULT_TTL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from kumadp.core.context import Context
    from kumadp.dns.plan import DnsPlan
    from kumadp.dns.resolvconf import ResolvConf
    from kumadp.resources.dynconf_bodies import DnsBody

log = logging.getLogger("kumadp.dns")

# How often Envoy's DNS filter is probed, also once Envoy serves without one, and how long it may
# take (seconds).
_PROBE_AGAIN, _PROBE_RARELY = 0.2, 10.0
_FILTER = 0.5
# How long after a change of the control plane's generation Envoy's listeners are expected to change (seconds).
_NAMES_DUE = 60.0
# The name servers' own name, for any answer at all.
_PROBE = encode_query("kumadp.invalid")


class EmbeddedResolver:
    """The embedded resolver as a component; raises PortsTaken when it is made.

    Names come from the control plane (`apply`), from files (`set_names`), or from Envoy's DNS filter.
    ``ready`` is set once there are names: the first configuration came, or Envoy's filter answers (Kuma up to 2.10).
    ``settled`` is set then, and also once an Envoy that serves has neither: there is nothing to wait for.
    ``handed`` are the names of the program before this one. ``resolver`` is one that serves already, and that its owner
    closes.
    """

    name = "embedded resolver"

    def __init__(
        self,
        context: Context,
        plan: DnsPlan,
        resolv_conf: Path,
        handed: HandedNames | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self._context = context
        self._suffixes = plan.suffixes
        self._resolv_conf = resolv_conf
        self._ttl = DEFAULT_TTL
        self._made = time.monotonic()
        self.labels: dict[str, str] | None = None
        """Those that the control plane's first names came with, for metrics."""
        self.ready = asyncio.Event()
        self.settled = asyncio.Event()
        self._absent = asyncio.Event()
        self._serves_already = resolver is not None
        self.resolver = resolver or Resolver(
            [(host, plan.port) for host in plan.addresses], connections=context.status.connections
        )
        self._envoy = None if context.standalone else (LOOPBACK, plan.envoy_port)
        self.resolver.table = self._table()
        if handed is not None:
            self._resume(handed)
        self.resolver.upstreams.envoy = self._envoy
        self.resolver.access = Access(plan.networks)
        self._due: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None
        self._deferred: DnsBody | None = None
        if not self._serves_already:
            self.resolver.bind()

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled."""
        await self.follow()
        try:
            async with contextlib.nullcontext() if self._serves_already else self.resolver:
                up()
                if self._envoy is not None:
                    await self._probe_envoy(self._envoy)
                await asyncio.Event().wait()
        finally:
            if self._due is not None:
                self._due.cancel()
            if self._probing is not None:
                self._probing.cancel()

    async def follow(self) -> None:
        """Query the name servers that resolv.conf has now."""
        conf, local = await asyncio.to_thread(_read, self._resolv_conf)
        upstreams = self.resolver.upstreams
        upstreams.local = local
        if conf == upstreams.conf:
            return
        upstreams.conf = conf
        for note in conf.notes:
            log.warning("%s: %s", self._resolv_conf, note)
        servers = ", ".join(with_port(host, port) for host, port in upstreams.servers)
        options = f" ({', '.join(conf.options)})" if conf.options else ""
        if servers:
            log.info("other names are forwarded to %s%s", servers, options)
        else:
            log.warning("other names are unknown: %s names no server but kumadp itself", self._resolv_conf)

    async def apply(self, dns: DnsBody | None) -> None:
        """Take the names that a control plane of 2.11 or later sends; None: it sends none any more."""
        self._deferred = None
        if dns is not None and not dns.records and self.resolver.names_due is not None:
            # A control plane that has just been started may not have computed them yet.
            self._deferred = dns
            return
        self._ttl = dns.ttl if dns is not None else self._ttl
        if dns is not None and self.labels is None:
            self.labels = dns.extra_labels or {}
        records = ((record.name, record.ips or ()) for record in (dns.records or () if dns is not None else ()))
        # Only a control plane that sends names here leaves Envoy without its filter.
        self._envoy = None if dns is not None else (LOOPBACK, self._context.settings.envoy_dns_port)
        table, old = self._table(), self.resolver.table
        await table.fill(records)
        self.resolver.upstreams.envoy = self._envoy
        self._use(table)
        if dns is not None:
            self._expect_no_names()
        await old.clear()

    def on_generation(self, generation: Generation) -> None:
        """Adapt to a control plane of another generation, under an Envoy that serves, without a query lost.

        Towards 3: Envoy's DNS filter goes with its former listeners, a moment before names come; queries wait for them.
        Towards 2: these names answer until Envoy has a filter again, or until other names come.
        """
        if self._probing is not None:
            self._probing.cancel()
        if generation is Generation.KUMA_3 and self._envoy is not None:
            self.resolver.names_due = asyncio.Event()
            self._due = asyncio.get_running_loop().call_later(_NAMES_DUE, self._on_overdue)
        elif generation is Generation.KUMA_2 and self._envoy is None:
            envoy = (LOOPBACK, self._context.settings.envoy_dns_port)
            self._probing = asyncio.create_task(self._await_filter(envoy), name="dns filter")

    def _on_overdue(self) -> None:
        deferred = self._deferred
        self._expect_no_names()
        if deferred is not None:
            self._probing = asyncio.create_task(self.apply(deferred), name="no names")

    def _expect_no_names(self) -> None:
        if self.resolver.names_due is not None:
            self.resolver.names_due.set()
            self.resolver.names_due = None
        if self._due is not None:
            self._due.cancel()
            self._due = None

    async def _await_filter(self, envoy: tuple[str, int]) -> None:
        """Query Envoy's DNS filter from the moment when it answers."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _NAMES_DUE
        while loop.time() < deadline:
            if await _filter_answers(envoy):
                log.info("Envoy's DNS filter answers again: names of the mesh are forwarded to it")
                await self.apply(None)
                return
            await asyncio.sleep(_PROBE_AGAIN)

    def on_absent(self) -> None:
        """Note that Envoy has its listeners, and none of them serves names as dynamic configuration."""
        self._absent.set()

    def set_names(self, names: Mapping[str, Iterable[str]]) -> None:
        """Take the names that Dataplane files have now."""
        # They are there as written too, for those who compare letter by letter.
        lower = {name: sorted(addresses) for name, addresses in names.items() if name == name.lower()}
        self._use(self._table(lower.items()))

    def hand_over(self) -> HandedNames | None:
        """Return the names for the next program; None while there are none."""
        return HandedNames(self.resolver.table.handed(), self.labels) if self.ready.is_set() else None

    def _resume(self, handed: HandedNames) -> None:
        self.resolver.table = Table.of(handed.table, self._suffixes)
        self.labels = handed.labels
        if not handed.table.filtered:
            self._envoy = None
        self._note_names()

    def status(self) -> Mapping[str, str]:
        """Return who answers; JSON types."""
        return {"answered_by": "the embedded resolver", "corefile": ""}

    def _table(self, records: Iterable[tuple[str, Sequence[str]]] = ()) -> Table:
        return Table(records, ttl=self._ttl, suffixes=self._suffixes, filtered=self._envoy is not None)

    def _use(self, table: Table) -> None:
        self.resolver.table = table
        shown = ", ".join(table.wrong[:3]) + (", ..." if len(table.wrong) > 3 else "")
        self._context.status.set_warning("names", f"{len(table.wrong)} cannot be used: {shown}" if table.wrong else "")
        self._note_names()

    def _note_names(self) -> None:
        if not self.ready.is_set():
            self.resolver.counters.ready_after = time.monotonic() - self._made
            self.ready.set()
            self.settled.set()

    async def _probe_envoy(self, envoy: tuple[str, int]) -> None:
        while not self.ready.is_set():
            # Envoy has all of its listeners when it is seen to serve no names: a filter would answer after that.
            absent = self._absent.is_set()
            if await _filter_answers(envoy):
                self._note_names()
            if absent and not self.settled.is_set():
                log.info("the control plane sends no names; if it does later, they are answered")
                self.settled.set()
            if absent:
                await asyncio.sleep(_PROBE_RARELY)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PROBE_AGAIN):
                    await self._absent.wait()


async def _filter_answers(envoy: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_FILTER):
            await query_udp(envoy, _PROBE, question_of(_PROBE), SentQueries())
        return True
    return False


def _read(path: Path) -> tuple[ResolvConf, frozenset[str]]:
    """Read resolv.conf and this host's addresses. May block."""
    return read(path), local_addresses()
