"""The exception tree and the exit codes.

::

    KumadpError                    exit code
    ├── UsageError                 64  the command line itself
    ├── ResourceError              65  a Dataplane, ZoneIngress or ZoneEgress
    ├── SettingsError              78  a flag, variable or settings file
    ├── ControlPlaneError
    │   ├── ControlPlaneUnavailable 69  no usable answer within the time the user set
    │   └── ControlPlaneRefused     77  an answer that no retry can change
    ├── BootstrapError             76  a bootstrap that cannot be used safely
    ├── AdminExposed               73  Envoy's admin answered on an address that is not loopback
    ├── ChildFailed                70  Envoy failed permanently
    ├── SpawnError                 71  a process could not be started
    ├── BinaryNotFound             72  Envoy, or a CoreDNS that was set explicitly, was not found
    ├── PortsTaken                 71  addresses that cannot be bound
    ├── WorkDirError               71  the work directory cannot be used
    ├── HandoverFailed             71  the program could not be replaced by a newer one
    ├── CommandRefused             79  a running kumadp refused the command, or none runs
    └── WaitTimeout                75  `kumadp wait` saw no readiness in time

Classes carry facts and build their own text; nobody tests a message.
"""

from __future__ import annotations

import enum
import errno
import os
from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence


class ExitCode(enum.IntEnum):
    """Every way the program ends. The numbers are a public promise; systemd/README.md lists the same table."""

    OK = 0
    BUG = 1
    USAGE = 64
    RESOURCE = 65
    CONTROL_PLANE_UNAVAILABLE = 69
    CHILD_FAILED = 70
    OS = 71
    BINARY_NOT_FOUND = 72
    ADMIN_EXPOSED = 73
    FORCED = 74
    WAIT_TIMEOUT = 75
    BOOTSTRAP = 76
    CONTROL_PLANE_REFUSED = 77
    SETTINGS = 78
    REFUSED = 79


EXIT_CODE_MEANING: dict[ExitCode, str] = {
    ExitCode.OK: "clean stop, also by a signal",
    ExitCode.BUG: "a bug in kumadp (report it with the traceback); `kumadp doctor`, `demo --check`: a check failed; "
    "`migrate`: something is in the way; `upgrade-check`: something is refused",
    ExitCode.USAGE: "invalid command line",
    ExitCode.RESOURCE: "invalid Dataplane, ZoneIngress or ZoneEgress",
    ExitCode.CONTROL_PLANE_UNAVAILABLE: "no usable bootstrap within KUMA_CONTROL_PLANE_RETRY_MAX_DURATION",
    ExitCode.CHILD_FAILED: "Envoy failed permanently: restart budget spent, or its configuration is invalid",
    ExitCode.OS: "a port cannot be bound, a process cannot be started, or a file or directory cannot be used",
    ExitCode.BINARY_NOT_FOUND: "Envoy, or a CoreDNS that was set explicitly, was not found",
    ExitCode.ADMIN_EXPOSED: "Envoy's admin answered on an address that is not loopback; Envoy was killed",
    ExitCode.FORCED: "a third signal ended kumadp at once",
    ExitCode.WAIT_TIMEOUT: "`kumadp wait`: not ready in time; `kumadp status`: not ready",
    ExitCode.BOOTSTRAP: "the control plane's bootstrap is not safe to use",
    ExitCode.CONTROL_PLANE_REFUSED: "the control plane rejected the request permanently (token, resource, certificate)",
    ExitCode.SETTINGS: "invalid flag, variable or settings file",
    ExitCode.REFUSED: "a running kumadp refused the command, with the reason, or no kumadp runs here",
}


class Problem(Struct, frozen=True):
    """One thing that is wrong with something a user wrote.

    ``path`` is a field path (``networking.inbound[0].tags["kuma.io/protocol"]``) or the flag or variable as the user
    typed it; ``line`` counts from 1, 0 when unknown; ``hint`` says what would be right, without a final full stop.
    """

    path: str
    message: str
    hint: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = self.file + (f":{self.line}" if self.line else "") if self.file else ""
        text = ": ".join(part for part in (where, self.path, self.message) if part)
        return on_one_line(f"{text} ({self.hint})" if self.hint else text)


