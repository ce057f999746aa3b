"""The relay, as the bootstrap needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.bootstrap.prepare import Fetched


class ConfigurationRelay(Protocol):
    """The relay, as the bootstrap needs it."""

    @property
    def path(self) -> Path | None:
        """The socket that Envoy's xDS goes to; None: Envoy connects to the control plane itself."""

    def preload(self) -> object:
        """Import the session while the control plane is waited for."""

    async def load(self, envoy_version: str) -> Fetched | None:
        """Choose the socket, and return the bootstrap of the last good configuration on disk, if any."""

    async def confirm(self) -> None:
        """Note that the control plane stands by what Envoy runs with."""
