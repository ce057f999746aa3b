"""The shape of what the control socket answers to ``GET /status``, for those who read it by program.

Every time is in seconds since 1970. A field that is not there is not known, or not of this mode.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.json import schema

from kumadp.decoding import Undecodable, convert

Time = Annotated[float, Meta(description="Seconds since 1970.")]


def _field(text: str) -> Meta:
    return Meta(description=text)


class ChildStatus(Struct, forbid_unknown_fields=True):
    """Envoy or CoreDNS."""

    state: Literal["STOPPED", "STARTING", "RUNNING", "STOPPING", "EXITED", "BACKOFF", "FATAL", "RUNNING_BLIND"]
    pid: int | None
    since: Annotated[float, _field("When it came into this state.")]
    started: Annotated[float | None, _field("When its process was started; null without one.")]
    restarts: Annotated[int, _field("How often it was started again.")]
    last_exit: Annotated[str, _field("Its last death, in one sentence; empty where there was none.")]
    died: Annotated[float | None, _field("When that was.")]
    causes: Annotated[dict[str, int], _field("Number of restarts by cause, including requested ones.")]
    reason: Annotated[str, _field("Why it is in this state, where that is not plain.")]


class RelayedType(Struct, forbid_unknown_fields=True):
    """One type of resources on the stream."""

    type: str
    accepted: Annotated[str, _field("Version that Envoy runs with.")]
    latest: Annotated[str, _field("Version that the control plane sent last.")]
    open: Annotated[bool, _field("Envoy has not answered yet.")]
    names: Any
    rejected: int
    withheld: bool
    changed: Annotated[float | None, _field("When the control plane sent the last one.")]


class Rejection(Struct, forbid_unknown_fields=True):
    """A configuration that is not given to Envoy (again)."""

    type: str
    version: str
    reason: Annotated[str, _field("In Envoy's words; empty for secrets.")]
    at: Time
    by_guard: Annotated[bool, _field("Two Envoys ended while they applied it; else Envoy refused it.")]


class RelayStatus(Struct, forbid_unknown_fields=True):
    """The stream of configuration from the control plane."""

    state: Literal["connecting", "open", "backoff", "held-closed"]
    since: Time
    connected_since: float | None
    address: str
    last_error: str
    refusal: str | None
    refused_since: float | None
    silence: Annotated[float, _field("For how many seconds a first question has gone unanswered.")]
    received: Annotated[float | None, _field("When the last configuration came.")]
    last_rejection: Rejection | None
    types: list[RelayedType]


class DnsStatus(Struct, forbid_unknown_fields=True):
    """Names of the mesh."""

    answered_by: Annotated[str, _field("Who answers on the port now.")]
    corefile: Annotated[str, _field("Where the Corefile of CoreDNS is from; empty before there is one.")]


class LogStatus(Struct, forbid_unknown_fields=True):
    """What is logged, and what became of lines."""

    dropped: Annotated[int, _field("Lines lost because the output was stuck.")]
    folded: Annotated[int, _field("Repeated lines that were summarised with a count.")]
    format: Literal["text", "json"]
    level: Annotated[str, _field("kumadp's own.")]
    envoy_level: str
    components: Annotated[dict[str, str], _field("Requested levels by component, such as envoy.<logger>.")]
    changed: Annotated[bool, _field("Whether `kumadp log-level` has changed them.")]


class CrashStatus(Struct, forbid_unknown_fields=True):
    """The records of unexpected deaths."""

    newest: Annotated[str, _field("File of the newest one, of an earlier run too; empty: none.")]
    story: Annotated[str, _field("The last death of this run.")]


class LogDestination(Struct, forbid_unknown_fields=True):
    """A TCP destination of access logs."""

    connected_since: float | None
    waiting: Annotated[int, _field("Lines that are not sent yet.")]
    sent: Annotated[int, _field("Lines.")]
    dropped: Annotated[int, _field("Lines that there was no room for; always the oldest.")]
    connections: int
    failures: int
    last_error: str


class AccessLogStatus(Struct, forbid_unknown_fields=True):
    """Access logs to TCP destinations."""

    fifo: Annotated[str, _field("Where Envoy writes them.")]
    lines: Annotated[int, _field("Read.")]
    malformed: Annotated[int, _field("Of those, what could not be understood.")]
    sent: int
    dropped: int
    behind: Annotated[int, _field("How often the FIFO was found full.")]
    destinations: dict[str, LogDestination]


class OtelPush(Struct, forbid_unknown_fields=True):
    """Metrics that are pushed to one socket."""

    period: Annotated[float, _field("Seconds.")]
    pushed: Annotated[int, _field("Rounds that were taken.")]
    failed: Annotated[int, _field("Rounds that were not, or not whole.")]
    last_push_at: float | None
    last_took: Annotated[float, _field("Seconds that the last round took.")]
    last_failure: Annotated[str, _field("Why the last round failed; empty where it did not.")]


class OtelSignal(Struct, forbid_unknown_fields=True):
    """Traces, logs or metrics of one backend of the pipe, in messages."""

    to: Annotated[str, _field("Where they go; empty where they do not.")]
    why_not: str
    sent: int
    failed: int
    refused: Annotated[int, _field("Those that were not tried.")]
    last_failure: Annotated[str, _field("Empty where the last one was sent.")]
    last_failure_at: float | None


class OtelBackend(Struct, forbid_unknown_fields=True):
    """A backend of the pipe."""

    name: str
    signals: dict[str, OtelSignal]


class OtelStatus(Struct, forbid_unknown_fields=True):
    """OpenTelemetry."""

    installed: Annotated[bool, _field("Whether the extra is there that pushes metrics.")]
    push: Annotated[dict[str, OtelPush], _field("By path of the socket.")]
    pipe: Annotated[dict[str, OtelBackend], _field("By name of the socket.")]


class ApplicationStatus(Struct, forbid_unknown_fields=True):
    """The application that kumadp runs (``run ... -- CMD``)."""

    state: Literal["WAITING", "RUNNING", "ENDED"]
    pid: int | None
    started: float | None
    ended: Annotated[str, _field("How it ended; empty while it has not.")]


class DescriptorStatus(Struct, forbid_unknown_fields=True):
    """Descriptors of kumadp itself: files, sockets, pipes."""

    used: int
    limit: Annotated[int, _field("The soft limit, raised to the hard one at start.")]


class ConnectionStatus(Struct, forbid_unknown_fields=True):
    """Connections to one of kumadp's servers."""

    open: int
    most: Annotated[int, _field("How many there may be at a time.")]
    displaced: Annotated[int, _field("Idle or incomplete ones that were closed for newer ones.")]
    refused: Annotated[int, _field("Those for which there was no room.")]
    bad_requests: Annotated[int, _field("Requests that could not be understood.")]


