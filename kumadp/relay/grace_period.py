"""What to say of a control plane that does not serve us, and when its refusal is for good. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.relay.refusal import Refusal
from kumadp.relay.relay import SILENCE
from kumadp.relay.upstream import State

if TYPE_CHECKING:
    from kumadp.relay.upstream import Facts

# How long the control plane may refuse us (seconds) before that is for good: a token file may be on its way. One that
# had us before is more likely to be in trouble itself, as a control plane that has lost its signing keys.
PATIENCE = 60.0
PATIENCE_WITH_A_FRIEND = 600.0
# How long it may be away (seconds) before that is told as a concern.
AWAY = 5.0
SILENT = "it leaves requests unanswered"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line for people, empty where all is well; ``for_good``: nothing is to be hoped for."""

    concern: str = ""
    for_good: bool = False


def judge(facts: Facts, *, silence: float, had_us: bool, now: float) -> Verdict:
    """The verdict on a control plane that has been away for ``AWAY`` seconds at least, or has us.

    ``silence``: for how many seconds a first subscription is unanswered; ``had_us``: whether it ever served this run.
    """
    if facts.state is State.HELD_CLOSED:
        return Verdict()
    if silence >= (SILENCE if facts.state is State.OPEN else AWAY):
        return Verdict(SILENT)
    if facts.state is State.OPEN:
        return Verdict()
    patience = PATIENCE_WITH_A_FRIEND if had_us else PATIENCE
    if facts.refusal is Refusal.AUTH and facts.refused_since is not None and now - facts.refused_since >= patience:
        return Verdict(f"the control plane refuses this data plane: {facts.last_error}", for_good=True)
    return Verdict(facts.last_error or "it does not answer")
