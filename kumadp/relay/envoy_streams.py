"""One Envoy's stream as the relay sees it."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from kumadp.relay.exchange import NO_SECRET, Exchange
from kumadp.relay.messages import CLUSTER

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from kumadp.relay.offer import EnvoyOffer
    from kumadp.relay.resources import Key
    from kumadp.relay.subscription import Subscription


class EnvoyStream:
    """One stream of an Envoy. ``fresh``: Envoy has just started. ``ended``: it has exited, ``expected`` or not.

    ``had_clusters``: it got some before, from this relay. ``lost``: those that it has not answered there; ``accepted``:
    those that it had accepted, None if that is not known. ``version``: of clusters, on the stream before.
    ``clusters_due``: until when Envoy must have requested clusters (seconds, -inf: to be set, None: it need not).
    """

    def __init__(self, stream: int, epoch: int, *, fresh: bool) -> None:
        self.stream = stream
        self.epoch = epoch
        self.fresh = fresh
        self.exchanges: dict[str, Exchange] = {}
        self.ended = False
        self.expected = False
        self.had_clusters = False
        self.lost: frozenset[Key] = frozenset()
        self.accepted: frozenset[Key] | None = None
        self.version = self.lost_version = ""
        self.clusters_due: float | None = None

    def follow(self, former: Sequence[EnvoyStream]) -> None:
        """Continue after these streams of the same Envoy, the newest last."""
        self.had_clusters = any(CLUSTER in each.exchanges or each.had_clusters for each in former)
        newest_first = tuple(reversed(former))
        self.version = next(filter(None, (each.clusters_version for each in newest_first)), "")
        last = next((each for each in newest_first if each.unanswered_clusters), None)
        if last is not None:
            self.lost, self.lost_version = last.unanswered_clusters, last.unanswered_version
            every = (each.accepted_clusters for each in newest_first)
            self.accepted = next((keys for keys in every if keys is not None), None)

    @property
    def accepted_clusters(self) -> frozenset[Key] | None:
        """The clusters that Envoy has accepted, here or before; None if that is not known."""
        clusters = self.exchanges.get(CLUSTER)
        return self.accepted if clusters is None or not clusters.has_something else clusters.running

    @property
    def clusters_version(self) -> str:
        """The version of clusters that Envoy has fully accepted."""
        clusters = self.exchanges.get(CLUSTER)
        return self.version if clusters is None else clusters.version

    @property
    def unanswered_clusters(self) -> frozenset[Key]:
        """The clusters that Envoy got and has not answered, here or before."""
        clusters = self.exchanges.get(CLUSTER)
        return self.lost if clusters is None else clusters.unanswered

    @property
    def unanswered_version(self) -> str:
        """The version of clusters in flight, here or before; empty if there are none."""
        clusters = self.exchanges.get(CLUSTER)
        if clusters is None:
            return self.lost_version
        return clusters.sent.version if clusters.waiting and clusters.sent is not None else ""

    def doubt_clusters(self, exchange: Exchange, subscription: Subscription) -> None:
        """Doubt what Envoy got before and has not answered, on another stream or from the relay before this one."""
        before: Collection[Key] = self.lost
        if not self.had_clusters and exchange.continues:
            before = subscription.unsettled
        # Without a version Envoy has accepted nothing, whatever another one has.
        known = self.accepted if self.accepted is not None else subscription.known(partial=False)
        known = known if exchange.continues else ()
        unanswered = {key for key in before if key not in known}
        latest = subscription.latest
        # Else it is an acknowledgement that was lost.
        is_lost = not exchange.has_version(self.lost_version)
        doubted = (key for key in unanswered if key in (latest or ()) and key not in subscription.rejected)
        exchange.doubt(doubted if is_lost else (), unanswered)

    def overtake(self, answered: Exchange) -> None:
        """Note that Envoy answers what was sent after clusters that it has not answered."""
        clusters = self.exchanges.get(CLUSTER)
        if clusters is not None and clusters.waiting and clusters.overtaken is None and answered.nonce:
            clusters.overtaken = -inf if int(answered.nonce) > int(clusters.nonce) else None

    def in_flight(self) -> dict[str, EnvoyOffer]:
        """Return by type the responses that were sent and not answered, if an answer can be expected."""
        return {
            type_url: exchange.sent
            for type_url, exchange in self.exchanges.items()
            if exchange.waiting and exchange.subscribed and exchange.sent is not None and exchange.sent is not NO_SECRET
        }
