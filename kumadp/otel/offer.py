"""Whether the pipe can be offered to a control plane: the extra is there, and the setting says so."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from kumadp.otel.environment import inventory, read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.settings.model import Settings


def installed() -> bool:
    """Whether the extra is there; imports none of it."""
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None
    except ModuleNotFoundError:
        return False


def offered(settings: Settings, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """The ``otelEnv`` of a bootstrap request; None where the pipe is off or cannot be served."""
    return inventory(read(environ)) if settings.otel_pipe_enabled and installed() else None
