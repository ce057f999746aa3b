"""Judges the answers of the Envoys, and the exits of those that did not answer; answers the control plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.relay.actions import Note, RelayAction, ResponseAccepted, ResponseRejected
from kumadp.relay.exchange import DEADLY
from kumadp.relay.messages import LISTENER, encode_status, status_message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kumadp.relay.envoy_streams import EnvoyStream
    from kumadp.relay.envoys import Envoys
    from kumadp.relay.exchange import EnvoyAnswer, Exchange
    from kumadp.relay.held_clusters import HeldClusters
    from kumadp.relay.offer import EnvoyOffer
    from kumadp.relay.resources import Key
    from kumadp.relay.subscription import Subscription
    from kumadp.relay.upstream_requests import UpstreamRequests

INTERNAL = 13
# Resources whose reasons one rejection repeats to the control plane, and the bytes of these.
_MOST_REASONS, _LONGEST = 8, 4000


class Judge:
    """Of the answers to a type, those of one Envoy count."""

    def __init__(self, up: UpstreamRequests, envoys: Envoys, held: HeldClusters) -> None:
        self._up = up
        self._envoys = envoys
        self._held = held

    def answer(self, subscription: Subscription, version: str, error: bytes = b"") -> list[RelayAction]:
        """Answer the latest response to the control plane, if that was not done yet."""
        subscription.names = self._envoys.names(subscription)
        return [*self._up.answer(subscription, version, error)]

    def judge(self, subscription: Subscription) -> list[RelayAction]:
        """Apply the answers of the Envoy that counts for this type."""
        authoritative = self._envoys.authoritative(subscription.type_url)
        if authoritative is None:
            return []
        down, exchange = authoritative
        refused = exchange.narrowing.refused
        new = [key for key in refused if key not in subscription.rejected]
        # Not only right after a rejection: another Envoy, which accepts it, may have exited.
        for key in new:
            if not exchange.runs(key):
                subscription.rejected.add(key, refused[key])
        actions = self._judge_rejection(subscription, exchange, new)
        sent, answer = exchange.sent, exchange.answer
        if sent is None or answer is None or answer.error:
            return actions
        if not exchange.judged:
            exchange.judged = True
            subscription.answered(sent.base, applied=answer.taken and not sent.withheld)
        if answer.taken and sent.base not in subscription.deadly:
            # It may be free now: a port that was taken when another Envoy rejected a listener.
            subscription.rejected.discard([key for key in subscription.rejected if exchange.runs(key)])
            subscription.take(exchange.parts)
            if subscription.accept(sent):
                assert subscription.accepted is not None  # noqa: S101 - it was just accepted
                version = subscription.accepted.response.version
                actions.append(ResponseAccepted(subscription.type_url, version))
            if subscription.type_url == LISTENER and exchange.nonce:
                self._held.listeners_accepted(int(exchange.nonce))
        if sent.base is subscription.latest:
            actions += self._answer_latest(subscription, down, exchange, sent, answer)
        return actions

    def _judge_rejection(self, subscription: Subscription, exchange: Exchange, new: Iterable[Key]) -> list[RelayAction]:
        rejection = exchange.rejection
        if rejection is None or rejection.judged:
            return []
        rejection.judged = True
        base = rejection.offer.base
        subscription.answered(base, applied=True)
        subscription.rejections += 1
        refused = exchange.narrowing.refused
        subscription.report(refused)
        actions = []
        if base is subscription.latest and not rejection.of_former:
            actions = self.answer(subscription, rejection.answer.version, rejection.answer.error)
        if actions:
            subscription.unreported.difference_update(refused)
        else:
            subscription.unreported.update(new)
        reason = status_message(rejection.answer.error)
        version = rejection.offer.version if rejection.of_former else base.response.version
        return [*actions, ResponseRejected(subscription.type_url, version, reason, by_guard=rejection.by_guard)]

    def _answer_latest(
        self,
        subscription: Subscription,
        down: EnvoyStream,
        exchange: Exchange,
        sent: EnvoyOffer,
        answer: EnvoyAnswer,
    ) -> list[RelayAction]:
        """Accept the latest response, or reject it with the remembered reasons for what Envoy was not given.

        ``sent``, which Envoy gave this ``answer`` to, is what it got of it.
        """
        if not subscription.open:
            return [*self._up.accept_late(subscription)] if answer.taken and not sent.withheld else []
        latest, unreported = sent.base, subscription.unreported
        withheld = [key for key in sent.withheld if latest.response.brings(key[0]) or key in unreported]
        lasting = self._envoys.withheld(down, exchange, subscription) - exchange.narrowing.tried
        if answer.taken and not sent.withheld <= lasting:
            # Envoy will be given these too, and may accept them.
            return []
        unreported.clear()
        if not withheld or not answer.taken:
            version = latest.response.version if answer.taken else answer.version
            return self.answer(subscription, version)
        subscription.rejections += 1
        reason = _reasons(subscription, exchange, withheld)
        actions = self.answer(subscription, answer.version, encode_status(INTERNAL, reason))
        if not subscription.reported.issuperset(withheld):
            subscription.report(withheld)
            actions.append(ResponseRejected(subscription.type_url, latest.response.version, reason))
        return actions

    # Envoys that exit without an answer.

    def suspect(self, down: EnvoyStream, subscriptions: dict[str, Subscription]) -> list[RelayAction]:
        """An Envoy exited unexpectedly with responses in flight: the first time they are suspected, then rejected."""
        actions: list[RelayAction] = []
        for type_url, offer in down.in_flight().items():
            subscription, delivery = subscriptions[type_url], offer.base
            accepted, latest = subscription.accepted, subscription.latest
            if delivery in subscription.deadly or (accepted is not None and offer.has_content_of(accepted)):
                continue
            if delivery not in subscription.suspected:
                subscription.suspected.add(delivery)
                actions.append(Note(f"{type_url}: Envoy ended before it answered version {delivery.response.version}"))
                continue
            subscription.suspected.discard(delivery)
            subscription.deadly.add(delivery)
            if latest is not None and latest.same_content(delivery):
                actions += self.reject_deadly(subscription)
        return actions

    def reject_deadly(self, subscription: Subscription) -> list[RelayAction]:
        """Reject the latest response on behalf of the Envoys that exited with it."""
        subscription.rejections += 1
        version = subscription.latest.response.version if subscription.latest else ""
        actions = self.answer(subscription, subscription.good_version, encode_status(INTERNAL, DEADLY))
        return [*actions, ResponseRejected(subscription.type_url, version, DEADLY, by_guard=True)]

    def next_trial(
        self, subscriptions: Iterable[Subscription], after: float, remembered: int
    ) -> tuple[float, Subscription, EnvoyStream] | None:
        """Return when, what and where to retry next; one at a time, so that only the deadly one is rejected.

        ``after`` is for how long, in seconds, an Envoy must have been LIVE; ``remembered`` as in `Exchange.keeps_own`.
        """
        trials = []
        for subscription in subscriptions:
            if subscription.trial is not None:
                return None
            latest, authoritative = subscription.latest, self._envoys.authoritative(subscription.type_url)
            if latest is None or latest not in subscription.suspected or authoritative is None:
                continue
            down, exchange = authoritative
            sent = exchange.sent.base if exchange.sent is not None and not exchange.ignored else None
            able = exchange.subscribed and not exchange.waiting and sent is not latest
            able = able and not exchange.keeps_own(latest, remembered)
            if able and not down.ended and down.epoch in self._envoys.live:
                trials.append((self._envoys.live[down.epoch] + after, subscription, down))
        return min(trials, key=lambda trial: trial[0], default=None)


def _reasons(subscription: Subscription, exchange: Exchange, withheld: Iterable[Key]) -> str:
    narrowing = exchange.narrowing
    excluded = narrowing.excluded()
    reasons = dict.fromkeys(
        narrowing.reason(key) if key in excluded else subscription.rejected.reason(key) for key in sorted(withheld)
    )
    return "; ".join(list(reasons)[:_MOST_REASONS])[:_LONGEST]
