"""Limits of the embedded resolver."""

from __future__ import annotations

from msgspec import Struct


class ResolverLimits(Struct, frozen=True):
    """Numbers of queries and connections, and times in seconds. A process with few file descriptors has less."""

    forwarded: int = 1000
    """Forwarded queries at a time; a client with many is displaced by one with few."""
    forward_within: float = 10.0
    """A forwarded query fails after this time, even if resolv.conf has a longer timeout."""
    connections: int = 256
    """TCP connections at a time."""
    idle: float = 10.0
    """A connection without a query is closed after this time (RFC 7766 6.2.3)."""
    write_within: float = 5.0
    """A client that reads no answers for this time is aborted."""
