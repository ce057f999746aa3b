"""How long the client of an HTTP server may take."""

from __future__ import annotations

from msgspec import Struct

# How long a body that no handler reads is still received (seconds), so that the client gets the answer, not a reset.
LINGERING = 0.5


class TimeLimits(Struct, frozen=True):
    """How long a client may take (seconds): for a request's head, to read an answer, between two requests, for a body.

    Those of Kuma 2.14's readiness reporter, whose read limit is that of the body. A body that no handler reads is
    received for at most `LINGERING`.
    """

    head: float = 1.0
    write: float = 30.0
    idle: float = 120.0
    body: float = 10.0
