"""The embedded resolver in CoreDNS's place, on the same port."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kumadp.addresses import ANY_IPV4, ANY_IPV6, LOOPBACK
from kumadp.dns.coredns.port_sharing import PortSharing
from kumadp.host.net.interfaces import local_addresses

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from kumadp.dns.plan import DnsPlan
    from kumadp.dns.resolver.server import Resolver
    from kumadp.host.net.connection_limit import ConnectionLimits


class FallbackResolver:
    """Answers on every address: names below the plan's suffixes from Envoy's DNS filter, others also from name servers.

    Clients in the plan's networks may query the name servers of resolv.conf. The port is shared (SO_REUSEPORT):
    ``port_sharing`` decides who gets the queries.
    """

    def __init__(
        self,
        plan: DnsPlan,
        resolv_conf: Path,
        *,
        ipv6: bool,
        connections: ConnectionLimits | None = None,
    ) -> None:
        self._connections = connections
        self._port = plan.port
        # The wildcard of IPv6, as CoreDNS has it: the kernel would prefer a socket on that of IPv4.
        self._everywhere = ANY_IPV6 if ipv6 else ANY_IPV4
        self._envoy = (LOOPBACK, plan.envoy_port)
        self._suffixes = plan.suffixes
        self._networks = plan.networks
        self._resolv_conf = resolv_conf
        self.resolver: Resolver | None = None
        self.port_sharing = PortSharing()

    def make(self) -> Resolver:
        """Return the resolver, which listens nowhere until `open`."""
        if self.resolver is None:
            from kumadp.dns.resolver.access import Access
            from kumadp.dns.resolver.server import Resolver
            from kumadp.dns.resolver.table import Table

            self.resolver = Resolver((), reuse_port=True, dual=True, connections=self._connections)
            self.resolver.table = Table(suffixes=self._suffixes, filtered=True)
            self.resolver.upstreams.envoy = self._envoy
            self.resolver.access = Access(self._networks)
        return self.resolver

    async def open(self, coredns: Collection[str], also: Collection[str] = ()) -> None:
        """Answer, also on the addresses that ``coredns`` has already; raises PortsTaken, or OSError."""
        resolver = self.make()
        await self.follow()
        for host in sorted({self._everywhere, *coredns, *also} - self.port_sharing.hosts):
            udp, tcp = await resolver.listen(host, self._port)
            self.port_sharing.add(host, udp, tcp, first=host not in coredns)

    async def close(self) -> None:
        """Answer the queries that have arrived, and close the port."""
        self.port_sharing.clear()
        if self.resolver is not None:
            await self.resolver.close()

    async def follow(self) -> None:
        """Use the servers that resolv.conf has now."""
        if self.resolver is None:
            return
        from kumadp.dns.resolvconf import read

        upstreams = self.resolver.upstreams
        upstreams.conf = await asyncio.to_thread(read, self._resolv_conf)
        upstreams.local = await asyncio.to_thread(local_addresses)
