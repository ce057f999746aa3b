"""Where Envoy's bootstrap comes from: a control plane, or our own standalone mode. Both end in the same `Prepared`."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kumadp.bootstrap.admin_guard import ReservedPort, guard
from kumadp.bootstrap.fields import get
from kumadp.bootstrap.secrets import with_token
from kumadp.errors import ControlPlaneRefused
from kumadp.host.log.secrets import holds_secret
from kumadp.host.private_file import write_json
from kumadp.host.work_dir import BOOTSTRAP_FILE, XDS_FOLDER, reporting_write_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.bootstrap.rewrite import Upstream
    from kumadp.controlplane.bootstrap_client import Fetched, KumaClient
    from kumadp.core.component import Component
    from kumadp.core.status import Status
    from kumadp.daemon.ports import DnsPlan
    from kumadp.host.net.ports import BindAddress
    from kumadp.host.work_dir import WorkDir
    from kumadp.settings.model import Settings
    from kumadp.standalone.control_plane import OnNames
    from kumadp.standalone.mesh import Mesh
    from kumadp.standalone.xds_update import EnvoyAdmin

log = logging.getLogger("kumadp.daemon")

# How long the control plane is asked before the last good configuration serves (seconds): traffic is to flow within 5.
WARM_AFTER = 2.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A bootstrap on disk that passed the guard, what it was made of, and where its configuration comes from."""

    config_path: Path
    admin: AdminAddress
    corefile_template: str | None
    dynamic: bool
    fetched: Fetched | None = None
    upstream: Upstream | None = None


class Source(Protocol):
    """Makes the bootstrap."""

    async def prepare(self) -> Prepared:
        """Get, guard and write the bootstrap; raises KumadpError when there can be none."""

    def follower(self, admin: EnvoyAdmin) -> Component | None:
        """What keeps Envoy's configuration up to date from our side, None when the control plane does."""


async def _finish(
    tree: dict[str, object],
    settings: Settings,
    port: int,
    taken: Sequence[BindAddress],
    work: WorkDir,
    template: str | None,
    file: str = BOOTSTRAP_FILE,
) -> Prepared:
    held = [ReservedPort(address.host, address.port, address.purpose) for address in taken if address.protocol == "tcp"]
    guarded = guard(tree, strict=settings.strict_admin, admin_port=port, reserved=held)
    for warning in guarded.warnings:
        log.warning("%s", warning)
    path = work.path / file
    with reporting_write_errors(path):
        await asyncio.to_thread(write_json, path, guarded.bootstrap)
    if await asyncio.to_thread(_holds_secret, guarded.bootstrap):
        # Kuma 2.8 to 2.14 puts the token into it, for an Envoy without the relay.
        work.removed_at_end.add(path)
    names = guarded.bootstrap.get("dynamicResources") or guarded.bootstrap.get("dynamic_resources") or {}
    dynamic = isinstance(names, dict) and ("ldsConfig" in names or "lds_config" in names)
    return Prepared(path, guarded.admin, template, dynamic)


def _holds_secret(bootstrap: Mapping[str, Any]) -> bool:
    return holds_secret(json.dumps(bootstrap).encode())


