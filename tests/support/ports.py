"""Free ports that stay free until a test uses them.

They lie outside the range from which the kernel serves connections and ``bind(0)``, and each process of tests draws
from its own block, so neither a neighbour nor a server on port 0 can take one between its choice and its use.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512
# Below lie the usual ports of kumadp, its neighbours and its demo (9000, 9901, 15053, 19153, 20001).
LOWEST = 20_480


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that no one on ``host`` holds now, TCP and UDP, all different."""
    free: list[int] = []
    for port in itertools.islice(_turns(), BLOCK):
        if len(free) == count:
            break
        if _is_free(host, port):
            free.append(port)
    assert len(free) == count, f"no {count} free ports on {host}"
    return free


def free_port(host: str = "127.0.0.1") -> int:
    """One free port."""
    return free_ports(1, host)[0]


def _is_free(host: str, port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


@functools.cache
def _turns() -> Iterator[int]:
    """The ports of our block, round and round: one that was given out comes again only after all others."""
    return itertools.cycle(_reserve_block())


def _reserve_block() -> list[int]:
    """A block that no other process holds: an abstract socket by its name, given back when this process ends."""
    ports = _outside_of_ephemeral()
    for first in range(0, len(ports) - BLOCK + 1, BLOCK):
        name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(OSError):
            name.bind(f"\0kumadp-test-ports-{ports[first]}")
            _held.append(name)
            return ports[first : first + BLOCK]
        name.close()
    raise AssertionError("every block of test ports is taken: do other tests still run here?")


_held: list[socket.socket] = []


def _outside_of_ephemeral() -> list[int]:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    outside = [port for port in range(LOWEST, 65_536) if not low <= port <= high]
    return outside if len(outside) >= BLOCK else list(range(LOWEST, 32_768))
