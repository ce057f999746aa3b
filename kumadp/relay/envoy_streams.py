"""One Envoy's stream as the relay sees it: what was asked, what was sent, what came back."""

from __future__ import annotations

from dataclasses import dataclass

from kumadp.relay.messages import ENDPOINTS, ROUTES, SECRET, Response, encode_nonce, encode_response
from kumadp.relay.protobuf import field_bytes
from kumadp.relay.subscription import Delivery, Verdicts

# Envoy asks for these by name. No names is what it says on a new stream of a type of which it watches nothing any more.
NAMED = frozenset({ENDPOINTS, ROUTES, SECRET})
DEADLY = "Envoy exited while applying this response, twice: it is not given to it again"
# A Secret that Envoy cannot decode. Rejecting it ends Envoy's wait for secrets (SdsApi::onConfigUpdateFailed), which
# otherwise holds up its listeners for the 15 s of initial_fetch_timeout.
WITHHELD = Response.parse(
    encode_response(SECRET, "withheld", [field_bytes(1, SECRET.encode()) + field_bytes(2, b"\xff")])
)


@dataclass(frozen=True, slots=True)
class EnvoyAnswer:
    """What an Envoy said to a response: its ``version`` and, when it rejected it, ``error`` (a google.rpc.Status)."""

    version: str
    error: bytes
    taken: bool


class Exchange:
    """One type of resources on one stream. One response at a time is under way (``waiting``).

    ``ahead``: its Envoy came with a version that is not remembered, so that it keeps it until there is a newer one.
    go-control-plane keeps to this too: it sends the next response of a type only after the answer to the last one.
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
        """Whether Envoy wants resources of this type: after names, no names means that it wants none any more."""
        return self.wildcard or bool(self.names)

    def asked(self, names: tuple[str, ...]) -> set[str]:
        """Envoy's names now; returns those that are new."""
        new = set(names).difference(self.names)
        self.names = names
        self.wildcard = self.wildcard and not names
        return new

    def send(self, delivery: Delivery, nonce: str) -> bytes:
        """The response is under way from now on; what is to follow it, as it is sent."""
        self.sent, self.nonce, self.waiting = delivery, nonce, True
        self.answer, self.judged = None, False
        return encode_nonce(nonce)

    def answered(self, version: str, error: bytes) -> None:
        """Envoy's answer to what was under way.

        Without an error and with another version Envoy has not rejected it but left it, since it watches nothing of
        the type (Envoy 1.40, GrpcMuxImpl::onDiscoveryResponse).
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
        """Whether its Envoy has answered the accepted response, or taken another."""
        return self.took or (accepted is not None and accepted in self.refused)

    def needs(self, delivery: Delivery, new_names: set[str], *, live: bool) -> bool:
        """Whether to send it: it is newer than what was sent, or holds names that are asked for only now.

        Never an older one, which would take back what Envoy runs: but for a starting Envoy that refused the newer one.
        """
        if self.sent is None or delivery.serial > self.sent.serial:
            return True
        if delivery is self.sent:
            held = delivery.response.names if new_names else None
            return bool(new_names) and (held is None or not new_names.isdisjoint(held))
        return not live and self.answer is not None and bool(self.answer.error)


class EnvoyStream:
    """One stream of an Envoy. ``fresh``: an Envoy that has just started. ``ended``: it has, expectedly or not."""

    def __init__(self, stream: int, epoch: int, *, fresh: bool) -> None:
        self.stream = stream
        self.epoch = epoch
        self.fresh = fresh
        self.exchanges: dict[str, Exchange] = {}
        self.ended = False
        self.expected = False

    def under_way(self) -> dict[str, Delivery]:
        """Per type, what was sent and not answered, where an answer can be expected."""
        return {
            type_url: exchange.sent
            for type_url, exchange in self.exchanges.items()
            if exchange.waiting and exchange.subscribed and exchange.sent is not None and exchange.sent.serial
        }
