"""Requests on the present stream to the control plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.relay.actions import SendUp
from kumadp.relay.messages import Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kumadp.relay.subscription import Subscription


class UpstreamRequests:
    """Builds requests to the control plane: the first one of a stream has the Node, and no state outlives a stream."""

    def __init__(self, node: bytes) -> None:
        self.node = node
        self.is_open = False
        self._introduced = False

    def reset(self, subscriptions: Iterable[Subscription], *, is_open: bool) -> None:
        """A stream has begun or ended: nonces and open answers of the previous one are void."""
        self.is_open, self._introduced = is_open, False
        for subscription in subscriptions:
            subscription.sent_names, subscription.nonce, subscription.open = None, "", False
            subscription.refused = False
            subscription.unreported.clear()

    def subscribe(self, subscription: Subscription) -> list[SendUp]:
        """Request names that this stream has not requested yet.

        Not while a response is open: a request with its nonce would be an answer to it, and one with an older nonce is
        ignored. The answer will carry the names.
        """
        if not self.is_open or subscription.open or subscription.names == subscription.sent_names:
            return []
        return [self._request(subscription, subscription.good_version, b"")]

    def answer(self, subscription: Subscription, version: str, error: bytes = b"") -> list[SendUp]:
        """Answer the latest response, once: ``version`` is what Envoy has, ``error`` a google.rpc.Status."""
        if not subscription.open:
            return []
        subscription.open, subscription.refused = False, bool(error)
        return [self._request(subscription, version, error)]

    def accept_late(self, subscription: Subscription) -> list[SendUp]:
        """Acknowledge the latest response, which was rejected: Envoy has accepted it since.

        Kuma 2.13 to 3.0 counts the acknowledgement, whatever its nonce, and does not hold back its next response for
        5 s, as it does after a rejection; its delta stream would show the rejection until then.
        """
        latest = subscription.latest
        # What was rejected can also be one that was dropped unread, which no Envoy has.
        if not subscription.refused or latest is None or latest.response.nonce != subscription.nonce:
            return []
        subscription.refused = False
        return [self._request(subscription, latest.response.version, b"")]

    def _request(self, subscription: Subscription, version: str, error: bytes) -> SendUp:
        node, self._introduced = b"" if self._introduced else self.node, True
        subscription.sent_names = subscription.names
        type_url, names, nonce = subscription.type_url, subscription.names, subscription.nonce
        return SendUp(Request(type_url, version, node, names, nonce, error))