class StatusReport(Struct, forbid_unknown_fields=True):
    """The status of a running kumadp. Times are in seconds since 1970."""

    name: str
    mesh: str
    pid: int
    version: str
    mode: Literal["control plane", "standalone"]
    phase: Literal["STARTING", "READY", "DRAINING", "STOPPING", "STOPPED"]
    why: Annotated[str, _field("Why it is in this phase.")]
    since: Annotated[float, _field("When it came into this phase.")]
    started: Time
    ready: bool
    state: Annotated[Literal["READY", "NOT_READY", "TERMINATING"], _field("What /ready answers.")]
    reasons: Annotated[list[str], _field("Why it is not ready.")]
    concerns: Annotated[list[str], _field("What is wrong although traffic flows.")]
    fatal: Annotated[dict[str, str], _field("Parts that failed permanently, with their reasons.")]
    children: dict[str, ChildStatus]
    ports: Annotated[dict[str, str], _field("What is served where.")]
    counters: Annotated[dict[str, dict[str, int]], _field("Attempts at the bootstrap, answers to probes.")]
    spent: Annotated[dict[str, float], _field("Seconds in each phase.")]
    descriptors: DescriptorStatus
    connections: Annotated[dict[str, ConnectionStatus], _field("By server.")]
    versions: dict[str, str] | UnsetType = UNSET
    epoch: Annotated[int | UnsetType, _field("Which Envoy of all that were started serves, from 0 on.")] = UNSET
    control_plane: Annotated[str | UnsetType, _field("Addresses that were named for the control plane.")] = UNSET
    relay: RelayStatus | UnsetType = UNSET
    token_expires: Annotated[float | UnsetType | None, _field("When the data plane token ends; null: never.")] = UNSET
    stale_since: Annotated[float | UnsetType, _field("Age of the configuration that serves in place of one.")] = UNSET
    restart_required: Annotated[list[str] | UnsetType, _field("Changes of the bootstrap that Envoy lacks.")] = UNSET
    last_good: Annotated[dict[str, Any] | UnsetType, _field("The copy of the configuration on disk.")] = UNSET
    dynconf: Annotated[dict[str, Any] | UnsetType, _field("Dynamic configuration from the control plane.")] = UNSET
    reexec: Annotated[dict[str, Any] | UnsetType, _field("How often kumadp was re-executed, and what failed.")] = UNSET
    dns: DnsStatus | UnsetType = UNSET
    application: ApplicationStatus | UnsetType = UNSET
    log: LogStatus | UnsetType = UNSET
    crashes: CrashStatus | UnsetType = UNSET
    access_logs: AccessLogStatus | UnsetType = UNSET
    otel: OtelStatus | UnsetType = UNSET
    metrics: Annotated[dict[str, Any] | UnsetType, _field("What Prometheus is given, source by source.")] = UNSET


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
    relay: _EssentialRelay | None = None
    token_expires: float | None = None
    stale_since: _Moment | UnsetType = UNSET
    restart_required: list[str] = []
    reexec: _EssentialReexec = _EssentialReexec()
    application: _EssentialApplication | UnsetType = UNSET
    log: _EssentialLog = _EssentialLog()
    crashes: _EssentialCrashes = _EssentialCrashes()
    access_logs: _EssentialAccessLogs = _EssentialAccessLogs()


def check_essentials(found: object) -> None:
    """Raise OSError where this is not the status of a kumadp."""
    try:
        convert(found, Essentials)
    except Undecodable as error:
        raise OSError(f"the answer is not a status: {error}") from None
