"""What to say of a control plane that does not serve us, and when its refusal is for good. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.relay.refusal import StreamRefusal
from kumadp.relay.relay import SILENCE
from kumadp.relay.upstream import UpstreamState

if TYPE_CHECKING:
    from kumadp.relay.upstream import UpstreamFacts

# How long the control plane may refuse us (seconds) before that is for good: a token file may be on its way. One that
# had us before is more likely to be in trouble itself, as a control plane that has lost its signing keys.
GRACE_PERIOD = 60.0
ESTABLISHED_GRACE_PERIOD = 600.0
# How long it may be away (seconds) before that is told as a concern.
UNREACHABLE_AFTER = 5.0
SILENT = "it leaves requests unanswered"


@dataclass(frozen=True, slots=True)
class ControlPlaneCondition:
    """One line for people, empty where all is well; ``permanent``: nothing is to be hoped for."""

    warning: str = ""
    permanent: bool = False


def judge(facts: UpstreamFacts, *, silence: float, was_connected: bool, now: float) -> ControlPlaneCondition:
    """The verdict on a control plane that has been away for ``UNREACHABLE_AFTER`` seconds at least, or has us.

    ``silence``: for how many seconds a first subscription is unanswered; ``was_connected``: whether it ever served this run.
    """
    if facts.state is UpstreamState.HELD_CLOSED:
        return ControlPlaneCondition()
    if silence >= (SILENCE if facts.state is UpstreamState.OPEN else UNREACHABLE_AFTER):
        return ControlPlaneCondition(SILENT)
    if facts.state is UpstreamState.OPEN:
        return ControlPlaneCondition()
    patience = ESTABLISHED_GRACE_PERIOD if was_connected else GRACE_PERIOD
    if (
        facts.refusal is StreamRefusal.AUTH
        and facts.refused_since is not None
        and now - facts.refused_since >= patience
    ):
        return ControlPlaneCondition(f"the control plane refuses this data plane: {facts.last_error}", permanent=True)
    return ControlPlaneCondition(facts.last_error or "it does not answer")
