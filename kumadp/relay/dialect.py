"""The form of xDS that a stream to the control plane speaks; the state machine knows neither form nor stream."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from kumadp.records import hiding
from kumadp.relay.messages import Outline, Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.relay.messages import Request
    from kumadp.relay.resource_set import ResourceSet
    from kumadp.relay.resources import XdsResource

SERVICE = "/envoy.service.discovery.v3.AggregatedDiscoveryService"


class XdsProtocol(enum.StrEnum):
    """The two forms of xDS."""

    SOTW = "sotw"
    """State of the world: each message has all resources of a type. Kuma up to 2.14."""
    DELTA = "delta"
    """A message has the resources that changed. Kuma from 3.0 on."""


class Arrival(Struct, frozen=True):
    """A message of the control plane, read.

    ``response``: all resources of the type, for the state machine; None if Envoy has them already, or if the message is
    ``refused`` for this reason. ``held``: the set after it, in delta. ``lost``: the control plane believes that we have
    what we have not; ``outdated``: that was so before, and now there is something newer.
    """

    outline: Outline
    response: Response | None = None
    held: ResourceSet | None = None
    refused: str = ""
    lost: bool = False
    outdated: bool = False

    __repr__ = hiding("response", "held")


class Dialect(Protocol):
    """Encodes the requests of one stream, and reads its responses."""

    @property
    def protocol(self) -> XdsProtocol:
        """The form of xDS."""

    @property
    def method(self) -> str:
        """The gRPC method of the stream."""

    def encode(self, request: Request) -> tuple[bytes, ...]:
        """Return the messages to send for a request, none if it changes nothing on this stream."""

    def expects_answer(self, request: Request) -> bool:
        """Return whether the control plane answers it at once; to be called after `encode`."""

    def weight(self, data: bytes) -> int:
        """Return how many bytes `read` works on, at most."""

    def read(self, data: bytes) -> Arrival:
        """Read a message, in a thread if it is large; `take` adopts it. Raises BadMessage."""

    def take(self, arrival: Arrival) -> tuple[bytes, ...]:
        """Adopt what was read; return what to send at once."""

    def drop(self, outline: Outline) -> None:
        """Note that a response was dropped unread."""


class Sotw:
    """State of the world. One object is of use for one stream."""

    protocol = XdsProtocol.SOTW
    method = f"{SERVICE}/StreamAggregatedResources"

    def __init__(self) -> None:
        # By type, the resources of the last response, which the state machine keeps too.
        self._former: dict[str, Mapping[str, XdsResource]] = {}

    def encode(self, request: Request) -> tuple[bytes, ...]:
        """Return the DiscoveryRequest."""
        return (request.encode(),)

    def expects_answer(self, request: Request) -> bool:
        """Return True for a first subscription: later requests may stay unanswered."""
        return not request.nonce

    def weight(self, data: bytes) -> int:
        """Return its size."""
        return len(data)

    def read(self, data: bytes) -> Arrival:
        """Read a DiscoveryResponse."""
        response = Response.read(data, lambda type_url: self._former.get(type_url, {}))
        return Arrival(Outline(response.type_url, response.version, response.nonce), response)

    def take(self, arrival: Arrival) -> tuple[bytes, ...]:
        """Send nothing: Envoy answers."""
        if arrival.response is not None:
            self._former[arrival.outline.type_url] = arrival.response.by_name
        return ()

    def drop(self, _outline: Outline) -> None:
        """Do nothing: the next response has everything."""
