"""Serves the Envoys: decides what each stream is sent of each type, and when. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.relay.cluster_order import AFTER_CLUSTERS
from kumadp.relay.exchange import NO_SECRET
from kumadp.relay.messages import CLUSTER, ENDPOINTS, SECRET
from kumadp.relay.resources import changed_names, endpoint_name

if TYPE_CHECKING:
    from kumadp.relay.actions import RelayAction
    from kumadp.relay.cluster_order import ListenerHold
    from kumadp.relay.envoy_streams import EnvoyStream
    from kumadp.relay.envoys import Envoys
    from kumadp.relay.exchange import Exchange
    from kumadp.relay.held_clusters import HeldClusters
    from kumadp.relay.judge import Judge
    from kumadp.relay.offer import Delivery, EnvoyOffer
    from kumadp.relay.subscription import Subscription
    from kumadp.relay.upstream_requests import UpstreamRequests


class Serving:
    """``nonce`` counts responses to Envoys; ``remembered`` is the last serial number of what was there before.

    ``withhold_secrets``: see `RelayStateMachine.restore`.
    """

    def __init__(
        self, envoys: Envoys, held: HeldClusters, hold: ListenerHold, judge: Judge, up: UpstreamRequests
    ) -> None:
        self._envoys = envoys
        self._held = held
        self._hold = hold
        self._judge = judge
        self._up = up
        self.subscriptions: dict[str, Subscription] = {}
        self.nonce = self.remembered = 0
        self.withhold_secrets = False

    def serve_all(self, *subscriptions: Subscription) -> list[RelayAction]:
        """Serve all Envoys with these types."""
        return [
            action
            for subscription in subscriptions
            for down, exchange in self._envoys.of_type(subscription.type_url)
            for action in self.serve(down, subscription, exchange)
        ]

    def serve(
        self, down: EnvoyStream, subscription: Subscription, exchange: Exchange, new: set[str] | None = None
    ) -> list[RelayAction]:
        """Send the response that the stream should have, unless it has it or a previous one is unanswered."""
        if down.ended or exchange.waiting or not exchange.subscribed or self._hold.waits(down, subscription):
            return []
        base = subscription.choose(down.stream)
        if exchange.keeps_own(base, self.remembered):
            return []
        if base is None:
            withheld = self.withhold_secrets and not self._up.is_open and subscription.type_url == SECRET
            if not withheld or (exchange.sent is not None and not new):
                return []
            return self._send(down, exchange, NO_SECRET, tuple(NO_SECRET.resources))
        live = down.epoch in self._envoys.live
        rejected = exchange.answer is not None and bool(exchange.answer.error)
        sent = exchange.sent
        older = sent is not None and base.serial < sent.base.serial and not sent.has_content_of(base)
        # It would undo what Envoy runs.
        older = older and not exchange.ignored and (live or not rejected)
        accepts_some = subscription.accepted is not None
        while True:
            offer = self._offer(down, subscription, exchange, base)
            names = exchange.needs(offer, older=older)
            # Nothing at all only to an Envoy that has nothing else, or is to be rid of what it has.
            may_be_empty = exchange.has_something or not exchange.narrowing.pending
            may_be_empty = may_be_empty or (exchange.cures and (accepts_some or not exchange.continues))
            if names or (names is not None and may_be_empty):
                return self._send(down, exchange, offer, names)
            if older:
                return []
            if not exchange.narrowing.next_group():
                break
        exchange.skip(offer)
        return self.apply_answers(subscription)

    def serve_after_clusters(self, down: EnvoyStream) -> list[RelayAction]:
        """Serve what waits for clusters."""
        waiting = [(self.subscriptions[url], down.exchanges[url]) for url in AFTER_CLUSTERS if url in down.exchanges]
        return [action for waiter in waiting for action in self.serve(down, *waiter)]

    def _offer(self, down: EnvoyStream, subscription: Subscription, exchange: Exchange, base: Delivery) -> EnvoyOffer:
        """Return what a stream should have now.

        An Envoy gets only those removed clusters that it has: listeners that it gets from now on do not use them, and
        nobody would have endpoints for them.
        """
        withheld = self._envoys.withheld(down, exchange, subscription)
        held = self._held.resources if subscription.type_url == CLUSTER else {}
        if down.fresh or not exchange.continues:
            held = {name: cluster for name, cluster in held.items() if exchange.runs(cluster.key)}
        return subscription.offer(base, withheld, held)

    def _send(
        self, down: EnvoyStream, exchange: Exchange, offer: EnvoyOffer, names: tuple[str, ...]
    ) -> list[RelayAction]:
        type_url, previous = offer.base.response.type_url, exchange.sent
        self.nonce += 1
        self.subscriptions[type_url].sent(offer.version)
        nonce = exchange.send(offer, names, str(self.nonce))
        actions = self._envoys.sockets.send(down, offer, names, nonce)
        endpoints = down.exchanges.get(ENDPOINTS)
        if type_url == CLUSTER and endpoints is not None and ENDPOINTS in self.subscriptions:
            # A changed cluster warms until it gets its endpoints, which may be the same; Envoy does not request them.
            changed = changed_names(previous.resources if previous is not None else {}, offer.resources)
            endpoints.expect(endpoint_name(offer.resources[name]) for name in changed)
            actions += self.serve(down, self.subscriptions[ENDPOINTS], endpoints)
        return actions

    def apply_answers(self, subscription: Subscription) -> list[RelayAction]:
        """Apply what the Envoy that counts for this type has answered, and serve the others accordingly."""
        before = subscription.accepted
        actions = self._judge.judge(subscription)
        if subscription.accepted is not before:
            actions += self.serve_all(subscription)
        return actions
