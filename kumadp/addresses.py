"""IP addresses as texts, whether two of them take the same port from each other, and paths of URLs."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote

ANY_IPV4 = "0.0.0.0"  # noqa: S104 - compared, and bound where a user's Dataplane says so
ANY_IPV6 = "::"
WILDCARDS = frozenset({ANY_IPV4, ANY_IPV6})


_NO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# What a path may hold as it is (RFC 3986, 3.3), and the percent sign of what is escaped already.
_OF_PATHS = "/%:@!$&'()*+,;="


def quoted_path(path: str) -> str:
    """``path`` as a request line has it: escaped characters stay, those that cannot stand there are escaped."""
    return quote(_NO_ESCAPE.sub("%25", path), safe=_OF_PATHS, errors="surrogateescape")


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


def without_zone(host: str) -> str:
    """An IPv6 address without its zone (RFC 4007, section 11), anything else as it is."""
    return host.partition("%")[0] if ":" in host else host


def server_name(host: str) -> str:
    """The name of a server in TLS and HTTP, where ``host`` is what is resolved and connected to.

    A final dot, which makes a name absolute for the resolver, is no part of it (RFC 6066, section 3), nor is the zone
    of an IPv6 address (RFC 6874, section 4: it means something on this host alone). Letters are in lower case.
    """
    if is_ip(host):
        return str(ipaddress.ip_address(without_zone(host)))
    return host.removesuffix(".").lower()


def authority(host: str, port: int) -> str:
    """Host and port of a server as in a URL, a Host header or ``:authority`` (RFC 3986, 3.2.2)."""
    name = server_name(host)
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
