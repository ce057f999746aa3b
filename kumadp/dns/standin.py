"""The embedded resolver in CoreDNS's place, on the same port."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kumadp.addresses import ANY_IPV4, ANY_IPV6
from kumadp.host.ports import local_addresses

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kumadp.dns.server import Resolver


class ResolverStandIn:
    """Answers on every address: names below ``suffixes`` from Envoy's DNS filter alone, others also from resolv.conf's.

    The port is shared (SO_REUSEPORT); a CoreDNS that binds an address of its own is preferred there by the kernel.
    """

    def __init__(
        self, port: int, envoy: tuple[str, int], suffixes: Sequence[str], resolv_conf: Path, *, ipv6: bool
    ) -> None:
        self._addresses = [(host, port) for host in (ANY_IPV4, *([ANY_IPV6] if ipv6 else []))]
        self._envoy = envoy
        self._suffixes = tuple(suffixes)
        self._resolv_conf = resolv_conf
        self._resolver: Resolver | None = None

    @property
    def resolver(self) -> Resolver | None:
        """The resolver; None where it never had to answer."""
        return self._resolver

    async def open(self) -> None:
        """Answer; raises PortsTaken."""
        if self._resolver is None:
            from kumadp.dns.server import Resolver
            from kumadp.dns.table import Table

            self._resolver = Resolver(self._addresses, reuse_port=True)
            self._resolver.table = Table(suffixes=self._suffixes, filtered=True)
            self._resolver.upstreams.envoy = self._envoy
        await self.follow()
        await self._resolver.open()

    async def close(self) -> None:
        """Answer what has come and give the port up."""
        if self._resolver is not None:
            await self._resolver.close()

    async def follow(self) -> None:
        """Ask those whom resolv.conf names now."""
        if self._resolver is None:
            return
        from kumadp.dns.resolvconf import parse

        try:
            text = await asyncio.to_thread(self._resolv_conf.read_text, errors="replace")
        except OSError:
            text = ""
        self._resolver.upstreams.conf = parse(text)
        self._resolver.upstreams.local = await asyncio.to_thread(local_addresses)
