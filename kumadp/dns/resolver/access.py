"""Who may have names looked up elsewhere: this host itself, and networks that are named. Names of ours are for all."""

from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING

from kumadp.host.net.ports import local_addresses

if TYPE_CHECKING:
    from collections.abc import Iterable

# A stranger may be an address that this host has just got; how often that is looked at (seconds).
_LOOK_AGAIN = 1.0
_MAPPED = "::ffff:"
_MOST_KNOWN = 1000


class Access:
    """``networks`` in CIDR form; raises ValueError where one is none."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(ipaddress.ip_network(text, strict=False) for text in networks)
        self._known: set[str] = set()
        self._looked = -_LOOK_AGAIN

    def allows(self, host: str) -> bool:
        """Whether this client may; ``host`` as the socket tells it."""
        if host in self._known:
            return True
        address = ipaddress.ip_address(host.split("%", 1)[0].removeprefix(_MAPPED))
        allowed = address.is_loopback or any(address in network for network in self._networks)
        if not allowed:
            now = time.monotonic()
            if now - self._looked < _LOOK_AGAIN:
                return False
            self._looked = now
            allowed = str(address) in local_addresses()
        if allowed and len(self._known) < _MOST_KNOWN:
            self._known.add(host)
        return allowed
