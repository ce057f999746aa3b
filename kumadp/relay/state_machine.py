"""The relay's state machine, pure: events in, actions out; no clock and no I/O.

Rules: xDS "state of the world" (Envoy docs, xDS protocol); what Kuma 2.8 to 2.13 and Envoy 1.40 do with it is measured.
Never answer for an Envoy; never ask for less than before until all Envoys are LIVE, since a control plane in ADS mode
would not answer; never give a fresh Envoy what another one refused or died of, while there is something better.
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
    """Events are methods, each returns actions in the order they are to be done. Ask `next_tick` after each event."""

    def __init__(
        self,
        node: bytes,
        *,
        types: Iterable[str] = (CLUSTER, LISTENER),
        memory: RelaySnapshot | None = None,
        withhold_secrets: bool = False,
    ) -> None:
        self._up = UpstreamRequests(node)
        self._withhold_secrets = withhold_secrets
        self._serial = self._nonce = 0
        self._subscriptions: dict[str, Subscription] = {}
        self._streams: dict[int, EnvoyStream] = {}
        # Closed, while it is not known yet whether their Envoy has ended.
        self._departed: dict[int, list[EnvoyStream]] = {}
        self._live: dict[int, float] = {}
        self._remembered = 0
        if memory is not None:
            self._load(memory)
        for type_url in types:
            self._subscriptions.setdefault(type_url, Subscription(type_url))

    def _load(self, memory: RelaySnapshot) -> None:
        for known in memory.types:
            subscription = self._subscriptions.get(known.type_url) or Subscription(known.type_url, known.names)
            subscription.restore(known, self._serial + 1)
            subscription.asked = True
            self._serial += 2
            self._subscriptions[known.type_url] = subscription
        self._remembered = self._serial

    def restore(self, memory: RelaySnapshot) -> list[RelayAction]:
        """Begin with what an earlier run left, as the control plane gives no stream yet; nothing where it gave one.

        Secrets that are not in it are withheld, as of an Envoy that waits for them nothing is served.
        """
        if any(known.latest is not None for known in self._subscriptions.values()):
            return []
        self._load(memory)
        self._withhold_secrets = True
        return [action for known in self._subscriptions.values() for action in self._serve_all(known)]

    # The control plane.

    def upstream_opened(self) -> list[RelayAction]:
        """A stream to the control plane is open: subscribe to all that is known, with what was last accepted."""
        self._up.reset(self._subscriptions.values(), is_open=True)
        return [action for known in self._subscriptions.values() for action in self._tell(known)]

    def upstream_closed(self) -> list[RelayAction]:
        """It has ended: nothing is owed to it any more, and nothing is kept for the next one."""
        self._up.reset(self._subscriptions.values(), is_open=False)
        return [
            action
            for down in self._streams.values()
            if (exchange := down.exchanges.get(SECRET)) and exchange.subscribed and exchange.sent is None
            for action in self._serve(down, self._subscriptions[SECRET], exchange)
        ]

    def upstream_message(self, data: bytes | Response) -> list[RelayAction]:
        """A DiscoveryResponse from the control plane: remember it, and pass it to each Envoy that may have it.

        A large one is best parsed in a thread, its digest worked out there.
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
            return self._condemned(subscription)
        return self._serve_all(subscription)

    def upstream_refused(self, outline: Outline, reason: str) -> list[RelayAction]:
        """A DiscoveryResponse that was dropped: reject it in our own name; Envoys keep what they have."""
        subscription = self._subscriptions.get(outline.type_url)
        if not self._up.is_open or subscription is None:
            return [Note(f"the control plane sent {outline.type_url}, which was not requested")]
        subscription.dropped(outline.nonce)
        rejected = ResponseRejected(outline.type_url, outline.version, reason, by_guard=True)
        return [*self._answer(subscription, subscription.good_version, encode_status(EXHAUSTED, reason)), rejected]

    # The Envoys.

    def down_opened(self, stream: int, epoch: int) -> list[RelayAction]:
        """An Envoy has opened a stream. ``stream`` is never used twice; ``epoch`` only after `envoy_ended`."""
        known = self._departed.pop(epoch, None) is not None or epoch in self._live
        self._streams[stream] = EnvoyStream(stream, epoch, fresh=not known)
        return []

    def down_message(self, stream: int, data: bytes) -> list[RelayAction]:
        """A DiscoveryRequest from an Envoy: a subscription, an answer, or both."""
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
        subscription = self._asked(request.type_url, names)
        exchange = down.exchanges.get(request.type_url)
        if exchange is None:
            exchange = Exchange(names, wildcard=not names and not named and subscription.wildcard)
            # What an earlier relay left on disk can be older than what an Envoy runs that outlived it.
            exchange.ahead = not subscription.knows(request.version)
            down.exchanges[request.type_url] = exchange
            return [*self._tell(subscription), *self._serve(down, subscription, exchange, set(names))]
        new = exchange.asked(names)
        if request.nonce and request.nonce != exchange.nonce:
            # Sent before it saw what is under way, which it will answer with these names.
            return []
        actions: list[RelayAction] = []
        if request.nonce and exchange.waiting:
            exchange.answered(request.version, request.error)
            actions += self._judge(subscription)
        actions += self._tell(subscription)
        actions += self._serve(down, subscription, exchange, new)
        return actions

    def down_closed(self, stream: int) -> list[RelayAction]:
        """A stream of an Envoy has ended, whatever became of the Envoy; all that it sent was given before this."""
        down = self._streams.pop(stream, None)
        if down is None:
            return []
        for subscription in self._subscriptions.values():
            if subscription.trial == stream:
                subscription.trial = None
        if not down.ended:
            self._departed.setdefault(down.epoch, []).append(down)
            return self._changed()
        return [*self._changed(), *([] if down.expected else self._suspect(down))]

    def envoy_live(self, epoch: int, *, now: float) -> list[RelayAction]:
        """An Envoy is LIVE, now (seconds, any clock): it counts from now on, and has asked for all that it wants."""
        self._live[epoch] = now
        actions = self._changed()
        for subscription in self._subscriptions.values():
            actions += self._serve_all(subscription)
        return actions

    def envoy_ended(self, epoch: int, *, expected: bool) -> list[RelayAction]:
        """The process has ended; ``expected``: it was told to. What it ended with is judged once its stream is read."""
        self._live.pop(epoch, None)
        for down in self._streams.values():
            if down.epoch == epoch:
                down.ended, down.expected = True, expected
        departed = self._departed.pop(epoch, [])
        # An Envoy that lives with a response says more than one that has ended with it.
        actions = self._changed()
        for down in departed:
            actions += [] if expected else self._suspect(down)
        return actions

    def next_tick(self) -> float | None:
        """When `tick` is due, if ever."""
        return trial[0] if (trial := self._next_trial()) else None

    def tick(self, now: float) -> list[RelayAction]:
        """Try a suspected response again, one at a time, on an Envoy that has lived for 30 s."""
        trial = self._next_trial()
        if trial is None or trial[0] > now:
            return []
        _, subscription, down = trial
        subscription.trial = down.stream
        note = Note(f"{subscription.type_url}: the response that Envoy ended with is tried again")
        return [note, *self._serve(down, subscription, down.exchanges[subscription.type_url])]

    # What others may know.

    @property
    def primary(self) -> int | None:
        """The epoch of the Envoy whose word counts: the newest LIVE one, else the newest that has a stream."""
        best = max(self._streams.values(), key=self._rank, default=None)
        return None if best is None else best.epoch

    @property
    def supplied(self) -> bool:
        """Whether an Envoy that starts now would be given at once all that those there are have asked for."""
        kinds = {kind for down in self._streams.values() for kind, one in down.exchanges.items() if one.subscribed}
        return bool(kinds) and all(self._subscriptions[kind].latest for kind in kinds)

    def types(self) -> list[TypeView]:
        """Each type, in the order of `RelaySnapshot`."""
        return [subscription.view() for subscription in self._subscriptions.values()]

    def renew_node(self, node: bytes) -> None:
        """Another Node, from the next stream upward on: a control plane reads it once per stream."""
        self._up.node = node

    def snapshot(self) -> RelaySnapshot:
        """What is remembered. It holds keys where types do (SDS): never to disk as it is."""
        return RelaySnapshot(tuple(one.snapshot() for one in self._subscriptions.values()))

    # Upward.

    def _tell(self, subscription: Subscription) -> list[RelayAction]:
        subscription.names = self._wanted(subscription)
        return [*self._up.subscribe(subscription)]

    def _answer(self, subscription: Subscription, version: str, error: bytes = b"") -> list[RelayAction]:
        subscription.names = self._wanted(subscription)
        return [*self._up.answer(subscription, version, error)]

    def _wanted(self, subscription: Subscription) -> tuple[str, ...]:
        """The names to ask for, () for all there are: what all Envoys want, and what was wanted until all have spoken.

        An Envoy has spoken once it is LIVE and has asked for the type on the stream it has now.
        """
        type_url = subscription.type_url
        living = [down for down in self._streams.values() if not down.ended]
        exchanges = [exchange for down in living if (exchange := down.exchanges.get(type_url))]
        if any(exchange.wildcard for exchange in exchanges):
            return ()
        union = dict.fromkeys(name for exchange in exchanges for name in exchange.names)
        spoken = all(down.epoch in self._live and type_url in down.exchanges for down in living)
        shrink = bool(living) and not self._departed and spoken
        if not union or (subscription.wildcard and not shrink):
            return subscription.names
        kept = [name for name in subscription.names if name in union or not shrink]
        return tuple(dict.fromkeys((*kept, *union)))

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
        """Send what the stream should have, unless it has it or has not answered the last one yet."""
        if down.ended or exchange.waiting or not exchange.subscribed:
            return []
        live = down.epoch in self._live
        delivery = subscription.choose(down.stream, tried=live or exchange.tried(subscription.accepted))
        if self._keeps(exchange, delivery):
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

    def _keeps(self, exchange: Exchange, delivery: Delivery | None) -> bool:
        """Whether the Envoy keeps what it came with, rather than have this."""
        return exchange.ahead and (delivery is None or delivery.serial <= self._remembered)

    # Verdicts.

    def _rank(self, down: EnvoyStream) -> tuple[bool, bool, int, int]:
        return not down.ended, down.epoch in self._live, down.epoch, down.stream

    def _speaker(self, type_url: str) -> tuple[EnvoyStream, Exchange] | None:
        """The stream whose word counts for a type."""
        asking = [(down, exchange) for down in self._streams.values() if (exchange := down.exchanges.get(type_url))]
        return max(asking, key=lambda one: (one[1].subscribed, self._rank(one[0])), default=None)

    def _judge(self, subscription: Subscription) -> list[RelayAction]:
        """Take the word of the Envoy that counts for this type."""
        speaker = self._speaker(subscription.type_url)
        if speaker is None:
            return []
        down, exchange = speaker
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
        # Envoy 1.40 takes a response it has just rejected when it comes again, and still does not have the bad part
        # of it. A fresh Envoy that takes it has it all: a port that was taken may be free now.
        believed = sent not in subscription.rejected or (down.fresh and sent not in exchange.refused)
        believed = believed and sent not in subscription.deadly
        newer = subscription.accepted is None or sent.serial > subscription.accepted.serial
        if answer.taken and newer and believed:
            subscription.accept(sent)
            actions.append(ResponseAccepted(subscription.type_url, sent.response.version))
            actions += self._serve_all(subscription)
        return actions

    def _changed(self) -> list[RelayAction]:
        """After a change among the Envoys: another one may count now, and other names be wanted."""
        actions: list[RelayAction] = []
        for subscription in self._subscriptions.values():
            actions += self._judge(subscription)
            actions += self._tell(subscription)
        return actions

    def _suspect(self, down: EnvoyStream) -> list[RelayAction]:
        """An Envoy has ended by itself with responses under way: the first time a suspicion, the second a verdict."""
        actions: list[RelayAction] = []
        for type_url, delivery in down.under_way().items():
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
                actions += self._condemned(subscription)
        return actions

    def _condemned(self, subscription: Subscription) -> list[RelayAction]:
        """Refuse the latest response in the name of the Envoys that ended with it."""
        subscription.settled = True
        subscription.rejections += 1
        version = subscription.latest.response.version if subscription.latest else ""
        actions = self._answer(subscription, subscription.good_version, encode_status(INTERNAL, DEADLY))
        return [*actions, ResponseRejected(subscription.type_url, version, DEADLY, by_guard=True)]

    def _next_trial(self) -> tuple[float, Subscription, EnvoyStream] | None:
        """When, what and where to try next; one at a time, so that only the guilty one is condemned."""
        if any(one.trial is not None for one in self._subscriptions.values()):
            return None
        trials = []
        for subscription in self._subscriptions.values():
            latest, speaker = subscription.latest, self._speaker(subscription.type_url)
            if latest is None or latest not in subscription.suspected or speaker is None:
                continue
            down, exchange = speaker
            able = exchange.subscribed and not exchange.waiting and exchange.sent is not latest
            able = able and not self._keeps(exchange, latest)
            if able and not down.ended and down.epoch in self._live:
                trials.append((self._live[down.epoch] + TRIAL_AFTER, subscription, down))
        return min(trials, key=lambda trial: trial[0], default=None)

    def _asked(self, type_url: str, names: tuple[str, ...]) -> Subscription:
        subscription = self._subscriptions.get(type_url) or Subscription(type_url, names)
        self._subscriptions = in_order(self._subscriptions, subscription)
        return subscription
