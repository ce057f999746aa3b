"""Envoys that acknowledge no clusters any more, since one that they rejected keeps warming. Pure."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kumadp.relay.envoy_streams import EnvoyStream, Exchange
    from kumadp.relay.envoys import Envoys

# Seconds for which Envoy may leave clusters unanswered while it answers what was sent later.
JAMMED_AFTER = 10.0
# Seconds more if it waits for endpoints or secrets, on which it gives up after 15 s (initial_fetch_timeout).
STARVED_AFTER = 20.0
JAMMED = f"Envoy has not acknowledged it for {JAMMED_AFTER:.0f} s, while it acknowledged later resources"


class JamGuard:
    """Finds them: Envoy 1.40 answers no set of clusters while one warms that it rejected late."""

    def __init__(self, envoys: Envoys) -> None:
        self._envoys = envoys

    def next_tick(self) -> float | None:
        """Return when `tick` is due, at once if a time is to be set; None if it is not."""
        times = (exchange.overtaken for _, exchange in self._envoys.jams())
        return min((each for each in times if each is not None), default=None)

    def tick(self, now: float) -> list[tuple[EnvoyStream, Exchange]]:
        """Set times; return the jammed streams with their clusters, each once."""
        jammed = []
        for down, exchange in self._envoys.jams():
            if exchange.overtaken == -inf:
                exchange.overtaken = now + JAMMED_AFTER
            elif exchange.overtaken is not None and exchange.overtaken > now:
                continue
            elif not exchange.postponed and any(other.lacks_some for other in down.exchanges.values()):
                exchange.overtaken, exchange.postponed = now + STARVED_AFTER, True
            else:
                exchange.overtaken = inf
                jammed.append((down, exchange))
        return jammed
