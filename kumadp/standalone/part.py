"""Standalone mode in a run: the bootstrap and the configuration come from Dataplane files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.bootstrap.prepare import Target, prepare
from kumadp.core.part import Part
from kumadp.host.facts import memory_limit
from kumadp.host.work_dir import XDS_FOLDER
from kumadp.standalone.control_plane import EmbeddedControlPlane
from kumadp.standalone.control_plane import prepare as prepare_files
from kumadp.standalone.mesh import admin_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kumadp.bootstrap.prepare import Prepared
    from kumadp.core.context import Context
    from kumadp.host.net.ports import BindAddress
    from kumadp.settings.model import Settings
    from kumadp.standalone.control_plane import OnNames, StandaloneSetup
    from kumadp.standalone.generated_config import DnsListener
    from kumadp.standalone.mesh import Mesh
    from kumadp.standalone.xds_update import EnvoyAdmin


async def prepare_standalone(
    mesh: Mesh, settings: Settings, target: Target, dns: DnsListener | None
) -> tuple[Prepared, StandaloneSetup]:
    """Write the configuration files and the bootstrap; raises KumadpError."""
    memory = settings.max_memory_bytes or await asyncio.to_thread(memory_limit)
    files = await asyncio.to_thread(prepare_files, mesh, target.work.path / XDS_FOLDER, dns, memory)
    prepared = await prepare(files.bootstrap, settings, target, admin_port=admin_port(mesh.spec))
    return prepared, files


class StandalonePart(Part):
    """Writes the first configuration, and follows the files.

    ``taken`` are the addresses that no admin may have, ``dns`` the listener for CoreDNS, ``admin`` that of the Envoy
    that serves. ``on_names`` is called with the names of the mesh and their addresses.
    """

    name = "standalone"
    _files: StandaloneSetup

    def __init__(
        self,
        context: Context,
        mesh: Mesh,
        taken: Callable[[], Sequence[BindAddress]],
        dns: Callable[[], DnsListener | None],
        admin: Callable[[], EnvoyAdmin | None],
        on_names: OnNames,
    ) -> None:
        self._context = context
        self._mesh = mesh
        self._taken = taken
        self._dns = dns
        self._admin = admin
        self._on_names = on_names

    async def start(self) -> None:
        """Write the configuration files and the bootstrap; raises KumadpError."""
        context = self._context
        target = Target(context.work, self._taken())
        prepared, self._files = await prepare_standalone(self._mesh, context.settings, target, self._dns())
        await context.use_bootstrap(prepared)

    async def started(self) -> None:
        """Follow the files from now on."""
        context, admin = self._context, self._admin()
        assert admin is not None  # noqa: S101 - Envoy has been started
        path = Path(context.settings.standalone)
        context.stack.start(
            EmbeddedControlPlane(path, self._mesh.ours.name, self._files, self._dns(), admin, self._on_names)
        )
