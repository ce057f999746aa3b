"""Limits on the connections of a server, and what it counts: open, displaced, refused, bad requests."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from typing import TYPE_CHECKING, Protocol

from kumadp.host.descriptors import share
from kumadp.host.log.throttle import Throttle
from kumadp.host.net.client_slots import ClientSlots

if TYPE_CHECKING:
    import socket

log = logging.getLogger("kumadp.host")

MAX_NETWORK_CONNECTIONS, MAX_UNIX_CONNECTIONS = 256, 64
# Seconds between two log lines about bad requests.
_LOG_INTERVAL = 60.0


class LimitedConnection(Protocol):
    """The protocol (`asyncio.Protocol`) of a connection that can be closed to make room for another."""

    def may_be_displaced(self) -> bool:
        """Return whether it is idle, or has not sent a whole request."""

    def displace(self) -> None:
        """Abort it."""


class ConnectionSlot:
    """The slot of one connection, which is not displaced before what it sent at first could be read."""

    def __init__(self) -> None:
        self.connection: LimitedConnection | None = None
        self.displaceable_from = math.inf
        """On the event loop's clock."""

    def may_be_displaced(self) -> bool:
        """See `kumadp.host.net.client_slots.SlotHolder`."""
        if self.connection is None or asyncio.get_running_loop().time() < self.displaceable_from:
            return False
        return self.connection.may_be_displaced()

    def displace(self) -> None:
        """Abort the connection."""
        if self.connection is not None:
            self.connection.displace()


class ConnectionLimit:
    """The connection slots and counters of one server under its ``name``. Several sockets may share one.

    ``total`` connections, at most ``per_client`` of one client (default: all), the last ``reserve`` for this host.
    """

    def __init__(self, name: str, total: int, *, per_client: int | None = None, reserve: int = 0) -> None:
        self.name = name
        self.slots: ClientSlots[ConnectionSlot] = ClientSlots(total, per_client or total, reserve)
        self.bad = 0
        """Number of requests that could not be parsed."""
        self._quiet_until, self._logged = 0.0, 0
        self._throttle = Throttle()

    @classmethod
    def for_socket(cls, name: str, sock: socket.socket, total: int = MAX_UNIX_CONNECTIONS) -> ConnectionLimit:
        """Return a limit of ``total`` for a Unix socket, and one by the descriptor limit for a network socket."""
        if isinstance(sock.getsockname(), str):
            return cls(name, total)
        total = share(MAX_NETWORK_CONNECTIONS)
        return cls(name, total, per_client=max(1, total // 2), reserve=total // 4)

    def count_bad_request(self, peer: str, reason: str) -> None:
        """Count a request that could not be parsed; logs at most one line a minute."""
        self.bad += 1
        now = time.monotonic()
        if now >= self._quiet_until:
            more = self.bad - self._logged - 1
            since = f" ({more} more since the last line)" if more else ""
            log.warning("%s: bad request from %s: %s%s", self.name, peer or "this host", reason, since)
            self._quiet_until, self._logged = now + _LOG_INTERVAL, self.bad

    def log_exhausted(self, error: OSError) -> None:
        """Log that the host has no descriptors or memory left to accept a connection."""
        if self._throttle.admit("exhausted", time.monotonic()) is not None:
            reason = error.strerror or os.strerror(error.errno or 0)
            log.error("%s: new connections wait: %s", self.name, reason)

    def status(self) -> dict[str, int]:
        """Return the limit and the counters; JSON types."""
        slots = self.slots
        return {
            "open": len(slots),
            "most": slots.total,
            "displaced": slots.displaced,
            "refused": slots.refused,
            "bad_requests": self.bad,
        }


class ConnectionLimits:
    """The connection limits of the servers of one run, by name; a server that starts again replaces its limit."""

    def __init__(self) -> None:
        self._limits: dict[str, ConnectionLimit] = {}

    def add(self, limit: ConnectionLimit) -> ConnectionLimit:
        """Add a limit, and return it."""
        self._limits[limit.name] = limit
        return limit

    def status(self) -> dict[str, dict[str, int]]:
        """Return limit and counters of each server, by its name; JSON types."""
        return {name: limit.status() for name, limit in self._limits.items()}
