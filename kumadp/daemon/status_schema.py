"""The shape of what the control socket answers to ``GET /status``, for those who read it by program.

Every time is in seconds since 1970. A field that is not there is not known, or not of this mode.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.json import schema

from kumadp.accesslog.status import AccessLogStatus  # noqa: TC001 - msgspec reads the annotations
from kumadp.core.schema import Time, field
from kumadp.decoding import Undecodable, convert
from kumadp.dns.status import DnsStatus  # noqa: TC001 - msgspec reads the annotations
from kumadp.otel.status import OtelStatus  # noqa: TC001 - msgspec reads the annotations
from kumadp.relay.status import RelayStatus  # noqa: TC001 - msgspec reads the annotations


class ChildStatus(Struct, forbid_unknown_fields=True):
    """Envoy or CoreDNS."""

    state: Literal["STOPPED", "STARTING", "RUNNING", "STOPPING", "EXITED", "BACKOFF", "FATAL", "RUNNING_BLIND"]
    pid: int | None
    since: Annotated[float, field("When it came into this state.")]
    started: Annotated[float | None, field("When its process was started; null without one.")]
    restarts: Annotated[int, field("How often it was started again.")]
    last_exit: Annotated[str, field("Its last death, in one sentence; empty where there was none.")]
    died: Annotated[float | None, field("When that was.")]
    causes: Annotated[dict[str, int], field("Number of restarts by cause, including requested ones.")]
    reason: Annotated[str, field("Why it is in this state, where that is not plain.")]


class LogStatus(Struct, forbid_unknown_fields=True):
    """What is logged, and what became of lines."""

    dropped: Annotated[int, field("Lines lost because the output was stuck.")]
    folded: Annotated[int, field("Repeated lines that were summarised with a count.")]
    format: Literal["text", "json", "journal"]
    output: Annotated[str, field("Where it goes: journal, stderr, or the path of a file.")]
    level: Annotated[str, field("kumadp's own.")]
    envoy_level: str
    components: Annotated[dict[str, str], field("Requested levels by component, such as envoy.<logger>.")]
    changed: Annotated[bool, field("Whether `kumadp log-level` has changed them.")]


class CrashStatus(Struct, forbid_unknown_fields=True):
    """The records of unexpected deaths."""

    newest: Annotated[str, field("File of the newest one, of an earlier run too; empty: none.")]
    story: Annotated[str, field("The last death of this run.")]


class ApplicationStatus(Struct, forbid_unknown_fields=True):
    """The application that kumadp runs (``run ... -- CMD``)."""

    state: Literal["WAITING", "RUNNING", "ENDED"]
    pid: int | None
    started: float | None
    ended: Annotated[str, field("How it ended; empty while it has not.")]


class DrainStatus(Struct, forbid_unknown_fields=True):
    """What is drained while everything keeps running (`kumadp drain`, SIGUSR2)."""

    scope: Literal["inbound", "all"]
    since: float


class DescriptorStatus(Struct, forbid_unknown_fields=True):
    """Descriptors of kumadp itself: files, sockets, pipes."""

    used: int
    limit: Annotated[int, field("The soft limit, raised to the hard one at start.")]


class ConnectionStatus(Struct, forbid_unknown_fields=True):
    """Connections to one of kumadp's servers."""

    open: int
    most: Annotated[int, field("How many there may be at a time.")]
    displaced: Annotated[int, field("Idle or incomplete ones that were closed for newer ones.")]
    refused: Annotated[int, field("Those for which there was no room.")]
    bad_requests: Annotated[int, field("Requests that could not be understood.")]


