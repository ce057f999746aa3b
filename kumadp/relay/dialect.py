"""The form of xDS that a stream to the control plane speaks; the state machine knows neither form nor stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kumadp.relay.messages import Request

_SERVICE = "/envoy.service.discovery.v3.AggregatedDiscoveryService"


class Dialect(Protocol):
    """Encodes the requests of one stream."""

    @property
    def method(self) -> str:
        """The gRPC method of the stream."""

    def encode(self, request: Request) -> tuple[bytes, ...]:
        """Return the messages to send for a request, none if it changes nothing on this stream."""


class Sotw:
    """State of the world: each message has all resources of a type. Spoken by Kuma up to 2.14."""

    method = f"{_SERVICE}/StreamAggregatedResources"

    def encode(self, request: Request) -> tuple[bytes, ...]:
        """Return the DiscoveryRequest."""
        return (request.encode(),)
