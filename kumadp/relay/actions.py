"""What the state machine wants done, in this order: bytes to send, and what others must know."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SendUp:
    """Send this DiscoveryRequest on the stream to the control plane."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SendDown:
    """Send this DiscoveryResponse to an Envoy.

    The next one of the same stream and type comes only after Envoy has answered this one, so at most one of each type
    is ever queued or under way on a stream.
    """

    __match_args__ = ("stream", "type_url", "data")

    stream: int
    type_url: str
    raw: bytes = field(repr=False)
    """As it came from the control plane, shared with whoever remembers it."""
    more: bytes = field(default=b"", repr=False)
    """What follows: the nonce of this stream."""

    @property
    def data(self) -> bytes:
        """The whole message, a copy."""
        return self.raw + self.more


@dataclass(frozen=True, slots=True)
class ResponseAccepted:
    """An Envoy took a response: what a fresh Envoy is given of this type has changed."""

    type_url: str
    version: str


@dataclass(frozen=True, slots=True)
class ResponseRejected:
    """A response is not given to a fresh Envoy: Envoy refused it, or (``by_guard``) twice ended while it applied it."""

    type_url: str
    version: str
    reason: str
    by_guard: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log."""

    text: str


RelayAction = SendUp | SendDown | ResponseAccepted | ResponseRejected | Note
