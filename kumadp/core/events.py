"""Events that the run loop reads from its queue, and the outcome in which a run ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import asyncio

    from kumadp.errors import KumadpError


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the daemon ends: exit code (an application's may be any) and the one line that gives the reason."""

    code: int
    why: str


@dataclass(frozen=True, slots=True)
class SignalReceived:
    """A signal was sent to us."""

    number: int


@dataclass(frozen=True, slots=True)
class StartEnded:
    """Starting is over; ``error`` is None when everything is up."""

    error: BaseException | None


@dataclass(frozen=True, slots=True)
class PartEnded:
    """A component ended by itself."""

    name: str
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class PreviousKnown:
    """It is known which processes of a previous kumadp run; ``handled`` is set once the loop has acted on it."""

    handled: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class ApplicationEnded:
    """The application that kumadp runs has ended; ``why`` describes how."""

    why: str


@dataclass(frozen=True, slots=True)
class DrainEnded:
    """The drain is over, or was cut short."""


@dataclass(frozen=True, slots=True)
class StopEnded:
    """Every component has been left."""


@dataclass(frozen=True, slots=True)
class Requested:
    """A new epoch of Envoy (``reload``) or a new kumadp (``reexec``) is requested; ``answer`` gets the outcome."""

    what: Literal["reload", "reexec"]
    why: str
    answer: asyncio.Future[str] | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """The control plane rejects permanently what the daemon cannot run without."""

    error: KumadpError


@dataclass(frozen=True, slots=True)
class WatchdogTick:
    """The service manager's watchdog is due: the loop shows that it still handles its events."""


Event = (
    SignalReceived
    | StartEnded
    | PreviousKnown
    | PartEnded
    | ApplicationEnded
    | DrainEnded
    | StopEnded
    | Requested
    | Rejected
    | WatchdogTick
)
