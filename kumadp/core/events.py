"""Events that the run loop reads from its queue, and the outcome in which a run ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    import asyncio

    from kumadp.errors import KumadpError


class Outcome(Struct, frozen=True):
    """How the daemon ends: exit code (an application's may be any) and the one line that gives the reason."""

    code: int
    why: str


class SignalReceived(Struct, frozen=True):
    """A signal was sent to us."""

    number: int


class StartEnded(Struct, frozen=True):
    """Starting is over; ``error`` is None when everything is up."""

    error: BaseException | None


class PartEnded(Struct, frozen=True):
    """A component ended by itself."""

    name: str
    error: BaseException | None


class PreviousKnown(Struct, frozen=True):
    """It is known which processes of a previous kumadp run; ``handled`` is set once the loop has acted on it."""

    handled: asyncio.Future[None]


class ApplicationEnded(Struct, frozen=True):
    """The application that kumadp runs has ended; ``why`` describes how."""

    why: str


class DrainEnded(Struct, frozen=True):
    """The drain is over, or was cut short."""


class StopEnded(Struct, frozen=True):
    """Every component has been left."""


Request = Literal["reload", "reexec", "drain-inbound", "drain-all", "undrain"]


class Requested(Struct, frozen=True):
    """A request to a running kumadp; ``answer`` gets the outcome.

    A new epoch of Envoy (``reload``), a new kumadp (``reexec``), or a drain while everything keeps running, or its end.
    """

    what: Request
    why: str
    answer: asyncio.Future[str] | None = None


class Rejected(Struct, frozen=True):
    """The control plane rejects permanently what the daemon cannot run without."""

    error: KumadpError


class WatchdogTick(Struct, frozen=True):
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