class KumaSource:
    """A Kuma control plane; the last good bootstrap, where there is one, while it is away.

    ``relay_path`` is the socket that Envoy is sent to for its configuration, None where it asks the control plane
    itself. ``hand_over`` is the bootstrap that a kumadp before this one had, which needs no asking.
    """

    def __init__(
        self,
        client: KumaClient,
        work: WorkDir,
        taken: Sequence[BindAddress],
        status: Status,
        *,
        relay_path: Path | None,
        last_good: Fetched | None = None,
        hand_over: Fetched | None = None,
    ) -> None:
        self.client = client
        self._work = work
        self._taken = taken
        self._status = status
        self.relay_path = relay_path
        self._last_good = last_good
        self._hand_over = hand_over
        self._unreachable = asyncio.Event()
        self.later: asyncio.Task[Fetched] | None = None

    def follower(self, admin: EnvoyAdmin) -> Component | None:  # noqa: ARG002 - the relay, or Envoy itself, does it
        """None: the control plane does it."""
        return None

    async def prepare(self) -> Prepared:
        """The bootstrap, for as long as it takes; from the last good one where the control plane does not answer.

        ``later`` is the request that goes on then.
        """
        if self._hand_over is not None:
            self.later = self._ask()
            return await self.make(self._hand_over)
        self._status.set_not_ready("bootstrap", f"asking {self.client.settings.cp_address}")
        asking = self._ask()
        try:
            fetched = await self._first(asking)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        self._status.set_not_ready("bootstrap", "")
        return await self.make(fetched)

    def _ask(self) -> asyncio.Task[Fetched]:
        asking = asyncio.create_task(self.client.fetch(self._failed, self.client.settings.retry_max_duration))
        # A start that fails for another reason leaves nobody to look at how it ended.
        asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return asking

    async def _first(self, asking: asyncio.Task[Fetched]) -> Fetched:
        if self._last_good is None:
            return await asking
        unreachable = asyncio.ensure_future(self._unreachable.wait())
        try:
            await asyncio.wait({asking, unreachable}, timeout=WARM_AFTER, return_when=asyncio.FIRST_COMPLETED)
        finally:
            unreachable.cancel()
        if asking.done():
            return asking.result()
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._last_good.at))
        log.warning("the control plane does not answer: starting with the last good configuration, of %s", since)
        self._status.facts["stale_since"] = self._last_good.at
        self._status.set_warning("configuration", f"stale since {since}")
        self.later = asking
        return self._last_good

    def _failed(self, reason: str) -> None:
        log.warning("no bootstrap from %s: %s", self.client.settings.cp_address, reason)
        if self.later is None:
            self._status.set_not_ready("bootstrap", f"control plane {self.client.settings.cp_address}: {reason}")
        self._unreachable.set()

    async def make(self, fetched: Fetched, file: str = BOOTSTRAP_FILE) -> Prepared:
        """A bootstrap on disk that passed the guard, turned to the relay; raises KumadpError."""
        from kumadp.bootstrap.rewrite import rewrite_for_relay

        spec = self.client.resource.spec if self.client.resource is not None else None
        admin = spec.networking.admin if spec is not None else None
        tree, upstream = fetched.tree, None
        if self.relay_path is not None and get(tree, "dynamicResources", "adsConfig") is not None:
            rewritten = rewrite_for_relay(tree, str(self.relay_path))
            tree, upstream = rewritten.bootstrap, rewritten.upstream
            if rewritten.delta:
                log.info("the control plane offers delta xDS; kumadp's relay speaks state of the world")
        elif self.relay_path is None and fetched is self._hand_over:
            tree = await self._with_token(tree)
        port = admin.port if admin is not None else 0
        settings, template = self.client.settings, fetched.corefile_template
        prepared = await _finish(tree, settings, port, self._taken, self._work, template, file)
        return replace(prepared, fetched=fetched, upstream=upstream)

    async def _with_token(self, tree: dict[str, Any]) -> dict[str, Any]:
        """A bootstrap that was handed over has no token, but an Envoy that asks by itself needs one."""
        try:
            return with_token(tree, await asyncio.to_thread(self.client.token))
        except (ControlPlaneRefused, OSError) as error:
            log.warning("the bootstrap is without a token: %s", error)
            return tree


class StandaloneSource:
    """Dataplane files and no control plane."""

    def __init__(
        self,
        settings: Settings,
        mesh: Mesh,
        work: WorkDir,
        taken: Sequence[BindAddress],
        dns: DnsPlan | None,
        named: OnNames = lambda _names: None,
    ) -> None:
        from kumadp.standalone.generated_config import DnsListener

        self._settings = settings
        self._mesh = mesh
        self._work = work
        self._taken = taken
        self._dns: DnsListener | None = None
        self._named = named
        if dns is not None and dns.coredns is not None:
            self._dns = DnsListener("127.0.0.1", dns.envoy_port)

    async def prepare(self) -> Prepared:
        """Write the configuration files and the bootstrap."""
        from kumadp.host.facts import memory_limit
        from kumadp.standalone.control_plane import prepare
        from kumadp.standalone.mesh import admin_port

        memory = self._settings.max_memory_bytes or await asyncio.to_thread(memory_limit)
        self._prepared = await asyncio.to_thread(prepare, self._mesh, self._work.path / XDS_FOLDER, self._dns, memory)
        port = admin_port(self._mesh.spec)
        return await _finish(self._prepared.bootstrap, self._settings, port, self._taken, self._work, None)

    def follower(self, admin: EnvoyAdmin) -> Component:
        """Follows the files."""
        from kumadp.standalone.control_plane import EmbeddedControlPlane

        path = Path(self._settings.standalone)
        return EmbeddedControlPlane(path, self._mesh.ours.name, self._prepared, self._dns, admin, self._named)
