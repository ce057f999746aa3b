"""The relay's state machine, pure: events in, actions out; no clock and no I/O.

Rules: xDS "state of the world" (Envoy docs, xDS protocol); what Kuma 2.8 to 3.0 and Envoy 1.40 do is measured. Never
answer for an Envoy, except that nothing has changed for it or that it rejected the same resource before; never request
fewer names than before until all Envoys are LIVE, or a control plane in ADS mode does not answer; never give a fresh
Envoy what another one rejected or exited with, while there is a better response.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from kumadp.relay.actions import Note, QueryClusters, RelayAction, ResponseRejected
from kumadp.relay.cluster_order import ListenerHold
from kumadp.relay.envoys import Envoys
from kumadp.relay.exchange import NAMED, Exchange
from kumadp.relay.held_clusters import HeldClusters
from kumadp.relay.jams import JAMMED, JamGuard
from kumadp.relay.judge import Judge
from kumadp.relay.messages import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    SECRET,
    BadMessage,
    Outline,
    Request,
    Response,
    encode_status,
)
from kumadp.relay.offer import Delivery
from kumadp.relay.retries import Retries
from kumadp.relay.serving import Serving
from kumadp.relay.snapshot import RelaySnapshot
from kumadp.relay.subscription import Subscription, TypeView, WithheldResource, held_of, in_order
from kumadp.relay.upstream_requests import UpstreamRequests

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kumadp.relay.cluster_report import ClusterReport
    from kumadp.relay.envoy_streams import EnvoyStream
    from kumadp.relay.snapshot import KeptSockets

TRIAL_AFTER = 30.0
# Envoy's own drain time (Kuma's default), in seconds.
DRAIN_TIME = 30.0
DEADLINE, EXHAUSTED = 4, 8


class RelayStateMachine:
    """Each event is a method that returns the actions to execute, in order. Call `next_tick` after each event.

    ``drain_time`` (seconds) is for how long connections of replaced listeners go on, and need removed clusters.
    ``queries``: `QueryClusters` is answered with `clusters_reported`.
    """

    def __init__(
        self,
        node: bytes,
        *,
        types: Iterable[str] = (CLUSTER, LISTENER),
        snapshot: RelaySnapshot | None = None,
        withhold_secrets: bool = False,
        drain_time: float = DRAIN_TIME,
        queries: bool = False,
    ) -> None:
        self._up = UpstreamRequests(node)
        self._serial = 0
        self._envoys = Envoys()
        self.held, self._listener_hold = HeldClusters(drain_time), ListenerHold(self._envoys)
        self._jams, self.retries = JamGuard(self._envoys, queries=queries), Retries(self._envoys)
        self._judge = Judge(self._up, self._envoys, self.held)
        self._serving = Serving(self._envoys, self.held, self._listener_hold, self._judge, self._up)
        self._serving.withhold_secrets = withhold_secrets
        if snapshot is not None:
            self._load(snapshot)
        for type_url in types:
            self._subscriptions.setdefault(type_url, Subscription(type_url))

    @property
    def _subscriptions(self) -> dict[str, Subscription]:
        return self._serving.subscriptions

    def _load(self, snapshot: RelaySnapshot) -> None:
        for saved in snapshot.types:
            subscription = self._subscriptions.get(saved.type_url) or Subscription(saved.type_url, saved.names)
            subscription.restore(saved, self._serial + 1)
            subscription.requested = True
            self._serial += 2
            self._subscriptions[saved.type_url] = subscription
            if saved.held:
                self.held.hold(held_of(saved), self._serving.nonce)
        self._envoys.sockets.restore(self._subscriptions.get(LISTENER), snapshot.sockets)
        self._serving.remembered = self._serial

    def restore(self, snapshot: RelaySnapshot) -> list[RelayAction]:
        """Serve the memory of a previous run while the control plane refuses a stream; do nothing if it gave one.

        Secrets, which are not in it, are withheld: an Envoy that waits for them would serve nothing.
        """
        if any(subscription.latest is not None for subscription in self._subscriptions.values()):
            return []
        self._load(snapshot)
        self._serving.withhold_secrets = True
        return [
            action for subscription in self._subscriptions.values() for action in self._serving.serve_all(subscription)
        ]

    # The control plane.

    def upstream_opened(self) -> list[RelayAction]:
        """A stream to the control plane is open: subscribe to each type, with the version last accepted."""
        self._up.reset(self._subscriptions.values(), is_open=True)
        return [action for subscription in self._subscriptions.values() for action in self._subscribe(subscription)]

    def upstream_closed(self) -> list[RelayAction]:
        """The stream has ended: open answers are dropped, and the next stream begins with subscriptions."""
        self._up.reset(self._subscriptions.values(), is_open=False)
        return [
            action
            for down, exchange in self._envoys.of_type(SECRET)
            if exchange.subscribed and exchange.sent is None
            for action in self._serving.serve(down, self._subscriptions[SECRET], exchange)
        ]

    def upstream_message(self, data: bytes | Response) -> list[RelayAction]:
        """Remember a DiscoveryResponse from the control plane, and pass it to each Envoy that may have it.

        Parse a large one in a thread, and compute its digest there.
        """
        try:
            response = data if isinstance(data, Response) else Response.parse(data)
        except BadMessage as error:
            return [Note(f"the control plane sent a response that cannot be read: {error}")]
        subscription = self._subscriptions.get(response.type_url)
        if not self._up.is_open or subscription is None:
            return [Note(f"the control plane sent {response.type_url}, which was not requested")]
        self._serial += 2
        delivery = Delivery(self._serial, response)
        subscription.arrived(delivery)
        if delivery in subscription.deadly:
            return self._judge.reject_deadly(subscription)
        if response.type_url == CLUSTER:
            self._envoys.use_clusters(response.by_name.values())
            accepted = subscription.accepted.response.by_name if subscription.accepted else {}
            self.held.update(accepted, response.by_name, self._serving.nonce)
        return self._serving.serve_all(subscription)

    def upstream_refused(self, outline: Outline, reason: str) -> list[RelayAction]:
        """Reject a DiscoveryResponse that was dropped unread, on our own behalf; Envoys keep the previous one."""
        subscription = self._subscriptions.get(outline.type_url)
        if not self._up.is_open or subscription is None:
            return [Note(f"the control plane sent {outline.type_url}, which was not requested")]
        subscription.dropped(outline.nonce)
        rejected = ResponseRejected(outline.type_url, outline.version, reason, by_guard=True)
        error = encode_status(EXHAUSTED, reason)
        return [*self._judge.answer(subscription, subscription.good_version, error), rejected]

    # The Envoys.

    def down_opened(self, stream: int, epoch: int) -> list[RelayAction]:
        """An Envoy has opened a stream. ``stream`` is never used twice; ``epoch`` only after `envoy_ended`."""
        self._envoys.opened(stream, epoch)
        return []

    def down_message(self, stream: int, data: bytes) -> list[RelayAction]:
        """Handle a DiscoveryRequest from an Envoy: a subscription, an answer, or both."""
        down = self._envoys.get(stream)
        if down is None:
            return []
        try:
            request = Request.parse(data)
        except BadMessage as error:
            return [Note(f"Envoy sent a request that cannot be read: {error}")]
        names = tuple(dict.fromkeys(request.names))
        named = request.type_url in NAMED
        if named and not names and request.type_url not in self._subscriptions:
            down.exchanges[request.type_url] = Exchange((), wildcard=False, partial=True)
            return []
        subscription = self._subscription_for(request.type_url, names)
        exchange = down.exchanges.get(request.type_url)
        if exchange is None:
            wildcard = not names and not named and subscription.wildcard
            exchange = Exchange(names, wildcard=wildcard, partial=named, version=request.version)
            # The copy on disk can be older than the configuration of an Envoy that outlived its relay.
            exchange.ahead = not subscription.knows(request.version)
            return self._begin(down, subscription, exchange)
        new = exchange.request(names)
        if request.nonce and request.nonce != exchange.nonce:
            # Sent before Envoy saw the response in flight, which it will answer with these names.
            return []
        actions: list[RelayAction] = []
        answered = bool(request.nonce) and exchange.waiting
        if answered:
            exchange.answered(request.version, request.error, subscription.known(partial=named))
            down.overtake(exchange)
            actions += self._serving.apply_answers(subscription)
        if (request.type_url == CLUSTER and answered) or (request.type_url == ENDPOINTS and new):
            actions += self._request_endpoints()
        actions += self._subscribe(subscription)
        actions += self._serving.serve(down, subscription, exchange, new)
        if request.nonce and request.type_url == CLUSTER:
            self._listener_hold.end(down)
            actions += self._serving.serve_after_clusters(down)
        return actions

    def _begin(self, down: EnvoyStream, subscription: Subscription, exchange: Exchange) -> list[RelayAction]:
        """Serve a type that was not requested on this stream before."""
        down.exchanges[subscription.type_url] = exchange
        if subscription.type_url == CLUSTER:
            down.doubt_clusters(exchange, subscription)
        elif not down.fresh and CLUSTER not in down.exchanges and down.clusters_due is None:
            down.clusters_due = -inf
        return [*self._subscribe(subscription), *self._serving.serve(down, subscription, exchange, set(exchange.names))]

    def clusters_reported(self, stream: int, nonce: str, report: ClusterReport) -> list[RelayAction]:
        """Take the answer to `QueryClusters`: what Envoy has rejected without an answer is withdrawn at once.

        Nothing is concluded while there are two Envoys: the admin can be that of the other one.
        """
        down = self._envoys.get(stream)
        exchange = down.exchanges.get(CLUSTER) if down is not None else None
        if down is None or exchange is None or not exchange.waiting or exchange.nonce != nonce or exchange.sent is None:
            return []
        if len({each.epoch for each in self._envoys}) > 1:
            return []
        exchange.warming = report.warming
        exchange.warms = report.version == exchange.sent.version
        if exchange.warms or not exchange.has_rejected:
            return []
        if not exchange.withdraw():
            return self._free_jam(down, exchange)
        note = Note("Envoy has rejected clusters and does not send the reason while they warm: they are withdrawn")
        return [note, *self._serving.serve(down, self._subscriptions[CLUSTER], exchange)]

    def down_closed(self, stream: int) -> list[RelayAction]:
        """A stream of an Envoy has ended, and Envoy with it or not; all its messages were handled before."""
        down = self._envoys.closed(stream)
        if down is None:
            return []
        for subscription in self._subscriptions.values():
            if subscription.trial == stream:
                subscription.trial = None
        suspected = down.ended and not down.expected
        return [*self._reconsider(), *(self._judge.suspect(down, self._subscriptions) if suspected else ())]

    def envoy_live(self, epoch: int, *, now: float) -> list[RelayAction]:
        """An Envoy is LIVE at ``now`` (seconds, any clock): it has requested all it wants, and its answers count."""
        self._envoys.live[epoch] = now
        return [*self._reconsider(), *self._serving.serve_all(*self._subscriptions.values())]

    def envoy_ended(self, epoch: int, *, expected: bool) -> list[RelayAction]:
        """The process has exited; ``expected``: on our signal. Responses in flight are judged once its stream ends."""
        departed = self._envoys.ended(epoch, expected=expected)
        # An Envoy that runs with a response is better evidence than one that has exited with it.
        actions = self._reconsider()
        suspected = () if expected else departed
        return actions + [each for down in suspected for each in self._judge.suspect(down, self._subscriptions)]

    # Time.

    def next_tick(self) -> float | None:
        """Return when `tick` is due, at once if it is to note a time; None if it is not."""
        trial = self._judge.next_trial(self._subscriptions.values(), TRIAL_AFTER, self._serving.remembered)
        retry = self.retries.next_tick(self._subscriptions.get(LISTENER))
        timers = (self.held, self._listener_hold, self._jams)
        due = (trial[0] if trial else None, retry, *(timer.next_tick() for timer in timers))
        return min((each for each in due if each is not None), default=None)

    def tick(self, now: float) -> list[RelayAction]:
        """Do what is due at ``now`` (seconds, the same clock): see `_try_again` and what has a ``tick``."""
        actions = self._try_again(now)
        if self.held.tick(now):
            self._subscriptions[CLUSTER].forget_offers()
            actions += self._serving.serve_all(self._subscriptions[CLUSTER])
        for down in self._listener_hold.tick(now):
            actions += self._serving.serve_after_clusters(down)
        for down, exchange in self._jams.tick(now):
            actions += self._free_jam(down, exchange)
        actions += [QueryClusters(down.stream, exchange.nonce) for down, exchange in self._jams.queries(now)]
        for down in self._jams.unrequested(now):
            actions += self._assume_clusters(down)
        for down, exchange in self.retries.tick(now, self._subscriptions.get(LISTENER)):
            actions += self._serving.serve(down, self._subscriptions[LISTENER], exchange)
        return actions

    def _try_again(self, now: float) -> list[RelayAction]:
        """Retry a suspected response, one at a time, on an Envoy that has been LIVE for 30 s."""
        trial = self._judge.next_trial(self._subscriptions.values(), TRIAL_AFTER, self._serving.remembered)
        if trial is None or trial[0] > now:
            return []
        _, subscription, down = trial
        subscription.trial = down.stream
        note = Note(f"{subscription.type_url}: retrying the response that Envoy exited with")
        return [note, *self._serving.serve(down, subscription, down.exchanges[subscription.type_url])]

    def _free_jam(self, down: EnvoyStream, exchange: Exchange) -> list[RelayAction]:
        """Withdraw new clusters: if one that Envoy rejected keeps warming, Envoy 1.40 answers no set that has it."""
        subscription = self._subscriptions[CLUSTER]
        known = subscription.known(partial=False)
        if not exchange.reject(JAMMED, encode_status(DEADLINE, JAMMED), known, by_guard=True):
            return []
        return [*self._serving.apply_answers(subscription), *self._serving.serve(down, subscription, exchange)]

    def _assume_clusters(self, down: EnvoyStream) -> list[RelayAction]:
        """Serve clusters to an Envoy that does not request them on a new stream, as Envoy 1.40 while some warm."""
        subscription = self._subscriptions[CLUSTER]
        exchange = Exchange((), wildcard=True, version=down.version or subscription.good_version)
        exchange.continues = True
        return self._begin(down, subscription, exchange)

    # Queries.

    @property
    def supplied(self) -> bool:
        """True if an Envoy that starts now would be given at once all that the present ones have requested."""
        return bool(types := self._envoys.types()) and all(self._subscriptions[url].latest for url in types)

    def types(self) -> list[TypeView]:
        """Return a view of each type, in the order of `RelaySnapshot`."""
        return [subscription.view() for subscription in self._subscriptions.values()]

    def withheld(self) -> list[WithheldResource]:
        """Return the resources that Envoy is not given although it requests them, since it rejected them."""
        return self._envoys.withheld_resources(self._subscriptions.values())

    def kept_sockets(self) -> tuple[KeptSockets, ...]:
        """Return the sockets of the newest Envoy's listeners that are not as the control plane has sent them."""
        return self._envoys.sockets.kept()

    def renew_node(self, node: bytes) -> None:
        """Send another Node from the next stream on: a control plane reads it once per stream."""
        self._up.node = node

    def snapshot(self) -> RelaySnapshot:
        """Return the memory. It can hold private keys (SDS): it must not be written to disk as it is."""
        unanswered = {key for down in self._envoys for key in down.unanswered_clusters}
        if CLUSTER in self._subscriptions and not self._envoys.all_request(CLUSTER):
            unanswered |= self._subscriptions[CLUSTER].unsettled
        clusters = {CLUSTER: (self.held.resources.values(), unanswered)}
        types = tuple(each.snapshot(*clusters.get(url, ())) for url, each in self._subscriptions.items())
        return RelaySnapshot(types, self.kept_sockets())

    # Upward.

    def _subscribe(self, subscription: Subscription) -> list[RelayAction]:
        subscription.names = self._envoys.names(subscription)
        return [*self._up.subscribe(subscription)]

    def _request_endpoints(self) -> list[RelayAction]:
        self._envoys.clusters_applied()
        return self._subscribe(self._subscriptions[ENDPOINTS]) if ENDPOINTS in self._subscriptions else []

    def _reconsider(self) -> list[RelayAction]:
        """After a change among the Envoys: the answers of another one may count, and other names may be wanted."""
        return [
            action
            for subscription in self._subscriptions.values()
            for action in (*self._serving.apply_answers(subscription), *self._subscribe(subscription))
        ]

    def _subscription_for(self, type_url: str, names: tuple[str, ...]) -> Subscription:
        subscription = self._subscriptions.get(type_url) or Subscription(type_url, names)
        self._serving.subscriptions = in_order(self._subscriptions, subscription)
        return subscription
