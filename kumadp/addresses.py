"""IP addresses as texts: what they are and whether two of them take the same port from each other."""

from __future__ import annotations

import ipaddress

ANY_IPV4 = "0.0.0.0"  # noqa: S104 - compared, and bound where a user's Dataplane says so
ANY_IPV6 = "::"
WILDCARDS = frozenset({ANY_IPV4, ANY_IPV6})


def is_ip(host: str) -> bool:
    """Whether ``host`` is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this host reaches ``host``: loopback, mapped into IPv6 too, or ``localhost`` (RFC 6761, 6.3)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def overlap(one: str, other: str) -> bool:
    """Whether two addresses, as bound, take the same port from each other.

    The wildcard of IPv6 takes IPv4 too (Linux: bindv6only is off unless a socket asks for it).
    """
    pair = {one, other}
    return one == other or ANY_IPV6 in pair or (ANY_IPV4 in pair and ":" not in one + other)
