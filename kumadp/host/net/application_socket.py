"""Sockets to reach the application with, past what transparent proxying redirects."""

from __future__ import annotations

import logging
import socket

log = logging.getLogger("kumadp.host")

# What transparent proxying passes by on its way to the application (Kuma: `kumactl install transparent-proxy`).
SOURCES = {socket.AF_INET: "127.0.0.6", socket.AF_INET6: "::6"}
# ip(7), Linux 4.2: the port of a socket that is bound to an address is chosen when it connects. In Python from 3.12 on.
_BIND_ADDRESS_NO_PORT = 24


def application_socket(family: int, *, sourced: bool) -> socket.socket:
    """A TCP socket to connect with; ``sourced``: from the address that is passed by, where this host has it."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if sourced:
        try:
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            sock.bind((SOURCES[socket.AddressFamily(family)], 0))
        except OSError:
            # ::6 is there where IPv6 is redirected, and nowhere else.
            log.debug("no source address %s", SOURCES[socket.AddressFamily(family)])
    return sock
