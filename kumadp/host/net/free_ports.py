"""Reserves free ports until their users have bound them."""

from __future__ import annotations

import contextlib
import socket

from kumadp.errors import PortsTaken, Problem

_TRIES = 100


class FreePorts:
    """Reserves ports that are free on every address. `close` once they are bound, or not needed."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self, path: str, *, udp: bool = False) -> int:
        """Return a free port for TCP, with ``udp`` for both protocols; raises PortsTaken with the setting ``path``.

        Until `close` the kernel gives it to no other program, but a server that binds this number with SO_REUSEADDR
        gets it (ip(7): the socket that reserves it does not listen).
        """
        for _ in range(_TRIES):
            held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.bind(("0.0.0.0", 0))  # noqa: S104 - not listened on; CoreDNS binds every address
                port = int(held.getsockname()[1])
                if udp:
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                        probe.bind(("0.0.0.0", port))  # noqa: S104
            except OSError:
                held.close()
                continue
            self._held.append(held)
            return port
        raise PortsTaken([Problem(path, "no free port was found", "name one")])

    def close(self) -> None:
        """Release the ports."""
        for held in self._held:
            with contextlib.suppress(OSError):
                held.close()
        self._held.clear()
