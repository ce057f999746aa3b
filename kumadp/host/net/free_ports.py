"""Ports that nobody uses, kept from others until who is to have them has bound them."""

from __future__ import annotations

import contextlib
import socket

from kumadp.errors import PortsTaken, Problem

_TRIES = 100


class FreePorts:
    """Takes free ports of loopback and every other address. `close` when they are bound for good, or not wanted."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self, path: str, *, udp: bool = False) -> int:
        """A port for TCP, with ``udp`` the same for both; raises PortsTaken with the setting ``path``.

        Until `close` no other program is given it by the kernel, but who asks for it by number, with SO_REUSEADDR as
        servers do, gets it (ip(7): the socket that holds it does not listen).
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
        """Let go of them."""
        for held in self._held:
            with contextlib.suppress(OSError):
                held.close()
        self._held.clear()
