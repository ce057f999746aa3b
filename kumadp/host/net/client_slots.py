"""The slots of one server, shared fairly among its clients. Pure.

A client that needs a slot when all are taken displaces a holder of the client with the most slots, or its own oldest
one: every newcomer is served, and a flood from one address costs only that address.
"""

from __future__ import annotations

import functools
import ipaddress
from typing import Any, Generic, Protocol, TypeVar

_MAPPED = "::ffff:"
# Length of the IPv6 prefix that one subscriber gets, who can use any address in it (RFC 6177).
_PREFIX = 64
# Size of the cache of addresses.
_CACHED_ADDRESSES = 1024


class SlotHolder(Protocol):
    """Something that takes a slot: a connection, a query."""

    def may_be_displaced(self) -> bool:
        """Return whether it may be ended now: it is idle."""

    def displace(self) -> None:
        """End it, because its slot is given to another."""


H = TypeVar("H", bound=SlotHolder)


class ClientSlots(Generic[H]):
    """``total`` slots, at most ``per_client`` for one client, the last ``reserve`` for clients on this host only."""

    def __init__(self, total: int, per_client: int, reserve: int = 0) -> None:
        self.total, self.per_client, self.reserve = total, per_client, reserve
        self.displaced = 0
        """Number of holders that were displaced."""
        self.refused = 0
        """Number of clients turned away for lack of a slot, counted by the caller."""
        self._holders: dict[str, dict[H, None]] = {}
        self._taken = 0

    def __len__(self) -> int:
        return self._taken

    def make_room(self, client: str, *, local: bool, own_too: bool = True) -> bool:
        """Return whether ``client`` may take another slot, after displacing the oldest displaceable holder if needed.

        ``local``: the client is on this host. A client displaces holders of a client that has more slots, otherwise,
        and only with ``own_too``, its own.
        """
        own = self._holders.get(client, {})
        full = self._taken >= self.total - (0 if local else self.reserve)
        if len(own) < self.per_client and not full:
            return True
        if full and len(own) < self.per_client:
            heaviest = max(self._holders, key=lambda name: len(self._holders[name]), default=client)
            if len(self._holders.get(heaviest, {})) > len(own) and self._displace(heaviest):
                return True
        return own_too and self._displace(client)

    def add(self, client: str, holder: H) -> None:
        """Give a holder its slot, after `make_room`."""
        self._holders.setdefault(client, {})[holder] = None
        self._taken += 1

    def remove(self, client: str, holder: H) -> None:
        """Free the slot of a holder that has ended; does nothing if it was displaced already."""
        own = self._holders.get(client)
        if own is None or holder not in own:
            return
        del own[holder]
        self._taken -= 1
        if not own:
            del self._holders[client]

    def displace_any(self) -> bool:
        """Displace one holder of the client that has most; return False if none may be displaced."""
        by_size = sorted(self._holders, key=lambda name: len(self._holders[name]), reverse=True)
        return any(self._displace(name) for name in by_size)

    def _displace(self, client: str) -> bool:
        holder = next((holder for holder in self._holders.get(client, ()) if holder.may_be_displaced()), None)
        if holder is None:
            return False
        self.remove(client, holder)
        self.displaced += 1
        holder.displace()
        return True


def client_of(peer: Any, own: Any = None) -> tuple[str, bool]:
    """Return the client that a peer counts as, and whether it is on this host.

    The client is the peer's address, for IPv6 its /64 network. ``peer`` and ``own`` are socket addresses as Python has
    them; a peer with our own address is on this host.
    """
    if not isinstance(peer, tuple):
        return "", True
    name, loopback = _client(peer[0])
    return name, loopback or (isinstance(own, tuple) and own[0] == peer[0])


@functools.lru_cache(_CACHED_ADDRESSES)
def _client(host: str) -> tuple[str, bool]:
    text = host.split("%", 1)[0].removeprefix(_MAPPED)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text, False
    if address.version == 4 or address.is_loopback:
        return text, address.is_loopback
    return str(ipaddress.ip_network((address, _PREFIX), strict=False)), False
