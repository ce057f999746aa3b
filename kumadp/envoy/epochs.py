"""State machine of Envoy's epochs under hot restart. Pure: no clock, no process.

Measured with Envoy 1.40: a new epoch takes the admin of the old one as soon as it starts and the listeners when it is
LIVE; SIGTERM to one that is not LIVE ends the old one too, SIGKILL does not; one that ends before it is LIVE leaves the
old one without admin (blind) and hot restart locked. An epoch's parent is always the epoch before it.
"""

from __future__ import annotations

import enum

from msgspec import Struct
from msgspec.structs import replace


class EpochStage(enum.Enum):
    """The stage of the epochs."""

    DOWN = "no Envoy serves; the restart policy or a cold start comes next"
    STARTING = "epoch 0 comes up"
    SERVING = "the current epoch serves"
    HANDOVER = "the current epoch serves and the next one comes up"


class ReloadKind(enum.Enum):
    """The result of a reload."""

    HOT = "hot"
    COLD = "cold"
    REFUSED = "refused"
    FAILED = "failed"


class ReloadRequest(Struct, frozen=True):
    """A requested reload; ``cold``: it may cost an outage."""

    number: int
    cold: bool


class EpochState(Struct, frozen=True):
    """The epochs of one base id.

    ``adopted``: the current one was left by the previous kumadp, and serves though its admin has not answered yet.
    ``blind``: it has lost its admin. ``planned``: ``request`` is being done by a cold start. ``repairing``: the epoch
    that comes up is there to get the admin back. ``stopping``: kumadp is about to stop.
    """

    stage: EpochStage = EpochStage.DOWN
    epoch: int = 0
    retiring: bool = False
    adopted: bool = False
    blind: bool = False
    planned: bool = False
    repairing: bool = False
    stopping: bool = False
    request: ReloadRequest | None = None
    waiting: ReloadRequest | None = None

    @property
    def is_busy(self) -> bool:
        """True if a reload is under way, or an old epoch still drains."""
        return self.request is not None or self.retiring or self.stage is EpochStage.HANDOVER


class EpochStarted(Struct, frozen=True):
    """A process was started as epoch 0 on a new base id."""


class EpochAdopted(Struct, frozen=True):
    """An Envoy that runs already was adopted."""

    epoch: int
    blind: bool
    retiring: bool
    repair: bool = False
    """A hand-over has failed while no kumadp ran: start another epoch to get the admin back."""


class EpochLive(Struct, frozen=True):
    """This epoch is LIVE."""

    epoch: int


class EpochOverdue(Struct, frozen=True):
    """The epoch that comes up was not LIVE in time."""

    reason: str


class EpochFailed(Struct, frozen=True):
    """The next epoch has ended before it was LIVE.

    ``took_over``: it had taken the listeners. ``unlocked``: a further epoch can be tried on this base id.
    """

    reason: str
    took_over: bool = False
    unlocked: bool = False


class EpochEnded(Struct, frozen=True):
    """The current epoch has ended."""

    reason: str


class EpochRetired(Struct, frozen=True):
    """The epoch before the current one has ended."""


class ReloadRequested(Struct, frozen=True):
    """A reload was requested."""

    request: ReloadRequest


class ReloadChecked(Struct, frozen=True):
    """The reload was checked. ``refused``: why it cannot be done; ``cold``: why it cannot be hot."""

    refused: str = ""
    cold: str = ""


class Stopping(Struct, frozen=True):
    """Everything is about to stop."""


Event = (
    EpochStarted
    | EpochAdopted
    | EpochLive
    | EpochOverdue
    | EpochFailed
    | EpochEnded
    | EpochRetired
    | ReloadRequested
    | ReloadChecked
    | Stopping
)


class CheckReload(Struct, frozen=True):
    """Check whether this reload can be done; the result is `ReloadChecked`."""

    request: ReloadRequest


class SpawnEpoch(Struct, frozen=True):
    """Start this epoch; ``repair``: with what the current one runs, to get the admin back."""

    epoch: int
    repair: bool


class KillNewEpoch(Struct, frozen=True):
    """SIGKILL for the epoch that comes up; never SIGTERM."""


class HandOver(Struct, frozen=True):
    """Make the epoch that came up the current one; the old one drains."""


class StartCold(Struct, frozen=True):
    """End the current epoch, if there is one, and start epoch 0 on a new base id with the requested plan."""


class RevertPlan(Struct, frozen=True):
    """The requested plan does not come up: return to the previous one."""


class KillCurrentEpoch(Struct, frozen=True):
    """The current epoch no longer serves: kill it, the restart policy does the rest."""


class GoBlind(Struct, frozen=True):
    """Note that the current epoch serves without admin."""

    reason: str


class ReportOutcome(Struct, frozen=True):
    """Report how this reload ended."""

    request: ReloadRequest
    kind: ReloadKind
    reason: str = ""


Action = (
    CheckReload
    | SpawnEpoch
    | KillNewEpoch
    | HandOver
    | StartCold
    | RevertPlan
    | KillCurrentEpoch
    | GoBlind
    | ReportOutcome
)
Step = tuple[EpochState, tuple[Action, ...]]


