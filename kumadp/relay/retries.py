"""When Envoy is given a rejected listener again although it has not changed: the host may have. Pure.

Envoy and control planes retry nothing: a port that was taken for a moment would stay unserved until the next Envoy.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from kumadp.relay.messages import LISTENER

if TYPE_CHECKING:
    from kumadp.relay.envoy_streams import EnvoyStream
    from kumadp.relay.envoys import Envoys
    from kumadp.relay.exchange import Exchange
    from kumadp.relay.resources import Key
    from kumadp.relay.subscription import Subscription

# Seconds before the first two retries, and before each later one.
WAITS = (10.0, 30.0, 60.0)
# Of Envoy's texts (1.40) about ports and addresses that it cannot have, e.g. "cannot bind '10.0.0.1:80': ...".
_OF_THE_HOST = ("cannot bind '", "cannot listen() ", "failed to bind or apply socket options: ")


class Retries:
    """Retries of listeners, on the LIVE Envoy whose answers count.

    Times are those of `tick`; -inf: to be set, inf: Envoy has not answered the last retry.
    """

    def __init__(self, envoys: Envoys) -> None:
        self._envoys = envoys
        # When, and how many retries there were.
        self._due: dict[Key, tuple[float, int]] = {}

    def at(self, key: Key) -> float | None:
        """Return when a resource is retried, None if that is not known or never."""
        at, _ = self._due.get(key, (inf, 0))
        return at if abs(at) != inf else None

    def next_tick(self, listeners: Subscription | None) -> float | None:
        """Return when `tick` is due, at once if a time is to be set; None if it is not."""
        if listeners is None or not listeners.rejected:
            self._due.clear()
            return None
        self._update(listeners)
        return min((at for at, _ in self._due.values() if at != inf), default=None)

    def tick(self, now: float, listeners: Subscription | None) -> list[tuple[EnvoyStream, Exchange]]:
        """Set times; return the stream that is to be given what is due."""
        if listeners is None or not listeners.rejected:
            return []
        self._update(listeners)
        self._due = {
            key: (now + WAITS[min(number, len(WAITS) - 1)] if at == -inf else at, number)
            for key, (at, number) in self._due.items()
        }
        serving, due = self._serving(), [key for key, (at, _) in self._due.items() if at <= now]
        if serving is None or not due:
            return []
        for key in due:
            self._due[key] = inf, self._due[key][1] + 1
            serving[1].narrowing.retry(key)
        return [serving]

    def _update(self, listeners: Subscription) -> None:
        serving, latest = self._serving(), listeners.latest
        if serving is None or latest is None:
            return
        down, exchange = serving
        withheld = self._envoys.withheld(down, exchange, listeners) - exchange.narrowing.tried
        remaining = {key: due for key, due in self._due.items() if key in latest and not exchange.runs(key)}
        for key in withheld:
            at, number = remaining.get(key, (inf, 0))
            reason = exchange.narrowing.refused.get(key) or listeners.rejected.reason(key)
            if at == inf and key in latest and any(text in reason for text in _OF_THE_HOST):
                remaining[key] = -inf, number
        self._due = remaining

    def _serving(self) -> tuple[EnvoyStream, Exchange] | None:
        authoritative = self._envoys.authoritative(LISTENER)
        if authoritative is None or authoritative[0].ended or authoritative[0].epoch not in self._envoys.live:
            return None
        return authoritative
