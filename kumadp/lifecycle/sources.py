"""Where Envoy's bootstrap comes from: a control plane, or our own standalone mode. Both end in the same `Prepared`."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kumadp import __version__
from kumadp.bootstrap.guard import guard
from kumadp.bootstrap.parse import parse_bootstrap
from kumadp.bootstrap.store import write_bootstrap
from kumadp.host.secrets import register

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kumadp.bootstrap.address import AdminAddress
    from kumadp.envoy.version import EnvoyVersion
    from kumadp.host.ports import Address
    from kumadp.host.workdir import WorkDir
    from kumadp.lifecycle.plan import DnsPlan
    from kumadp.lifecycle.status import Status
    from kumadp.resources.load import Resource
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.lifecycle")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A bootstrap on disk that passed the guard."""

    config_path: Path
    admin: AdminAddress
    corefile_template: str | None


@dataclass(frozen=True, slots=True)
class Versions:
    """What the bootstrap request says about the binaries on this host."""

    envoy: EnvoyVersion
    coredns: str


class Source(Protocol):
    """Makes the bootstrap."""

    async def prepare(self, versions: Versions) -> Prepared:
        """Get, guard and write the bootstrap; raises KumadpError when there can be none."""
