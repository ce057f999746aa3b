"""resolv.conf(5): the name servers, and how they are asked."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

_MOST_SERVERS = 14
_DEFAULT_TIMEOUT, _DEFAULT_ATTEMPTS = 5.0, 2
# As the C library bounds them.
_LONGEST_TIMEOUT, _MOST_ATTEMPTS = 30, 5
DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """``servers`` with their ports; ``timeout`` in seconds; ``notes`` tells of each line that is passed over."""

    servers: tuple[tuple[str, int], ...] = ()
    timeout: float = _DEFAULT_TIMEOUT
    attempts: int = _DEFAULT_ATTEMPTS
    rotate: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)


def parse(text: str) -> ResolvConf:
    """Read it; what cannot be used is noted and passed over. ``[address]:port`` is taken too, as OpenBSD has it."""
    servers: dict[tuple[str, int], None] = {}
    timeout, attempts, rotate = _DEFAULT_TIMEOUT, _DEFAULT_ATTEMPTS, False
    notes: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            server = _server(words[1])
            if server is None:
                notes.append(f"line {number}: {words[1]} is no address")
            elif len(servers) < _MOST_SERVERS:
                servers[server] = None
            else:
                notes.append(f"line {number}: more than {_MOST_SERVERS} name servers")
        elif words[0] == "options":
            for option in words[1:]:
                name, _, value = option.partition(":")
                if name == "rotate":
                    rotate = True
                elif name in {"timeout", "attempts"} and not (value.isascii() and value.isdecimal()):
                    notes.append(f"line {number}: {option} has no number")
                elif name == "timeout":
                    timeout = float(min(max(int(value[:9]), 1), _LONGEST_TIMEOUT))
                elif name == "attempts":
                    attempts = min(max(int(value[:9]), 1), _MOST_ATTEMPTS)
    return ResolvConf(tuple(servers), timeout, attempts, rotate, tuple(notes))


def _server(text: str) -> tuple[str, int] | None:
    host, port = text, DNS_PORT
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if rest:
            if not (rest.startswith(":") and rest[1:].isascii() and rest[1:].isdecimal()):
                return None
            port = int(rest[1:6])
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    return (host, port) if 0 < port <= 0xFFFF else None
