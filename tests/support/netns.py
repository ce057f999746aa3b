"""Two hosts on one: network namespaces joined by a cable, torn down with everything in them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.needs import need_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

# TEST-NET-1 (RFC 5737) and the documentation prefix of IPv6 (RFC 3849): never anybody's.
SIDECAR, NEIGHBOUR = "192.0.2.1", "192.0.2.2"
SIDECAR_V6, NEIGHBOUR_V6 = "2001:db8::1", "2001:db8::2"


@dataclass(frozen=True)
class Hosts:
    """Names of the namespaces of the sidecar and of a neighbour."""

    sidecar: str
    neighbour: str

    @property
    def on_sidecar(self) -> tuple[str, ...]:
        """What to put before a command to run it on the sidecar's host."""
        return ("ip", "netns", "exec", self.sidecar)

    @property
    def on_neighbour(self) -> tuple[str, ...]:
        """What to put before a command to run it on the neighbour's host."""
        return ("ip", "netns", "exec", self.neighbour)


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two namespaces with a cable between them; skips, or fails in CI, where they cannot be made."""
    need_netns()
    number = os.getpid()
    hosts = Hosts(f"kdp-s-{number}", f"kdp-n-{number}")
    ends = {hosts.sidecar: ("cable-s", SIDECAR, SIDECAR_V6), hosts.neighbour: ("cable-n", NEIGHBOUR, NEIGHBOUR_V6)}
    try:
        for name in ends:
            _ip("netns", "add", name)
        other_end = ("peer", "name", "cable-n", "netns", hosts.neighbour)
        _ip("link", "add", "cable-s", "netns", hosts.sidecar, "type", "veth", *other_end)
        for name, (link, address, address_v6) in ends.items():
            _ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            # Without nodad an address of IPv6 cannot be bound for a second or two.
            _ip("-n", name, "address", "add", f"{address_v6}/64", "dev", link, "nodad")
            _ip("-n", name, "link", "set", link, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for name in ends:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
