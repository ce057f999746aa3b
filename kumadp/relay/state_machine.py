"""The relay's state machine, pure: events in, actions out; no clock and no I/O.

Rules: xDS "state of the world" (Envoy docs, xDS protocol); what Kuma 2.8 to 2.13 and Envoy 1.40 do is measured. Never
answer for an Envoy; never request fewer names than before until all Envoys are LIVE, or a control plane in ADS mode
does not answer; never give a fresh Envoy what another one rejected or exited with, while there is a better response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.relay.actions import Note, RelayAction, ResponseAccepted, ResponseRejected, SendDown
from kumadp.relay.envoy_streams import DEADLY, NAMED, WITHHELD, EnvoyStream, Exchange
from kumadp.relay.messages import (
    CLUSTER,
    LISTENER,
    SECRET,
    BadMessage,
    Outline,
    Request,
    Response,
    encode_status,
    status_message,
)
from kumadp.relay.snapshot import RelaySnapshot
from kumadp.relay.subscription import Delivery, Subscription, TypeView, in_order
from kumadp.relay.upstream_requests import UpstreamRequests

if TYPE_CHECKING:
    from collections.abc import Iterable

TRIAL_AFTER = 30.0
EXHAUSTED, INTERNAL = 8, 13


class RelayStateMachine:
    """Each event is a method that returns the actions to execute, in order. Call `next_tick` after each event."""

    def __init__(
        self,
        node: bytes,
        *,
        types: Iterable[str] = (CLUSTER, LISTENER),
        snapshot: RelaySnapshot | None = None,
        withhold_secrets: bool = False,
    ) -> None:
        self._up = UpstreamRequests(node)
        self._withhold_secrets = withhold_secrets
        self._serial = self._nonce = 0
        self._subscriptions: dict[str, Subscription] = {}
        self._streams: dict[int, EnvoyStream] = {}
        # Closed streams, until it is known whether their Envoy has exited.
        self._departed: dict[int, list[EnvoyStream]] = {}
        self._live: dict[int, float] = {}
        self._remembered = 0
        if snapshot is not None:
            self._load(snapshot)
        for type_url in types:
            self._subscriptions.setdefault(type_url, Subscription(type_url))

    def _load(self, snapshot: RelaySnapshot) -> None:
        for saved in snapshot.types:
            subscription = self._subscriptions.get(saved.type_url) or Subscription(saved.type_url, saved.names)
            subscription.restore(saved, self._serial + 1)
            subscription.requested = True
            self._serial += 2
            self._subscriptions[saved.type_url] = subscription
        self._remembered = self._serial

    def restore(self, snapshot: RelaySnapshot) -> list[RelayAction]:
        """Serve the memory of a previous run while the control plane refuses a stream; do nothing if it gave one.

        Secrets, which are not in it, are withheld: an Envoy that waits for them would serve nothing.
        """
        if any(subscription.latest is not None for subscription in self._subscriptions.values()):
            return []
        self._load(snapshot)
        self._withhold_secrets = True
        return [action for subscription in self._subscriptions.values() for action in self._serve_all(subscription)]

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
            for down in self._streams.values()
            if (exchange := down.exchanges.get(SECRET)) and exchange.subscribed and exchange.sent is None
            for action in self._serve(down, self._subscriptions[SECRET], exchange)
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
        self._serial += 1
        delivery = Delivery(self._serial, response)
        subscription.arrived(delivery)
        if delivery in subscription.deadly:
            return self._reject_deadly(subscription)
        return self._serve_all(subscription)

    def upstream_refused(self, outline: Outline, reason: str) -> list[RelayAction]:
        """Reject a DiscoveryResponse that was dropped unread, on our own behalf; Envoys keep the previous one."""
        subscription = self._subscriptions.get(outline.type_url)
        if not self._up.is_open or subscription is None:
            return [Note(f"the control plane sent {outline.type_url}, which was not requested")]
        subscription.dropped(outline.nonce)
        rejected = ResponseRejected(outline.type_url, outline.version, reason, by_guard=True)
        return [*self._answer(subscription, subscription.good_version, encode_status(EXHAUSTED, reason)), rejected]

    # The Envoys.

    def down_opened(self, stream: int, epoch: int) -> list[RelayAction]:
        """An Envoy has opened a stream. ``stream`` is never used twice; ``epoch`` only after `envoy_ended`."""
        reconnected = self._departed.pop(epoch, None) is not None or epoch in self._live
        self._streams[stream] = EnvoyStream(stream, epoch, fresh=not reconnected)
        return []

    def down_message(self, stream: int, data: bytes) -> list[RelayAction]:
        """Handle a DiscoveryRequest from an Envoy: a subscription, an answer, or both."""
        down = self._streams.get(stream)
        if down is None:
            return []
        try:
            request = Request.parse(data)
        except BadMessage as error:
            return [Note(f"Envoy sent a request that cannot be read: {error}")]
        names = tuple(dict.fromkeys(request.names))
        named = request.type_url in NAMED
        if named and not names and request.type_url not in self._subscriptions:
            down.exchanges[request.type_url] = Exchange((), wildcard=False)
            return []
        subscription = self._subscription_for(request.type_url, names)
        exchange = down.exchanges.get(request.type_url)
        if exchange is None:
            exchange = Exchange(names, wildcard=not names and not named and subscription.wildcard)
            # The copy on disk can be older than the configuration of an Envoy that outlived its relay.
            exchange.ahead = not subscription.knows(request.version)
            down.exchanges[request.type_url] = exchange
            return [*self._subscribe(subscription), *self._serve(down, subscription, exchange, set(names))]
        new = exchange.request(names)
        if request.nonce and request.nonce != exchange.nonce:
            # Sent before Envoy saw the response in flight, which it will answer with these names.
            return []
        actions: list[RelayAction] = []
        if request.nonce and exchange.waiting:
            exchange.answered(request.version, request.error)
            actions += self._judge(subscription)
        actions += self._subscribe(subscription)
        actions += self._serve(down, subscription, exchange, new)
        return actions

    def down_closed(self, stream: int) -> list[RelayAction]:
        """A stream of an Envoy has ended, and Envoy with it or not; all its messages were handled before."""
        down = self._streams.pop(stream, None)
        if down is None:
            return []
        for subscription in self._subscriptions.values():
            if subscription.trial == stream:
                subscription.trial = None
        if not down.ended:
            self._departed.setdefault(down.epoch, []).append(down)
            return self._reconsider()
        return [*self._reconsider(), *([] if down.expected else self._suspect(down))]

    def envoy_live(self, epoch: int, *, now: float) -> list[RelayAction]:
        """An Envoy is LIVE at ``now`` (seconds, any clock): it has requested all it wants, and its answers count."""
        self._live[epoch] = now
        actions = self._reconsider()
        for subscription in self._subscriptions.values():
            actions += self._serve_all(subscription)
        return actions

    def envoy_ended(self, epoch: int, *, expected: bool) -> list[RelayAction]:
        """The process has exited; ``expected``: on our signal. Responses in flight are judged once its stream ends."""
        self._live.pop(epoch, None)
        for down in self._streams.values():
            if down.epoch == epoch:
                down.ended, down.expected = True, expected
        departed = self._departed.pop(epoch, [])
        # An Envoy that runs with a response is better evidence than one that has exited with it.
        actions = self._reconsider()
        for down in departed:
            actions += [] if expected else self._suspect(down)
        return actions

    def next_tick(self) -> float | None:
        """Return when `tick` is due; None if it is not."""
        return trial[0] if (trial := self._next_trial()) else None

    def tick(self, now: float) -> list[RelayAction]:
        """Retry a suspected response, one at a time, on an Envoy that has been LIVE for 30 s."""
        trial = self._next_trial()
        if trial is None or trial[0] > now:
            return []
        _, subscription, down = trial
        subscription.trial = down.stream
        note = Note(f"{subscription.type_url}: retrying the response that Envoy exited with")
        return [note, *self._serve(down, subscription, down.exchanges[subscription.type_url])]

    # Queries.

    @property
    def supplied(self) -> bool:
        """True if an Envoy that starts now would be given at once all that the present ones have requested."""
        types = {url for down in self._streams.values() for url, ex in down.exchanges.items() if ex.subscribed}
        return bool(types) and all(self._subscriptions[type_url].latest for type_url in types)

    def types(self) -> list[TypeView]:
        """Return a view of each type, in the order of `RelaySnapshot`."""
        return [subscription.view() for subscription in self._subscriptions.values()]

    def renew_node(self, node: bytes) -> None:
        """Send another Node from the next stream on: a control plane reads it once per stream."""
        self._up.node = node

    def snapshot(self) -> RelaySnapshot:
        """Return the memory. It can hold private keys (SDS): it must not be written to disk as it is."""
        return RelaySnapshot(tuple(subscription.snapshot() for subscription in self._subscriptions.values()))

    # Upward.

    def _subscribe(self, subscription: Subscription) -> list[RelayAction]:
        subscription.names = self._names_to_request(subscription)
        return [*self._up.subscribe(subscription)]

    def _answer(self, subscription: Subscription, version: str, error: bytes = b"") -> list[RelayAction]:
        subscription.names = self._names_to_request(subscription)
        return [*self._up.answer(subscription, version, error)]

    def _names_to_request(self, subscription: Subscription) -> tuple[str, ...]:
        """Return the names to request, () for all: those of all Envoys, and the previous ones until all have settled.

        An Envoy has settled once it is LIVE and has requested the type on its present stream.
        """
        type_url = subscription.type_url
        living = [down for down in self._streams.values() if not down.ended]
        exchanges = [exchange for down in living if (exchange := down.exchanges.get(type_url))]
        if any(exchange.wildcard for exchange in exchanges):
            return ()
        union = dict.fromkeys(name for exchange in exchanges for name in exchange.names)
        settled = all(down.epoch in self._live and type_url in down.exchanges for down in living)
        shrink = bool(living) and not self._departed and settled
        if not union or (subscription.wildcard and not shrink):
            return subscription.names
        remaining = [name for name in subscription.names if name in union or not shrink]
        return tuple(dict.fromkeys((*remaining, *union)))

    # Downward.

    def _serve_all(self, subscription: Subscription) -> list[RelayAction]:
        return [
            action
            for down in self._streams.values()
            if (exchange := down.exchanges.get(subscription.type_url))
            for action in self._serve(down, subscription, exchange)
        ]

    def _serve(
        self, down: EnvoyStream, subscription: Subscription, exchange: Exchange, new: set[str] | None = None
    ) -> list[RelayAction]:
        """Send the response that the stream should have, unless it has it or a previous one is unanswered."""
        if down.ended or exchange.waiting or not exchange.subscribed:
            return []
        live = down.epoch in self._live
        delivery = subscription.choose(down.stream, tried=live or exchange.tried(subscription.accepted))
        if self._keeps_own(exchange, delivery):
            return []
        if delivery is None:
            withheld = self._withhold_secrets and not self._up.is_open and subscription.type_url == SECRET
            if not withheld or (exchange.sent is not None and not new):
                return []
            delivery = Delivery(0, WITHHELD)
        elif not exchange.needs(delivery, new or set(), live=live):
            return []
        self._nonce += 1
        nonce = exchange.send(delivery, str(self._nonce))
        return [SendDown(down.stream, subscription.type_url, delivery.response.raw, nonce)]

    def _keeps_own(self, exchange: Exchange, delivery: Delivery | None) -> bool:
        """Return True if Envoy keeps the version that it connected with, rather than get this one."""
        return exchange.ahead and (delivery is None or delivery.serial <= self._remembered)

    # Answers.

    def _rank(self, down: EnvoyStream) -> tuple[bool, bool, int, int]:
        return not down.ended, down.epoch in self._live, down.epoch, down.stream

    def _authoritative(self, type_url: str) -> tuple[EnvoyStream, Exchange] | None:
        """Return the stream whose answers count for a type."""
        pairs = [(down, exchange) for down in self._streams.values() if (exchange := down.exchanges.get(type_url))]
        return max(pairs, key=lambda pair: (pair[1].subscribed, self._rank(pair[0])), default=None)

    def _judge(self, subscription: Subscription) -> list[RelayAction]:
        """Apply the answer of the Envoy that counts for this type."""
        authoritative = self._authoritative(subscription.type_url)
        if authoritative is None:
            return []
        down, exchange = authoritative
        sent, answer = exchange.sent, exchange.answer
        if sent is None or answer is None:
            return []
        is_latest = sent is subscription.latest
        actions = self._answer(subscription, answer.version, answer.error) if is_latest else []
        first, exchange.judged = not exchange.judged, True
        if first:
            subscription.answered(sent, applied=answer.taken or bool(answer.error))
        if answer.error:
            if first and not (is_latest and subscription.settled):
                subscription.reject(sent)
                reason = status_message(answer.error)
                actions.append(ResponseRejected(subscription.type_url, sent.response.version, reason))
            return actions
        # Envoy 1.40 accepts a response that it has just rejected when it is sent again, and still lacks the bad part.
        # A fresh Envoy that accepts it has it all: a port that was taken may be free now.
        believed = sent not in subscription.rejected or (down.fresh and sent not in exchange.refused)
        believed = believed and sent not in subscription.deadly
        newer = subscription.accepted is None or sent.serial > subscription.accepted.serial
        if answer.taken and newer and believed:
            subscription.accept(sent)
            actions.append(ResponseAccepted(subscription.type_url, sent.response.version))
            actions += self._serve_all(subscription)
        return actions

    def _reconsider(self) -> list[RelayAction]:
        """After a change among the Envoys: the answers of another one may count, and other names may be wanted."""
        actions: list[RelayAction] = []
        for subscription in self._subscriptions.values():
            actions += self._judge(subscription)
            actions += self._subscribe(subscription)
        return actions

    def _suspect(self, down: EnvoyStream) -> list[RelayAction]:
        """An Envoy exited unexpectedly with responses in flight: the first time they are suspected, then rejected."""
        actions: list[RelayAction] = []
        for type_url, delivery in down.in_flight().items():
            subscription = self._subscriptions[type_url]
            accepted, latest = subscription.accepted, subscription.latest
            if delivery in subscription.deadly or (accepted is not None and accepted.same_content(delivery)):
                continue
            if delivery not in subscription.suspected:
                subscription.suspected.add(delivery)
                actions.append(Note(f"{type_url}: Envoy ended before it answered version {delivery.response.version}"))
                continue
            subscription.suspected.discard(delivery)
            subscription.deadly.add(delivery)
            if latest is not None and latest.same_content(delivery):
                actions += self._reject_deadly(subscription)
        return actions

    def _reject_deadly(self, subscription: Subscription) -> list[RelayAction]:
        """Reject the latest response on behalf of the Envoys that exited with it."""
        subscription.settled = True
        subscription.rejections += 1
        version = subscription.latest.response.version if subscription.latest else ""
        actions = self._answer(subscription, subscription.good_version, encode_status(INTERNAL, DEADLY))
        return [*actions, ResponseRejected(subscription.type_url, version, DEADLY, by_guard=True)]

    def _next_trial(self) -> tuple[float, Subscription, EnvoyStream] | None:
        """Return when, what and where to retry next; one at a time, so that only the deadly one is rejected."""
        if any(subscription.trial is not None for subscription in self._subscriptions.values()):
            return None
        trials = []
        for subscription in self._subscriptions.values():
            latest, authoritative = subscription.latest, self._authoritative(subscription.type_url)
            if latest is None or latest not in subscription.suspected or authoritative is None:
                continue
            down, exchange = authoritative
            able = exchange.subscribed and not exchange.waiting and exchange.sent is not latest
            able = able and not self._keeps_own(exchange, latest)
            if able and not down.ended and down.epoch in self._live:
                trials.append((self._live[down.epoch] + TRIAL_AFTER, subscription, down))
        return min(trials, key=lambda trial: trial[0], default=None)

    def _subscription_for(self, type_url: str, names: tuple[str, ...]) -> Subscription:
        subscription = self._subscriptions.get(type_url) or Subscription(type_url, names)
        self._subscriptions = in_order(self._subscriptions, subscription)
        return subscription
