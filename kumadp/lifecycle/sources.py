"""Where Envoy's bootstrap comes from: a control plane, or our own standalone mode. Both end in the same `Prepared`."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kumadp import __version__
from kumadp.bootstrap.guard import Taken, guard
from kumadp.bootstrap.parse import parse_bootstrap
from kumadp.bootstrap.store import write_bootstrap, write_private
from kumadp.host.secrets import register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kumadp.bootstrap.address import AdminAddress
    from kumadp.controlplane.client import Trust
    from kumadp.envoy.version import EnvoyVersion
    from kumadp.host.ports import Address
    from kumadp.host.workdir import WorkDir
    from kumadp.lifecycle.component import Component
    from kumadp.lifecycle.plan import DnsPlan
    from kumadp.lifecycle.status import Status
    from kumadp.resources.load import Resource
    from kumadp.settings.model import Settings
    from kumadp.standalone.apply import Admin
    from kumadp.standalone.mesh import Mesh

log = logging.getLogger("kumadp.lifecycle")

# What Kuma's control plane may build on. None of them works here yet, so none is announced.
FEATURES: tuple[str, ...] = ()
# Kuma 2.14 calls Envoy compatible with its data plane when it is ~1.38.2: same minor version, patch at least.
COMPATIBLE = (1, 38, 2)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A bootstrap on disk that passed the guard."""

    config_path: Path
    admin: AdminAddress
    corefile_template: str | None
    dynamic: bool


class Source(Protocol):
    """Makes the bootstrap."""

    async def prepare(self, envoy: EnvoyVersion, coredns: str) -> Prepared:
        """Get, guard and write the bootstrap; raises KumadpError when there can be none."""

    def follower(self, admin: Admin) -> Component | None:
        """What keeps Envoy's configuration up to date from our side, None when the control plane does."""


async def _finish(
    tree: dict[str, object],
    settings: Settings,
    port: int,
    taken: Sequence[Address],
    work: WorkDir,
    template: str | None,
) -> Prepared:
    held = [Taken(address.host, address.port, address.purpose) for address in taken if address.protocol == "tcp"]
    guarded = guard(tree, strict=settings.strict_admin, admin_port=port, taken=held)
    for warning in guarded.warnings:
        log.warning("%s", warning)
    path = await asyncio.to_thread(write_bootstrap, work.path, guarded.bootstrap)
    names = guarded.bootstrap.get("dynamicResources") or guarded.bootstrap.get("dynamic_resources") or {}
    dynamic = isinstance(names, dict) and ("ldsConfig" in names or "lds_config" in names)
    return Prepared(path, guarded.admin, template, dynamic)


