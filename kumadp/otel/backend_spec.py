"""Specification of the backends that the pipe serves, and the limits of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kumadp.otel.routes import Route


class BackendSpec(Struct, frozen=True):
    """A backend to serve: its name, the socket to which Envoy sends, and the routes by signal."""

    name: str
    socket: Path
    routes: Mapping[str, Route]


class PipeLimits(Struct, frozen=True):
    """Limits of each backend.

    ``messages``: messages that are being forwarded at a time; more are refused, so that a slow collector costs no
    memory. ``message_size``: size of an uncompressed message in bytes; Envoy and the SDK send less than the 4 MB that
    gRPC servers accept by default.
    """

    messages: int = 64
    message_size: int = 16 << 20


DEFAULT_LIMITS = PipeLimits()
