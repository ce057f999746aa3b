"""The Dataplane files of a folder: which is ours, and who answers for a service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.errors import Problem, ResourceError
from kumadp.resources.load import Resource, load_resource_file
from kumadp.resources.types import Dataplane

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kumadp.resources.types import Inbound

SUFFIXES = (".yaml", ".yml", ".json")
SERVICE = "kuma.io/service"
ADMIN_HOST = "127.0.0.1"
ADMIN_PORT = 9901


@dataclass(frozen=True, slots=True)
class ServiceEndpoint:
    """One inbound of a Dataplane as others reach it; ``health_at`` is where its health is told, None when nowhere."""

    host: str
    port: int
    protocol: str
    health_at: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Mesh:
    """Our Dataplane and all of them."""

    ours: Resource
    spec: Dataplane
    all: tuple[Resource, ...]

    def endpoints(self, tags: Mapping[str, str]) -> tuple[ServiceEndpoint, ...]:
        """Every inbound whose tags hold all of ``tags`` and that takes traffic (health, state), in a stable order."""
        found = set()
        for resource in self.all:
            assert isinstance(resource.spec, Dataplane)  # noqa: S101
            networking = resource.spec.networking
            for inbound in networking.inbound:
                if tags.items() <= inbound.tags.items() and takes_traffic(inbound):
                    host = networking.advertised_address or inbound.address or networking.address
                    found.add(ServiceEndpoint(host, inbound.port, inbound.protocol, _health_at(resource.spec, inbound)))
        return tuple(sorted(found, key=lambda endpoint: (endpoint.host, endpoint.port)))


def takes_traffic(inbound: Inbound) -> bool:
    """Whether the Dataplane itself says that this inbound is ready (Kuma 2.8: health.ready, state)."""
    return inbound.state == "Ready" and (inbound.health is None or inbound.health.ready)


def admin_port(spec: Dataplane) -> int:
    """The admin's port: ``networking.admin.port`` or 9901."""
    admin = spec.networking.admin
    return admin.port if admin is not None and admin.port else ADMIN_PORT


def _health_at(spec: Dataplane, inbound: Inbound) -> tuple[str, int] | None:
    address = spec.networking.address
    if inbound.service_probe is None or address == ADMIN_HOST:
        return None
    return spec.networking.advertised_address or address, admin_port(spec)


def read_mesh(path: Path, name: str) -> Mesh:
    """Read a Dataplane file or a folder of them. May block. Raises ResourceError with every problem of every file."""
    files = (
        [path]
        if not path.is_dir()
        else sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
    )
    problems: list[Problem] = []
    resources: list[Resource] = []
    for file in files:
        try:
            resources.append(load_resource_file(file))
        except ResourceError as error:
            problems += error.problems
    if problems:
        raise ResourceError(problems)
    dataplanes = tuple(resource for resource in resources if isinstance(resource.spec, Dataplane))
    _refuse_doubles(dataplanes, path)
    ours = _choose(dataplanes, path, name)
    assert isinstance(ours.spec, Dataplane)  # noqa: S101
    refused = _unsupported(ours, ours.spec)
    if refused:
        raise ResourceError(refused)
    others = tuple(resource for resource in dataplanes if resource.mesh == ours.mesh)
    return Mesh(ours, ours.spec, others)


def _refuse_doubles(dataplanes: tuple[Resource, ...], path: Path) -> None:
    seen: dict[tuple[str, str], str] = {}
    for resource in dataplanes:
        key = (resource.mesh, resource.name)
        if key in seen:
            raise ResourceError(
                [Problem("name", f"{resource.name} is also in {seen[key]}", "each Dataplane once", resource.source)]
            )
        seen[key] = resource.source
    if not dataplanes:
        raise ResourceError([Problem("", "holds no Dataplane", f"files end in {', '.join(SUFFIXES)}", str(path))])


def _choose(dataplanes: tuple[Resource, ...], path: Path, name: str) -> Resource:
    named = [resource for resource in dataplanes if not name or resource.name == name]
    if len(named) == 1:
        return named[0]
    there = ", ".join(sorted(resource.name for resource in dataplanes))
    if not named:
        raise ResourceError([Problem("--name", f"no Dataplane {name!r} in {path}", f"there are: {there}")])
    raise ResourceError([Problem("--name", f"{path} holds several Dataplanes", f"choose ours with --name: {there}")])


def _unsupported(resource: Resource, spec: Dataplane) -> list[Problem]:
    found = []

    def refuse(path: str, message: str, hint: str) -> None:
        file, line = resource.where(path)
        found.append(Problem(path, message, hint, file, line))

    networking = spec.networking
    if networking.gateway is not None and networking.gateway.type == "BUILTIN":
        refuse("networking.gateway.type", "a builtin gateway needs a control plane", "use DELEGATED, or --cp-address")
    if networking.transparent_proxying is not None:
        refuse("networking.transparentProxying", "needs a control plane", "take it out, or use --cp-address")
    for index, outbound in enumerate(networking.outbound):
        if outbound.backend_ref is not None:
            refuse(f"networking.outbound[{index}].backendRef", "needs a control plane", "name the service by tags")
    return found