class KumaSource:
    """A Kuma control plane, 2.8 to 2.14.

    Where kumadp serves the virtual probes itself, ``probes`` is not sent: the control plane would make Envoy bind the
    same port.
    """

    def __init__(
        self,
        settings: Settings,
        resource: Resource | None,
        work: WorkDir,
        taken: Sequence[Address],
        dns: DnsPlan | None,
        status: Status,
        *,
        serves_probes: bool,
    ) -> None:
        self._settings = settings
        self._resource = resource
        self._work = work
        self._taken = taken
        self._dns = dns
        self._status = status
        self._without = frozenset({"probes"}) if serves_probes else frozenset[str]()

    def follower(self, admin: Admin) -> Component | None:  # noqa: ARG002 - Envoy talks to the control plane itself
        """None: the control plane does it."""
        return None

    async def prepare(self, envoy: EnvoyVersion, coredns: str) -> Prepared:
        """Fetch the bootstrap, for as long as it takes."""
        from kumadp.controlplane.client import fetch_bootstrap

        settings = self._settings

        async def request() -> tuple[bytes, Trust]:
            return await asyncio.to_thread(self._request, envoy, coredns)

        def failed(reason: str) -> None:
            log.warning("no bootstrap from %s: %s", settings.cp_address, reason)
            self._status.wait_for("bootstrap", reason)

        self._status.wait_for("bootstrap", f"asking {settings.cp_address}")
        answer = await fetch_bootstrap(
            settings.cp_address,
            request,
            backoff=settings.retry_backoff,
            max_duration=settings.retry_max_duration,
            on_failure=failed,
        )
        self._status.wait_for("bootstrap", "")
        spec = self._resource.spec if self._resource is not None else None
        admin = spec.networking.admin if spec is not None else None
        tree = await asyncio.to_thread(parse_bootstrap, answer.bootstrap)
        port = admin.port if admin is not None else 0
        return await _finish(tree, settings, port, self._taken, self._work, answer.corefile_template)

    def _request(self, envoy: EnvoyVersion, coredns: str) -> tuple[bytes, Trust]:
        from kumadp.controlplane.client import Trust
        from kumadp.controlplane.wire import RequestFacts, encode_request
        from kumadp.errors import ControlPlaneRefused
        from kumadp.host.facts import has_ipv6, system_ca_path
        from kumadp.resources.wire import request_json

        settings, resource = self._settings, self._resource
        token, token_path = self._token()
        ca = settings.ca_cert
        if not ca and settings.ca_cert_file:
            try:
                ca = Path(settings.ca_cert_file).read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise ControlPlaneRefused(f"the CA file {settings.ca_cert_file} cannot be read: {error}") from None
        kinds = {"Dataplane": "dataplane", "ZoneIngress": "ingress", "ZoneEgress": "egress"}
        metadata = {"version.dependencies.coredns": coredns} if coredns else {}
        if settings.host_ip:
            metadata["HOST_IP"] = settings.host_ip
        facts = RequestFacts(
            mesh=resource.mesh if resource else settings.mesh,
            name=resource.name if resource else settings.name,
            proxy_type=kinds[resource.kind] if resource else settings.proxy_type,
            token=token,
            token_path=token_path,
            resource=request_json(resource, without=self._without) if resource else "",
            kumadp_version=__version__,
            envoy_version=envoy.version,
            envoy_build=envoy.build,
            envoy_compatible=is_compatible(envoy.version),
            ca_cert=ca,
            metadata=metadata,
            dns_port=self._dns.envoy_port if self._dns is not None else 0,
            readiness_port=settings.readiness_port,
            features=FEATURES,
            max_heap_bytes=settings.max_memory_bytes,
            workdir=str(self._work.sockets),
            metrics_cert_path=settings.metrics_cert_path,
            metrics_key_path=settings.metrics_key_path,
            system_ca_path=settings.system_ca_path or system_ca_path(),
            ipv6_enabled=settings.ipv6_enabled and has_ipv6(),
            spire_socket_path=settings.spire_socket_path,
        )
        return encode_request(facts), Trust(ca, verify=not settings.skip_verify)

    def _token(self) -> tuple[str, str]:
        from kumadp.controlplane.token import check_token, read_token

        settings = self._settings
        if settings.token:
            token = check_token(settings.token.strip(), "the token")
            path = self._work.path / "dataplane.token"
            write_private(path, token.encode())
            return token, str(path)
        if settings.token_path:
            token = read_token(Path(settings.token_path))
            register(token)
            return token, settings.token_path
        return "", ""


def is_compatible(version: str) -> bool:
    """Whether Kuma 2.14 would call this Envoy compatible: same minor version, patch at least, pre-releases stripped."""
    parts = version.partition("-")[0].split(".")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        return False
    major, minor, patch = map(int, parts)
    return (major, minor) == COMPATIBLE[:2] and patch >= COMPATIBLE[2]


class StandaloneSource:
    """Dataplane files and no control plane."""

    def __init__(
        self, settings: Settings, mesh: Mesh, work: WorkDir, taken: Sequence[Address], dns: DnsPlan | None
    ) -> None:
        from kumadp.host.facts import name_servers
        from kumadp.standalone.generated import DnsListener

        self._settings = settings
        self._mesh = mesh
        self._work = work
        self._taken = taken
        self._dns: DnsListener | None = None
        if dns is not None:
            alone = dns.coredns is None
            resolvers = name_servers() if alone else ()
            self._dns = DnsListener("127.0.0.1", dns.port if alone else dns.envoy_port, resolvers)

    async def prepare(self, envoy: EnvoyVersion, coredns: str) -> Prepared:  # noqa: ARG002 - nobody is told
        """Write the configuration files and the bootstrap."""
        from kumadp.standalone.control import prepare
        from kumadp.standalone.mesh import admin_port

        self._prepared = await asyncio.to_thread(prepare, self._mesh, self._work.path / "xds", self._dns)
        port = admin_port(self._mesh.spec)
        return await _finish(self._prepared.bootstrap, self._settings, port, self._taken, self._work, None)

    def follower(self, admin: Admin) -> Component:
        """Follows the files."""
        from kumadp.standalone.control import StandaloneControl

        path = Path(self._settings.standalone)
        return StandaloneControl(path, self._mesh.ours.name, self._prepared, self._dns, admin)
