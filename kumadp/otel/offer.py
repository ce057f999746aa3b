"""The offer of the pipe to a control plane, made if the extra is installed and the setting enables the pipe."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from kumadp.otel.environment import inventory, read_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.settings.model import Settings


def is_installed() -> bool:
    """Return whether the extra is installed; imports none of it."""
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None
    except ModuleNotFoundError:
        return False


def pipe_offer(settings: Settings, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the ``otelEnv`` of a bootstrap request; None if the pipe is disabled or the extra is missing."""
    return inventory(read_environment(environ)) if settings.otel_pipe_enabled and is_installed() else None
