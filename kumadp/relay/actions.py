"""Actions that the state machine returns, to be executed in order: messages to send, and notifications."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.records import hiding

if TYPE_CHECKING:
    from kumadp.relay.messages import Request


class SendUp(Struct, frozen=True):
    """Send this request on the stream to the control plane, in the stream's dialect."""

    request: Request


class SendDown(Struct, frozen=True):
    """Send this DiscoveryResponse to an Envoy.

    The next one of the same stream and type is sent only after Envoy has answered this one, so at most one of each type
    is ever queued or in flight on a stream.
    """

    stream: int
    type_url: str
    raw: bytes
    """The message from the control plane, shared with the subscription that remembers it."""
    more: bytes = b""
    """The rest of the message: the nonce of this stream."""

    __repr__ = hiding("raw", "more")

    @property
    def data(self) -> bytes:
        """The whole message, a copy."""
        return self.raw + self.more


class ResponseAccepted(Struct, frozen=True):
    """An Envoy accepted a response: from now on a fresh Envoy is given another one of this type."""

    type_url: str
    version: str


class ResponseRejected(Struct, frozen=True):
    """A response is not given to a fresh Envoy: Envoy rejected it, or it was rejected on Envoy's behalf (``by_guard``).

    The latter if Envoy has exited twice while it applied the response, or if the response is too large.
    """

    type_url: str
    version: str
    reason: str
    by_guard: bool = False


class QueryClusters(Struct, frozen=True):
    """Query the admin of the Envoy of this stream about its clusters, of which those with this nonce are unanswered."""

    stream: int
    nonce: str


class Note(Struct, frozen=True):
    """A line for the log."""

    text: str


RelayAction = SendUp | SendDown | ResponseAccepted | ResponseRejected | QueryClusters | Note
