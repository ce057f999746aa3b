"""The condition of a control plane that does not serve us, and when its refusal counts as permanent. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.core import grace_period
from kumadp.relay.refusal import StreamRefusal
from kumadp.relay.unanswered import SILENCE
from kumadp.relay.upstream import UpstreamState

if TYPE_CHECKING:
    from kumadp.relay.upstream import UpstreamFacts

# How long it may be unreachable (seconds) before a warning is set.
UNREACHABLE_AFTER = 5.0
SILENT = "it leaves requests unanswered"


class PlaneCondition(Struct, frozen=True):
    """``warning`` for the operator, empty if there is none; ``permanent``: retrying cannot help."""

    warning: str = ""
    permanent: bool = False


def assess(facts: UpstreamFacts, *, silence: float, was_connected: bool, now: float) -> PlaneCondition:
    """Return the condition of a control plane that serves us or has been away for at least ``UNREACHABLE_AFTER`` s.

    ``silence``: seconds for which a first subscription has been unanswered. ``was_connected``: the control plane has
    served this run before. ``now`` is of the same clock as ``facts``.
    """
    if facts.state is UpstreamState.HELD_CLOSED:
        return PlaneCondition()
    if silence >= (SILENCE if facts.state is UpstreamState.OPEN else UNREACHABLE_AFTER):
        return PlaneCondition(SILENT)
    if facts.state is UpstreamState.OPEN:
        return PlaneCondition()
    grace = grace_period.ESTABLISHED_GRACE_PERIOD if was_connected else grace_period.GRACE_PERIOD
    if facts.refusal is StreamRefusal.AUTH and facts.refused_since is not None and now - facts.refused_since >= grace:
        return PlaneCondition(f"the control plane rejects this data plane: {facts.last_error}", permanent=True)
    return PlaneCondition(facts.last_error or "it does not answer")
