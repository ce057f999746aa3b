"""Envoys that acknowledge no clusters any more, since one that they rejected keeps warming. Pure.

Envoy 1.40 sends nothing about clusters while some warm, neither an acknowledgement nor a rejection, and on a new stream
no request for them either.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from kumadp.relay.messages import CLUSTER

if TYPE_CHECKING:
    from kumadp.relay.envoy_streams import EnvoyStream
    from kumadp.relay.envoys import Envoys
    from kumadp.relay.exchange import Exchange

# Seconds for which Envoy may leave clusters unanswered while it answers what was sent later.
JAMMED_AFTER = 10.0
# Seconds more if it waits for endpoints or secrets, on which it gives up after 15 s (initial_fetch_timeout).
STARVED_AFTER = 20.0
JAMMED = f"Envoy has not acknowledged it for {JAMMED_AFTER:.0f} s, while it acknowledged later resources"
# Seconds until Envoy's admin is queried about unanswered clusters, and how much longer each time, to a minute.
QUERY_AFTER, GROWTH, LONGEST_PAUSE = 1.0, 2.0, 60.0
# Seconds within which an Envoy that is not new requests clusters, if it does: it requests all types at once.
REQUESTED_WITHIN = 1.0


class JamGuard:
    """Finds them by what they answer, and by what their admin shows if ``queries``."""

    def __init__(self, envoys: Envoys, *, queries: bool) -> None:
        self._envoys = envoys
        self._queries = queries

    def next_tick(self) -> float | None:
        """Return when `tick`, `queries` or `unrequested` is due, at once if a time is to be set; None if none is."""
        times = [exchange.overtaken for _, exchange in self._envoys.jams()]
        times += [exchange.query_at for _, exchange in self._waiting()]
        times += [down.clusters_due for down in self._envoys]
        return min((each for each in times if each is not None), default=None)

    def tick(self, now: float) -> list[tuple[EnvoyStream, Exchange]]:
        """Set times; return the jammed streams with their clusters, each once."""
        jammed = []
        for down, exchange in self._envoys.jams():
            if exchange.overtaken == -inf:
                exchange.overtaken = now + JAMMED_AFTER
            elif exchange.overtaken is not None and exchange.overtaken > now:
                continue
            elif not exchange.postponed and (
                exchange.warms or any(other.lacks_some for other in down.exchanges.values())
            ):
                exchange.overtaken, exchange.postponed = now + STARVED_AFTER, True
            else:
                exchange.overtaken = inf
                jammed.append((down, exchange))
        return jammed

    def queries(self, now: float) -> list[tuple[EnvoyStream, Exchange]]:
        """Set times; return the streams with clusters about which Envoy's admin is to be queried."""
        due = []
        for down, exchange in self._waiting():
            if exchange.query_at == -inf:
                exchange.query_pause = QUERY_AFTER
            elif exchange.query_at <= now:
                exchange.query_pause = min(exchange.query_pause * GROWTH, LONGEST_PAUSE)
                due.append((down, exchange))
            else:
                continue
            exchange.query_at = now + exchange.query_pause
        return due

    def unrequested(self, now: float) -> list[EnvoyStream]:
        """Set times; return the streams on which Envoy requests no clusters although it has some."""
        due = []
        for down in self._envoys:
            if CLUSTER in down.exchanges:
                down.clusters_due = None
            elif down.clusters_due == -inf:
                down.clusters_due = now + REQUESTED_WITHIN
            elif down.clusters_due is not None and down.clusters_due <= now:
                down.clusters_due = None
                due.append(down)
        return due

    def _waiting(self) -> list[tuple[EnvoyStream, Exchange]]:
        if not self._queries:
            return []
        return [pair for pair in self._envoys.of_type(CLUSTER) if pair[1].waiting and not pair[0].ended]
