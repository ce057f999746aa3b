"""What waits for clusters that Envoy warms: it does not acknowledge them before, nor answer for them. Pure.

Envoy puts a listener into service while the cluster that it leads to still warms, and answers 503 until then (seen
with 1.40, where a control plane of Kuma 3 gives all services other names): listeners and routes come after clusters.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from kumadp.relay.messages import CLUSTER, LISTENER, ROUTES

if TYPE_CHECKING:
    from kumadp.relay.envoy_streams import EnvoyStream
    from kumadp.relay.envoys import Envoys
    from kumadp.relay.subscription import Subscription

AFTER_CLUSTERS = (LISTENER, ROUTES)
# The longest that these wait (seconds): a cluster that never warms must not stop changes of listeners.
LONGEST_HOLD = 10.0


class ListenerHold:
    """The streams on which listeners and routes wait for the answer to clusters, and until when they do at most."""

    def __init__(self, envoys: Envoys) -> None:
        self._envoys = envoys
        # By stream; -inf: to be set, inf: over, until clusters are answered.
        self._until: dict[int, float] = {}

    def waits(self, down: EnvoyStream, subscription: Subscription) -> bool:
        """Return True if nothing of this type is to be sent now.

        That is a change of what a LIVE Envoy got on this stream, or anything while clusters are in `Exchange.doubt`.
        """
        clusters, own = down.exchanges.get(CLUSTER), down.exchanges[subscription.type_url]
        if subscription.type_url not in AFTER_CLUSTERS or clusters is None or not clusters.waiting:
            return False
        is_change = own.sent is not None and down.epoch in self._envoys.live
        return (is_change or clusters.settling) and self._until.setdefault(down.stream, -inf) != inf

    def end(self, down: EnvoyStream) -> None:
        """Clusters were answered."""
        self._until.pop(down.stream, None)

    def next_tick(self) -> float | None:
        """Return when `tick` is due, None if it is not."""
        self._until = {down.stream: self._until[down.stream] for down in self._envoys if down.stream in self._until}
        return min((until for until in self._until.values() if until != inf), default=None)

    def tick(self, now: float) -> list[EnvoyStream]:
        """Note the time; return the streams on which the wait is over."""
        over = []
        for down in self._envoys:
            until = self._until.get(down.stream, inf)
            if until == -inf:
                self._until[down.stream] = now + LONGEST_HOLD
            elif until <= now:
                self._until[down.stream] = inf
                over.append(down)
        return over
