"""Envoy's epochs under hot restart: what to do when something happens. Pure: no clock, no process.

Measured with Envoy 1.40: a new epoch takes the admin of the old one as soon as it starts and the listeners when it is
LIVE; SIGTERM to one that is not LIVE ends the old one too, SIGKILL does not; one that ends before it is LIVE leaves the
old one without admin (blind) and hot restart locked. An epoch's parent is always the epoch before it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class Stage(enum.Enum):
    """Where the line of epochs is."""

    DOWN = "no Envoy serves; the restart policy or a cold start comes next"
    STARTING = "epoch 0 comes up"
    SERVING = "the current epoch serves"
    HANDOVER = "the current epoch serves and the next one comes up"


class Kind(enum.Enum):
    """How a reload ended."""

    HOT = "hot"
    COLD = "cold"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Ask:
    """A reload that is asked for; ``cold``: it may cost an outage."""

    number: int
    cold: bool


@dataclass(frozen=True, slots=True)
class Line:
    """The epochs of one base id.

    ``adopted``: the current one ran before us, and serves though its admin has not answered us yet. ``blind``: it has
    lost its admin. ``planned``: ``ask`` is being done by a cold start. ``repairing``: the epoch that comes up is there
    to get the admin back.
    """

    stage: Stage = Stage.DOWN
    epoch: int = 0
    retiring: bool = False
    adopted: bool = False
    blind: bool = False
    planned: bool = False
    repairing: bool = False
    leaving: bool = False
    ask: Ask | None = None
    waiting: Ask | None = None

    @property
    def busy(self) -> bool:
        """Whether a reload is under way, or an old epoch still drains."""
        return self.ask is not None or self.retiring or self.stage is Stage.HANDOVER


@dataclass(frozen=True, slots=True)
class Started:
    """A process was started as epoch 0 on a fresh base id."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """An Envoy that runs already was taken over."""

    epoch: int
    blind: bool
    retiring: bool


@dataclass(frozen=True, slots=True)
class Live:
    """This epoch is LIVE."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Overdue:
    """What comes up was not LIVE in time."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The next epoch has ended before it was LIVE.

    ``took_over``: it had taken the listeners. ``unlocked``: a further epoch can be tried on this base id.
    """

    reason: str
    took_over: bool = False
    unlocked: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The current epoch has ended."""

    reason: str


@dataclass(frozen=True, slots=True)
class Retired:
    """The epoch before the current one has ended."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A reload is asked for."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class Checked:
    """The reload was checked. ``refused``: why it must not be; ``cold``: why it cannot be hot."""

    refused: str = ""
    cold: str = ""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Everything is about to stop."""


Event = Started | Adopted | Live | Overdue | Failed | Ended | Retired | Asked | Checked | Leaving


@dataclass(frozen=True, slots=True)
class Check:
    """Find out whether this reload can be done; `Checked` tells."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start this epoch; ``repair``: with what the current one runs, to get the admin back."""

    epoch: int
    repair: bool


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL for the epoch that comes up; never SIGTERM."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """The epoch that came up is the current one now, the former drains."""


@dataclass(frozen=True, slots=True)
class StartCold:
    """End the current epoch, if there is one, and start epoch 0 on a fresh base id with what was asked for."""


@dataclass(frozen=True, slots=True)
class Revert:
    """What was asked for does not come up: go back to what ran before."""


@dataclass(frozen=True, slots=True)
class Crash:
    """The current epoch serves no more: kill it, the restart policy does the rest."""


@dataclass(frozen=True, slots=True)
class GoBlind:
    """The current epoch serves without admin."""

    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell whoever asked for this reload how it ended."""

    ask: Ask
    kind: Kind
    reason: str = ""


Action = Check | Spawn | Kill | HandOver | StartCold | Revert | Crash | GoBlind | Answer
Step = tuple[Line, tuple[Action, ...]]


def step(line: Line, event: Event) -> Step:
    """The line after ``event``, and what is to be done, in this order."""
    match event:
        case Started():
            return replace(line, stage=Stage.STARTING, epoch=0, retiring=False, adopted=False, blind=False), ()
        case Adopted():
            stage = Stage.SERVING if event.blind else Stage.STARTING
            found = replace(line, stage=stage, epoch=event.epoch, blind=event.blind, retiring=event.retiring)
            return replace(found, adopted=not event.blind), ()
        case Live():
            return _live(line, event)
        case Overdue():
            return _overdue(line, event)
        case Failed():
            return _failed(line, event)
        case Ended():
            return _ended(line, event)
        case Retired():
            return _next(replace(line, retiring=False), ())
        case Asked():
            return _asked(line, event.ask)
        case Checked():
            return _checked(line, event)
        case Leaving():
            answers = _refuse(line.waiting, "everything stops")
            return replace(line, leaving=True, waiting=None), answers


