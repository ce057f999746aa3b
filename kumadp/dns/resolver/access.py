"""Access control for forwarded queries: this host and configured networks. Names of the mesh are for all clients."""

from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING

from kumadp.host.net.interfaces import local_addresses

if TYPE_CHECKING:
    from collections.abc import Iterable

# An unknown client may be an address that this host has just got: it is looked up at most this often (seconds).
_LOOK_AGAIN = 1.0
_MAPPED = "::ffff:"
_MOST_CACHED = 1000


class Access:
    """Allows this host's addresses and ``networks``, in CIDR form; raises ValueError if one is malformed."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(ipaddress.ip_network(text, strict=False) for text in networks)
        self._allowed: set[str] = set()
        self._looked = -_LOOK_AGAIN

    def allows(self, host: str) -> bool:
        """Return whether queries of this client may be forwarded; ``host`` as the socket reports it."""
        if host in self._allowed:
            return True
        address = ipaddress.ip_address(host.split("%", 1)[0].removeprefix(_MAPPED))
        allowed = address.is_loopback or any(address in network for network in self._networks)
        if not allowed:
            now = time.monotonic()
            if now - self._looked < _LOOK_AGAIN:
                return False
            self._looked = now
            allowed = str(address) in local_addresses()
        if allowed and len(self._allowed) < _MOST_CACHED:
            self._allowed.add(host)
        return allowed
