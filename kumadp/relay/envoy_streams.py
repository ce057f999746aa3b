"""One Envoy's stream as the relay sees it: what was requested, what was sent, how Envoy answered."""

from __future__ import annotations

from dataclasses import dataclass

from kumadp.relay.messages import ENDPOINTS, ROUTES, SECRET, Response, encode_nonce, encode_response
from kumadp.relay.protobuf import field_bytes
from kumadp.relay.subscription import Delivery, Verdicts

# Envoy requests these by name. On a new stream, a request without names means that it watches nothing of the type.
NAMED = frozenset({ENDPOINTS, ROUTES, SECRET})
DEADLY = "Envoy exited while applying this response, twice; it is not sent to Envoy again"
# A Secret that Envoy cannot decode. Rejecting it ends Envoy's wait for secrets (SdsApi::onConfigUpdateFailed), which
# otherwise holds up its listeners for the 15 s of initial_fetch_timeout.
WITHHELD = Response.parse(
    encode_response(SECRET, "withheld", [field_bytes(1, SECRET.encode()) + field_bytes(2, b"\xff")])
)


@dataclass(frozen=True, slots=True)
class EnvoyAnswer:
    """An Envoy's answer to a response: its ``version`` and, if it rejected it, ``error`` (a google.rpc.Status)."""

    version: str
    error: bytes
    taken: bool


class Exchange:
    """One type of resources on one stream. One response at a time is in flight (``waiting``).

    ``ahead``: Envoy already runs a version that is not in our memory; it keeps it until there is a newer one.
    go-control-plane does the same: it sends the next response of a type only after the answer to the previous one.
    """

    def __init__(self, names: tuple[str, ...], *, wildcard: bool) -> None:
        self.names = names
        self.wildcard = wildcard
        self.ahead = False
        self.nonce = ""
        self.sent: Delivery | None = None
        self.waiting = False
        self.answer: EnvoyAnswer | None = None
        self.judged = False
        self.took = False
        self.refused = Verdicts()

    @property
    def subscribed(self) -> bool:
        """True if Envoy wants resources of this type. No names after some names mean that it wants none any more."""
        return self.wildcard or bool(self.names)

    def request(self, names: tuple[str, ...]) -> set[str]:
        """Take the names that Envoy requests now; return those that are new."""
        new = set(names).difference(self.names)
        self.names = names
        self.wildcard = self.wildcard and not names
        return new

    def send(self, delivery: Delivery, nonce: str) -> bytes:
        """Mark a response as in flight; return the encoded nonce to send after it."""
        self.sent, self.nonce, self.waiting = delivery, nonce, True
        self.answer, self.judged = None, False
        return encode_nonce(nonce)

    def answered(self, version: str, error: bytes) -> None:
        """Take Envoy's answer to the response in flight.

        Without an error but with another version Envoy has ignored the response, since it watches nothing of the type
        (Envoy 1.40, GrpcMuxImpl::onDiscoveryResponse).
        """
        self.waiting = False
        if self.sent is None or not self.sent.serial:
            return
        taken = not error and version == self.sent.response.version
        self.answer = EnvoyAnswer(version, error, taken)
        self.took = self.took or taken
        if error:
            self.refused.add(self.sent)

    def tried(self, accepted: Delivery | None) -> bool:
        """Return True if Envoy has answered the accepted response, or accepted another one."""
        return self.took or (accepted is not None and accepted in self.refused)

    def needs(self, delivery: Delivery, new_names: set[str], *, live: bool) -> bool:
        """Return True if it should be sent: it is newer than the last one sent, or holds newly requested names.

        An older one would undo what Envoy runs: it is sent only to a starting Envoy that rejected the newer one.
        """
        if self.sent is None or delivery.serial > self.sent.serial:
            return True
        if delivery is self.sent:
            contained = delivery.response.names if new_names else None
            return bool(new_names) and (contained is None or not new_names.isdisjoint(contained))
        return not live and self.answer is not None and bool(self.answer.error)


class EnvoyStream:
    """One stream of an Envoy. ``fresh``: Envoy has just started. ``ended``: it has exited, ``expected`` or not."""

    def __init__(self, stream: int, epoch: int, *, fresh: bool) -> None:
        self.stream = stream
        self.epoch = epoch
        self.fresh = fresh
        self.exchanges: dict[str, Exchange] = {}
        self.ended = False
        self.expected = False

    def in_flight(self) -> dict[str, Delivery]:
        """Return by type the responses that were sent and not answered, if an answer can be expected."""
        return {
            type_url: exchange.sent
            for type_url, exchange in self.exchanges.items()
            if exchange.waiting and exchange.subscribed and exchange.sent is not None and exchange.sent.serial
        }