def _refuse(ask: Ask | None, reason: str) -> tuple[Action, ...]:
    return (Answer(ask, Kind.REFUSED, reason),) if ask is not None else ()


def _answer(line: Line, kind: Kind, reason: str = "") -> tuple[Action, ...]:
    return (Answer(line.ask, kind, reason),) if line.ask is not None else ()


def _next(line: Line, actions: tuple[Action, ...]) -> Step:
    """Begin with the reload that waits, if its time has come."""
    if line.busy or line.waiting is None:
        return line, actions
    return replace(line, ask=line.waiting, waiting=None), (*actions, Check(line.waiting))


def _asked(line: Line, ask: Ask) -> Step:
    if line.leaving:
        return line, _refuse(ask, "everything stops")
    return _next(replace(line, waiting=ask), _refuse(line.waiting, "a later reload took its place"))


def _checked(line: Line, event: Checked) -> Step:
    if line.ask is None:
        return line, ()
    serves = line.stage is Stage.SERVING
    refused = event.refused
    cold = event.cold or ("Envoy was adopted and has not answered yet" if line.adopted else "")
    if line.leaving:
        refused = "everything stops"
    elif not refused and (serves or line.adopted) and cold and not line.ask.cold:
        refused = f"only a cold restart can do it: {cold}"
    if refused:
        return _next(replace(line, ask=None), _answer(line, Kind.REFUSED, refused))
    if serves and not event.cold:
        return replace(line, stage=Stage.HANDOVER), (Spawn(line.epoch + 1, repair=False),)
    return replace(line, stage=Stage.DOWN, adopted=False, blind=False, planned=True), (StartCold(),)


def _live(line: Line, event: Live) -> Step:
    if line.stage is Stage.HANDOVER and event.epoch == line.epoch + 1:
        after = replace(
            line, stage=Stage.SERVING, epoch=event.epoch, retiring=True, blind=False, repairing=False, ask=None
        )
        return after, (HandOver(), *_answer(line, Kind.HOT))
    if line.stage is Stage.STARTING and event.epoch == line.epoch:
        return _settle(replace(line, stage=Stage.SERVING, adopted=False), Kind.COLD)
    return line, ()


def _settle(line: Line, kind: Kind, reason: str = "", first: tuple[Action, ...] = ()) -> Step:
    """A cold start is over; a reload that is still being checked is not."""
    if not line.planned:
        return line, ()
    return _next(replace(line, planned=False, ask=None), (*first, *_answer(line, kind, reason)))


def _overdue(line: Line, event: Overdue) -> Step:
    if line.stage is Stage.HANDOVER:
        return line, (Kill(),)
    if line.stage is Stage.STARTING:
        # It goes on trying: what ran before is gone, and would wait for the same control plane.
        return _settle(line, Kind.FAILED, event.reason)
    return line, ()


def _failed(line: Line, event: Failed) -> Step:
    if line.stage is not Stage.HANDOVER:
        return line, ()
    answers = _answer(line, Kind.FAILED, event.reason)
    if event.took_over:
        return replace(line, stage=Stage.DOWN, repairing=False, ask=None), (*answers, Crash())
    blind = replace(line, blind=True, ask=None)
    if event.unlocked and not line.repairing and not line.leaving:
        again = Spawn(line.epoch + 1, repair=True)
        return replace(blind, repairing=True), (GoBlind(event.reason), *answers, again)
    return _next(replace(blind, stage=Stage.SERVING, repairing=False), (GoBlind(event.reason), *answers))


def _ended(line: Line, event: Ended) -> Step:
    down = replace(line, stage=Stage.DOWN, adopted=False, blind=False, retiring=False, repairing=False)
    if line.stage is Stage.HANDOVER:
        return _next(replace(down, ask=None), (Kill(), *_answer(line, Kind.FAILED, event.reason)))
    if line.stage is Stage.STARTING:
        return _settle(down, Kind.FAILED, event.reason, (Revert(),))
    return down, ()