def on_one_line(text: str) -> str:
    """Escape line ends and control characters, which a text that a user wrote may hold."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


# What a host does to any program: a disk that is full or read-only, a right that is missing, limits.
_OF_THE_HOST = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS),
}


def host_error(error: OSError) -> str:
    """Return what the host refused, with the path of a file; an empty text for an error of another kind."""
    if error.errno not in _OF_THE_HOST and not (error.filename and error.strerror):
        return ""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return on_one_line(f"{where}{error.strerror or error}")


class KumadpError(Exception):
    """Base of every failure that is not a bug: a one-line text, an optional hint, and an exit code."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG
    more: ClassVar[str] = "kumadp doctor, with the options of run, checks what a data plane needs"
    """The command that shows more."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class _Problems(KumadpError):
    """A failure that is a list of problems, all reported at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


class UsageError(KumadpError):
    """The command line cannot be understood."""

    exit_code = ExitCode.USAGE
    more = "kumadp {command} --help"


class SettingsError(_Problems):
    """Flags, variables or the settings file hold values that cannot be used."""

    exit_code = ExitCode.SETTINGS
    more = "kumadp run --help, or man kumadp.yaml, has all settings"


class ResourceError(_Problems):
    """A Dataplane, ZoneIngress or ZoneEgress is wrong."""

    exit_code = ExitCode.RESOURCE
    more = "kumadp validate FILE shows all problems; kumadp validate --schema the fields"


class ControlPlaneError(KumadpError):
    """The control plane gave no bootstrap."""


class ControlPlaneUnavailable(ControlPlaneError):
    """No usable answer within the time that the user allowed."""

    exit_code = ExitCode.CONTROL_PLANE_UNAVAILABLE


class ControlPlaneRefused(ControlPlaneError):
    """The control plane answered in a way that no retry can change.

    ``content``: it rejects the Dataplane or another content of the request, not its sender. A control plane of another
    version may do so, so what has served before goes on.
    """

    exit_code = ExitCode.CONTROL_PLANE_REFUSED

    def __init__(self, message: str, hint: str = "", *, content: bool = False) -> None:
        super().__init__(message, hint)
        self.content = content


class BootstrapError(_Problems):
    """The bootstrap cannot be used without breaking a promise (admin exposed, ports that clash)."""

    exit_code = ExitCode.BOOTSTRAP


class AdminExposed(KumadpError):
    """Envoy's admin answers on an address that is not loopback."""

    exit_code = ExitCode.ADMIN_EXPOSED


class ChildFailed(KumadpError):
    """A child failed permanently; the message says how and why."""

    exit_code = ExitCode.CHILD_FAILED


class SpawnError(KumadpError):
    """A process could not be started."""

    exit_code = ExitCode.OS


class HostExhausted(SpawnError):
    """A process could not be started because descriptors, memory or processes ran out; a retry may succeed."""


class BinaryNotFound(KumadpError):
    """A binary that is needed is not there."""

    exit_code = ExitCode.BINARY_NOT_FOUND


class PortsTaken(_Problems):
    """Addresses that cannot be bound, each with the process that holds it."""

    exit_code = ExitCode.OS


class WorkDirError(KumadpError):
    """The work directory cannot be made, is not private, or belongs to a living run."""

    exit_code = ExitCode.OS


class HandoverFailed(KumadpError):
    """This program could not be replaced by a newer one, or what the previous one left cannot be used."""

    exit_code = ExitCode.OS


class CommandRefused(KumadpError):
    """A running kumadp refused a command, or none could be reached."""

    exit_code = ExitCode.REFUSED
    more = "kumadp status shows what runs here"


class WaitTimeout(KumadpError):
    """`kumadp wait` ran out of time."""

    exit_code = ExitCode.WAIT_TIMEOUT
    more = "kumadp status shows what it waits for"
