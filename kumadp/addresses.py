"""Addresses, host names and paths of URLs as texts: how they are dialled, and what TLS and HTTP call them."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""Host and port, with flow and zone where it is one of IPv6."""

ANY_IPV4 = "0.0.0.0"  # noqa: S104 - compared, and bound where a user's Dataplane says so
ANY_IPV6 = "::"
WILDCARDS = frozenset({ANY_IPV4, ANY_IPV6})
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*[._]?")
_LONGEST_NAME = 255
# What Linux takes for the name of an interface, or its number.
_ZONE = re.compile(r"[!-$&-.0-9:-~]{1,15}")


_NO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# What a path may hold as it is (RFC 3986, 3.3), and the percent sign of what is escaped already.
_OF_PATHS = "/%:@!$&'()*+,;="


def quoted_path(path: str) -> str:
    """``path`` as a request line has it: escaped characters stay, those that cannot stand there are escaped."""
    return quote(_NO_ESCAPE.sub("%25", path), safe=_OF_PATHS, errors="surrogateescape")


def request_target(path: str) -> str:
    """A path with its query, if it has one, as a request line has it; a ``#`` is a character like others."""
    path, mark, query = path.partition("?")
    return (
        quoted_path(path) + mark + quote(_NO_ESCAPE.sub("%25", query), safe=f"{_OF_PATHS}?", errors="surrogateescape")
    )


def is_ip(host: str) -> bool:
    """Whether ``host`` is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def plain_ip(host: str) -> str:
    """An IP address in its one plain form, one of IPv4 that is mapped into IPv6 as that of IPv4; else the text."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


def is_loopback(host: str) -> bool:
    """Whether only this host reaches ``host``: loopback, mapped into IPv6 too, or ``localhost`` (RFC 6761, 6.3)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def canonical(host: str) -> str:
    """An IP address as it is always written (RFC 5952), one of IPv4 within IPv6 as IPv4; anything else as it is."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


def overlap(one: str, other: str) -> bool:
    """Whether two addresses, as bound, take the same port from each other.

    The wildcard of IPv6 takes IPv4 too (Linux: bindv6only is off unless a socket asks for it). An address of IPv6
    without a zone may be the one with it.
    """
    first, second = canonical(one), canonical(other)
    pair = {first, second}
    if "%" in first + second and "" in {first.partition("%")[2], second.partition("%")[2]}:
        pair = {without_zone(first), without_zone(second)}
    return len(pair) == 1 or ANY_IPV6 in pair or (ANY_IPV4 in pair and not any(":" in host for host in pair))


def without_zone(host: str) -> str:
    """An IPv6 address without its zone (RFC 4007, section 11), anything else as it is."""
    return host.partition("%")[0] if ":" in host else host


def with_port(host: str, port: int) -> str:
    """Host and port as one text, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server_name(host: str) -> str:
    """The name of a server in TLS and HTTP, where ``host`` is what is resolved and connected to.

    A final dot, which makes a name absolute for the resolver, is no part of it (RFC 6066, section 3), nor is the zone
    of an IPv6 address (RFC 6874, section 4: it means something on this host alone). Letters are in lower case.
    """
    if is_ip(host):
        return str(ipaddress.ip_address(without_zone(host)))
    return host.removesuffix(".").lower()


def authority(host: str, port: int) -> str:
    """Host and port of a server as a Host header or ``:authority`` has them (RFC 9110, 7.2)."""
    return with_port(server_name(host), port)


def socket_address(host: str, port: int) -> SocketAddress:
    """What bind(2) takes for an IP address, with the zone that it may have. Does not block.

    From a pair Python reads the address alone and leaves the zone out. Raises OSError where this host has no such zone.
    """
    address, percent, zone = host.partition("%")
    if not percent or ":" not in address:
        return host, port
    try:
        scope = int(zone) if zone.isascii() and zone.isdecimal() else socket.if_nametoindex(zone)
    except (OSError, ValueError):
        raise OSError(errno.ENODEV, f"this host has no interface {zone!r}") from None
    return address, port, 0, scope


def connect_address(host: str, port: int) -> tuple[str, int]:
    """What ``sock_connect`` of an event loop takes for an IP address with a zone; raises OSError without such a zone.

    Of the four parts that connect(2) takes uvloop uses two, and looks up the zone in the text, as asyncio does.
    """
    socket_address(host, port)
    return host, port


def address_text(found: Sequence[Any]) -> str:
    """The address in what getaddrinfo(3) and accept(2) give, with its zone where it has one."""
    host = str(found[0])
    scope = found[3] if len(found) > 3 else 0
    if not scope or "%" in host:
        return host
    try:
        return f"{host}%{socket.if_indextoname(scope)}"
    except OSError:
        return f"{host}%{scope}"


def dialled_host(host: str) -> str:
    """A host of a URL as it is given to getaddrinfo(3): in ASCII (RFC 5890), lower case, its zone not escaped.

    Host names are those that Kuma takes: letters, digits, ``-`` and ``_``, 63 a label (validator of Kuma 2.8 to 2.14).
    Raises ValueError.
    """
    if ":" in host:
        address, percent, zone = host.partition("%")
        zone = zone.removeprefix("25") if len(zone) > 2 else zone
        if percent and not _ZONE.fullmatch(zone):
            raise ValueError(f"{zone!r} is not a zone of an IPv6 address")
        return f"{ipaddress.IPv6Address(address)}{percent}{zone}"
    if not host.isascii():
        import idna

        # As browsers and Go look names up (UTS 46).
        host = idna.encode(host, uts46=True).decode("ascii")
    if not is_host_name(host):
        raise ValueError(f"{host!r} is not a host name")
    return host.lower()


def is_host_name(text: str) -> bool:
    """Whether Kuma's validator takes it for a host name (2.8 to 2.14): it allows ``_`` anywhere, also at the end."""
    return len(text.replace(".", "")) <= _LONGEST_NAME and _HOST_NAME.fullmatch(text) is not None


def dialled_url(url: str) -> str:
    """A URL with its host as `dialled_host` has it. Raises ValueError."""
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    host = dialled_host(parts.hostname or "")
    if place.startswith("[") and ":" not in host:
        raise ValueError(f"{host!r} in brackets is not an IPv6 address")
    port = "" if parts.port is None else f":{parts.port}"
    return urlunsplit(parts._replace(netloc=f"{user}{at}{f'[{host}]' if ':' in host else host}{port}"))
