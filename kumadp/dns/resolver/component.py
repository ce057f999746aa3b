"""The embedded resolver in this run: where it listens, whom it asks, and how it hears of names."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from kumadp.addresses import with_port
from kumadp.daemon.ports import LOOPBACK
from kumadp.dns.message import encode_query, question_of
from kumadp.dns.resolvconf import read
from kumadp.dns.resolver.access import Access
from kumadp.dns.resolver.exchange import SentQueries, query_udp
from kumadp.dns.resolver.server import Resolver
from kumadp.dns.resolver.table import HandedNames, Table
from kumadp.host.net.ports import local_addresses
from kumadp.resources.dns_defaults import DEFAULT_TTL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from kumadp.core.context import Run
    from kumadp.daemon.ports import DnsPlan
    from kumadp.dns.resolvconf import ResolvConf
    from kumadp.resources.dynconf_bodies import DnsBody

log = logging.getLogger("kumadp.dns")

# How often Envoy's DNS filter is probed, also once Envoy serves without one, and how long it may
# take (seconds).
_ASK_AGAIN, _ASK_RARELY = 0.2, 10.0
_FILTER = 0.5
# The name servers' own name, for any answer at all.
_PROBE = encode_query("kumadp.invalid")


class Resolving:
    """A component; raises PortsTaken when it is made.

    Names come from the control plane (`take`), from files (`name_all`), or from Envoy's DNS filter.
    ``ready`` is set once there are names: the first configuration came, or Envoy's filter answers (Kuma up to 2.10).
    ``settled`` is set then, and also once an Envoy that serves has neither: there is nothing to wait for.
    """

    name = "embedded resolver"

    def __init__(self, run: Run, plan: DnsPlan, resolv_conf: Path) -> None:
        self._run = run
        self._suffixes = plan.suffixes
        self._resolv_conf = resolv_conf
        self._ttl = DEFAULT_TTL
        self._made = time.monotonic()
        self.labels: dict[str, str] | None = None
        """Those that the control plane's first names came with, for metrics."""
        self.ready = asyncio.Event()
        self.settled = asyncio.Event()
        self._absent = asyncio.Event()
        self.resolver = Resolver([(host, plan.port) for host in plan.addresses])
        self._envoy = (LOOPBACK, plan.envoy_port) if run.mesh is None else None
        self.resolver.table = self._table()
        if run.before.names is not None:
            self._go_on(run.before.names)
        self.resolver.upstreams.envoy = self._envoy
        self.resolver.access = Access(plan.networks)
        self.resolver.bind()

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled."""
        await self.follow()
        async with self.resolver:
            up()
            if self._envoy is not None:
                await self._see_envoy(self._envoy)
            await asyncio.Event().wait()

    async def follow(self) -> None:
        """Ask the name servers that resolv.conf has now."""
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

    async def take(self, dns: DnsBody | None) -> None:
        """The names that a control plane of 2.11 or later tells; None when it tells none any more."""
        self._ttl = dns.ttl if dns is not None else self._ttl
        if dns is not None and self.labels is None:
            self.labels = dns.extra_labels or {}
        records = ((record.name, record.ips or ()) for record in (dns.records or () if dns is not None else ()))
        # Only a control plane that tells names here leaves Envoy without its filter.
        self._envoy = None if dns is not None else (LOOPBACK, self._run.settings.envoy_dns_port)
        table, old = self._table(), self.resolver.table
        await table.fill(records)
        self.resolver.upstreams.envoy = self._envoy
        self._use(table)
        await old.clear()

    def on_absent(self) -> None:
        """Envoy has its listeners, and none of them serves names as dynamic configuration."""
        self._absent.set()

    def name_all(self, names: Mapping[str, Iterable[str]]) -> None:
        """The names that Dataplane files have now."""
        # They are there as written too, for those who compare letter by letter.
        lower = {name: sorted(addresses) for name, addresses in names.items() if name == name.lower()}
        self._use(self._table(lower.items()))

    def handed(self) -> HandedNames | None:
        """The names, for the program that follows; None while there are none."""
        return HandedNames(self.resolver.table.handed(), self.labels) if self.ready.is_set() else None

    def _go_on(self, before: HandedNames) -> None:
        self.resolver.table = Table.of(before.table, self._suffixes)
        self.labels = before.labels
        if not before.table.filtered:
            self._envoy = None
        self._there_are_names()

    def status(self) -> Mapping[str, str]:
        """Who answers."""
        return {"answered_by": "the embedded resolver", "corefile": ""}

    def _table(self, records: Iterable[tuple[str, Sequence[str]]] = ()) -> Table:
        return Table(records, ttl=self._ttl, suffixes=self._suffixes, filtered=self._envoy is not None)

    def _use(self, table: Table) -> None:
        self.resolver.table = table
        shown = ", ".join(table.wrong[:3]) + (", ..." if len(table.wrong) > 3 else "")
        self._run.status.set_warning("names", f"{len(table.wrong)} cannot be used: {shown}" if table.wrong else "")
        self._there_are_names()

    def _there_are_names(self) -> None:
        if not self.ready.is_set():
            self.resolver.counters.ready_after = time.monotonic() - self._made
            self.ready.set()
            self.settled.set()

    async def _see_envoy(self, envoy: tuple[str, int]) -> None:
        while not self.ready.is_set():
            # Envoy has all of its listeners when it is seen to serve no names: a filter would answer after that.
            absent = self._absent.is_set()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_FILTER):
                    await query_udp(envoy, _PROBE, question_of(_PROBE), SentQueries())
                self._there_are_names()
            if absent and not self.settled.is_set():
                log.info("the control plane sends no names; if it does later, they are answered")
                self.settled.set()
            if absent:
                await asyncio.sleep(_ASK_RARELY)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ASK_AGAIN):
                    await self._absent.wait()


def _read(path: Path) -> tuple[ResolvConf, frozenset[str]]:
    """What resolv.conf says, and this host's addresses. May block."""
    return read(path), local_addresses()
