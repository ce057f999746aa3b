"""Actions that the state machine returns, to be executed in order: messages to send, and notifications."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kumadp.relay.messages import Request


@dataclass(frozen=True, slots=True)
class SendUp:
    """Send this request on the stream to the control plane, in the stream's dialect."""

    request: Request


@dataclass(frozen=True, slots=True)
class SendDown:
    """Send this DiscoveryResponse to an Envoy.

    The next one of the same stream and type is sent only after Envoy has answered this one, so at most one of each type
    is ever queued or in flight on a stream.
    """

    __match_args__ = ("stream", "type_url", "data")

    stream: int
    type_url: str
    raw: bytes = field(repr=False)
    """The message from the control plane, shared with the subscription that remembers it."""
    more: bytes = field(default=b"", repr=False)
    """The rest of the message: the nonce of this stream."""

    @property
    def data(self) -> bytes:
        """The whole message, a copy."""
        return self.raw + self.more


@dataclass(frozen=True, slots=True)
class ResponseAccepted:
    """An Envoy accepted a response: from now on a fresh Envoy is given another one of this type."""

    type_url: str
    version: str


@dataclass(frozen=True, slots=True)
class ResponseRejected:
    """A response is not given to a fresh Envoy: Envoy rejected it, or it was rejected on Envoy's behalf (``by_guard``).

    The latter if Envoy has exited twice while it applied the response, or if the response is too large.
    """

    type_url: str
    version: str
    reason: str
    by_guard: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log."""

    text: str


RelayAction = SendUp | SendDown | ResponseAccepted | ResponseRejected | Note
