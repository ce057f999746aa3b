"""Places of one server, shared among its clients. Pure.

A client that wants a place where all are taken displaces a member of the client that has most, or its own oldest one:
whoever comes is served, and a crowd from one address costs only that address.
"""

from __future__ import annotations

import functools
import ipaddress
from typing import Any, Generic, Protocol, TypeVar

_MAPPED = "::ffff:"
# What one subscriber is given; each can take any address in it (RFC 6177).
_PREFIX = 64
# Addresses whose clients are known without looking at them again.
_REMEMBERED = 1024


class Member(Protocol):
    """What has a place: a connection, a query."""

    def may_go(self) -> bool:
        """Whether it may be displaced: nothing is being done for it."""

    def go(self) -> None:
        """End it: its place is another's."""


M = TypeVar("M", bound=Member)


class Shares(Generic[M]):
    """``most`` places, ``each`` at most for one client, the last ``reserve`` for clients on this host only."""

    def __init__(self, most: int, each: int, reserve: int = 0) -> None:
        self.most, self.each, self.reserve = most, each, reserve
        self.displaced = 0
        """Members that had to go."""
        self.refused = 0
        """Clients for which there was no place, as counted by whoever turns them away."""
        self._members: dict[str, dict[M, None]] = {}
        self._taken = 0

    def __len__(self) -> int:
        return self._taken

    def make_room(self, client: str, *, local: bool, own_too: bool = True) -> bool:
        """Whether this client may have another place, for which a member may have had to go. ``local``: on this host.

        Displaces the oldest member that may go. A client displaces members of a client that has more, else its own,
        the latter with ``own_too`` only.
        """
        own = self._members.get(client, {})
        full = self._taken >= self.most - (0 if local else self.reserve)
        if len(own) < self.each and not full:
            return True
        if full and len(own) < self.each:
            heaviest = max(self._members, key=lambda name: len(self._members[name]), default=client)
            if len(self._members.get(heaviest, {})) > len(own) and self._displace(heaviest):
                return True
        return own_too and self._displace(client)

    def add(self, client: str, member: M) -> None:
        """Give a member its place, after `make_room`."""
        self._members.setdefault(client, {})[member] = None
        self._taken += 1

    def remove(self, client: str, member: M) -> None:
        """The member has ended; nothing where it has gone already."""
        own = self._members.get(client)
        if own is None or member not in own:
            return
        del own[member]
        self._taken -= 1
        if not own:
            del self._members[client]

    def displace_any(self) -> bool:
        """Displace one member of whoever has most; False where none may go."""
        by_size = sorted(self._members, key=lambda name: len(self._members[name]), reverse=True)
        return any(self._displace(name) for name in by_size)

    def _displace(self, client: str) -> bool:
        member = next((member for member in self._members.get(client, ()) if member.may_go()), None)
        if member is None:
            return False
        self.remove(client, member)
        self.displaced += 1
        member.go()
        return True


def client_of(peer: Any, own: Any = None) -> tuple[str, bool]:
    """Who a peer counts as, and whether it is on this host: its address, of IPv6 the network of 64 bits.

    ``peer`` and ``own`` are addresses of a socket as Python has them; a peer with our own address is on this host.
    """
    if not isinstance(peer, tuple):
        return "", True
    name, loopback = _client(peer[0])
    return name, loopback or (isinstance(own, tuple) and own[0] == peer[0])


@functools.lru_cache(_REMEMBERED)
def _client(host: str) -> tuple[str, bool]:
    text = host.split("%", 1)[0].removeprefix(_MAPPED)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text, False
    if address.version == 4 or address.is_loopback:
        return text, address.is_loopback
    return str(ipaddress.ip_network((address, _PREFIX), strict=False)), False
