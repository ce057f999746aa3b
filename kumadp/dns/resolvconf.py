"""Reads resolv.conf(5): the name servers and how they are queried. This is the only reader of it."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kumadp.addresses import ANY_IPV4, WILDCARDS, canonical, overlap, without_zone

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

Server = tuple[str, int]

DNS_PORT = 53
DEFAULT_SERVERS: tuple[Server, ...] = (("127.0.0.1", DNS_PORT), ("::1", DNS_PORT))
"""Queried if there is no resolv.conf or it has no server: resolv.conf(5) has the first, musl and Go (net) both."""
_MOST_SERVERS = 14
_LARGEST = 1 << 20
_MOST_NOTES = 20
_DEFAULT_TIMEOUT, _DEFAULT_ATTEMPTS = 5.0, 2
# The limits of the C library.
_LONGEST_TIMEOUT, _MOST_ATTEMPTS = 30, 5
# glibc and musl; FreeBSD; OpenBSD. Go (net) knows all three.
_USE_TCP = {"use-vc", "usevc", "tcp"}
_WITHOUT_EFFECT = {
    "single-request": "A and AAAA are queried as the clients query them",
    "no-reload": "changes are always applied",
}
# Applied by the C library of each client, or obsolete.
_OF_CLIENTS = {
    *("debug", "ndots", "edns0", "trust-ad", "no-aaaa", "no-check-names", "no-tld-query", "single-request-reopen"),
    *("inet6", "ip6-bytestring", "ip6-dotint", "no-ip6-dotint", "insecure1", "insecure2"),
}
# inet_aton(3), and with it the C library, accepts 127.1 and 0x7f.1 too.
_INET_ATON = re.compile(r"[0-9a-fA-FxX]+(\.[0-9a-fA-FxX]+){0,3}")


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """``servers`` with their ports; ``timeout`` in seconds; ``use_tcp``: they are queried by TCP only.

    ``notes`` has a text for each line and option that is ignored.
    """

    servers: tuple[Server, ...] = ()
    timeout: float = _DEFAULT_TIMEOUT
    attempts: int = _DEFAULT_ATTEMPTS
    rotate: bool = False
    use_tcp: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)
    by_default: bool = field(default=False, compare=False)
    """The file has no server."""

    @property
    def options(self) -> tuple[str, ...]:
        """The options that differ from the defaults, in the syntax of resolv.conf."""
        options = [name for name, is_on in (("use-vc", self.use_tcp), ("rotate", self.rotate)) if is_on]
        if self.timeout != _DEFAULT_TIMEOUT:
            options.append(f"timeout:{self.timeout:g}")
        if self.attempts != _DEFAULT_ATTEMPTS:
            options.append(f"attempts:{self.attempts}")
        return tuple(options)


def read(path: Path) -> ResolvConf:
    """Read a file and RES_OPTIONS; one that cannot be read has no server, as for the C library. May block."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        conf = parse("", os.environ.get("RES_OPTIONS", ""))
        shown = " and ".join(host for host, _ in DEFAULT_SERVERS)
        note = f"cannot be read ({error.strerror}): {shown} are queried"
        return dataclasses.replace(conf, notes=(note, *conf.notes))
    conf = parse(data[:_LARGEST].decode("utf-8", "replace"), os.environ.get("RES_OPTIONS", ""))
    if len(data) > _LARGEST:
        conf = dataclasses.replace(conf, notes=(f"is larger than {_LARGEST >> 20} MiB", *conf.notes))
    return conf


def parse(text: str, res_options: str = "") -> ResolvConf:
    """Parse the text; lines and options that cannot be used are ignored, with a note.

    ``[address]:port`` is accepted too (OpenBSD). Without a server, `DEFAULT_SERVERS` are used. ``res_options`` are
    further options, those of the environment.
    """
    parser = _Parser()
    for number, line in enumerate(text.split("\n"), 1):
        parser.line(f"line {number}", line)
    parser.options("RES_OPTIONS", res_options.split())
    return parser.result()


class _Parser:
    def __init__(self) -> None:
        self._servers: dict[Server, None] = {}
        self._timeout, self._attempts = _DEFAULT_TIMEOUT, _DEFAULT_ATTEMPTS
        self._rotate = self._use_tcp = False
        self._notes: list[str] = []

    def result(self) -> ResolvConf:
        left_out = len(self._notes) - _MOST_NOTES
        notes = (*self._notes[:_MOST_NOTES], *([f"and {left_out} more"] if left_out > 0 else []))
        return ResolvConf(
            tuple(self._servers) or DEFAULT_SERVERS,
            self._timeout,
            self._attempts,
            rotate=self._rotate,
            use_tcp=self._use_tcp,
            notes=notes,
            by_default=not self._servers,
        )

    def line(self, where: str, line: str) -> None:
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) < 2:
            return
        if words[0] == "nameserver":
            self._server(where, words[1])
        elif words[0] == "options":
            self.options(where, words[1:])

    def _server(self, where: str, word: str) -> None:
        server = _server(word)
        if server is None:
            self._notes.append(f"{where}: {_shown(word)} is not an address")
        elif len(self._servers) < _MOST_SERVERS:
            self._servers[server] = None
        else:
            self._notes.append(f"{where}: more than {_MOST_SERVERS} name servers")

    def options(self, where: str, words: Iterable[str]) -> None:
        """Apply options; later ones override earlier ones."""
        for option in words:
            name, _, value = option.partition(":")
            if name in {"timeout", "attempts"}:
                self._number(where, name, value, option)
            elif name == "rotate":
                self._rotate = True
            elif name in _USE_TCP:
                self._use_tcp = True
            elif name in _WITHOUT_EFFECT:
                self._notes.append(f"{where}: option {name} has no effect: {_WITHOUT_EFFECT[name]}")
            elif name not in _OF_CLIENTS:
                self._notes.append(f"{where}: option {_shown(option)} is not known")

    def _number(self, where: str, name: str, value: str, option: str) -> None:
        if not (value.isascii() and value.isdecimal()):
            self._notes.append(f"{where}: {_shown(option)} needs a number")
        elif name == "timeout":
            self._timeout = float(min(max(int(value[:9]), 1), _LONGEST_TIMEOUT))
        else:
            self._attempts = min(max(int(value[:9]), 1), _MOST_ATTEMPTS)


def is_own(server: Server, own: Iterable[Server], local: Collection[str]) -> bool:
    """Return whether a name server is kumadp itself, which listens at ``own``; ``local`` are this host's addresses.

    A query to 0.0.0.0 or :: is one to this host (connect(2) on Linux).
    """
    host, port = without_zone(canonical(server[0])), server[1]
    for on, our_port in own:
        if port != our_port:
            continue
        if on not in WILDCARDS:
            ours = overlap(on, host)
        elif on == ANY_IPV4 and ":" in host:
            ours = False
        else:
            ours = host in local or host in WILDCARDS
        if ours:
            return True
    return False


def _server(text: str) -> Server | None:
    host, port = text, DNS_PORT
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if rest:
            if not (rest.startswith(":") and rest[1:].isascii() and rest[1:].isdecimal()):
                return None
            port = int(rest[1:7])
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not _INET_ATON.fullmatch(host):
            return None
        try:
            host = socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            return None
    return (host, port) if 0 < port <= 0xFFFF else None


def _shown(word: str) -> str:
    return word if len(word) <= 80 and word.isprintable() else ascii(word[:80])