def step(state: EpochState, event: Event) -> Step:
    """Return the state after ``event`` and the actions to execute, in this order."""
    match event:
        case EpochStarted():
            return replace(state, stage=EpochStage.STARTING, epoch=0, retiring=False, adopted=False, blind=False), ()
        case EpochAdopted():
            stage = EpochStage.SERVING if event.blind else EpochStage.STARTING
            adopted = replace(state, stage=stage, epoch=event.epoch, blind=event.blind, retiring=event.retiring)
            if event.repair:
                again = SpawnEpoch(event.epoch + 1, repair=True)
                return replace(adopted, stage=EpochStage.HANDOVER, repairing=True), (again,)
            return replace(adopted, adopted=not event.blind), ()
        case EpochLive():
            return _live(state, event)
        case EpochOverdue():
            return _overdue(state, event)
        case EpochFailed():
            return _failed(state, event)
        case EpochEnded():
            return _ended(state, event)
        case EpochRetired():
            return _next(replace(state, retiring=False), ())
        case ReloadRequested():
            return _requested(state, event.request)
        case ReloadChecked():
            return _checked(state, event)
        case Stopping():
            answers = _refuse(state.waiting, "everything stops")
            return replace(state, stopping=True, waiting=None), answers


def _refuse(request: ReloadRequest | None, reason: str) -> tuple[Action, ...]:
    return (ReportOutcome(request, ReloadKind.REFUSED, reason),) if request is not None else ()


def _report(state: EpochState, kind: ReloadKind, reason: str = "") -> tuple[Action, ...]:
    return (ReportOutcome(state.request, kind, reason),) if state.request is not None else ()


def _next(state: EpochState, actions: tuple[Action, ...]) -> Step:
    """Begin with the reload that waits, unless one is under way."""
    if state.is_busy or state.waiting is None:
        return state, actions
    return replace(state, request=state.waiting, waiting=None), (*actions, CheckReload(state.waiting))


def _requested(state: EpochState, request: ReloadRequest) -> Step:
    if state.stopping:
        return state, _refuse(request, "everything stops")
    return _next(replace(state, waiting=request), _refuse(state.waiting, "a later reload took its place"))


def _checked(state: EpochState, event: ReloadChecked) -> Step:
    if state.request is None:
        return state, ()
    serves = state.stage is EpochStage.SERVING
    refused = event.refused
    cold = event.cold or ("Envoy was adopted and has not answered yet" if state.adopted else "")
    if state.stopping:
        refused = "everything stops"
    elif not refused and (serves or state.adopted) and cold and not state.request.cold:
        refused = f"only a cold restart can do it: {cold}"
    if refused:
        return _next(replace(state, request=None), _report(state, ReloadKind.REFUSED, refused))
    if serves and not event.cold:
        return replace(state, stage=EpochStage.HANDOVER), (SpawnEpoch(state.epoch + 1, repair=False),)
    return replace(state, stage=EpochStage.DOWN, adopted=False, blind=False, planned=True), (StartCold(),)


def _live(state: EpochState, event: EpochLive) -> Step:
    if state.stage is EpochStage.HANDOVER and event.epoch == state.epoch + 1:
        serving = replace(state, stage=EpochStage.SERVING, epoch=event.epoch, blind=False, request=None)
        serving = replace(serving, retiring=True, repairing=False)
        return serving, (HandOver(), *_report(state, ReloadKind.HOT))
    if state.stage is EpochStage.STARTING and event.epoch == state.epoch:
        return _settle(replace(state, stage=EpochStage.SERVING, adopted=False), ReloadKind.COLD)
    return state, ()


def _settle(state: EpochState, kind: ReloadKind, reason: str = "", first: tuple[Action, ...] = ()) -> Step:
    """A cold start is over; a reload that is still being checked is not."""
    if not state.planned:
        return state, ()
    return _next(replace(state, planned=False, request=None), (*first, *_report(state, kind, reason)))


def _overdue(state: EpochState, event: EpochOverdue) -> Step:
    if state.stage is EpochStage.HANDOVER:
        return state, (KillNewEpoch(),)
    if state.stage is EpochStage.STARTING:
        # It keeps trying: the previous Envoy has ended, and would wait for the same control plane.
        return _settle(state, ReloadKind.FAILED, event.reason)
    return state, ()


def _failed(state: EpochState, event: EpochFailed) -> Step:
    if state.stage is not EpochStage.HANDOVER:
        return state, ()
    answers = _report(state, ReloadKind.FAILED, event.reason)
    if event.took_over:
        down = replace(state, stage=EpochStage.DOWN, blind=False, repairing=False, request=None)
        return down, (*answers, KillCurrentEpoch())
    blind = replace(state, blind=True, request=None)
    if event.unlocked and not state.repairing and not state.stopping:
        again = SpawnEpoch(state.epoch + 1, repair=True)
        return replace(blind, repairing=True), (GoBlind(event.reason), *answers, again)
    return _next(replace(blind, stage=EpochStage.SERVING, repairing=False), (GoBlind(event.reason), *answers))


def _ended(state: EpochState, event: EpochEnded) -> Step:
    down = replace(state, stage=EpochStage.DOWN, adopted=False, blind=False, retiring=False, repairing=False)
    if state.stage is EpochStage.HANDOVER:
        return _next(replace(down, request=None), (KillNewEpoch(), *_report(state, ReloadKind.FAILED, event.reason)))
    if state.stage is EpochStage.STARTING:
        return _settle(down, ReloadKind.FAILED, event.reason, (RevertPlan(),))
    return down, ()
