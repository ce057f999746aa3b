"""Addresses, host names and URL paths as text: in the forms for connecting, for TLS and for HTTP."""

from __future__ import annotations

import errno
import functools
import ipaddress
import re
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""Host and port, with flow and zone for IPv6."""

LOOPBACK = "127.0.0.1"
ANY_IPV4 = "0.0.0.0"  # noqa: S104 - compared, and bound if a user's Dataplane has it
ANY_IPV6 = "::"
WILDCARDS = frozenset({ANY_IPV4, ANY_IPV6})
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*[._]?")
_LONGEST_NAME = 255
# Results of pure functions that are called for every probe.
_REMEMBERED = 256
# A name that Linux accepts for an interface, or its number.
_ZONE = re.compile(r"[!-$&-.0-9:-~]{1,15}")


_NO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# Characters that a path may hold unescaped (RFC 3986, 3.3), and the percent sign of an existing escape.
_OF_PATHS = "/%:@!$&'()*+,;="


def quoted_path(path: str) -> str:
    """Return ``path`` in the form for a request line: existing escapes stay, other characters are escaped if needed."""
    return quote(_NO_ESCAPE.sub("%25", path), safe=_OF_PATHS, errors="surrogateescape")


def request_target(path: str) -> str:
    """Return a path and its query, if any, in the form for a request line; ``#`` is an ordinary character."""
    path, mark, query = path.partition("?")
    return (
        quoted_path(path) + mark + quote(_NO_ESCAPE.sub("%25", query), safe=f"{_OF_PATHS}?", errors="surrogateescape")
    )


@functools.lru_cache(_REMEMBERED)
def is_ip(host: str) -> bool:
    """Return whether ``host`` is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def plain_ip(host: str) -> str:
    """Return an IP address in its canonical form, an IPv4-mapped IPv6 address as IPv4; any other text unchanged."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is loopback, IPv4-mapped IPv6 too, or ``localhost`` (RFC 6761, 6.3)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def canonical(host: str) -> str:
    """Return an IP address in canonical form (RFC 5952), IPv4-mapped IPv6 as IPv4; any other text unchanged."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


def overlap(address: str, other: str) -> bool:
    """Return whether binding the same port on both addresses conflicts.

    The wildcard of IPv6 includes IPv4 (Linux: bindv6only is off unless a socket sets it). An IPv6 address without a
    zone may be the same as one with a zone.
    """
    first, second = canonical(address), canonical(other)
    pair = {first, second}
    if "%" in first + second and "" in {first.partition("%")[2], second.partition("%")[2]}:
        pair = {without_zone(first), without_zone(second)}
    return len(pair) == 1 or ANY_IPV6 in pair or (ANY_IPV4 in pair and not any(":" in host for host in pair))


def without_zone(host: str) -> str:
    """Return an IPv6 address without its zone (RFC 4007, section 11), any other text unchanged."""
    return host.partition("%")[0] if ":" in host else host


def with_port(host: str, port: int) -> str:
    """Return host and port as one text, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server_name(host: str) -> str:
    """Return the name of a server in TLS and HTTP; ``host`` is the name or address to connect to.

    A final dot, which makes a name absolute for the resolver, is not part of it (RFC 6066, section 3), nor is the zone
    of an IPv6 address (RFC 6874, section 4: it means something on this host alone). Letters are in lower case.
    """
    if is_ip(host):
        return str(ipaddress.ip_address(without_zone(host)))
    return host.removesuffix(".").lower()


@functools.lru_cache(_REMEMBERED)
def authority(host: str, port: int) -> str:
    """Return host and port of a server for a Host header or ``:authority`` (RFC 9110, 7.2)."""
    return with_port(server_name(host), port)


def socket_address(host: str, port: int) -> SocketAddress:
    """Return the argument of bind(2) for an IP address, with its zone, if any. Does not block.

    Python ignores the zone of a pair. Raises OSError if this host has no such zone.
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
    """Return the argument of an event loop's ``sock_connect`` for an IP address; raises OSError for an unknown zone.

    Of the four parts for connect(2) uvloop uses two, and reads the zone from the text, as asyncio does.
    """
    socket_address(host, port)
    return host, port


def address_text(address: Sequence[Any]) -> str:
    """Return the IP address in a result of getaddrinfo(3) or accept(2), with its zone, if any."""
    host = str(address[0])
    scope = address[3] if len(address) > 3 else 0
    if not scope or "%" in host:
        return host
    try:
        return f"{host}%{socket.if_indextoname(scope)}"
    except OSError:
        return f"{host}%{scope}"


def dialled_host(host: str) -> str:
    """Return a host of a URL in the form for getaddrinfo(3): ASCII (RFC 5890), lower case, the zone not escaped.

    Host names are those of Kuma: letters, digits, ``-`` and ``_``, 63 a label (validator of Kuma 2.8 to 2.14).
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

        # As in browsers and Go (UTS 46).
        host = idna.encode(host, uts46=True).decode("ascii")
    if not is_host_name(host):
        raise ValueError(f"{host!r} is not a host name")
    return host.lower()


def is_host_name(text: str) -> bool:
    """Return whether Kuma's validator accepts a host name (2.8 to 2.14): it allows ``_`` anywhere, also at the end."""
    return len(text.replace(".", "")) <= _LONGEST_NAME and _HOST_NAME.fullmatch(text) is not None


def dialled_url(url: str) -> str:
    """Return a URL with its host in the form of `dialled_host`. Raises ValueError."""
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    host = dialled_host(parts.hostname or "")
    if place.startswith("[") and ":" not in host:
        raise ValueError(f"{host!r} in brackets is not an IPv6 address")
    port = "" if parts.port is None else f":{parts.port}"
    return urlunsplit(parts._replace(netloc=f"{user}{at}{f'[{host}]' if ':' in host else host}{port}"))
