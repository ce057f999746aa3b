"""Clusters that the control plane has removed and that Envoy keeps until nothing uses them any more.

Connections that drain on a previous listener still need its clusters (Envoy answers 503 without them), and Kuma removes
a cluster before the listener that uses it.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kumadp.relay.resources import XdsResource

# Seconds after which listeners are no longer expected to change.
LISTENERS_WITHIN = 15.0
# Seconds added to the drain time, and the longest that is waited for it.
MARGIN, LONGEST_WAIT = 2.0, 60.0
# A mesh of 10,000 services, each of which changes its name.
MOST_HELD = 10_000


class _Held(Struct):
    """``sent``: responses sent to Envoys before. Times, in seconds, are None until `HeldClusters.tick` sets them.

    ``unused``: Envoy has accepted listeners sent after the removal, and the previous ones drain from ``drains`` on.
    """

    resource: XdsResource
    sent: int
    since: float | None = None
    unused: bool = False
    drains: float | None = None


class HeldClusters:
    """``drain_time`` in seconds: that of Envoy's listeners. Times are set by `tick`."""

    def __init__(self, drain_time: float) -> None:
        self._held: dict[str, _Held] = {}
        self.set_drain_time(drain_time)
        self.resources: Mapping[str, XdsResource] = {}

    def set_drain_time(self, drain_time: float) -> None:
        """Use another drain time, in seconds, also for what is held."""
        self._drain = min(drain_time + MARGIN, LONGEST_WAIT)
        self._find_next()

    def update(self, accepted: Mapping[str, XdsResource], present: Mapping[str, XdsResource], sent: int) -> None:
        """The control plane has sent ``present``: hold what Envoy has ``accepted`` and is not in it any more."""
        for name in [name for name in self._held if name in present]:
            del self._held[name]
        self.hold((resource for name, resource in accepted.items() if name not in present), sent)

    def hold(self, resources: Iterable[XdsResource], sent: int) -> None:
        """Hold these, beyond 10,000 not the oldest."""
        for resource in resources:
            self._held.setdefault(resource.name, _Held(resource, sent))
        while len(self._held) > MOST_HELD:
            del self._held[next(iter(self._held))]
        self._publish()

    def listeners_accepted(self, nonce: int) -> None:
        """Envoy has accepted listeners that were sent as response number ``nonce``."""
        unused = [held for held in self._held.values() if not held.unused and nonce > held.sent]
        for held in unused:
            held.unused = True
        if unused:
            self._find_next()

    def next_tick(self) -> float | None:
        """Return when `tick` is due, at once if a time is to be set; None if nothing is held."""
        return self._next

    def _find_next(self) -> None:
        """Note when the next one is due: this is of interest after each event, and there can be thousands."""
        self._next = min(map(self._due, self._held.values()), default=None)

    def tick(self, now: float) -> bool:
        """Set times, and release what is due; True if something was released."""
        for held in self._held.values():
            held.since = now if held.since is None else held.since
            if held.unused and held.drains is None:
                held.drains = now
        due = [name for name, held in self._held.items() if self._due(held) <= now]
        for name in due:
            del self._held[name]
        if due:
            self._publish()
        else:
            self._find_next()
        return bool(due)

    def _due(self, held: _Held) -> float:
        if held.since is None or (held.unused and held.drains is None):
            return -inf
        if held.drains is not None:
            return held.drains + self._drain
        return held.since + max(LISTENERS_WITHIN, self._drain)

    def _publish(self) -> None:
        self.resources = {name: held.resource for name, held in self._held.items()}
        self._find_next()