class StatusReport(Struct, forbid_unknown_fields=True):
    """The status of a running kumadp. Times are in seconds since 1970."""

    name: str
    mesh: str
    pid: int
    version: str
    mode: Literal["control plane", "standalone"]
    phase: Literal["STARTING", "READY", "DRAINING", "STOPPING", "STOPPED"]
    why: Annotated[str, field("Why it is in this phase.")]
    since: Annotated[float, field("When it came into this phase.")]
    started: Time
    ready: bool
    state: Annotated[Literal["READY", "NOT_READY", "TERMINATING"], field("What /ready answers.")]
    reasons: Annotated[list[str], field("Why it is not ready.")]
    concerns: Annotated[list[str], field("What is wrong although traffic flows.")]
    fatal: Annotated[dict[str, str], field("Parts that failed permanently, with their reasons.")]
    children: dict[str, ChildStatus]
    ports: Annotated[dict[str, str], field("What is served where.")]
    counters: Annotated[dict[str, dict[str, int]], field("Attempts at the bootstrap, answers to probes.")]
    spent: Annotated[dict[str, float], field("Seconds in each phase.")]
    descriptors: DescriptorStatus
    connections: Annotated[dict[str, ConnectionStatus], field("By server.")]
    versions: dict[str, str] | UnsetType = UNSET
    epoch: Annotated[int | UnsetType, field("Which Envoy of all that were started serves, from 0 on.")] = UNSET
    control_plane: Annotated[str | UnsetType, field("Addresses that were named for the control plane.")] = UNSET
    control_plane_generation: Annotated[int | UnsetType, field("Its major version of Kuma.")] = UNSET
    relay: RelayStatus | UnsetType = UNSET
    token_expires: Annotated[float | UnsetType | None, field("When the data plane token ends; null: never.")] = UNSET
    stale_since: Annotated[float | UnsetType, field("Age of the configuration that serves in place of one.")] = UNSET
    restart_required: Annotated[list[str] | UnsetType, field("Changes of the bootstrap that Envoy lacks.")] = UNSET
    last_good: Annotated[dict[str, Any] | UnsetType, field("The copy of the configuration on disk.")] = UNSET
    dynconf: Annotated[dict[str, Any] | UnsetType, field("Dynamic configuration from the control plane.")] = UNSET
    reexec: Annotated[dict[str, Any] | UnsetType, field("How often kumadp was re-executed, and what failed.")] = UNSET
    dns: DnsStatus | UnsetType = UNSET
    application: ApplicationStatus | UnsetType = UNSET
    drain: DrainStatus | UnsetType = UNSET
    log: LogStatus | UnsetType = UNSET
    crashes: CrashStatus | UnsetType = UNSET
    access_logs: AccessLogStatus | UnsetType = UNSET
    otel: OtelStatus | UnsetType = UNSET
    metrics: Annotated[dict[str, Any] | UnsetType, field("What Prometheus is given, source by source.")] = UNSET


def status_schema() -> dict[str, Any]:
    """The JSON Schema of a status."""
    return schema(StatusReport)


# Up to the year 5138: what time.gmtime takes.
_Moment = Annotated[float, Meta(ge=-1e11, le=1e11)]


class _EssentialChild(Struct, frozen=True):
    state: str
    pid: int | None
    restarts: int
    last_exit: str
    reason: str
    started: _Moment | None = None
    died: _Moment | None = None


class _EssentialApplication(Struct, frozen=True):
    state: str
    pid: int | None
    started: _Moment | None
    ended: str


class _EssentialDrain(Struct, frozen=True):
    scope: str
    since: _Moment


class _EssentialRejection(Struct, frozen=True):
    type: str
    version: str
    reason: str
    at: _Moment


class _EssentialRelay(Struct, frozen=True):
    state: str
    since: _Moment
    connected_since: _Moment | None
    address: str
    last_error: str
    received: _Moment | None
    last_rejection: _EssentialRejection | None


class _EssentialLog(Struct, frozen=True):
    dropped: int = 0
    level: str = ""
    envoy_level: str = ""
    components: dict[str, str] = {}
    changed: bool = False


class _EssentialCrashes(Struct, frozen=True):
    newest: str = ""


class _EssentialAccessLogs(Struct, frozen=True):
    dropped: int = 0


class _EssentialReexec(Struct, frozen=True):
    count: int = 0
    failed: str = ""


class Essentials(Struct):
    """What our own commands read in a status, of a newer or older kumadp too: what else is there does not matter."""

    name: str
    pid: int
    version: str
    mode: str
    phase: str
    why: str
    since: _Moment
    started: _Moment
    ready: bool
    reasons: list[str]
    concerns: list[str]
    fatal: dict[str, str]
    children: dict[str, _EssentialChild]
    ports: dict[str, str]
    mesh: str = ""
    versions: dict[str, str] = {}
    control_plane: str = ""
    control_plane_generation: int = 0
    relay: _EssentialRelay | None = None
    token_expires: float | None = None
    stale_since: _Moment | UnsetType = UNSET
    restart_required: list[str] = []
    reexec: _EssentialReexec = _EssentialReexec()
    application: _EssentialApplication | UnsetType = UNSET
    drain: _EssentialDrain | UnsetType = UNSET
    log: _EssentialLog = _EssentialLog()
    crashes: _EssentialCrashes = _EssentialCrashes()
    access_logs: _EssentialAccessLogs = _EssentialAccessLogs()


def check_essentials(found: object) -> None:
    """Raise OSError where this is not the status of a kumadp."""
    try:
        convert(found, Essentials)
    except Undecodable as error:
        raise OSError(f"the answer is not a status: {error}") from None
