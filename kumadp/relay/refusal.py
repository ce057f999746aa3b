"""Why the control plane has no stream for us, and how long to wait before the next attempt. Pure."""

from __future__ import annotations

import enum
import random
import ssl

from kumadp.errors import KumadpError

# Messages of Kuma 2.8 to 2.13, which answers every refusal with status UNKNOWN.
_ACTIVE = "already an active stream"
_AUTH = ("authentication failed", "could not extract credential", "request must have exactly")
_UNAUTHENTICATED, _PERMISSION_DENIED, _UNAVAILABLE = 16, 7, 14

# Kuma frees a stream that broke after 10.0 s, then deregisters the Dataplane: each moment after that is absence.
FREED_FROM, FREED_UNTIL, FREED_WAIT = 9.5, 11.0, 0.1
FIRST_WAIT = 0.25
ACTIVE_LONGEST, LONGEST = 1.0, 5.0
GROWTH = 1.5


class StreamRefusal(enum.StrEnum):
    """Kinds of failure to get a stream."""

    ACTIVE = "active"
    """The control plane still holds our last stream: it frees it after 10 s."""
    AUTH = "auth"
    """Token, CA or certificate: one side does not accept the other, or ours cannot be read."""
    UNREACHABLE = "unreachable"
    """Nothing answers, or the connection broke."""
    OTHER = "other"
    """The control plane said something else."""


def classify(error: BaseException) -> StreamRefusal:
    """The kind of a failed attempt: an OSError, a ``grpc.Ended``, or an error of ours from reading token or CA."""
    if isinstance(error, ssl.SSLCertVerificationError | KumadpError):
        return StreamRefusal.AUTH
    if isinstance(error, OSError):
        return StreamRefusal.UNREACHABLE
    status, text = getattr(error, "status", None), str(error)
    if _ACTIVE in text:
        return StreamRefusal.ACTIVE
    if status in (_UNAUTHENTICATED, _PERMISSION_DENIED) or any(part in text for part in _AUTH):
        return StreamRefusal.AUTH
    if status in (None, _UNAVAILABLE):
        return StreamRefusal.UNREACHABLE
    return StreamRefusal.OTHER


class Backoff:
    """Waits between attempts, in seconds."""

    def __init__(self, *, jitter: random.Random | None = None) -> None:
        self._jitter = jitter or random.Random()  # noqa: S311 - spreads attempts, hides nothing
        self._tries = 0

    def reset(self) -> None:
        """A stream was open for long enough."""
        self._tries = 0

    def wait(self, refusal: StreamRefusal, since_broken: float | None) -> float:
        """How long to wait after a refusal, ``since_broken`` seconds after a stream of ours broke (None: none did)."""
        grown = FIRST_WAIT * GROWTH ** min(self._tries, 20)
        self._tries += 1
        if refusal is not StreamRefusal.ACTIVE:
            return min(grown, LONGEST) * self._jitter.uniform(0.5, 1.0)
        wait = min(grown, ACTIVE_LONGEST)
        if since_broken is None or since_broken >= FREED_UNTIL:
            return wait
        if since_broken >= FREED_FROM:
            return FREED_WAIT
        return max(FREED_WAIT, min(wait, FREED_FROM - since_broken))
