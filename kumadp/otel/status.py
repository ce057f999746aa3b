"""The section ``otel`` of the status. Times are in seconds since 1970."""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct

from kumadp.core.schema import field


class OtelPush(Struct, forbid_unknown_fields=True):
    """Metrics that are pushed to one socket."""

    period: Annotated[float, field("Seconds.")]
    pushed: Annotated[int, field("Rounds that were taken.")]
    failed: Annotated[int, field("Rounds that were not, or not whole.")]
    last_push_at: float | None
    last_took: Annotated[float, field("Seconds that the last round took.")]
    last_failure: Annotated[str, field("Why the last round failed; empty where it did not.")]


class OtelSignal(Struct, forbid_unknown_fields=True):
    """Traces, logs or metrics of one backend of the pipe, in messages."""

    to: Annotated[str, field("Where they go; empty where they do not.")]
    why_not: str
    sent: int
    failed: int
    refused: Annotated[int, field("Those that were not tried.")]
    last_failure: Annotated[str, field("Empty where the last one was sent.")]
    last_failure_at: float | None


class OtelBackend(Struct, forbid_unknown_fields=True):
    """A backend of the pipe."""

    name: str
    signals: dict[str, OtelSignal]


class OtelStatus(Struct, forbid_unknown_fields=True):
    """OpenTelemetry."""

    installed: Annotated[bool, field("Whether the extra is there that pushes metrics.")]
    push: Annotated[dict[str, OtelPush], field("By path of the socket.")]
    pipe: Annotated[dict[str, OtelBackend], field("By name of the socket.")]
