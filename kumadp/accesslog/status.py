"""The section ``access_logs`` of the status. Times are in seconds since 1970."""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct

from kumadp.core.schema import field


class LogDestination(Struct, forbid_unknown_fields=True):
    """A TCP destination of access logs."""

    connected_since: float | None
    waiting: Annotated[int, field("Lines that are not sent yet.")]
    sent: Annotated[int, field("Lines.")]
    dropped: Annotated[int, field("Lines that there was no room for; always the oldest.")]
    connections: int
    failures: int
    last_error: str


class AccessLogStatus(Struct, forbid_unknown_fields=True):
    """Access logs to TCP destinations."""

    fifo: Annotated[str, field("Where Envoy writes them.")]
    lines: Annotated[int, field("Read.")]
    malformed: Annotated[int, field("Of those, what could not be understood.")]
    sent: int
    dropped: int
    behind: Annotated[int, field("How often the FIFO was found full.")]
    destinations: dict[str, LogDestination]
