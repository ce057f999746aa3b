"""Sockets that connect to the application without being redirected by transparent proxying."""

from __future__ import annotations

import logging
import socket

log = logging.getLogger("kumadp.host")

# Source addresses that transparent proxying does not redirect (Kuma: `kumactl install transparent-proxy`).
SOURCE_ADDRESSES = {socket.AF_INET: "127.0.0.6", socket.AF_INET6: "::6"}
# ip(7), Linux 4.2: the port of a bound socket is chosen when it connects. In Python since 3.12.
_BIND_ADDRESS_NO_PORT = 24


def application_socket(family: int, *, sourced: bool) -> socket.socket:
    """Return a TCP socket to connect; ``sourced``: from the source address, if this host has it."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if sourced:
        try:
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            sock.bind((SOURCE_ADDRESSES[socket.AddressFamily(family)], 0))
        except OSError:
            # ::6 exists only if IPv6 is redirected.
            log.debug("no source address %s", SOURCE_ADDRESSES[socket.AddressFamily(family)])
    return sock
