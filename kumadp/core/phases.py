"""The phases of the daemon and the legal moves between them.

READY means that traffic flows; when Envoy dies the daemon goes back to STARTING until the next one is LIVE.
"""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """Where the daemon is in its life."""

    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"


LEGAL_MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.STARTING: frozenset({Phase.READY, Phase.DRAINING, Phase.STOPPING}),
    Phase.READY: frozenset({Phase.STARTING, Phase.DRAINING, Phase.STOPPING}),
    Phase.DRAINING: frozenset({Phase.STOPPING}),
    Phase.STOPPING: frozenset({Phase.STOPPED}),
    Phase.STOPPED: frozenset(),
}


class IllegalMove(Exception):
    """A move that the table does not have: a bug."""

    def __init__(self, before: Phase, after: Phase) -> None:
        super().__init__(f"no move from {before.value} to {after.value}")


def check_move(before: Phase, after: Phase) -> None:
    """Raise IllegalMove unless the daemon may go from ``before`` to ``after``."""
    if after not in LEGAL_MOVES[before]:
        raise IllegalMove(before, after)
