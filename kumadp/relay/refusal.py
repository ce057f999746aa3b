"""Why the control plane refuses us a stream, and how long to wait before the next attempt. Pure."""

from __future__ import annotations

import enum
import random
import ssl
from typing import TYPE_CHECKING

from kumadp.errors import KumadpError
from kumadp.host.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

# Messages of Kuma 2.8 to 3.0, which sends status UNKNOWN with every refusal.
_ACTIVE = "already an active stream"
_AUTH = ("authentication failed", "could not extract credential", "request must have exactly")
# Kuma 3.0 treats a Dataplane that it cannot read like one that is not there.
_DATAPLANE = ("not found; create a Dataplane", "unsupported proxy type", "request must have a valid Proxy ID")
_UNAUTHENTICATED, _PERMISSION_DENIED, _UNAVAILABLE = 16, 7, 14

# Kuma frees a stream 10.0 s after it broke, then deregisters the Dataplane, which is absent from the mesh until we are
# back.
FREED_FROM, FREED_UNTIL, FREED_WAIT = 9.5, 11.0, 0.1
FIRST_WAIT = 0.25
# UNREACHABLE_LONGEST: with the 1.1 to 1.4 s of a registration, the mesh has us 3 s after the control plane is there.
ACTIVE_LONGEST, UNREACHABLE_LONGEST, LONGEST = 1.0, 1.5, 5.0
GROWTH = 1.5
# A control plane that is restarted or upgraded is back within so many seconds, and the mesh lacks us until the next
# attempt. After a longer outage a wait is as long as the time since then, up to the longest: the control plane shall
# not get the requests of all data planes in the second in which it comes back (`tests/support/storm.py`).
PROMPT_FOR, SPREAD_LONGEST = 30.0, 40.0


class StreamRefusal(enum.StrEnum):
    """Kinds of failure to get a stream."""

    ACTIVE = "active"
    """The control plane still holds our previous stream, which it frees after 10 s."""
    AUTH = "auth"
    """Token, CA or certificate: one side rejects the other, or our file cannot be read."""
    UNREACHABLE = "unreachable"
    """Nothing answers, or the connection broke."""
    DATAPLANE = "dataplane"
    """The control plane does not know the Dataplane, or cannot take it: its version may know no such thing."""
    OTHER = "other"
    """Any other error of the control plane."""


def classify(error: BaseException) -> StreamRefusal:
    """Return the kind of a failed attempt: an OSError, a ``StreamEnded``, or a KumadpError from token or CA."""
    if isinstance(error, ssl.SSLCertVerificationError | KumadpError):
        return StreamRefusal.AUTH
    if isinstance(error, OSError):
        return StreamRefusal.UNREACHABLE
    status, text = getattr(error, "status", None), str(error)
    if _ACTIVE in text:
        return StreamRefusal.ACTIVE
    if status in (_UNAUTHENTICATED, _PERMISSION_DENIED) or any(part in text for part in _AUTH):
        return StreamRefusal.AUTH
    if any(part in text for part in _DATAPLANE):
        return StreamRefusal.DATAPLANE
    if status in (None, _UNAVAILABLE):
        return StreamRefusal.UNREACHABLE
    return StreamRefusal.OTHER


class StreamBackoff:
    """Waits between attempts to open the stream, in seconds."""

    def __init__(self, *, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._backoff = Backoff(FIRST_WAIT, LONGEST, growth=GROWTH, uniform=uniform)
        self._since: float | None = None

    def reset(self) -> None:
        """Begin with the first wait again: a stream was open for long enough."""
        self._backoff.reset()
        self._since = None

    def wait(self, refusal: StreamRefusal, since_broken: float | None, now: float) -> float:
        """Return how long to wait after a refusal at the time ``now`` (seconds).

        ``since_broken``: seconds since a stream of ours broke, None if none did. A stream that the control plane still
        holds is requested again at the moment it is freed.
        """
        self._since = now if self._since is None else self._since
        spread = min(now - self._since - PROMPT_FOR, SPREAD_LONGEST)
        wait = self._backoff.grow()
        if refusal is StreamRefusal.ACTIVE:
            return self._until_freed(min(wait, ACTIVE_LONGEST), since_broken)
        if refusal is StreamRefusal.UNREACHABLE:
            # Where nothing listens an attempt costs little.
            wait = min(wait, UNREACHABLE_LONGEST)
        if refusal in (StreamRefusal.UNREACHABLE, StreamRefusal.OTHER):
            wait = max(wait, spread)
        return wait * self._uniform(0.5, 1.0)

    def _until_freed(self, wait: float, since_broken: float | None) -> float:
        if since_broken is None or since_broken >= FREED_UNTIL:
            return wait
        if since_broken >= FREED_FROM:
            return FREED_WAIT
        return max(FREED_WAIT, min(wait, FREED_FROM - since_broken))
