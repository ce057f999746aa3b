"""Reads the Dataplane files of a folder: our own Dataplane, and the endpoints of each service."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from msgspec import Struct, field

from kumadp.addresses import address_text
from kumadp.errors import Problem, ResourceError
from kumadp.resources.load import STANDALONE, load_resource_file
from kumadp.resources.types import SERVICE, Dataplane
from kumadp.resources.workload import service_of
from kumadp.standalone.unsupported_fields import unsupported_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from kumadp.resources.resource import Resource
    from kumadp.resources.types import Inbound, Outbound

DISPLAY_NAME = "kuma.io/display-name"
SUFFIXES = (".yaml", ".yml", ".json")

ADMIN_HOST = "127.0.0.1"
ADMIN_PORT = 9901


class ServiceEndpoint(Struct, frozen=True, order=True):
    """One inbound of a Dataplane as other hosts reach it.

    ``health_at`` is the address of its health check, ``health_name`` the host name for it; empty if there is none.
    """

    host: str
    port: int
    health_at: tuple[str, int] = ("", 0)
    health_name: str = ""


class Offer(Struct, frozen=True):
    """An inbound of the mesh: its tags, with its service, and protocol; whether its Dataplane marks it as ready.

    ``port`` is what a backendRef names, ``labels`` are those of the Dataplane.
    """

    tags: Mapping[str, str]
    protocol: str
    ready: bool
    endpoint: ServiceEndpoint
    port: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


class Mesh(Struct, frozen=True):
    """Our Dataplane, its IP ``address``, and the inbounds of all Dataplanes by service and by label."""

    ours: Resource
    spec: Dataplane
    address: str
    by_service: Mapping[str, tuple[Offer, ...]]
    by_label: Mapping[tuple[str, str], tuple[Offer, ...]]

    @property
    def service(self) -> str:
        """The service of our Dataplane; its name if it has none."""
        return service_of(self.ours) or self.ours.name

    def offers(self, outbound: Outbound) -> tuple[Offer, ...]:
        """Return the inbounds that an outbound consumes, ready or not.

        Those with all its tags; or those with the reference's port, of the service with its name or of the Dataplanes
        with its labels.
        """
        reference = outbound.backend_ref
        if reference is None:
            offers = self.by_service.get(outbound.tags.get(SERVICE, ""), ())
            return tuple(offer for offer in offers if outbound.tags.items() <= offer.tags.items())
        if reference.name:
            offers = self.by_service.get(reference.name, ())
        else:
            # Those of the rarest label, since all labels must be there.
            candidates = min((self.by_label.get(label, ()) for label in reference.labels.items()), key=len)
            offers = tuple(offer for offer in candidates if reference.labels.items() <= _labels_of(offer).items())
        return tuple(offer for offer in offers if offer.port == reference.port)

    def inbound_address(self, inbound: Inbound) -> str:
        """Return the address on which an inbound of ours is bound."""
        return inbound.address or self.address

    def where(self, path: str) -> str:
        """Return file, line and path of a field of our Dataplane, as text."""
        file, line = self.ours.where(path)
        return f"{file}:{line}: {path}" if line else f"{file}: {path}"


def _labels_of(offer: Offer) -> dict[str, str]:
    # Kuma labels a MeshService with its name.
    return {DISPLAY_NAME: offer.tags[SERVICE], **offer.labels}


def _by_label(offers: Iterable[Offer]) -> dict[tuple[str, str], tuple[Offer, ...]]:
    lists: dict[tuple[str, str], list[Offer]] = {}
    for offer in sorted(offers, key=lambda offer: offer.endpoint):
        for label in _labels_of(offer).items():
            lists.setdefault(label, []).append(offer)
    return {label: tuple(having) for label, having in lists.items()}


def takes_traffic(inbound: Inbound) -> bool:
    """Return whether the Dataplane marks this inbound as ready (Kuma 2.8: health.ready, state)."""
    return inbound.state == "Ready" and (inbound.health is None or inbound.health.ready)


def admin_port(spec: Dataplane) -> int:
    """Return the admin's port: ``networking.admin.port`` or 9901."""
    admin = spec.networking.admin
    return admin.port if admin is not None and admin.port else ADMIN_PORT


def health_name(spec: Dataplane, inbound: Inbound) -> str:
    """Return the host name for the health of one inbound at ``/ready``; both sides derive it from the Dataplane."""
    return f"inbound-{inbound.address or spec.networking.address}-{inbound.port}"


def _offers(dataplanes: Iterable[Resource]) -> dict[str, tuple[Offer, ...]]:
    by_service: dict[str, dict[tuple[ServiceEndpoint, str], Offer]] = {}
    for resource in dataplanes:
        spec = resource.spec
        assert isinstance(spec, Dataplane)  # noqa: S101
        for inbound in spec.networking.inbound:
            endpoint = _endpoint(spec, inbound)
            tags = {**inbound.tags, SERVICE: inbound.service or service_of(resource) or resource.name}
            ready = takes_traffic(inbound)
            offer = Offer(tags, inbound.protocol, ready, endpoint, inbound.port, resource.labels)
            by_service.setdefault(tags[SERVICE], {})[endpoint, resource.name] = offer
    return {service: tuple(offers[key] for key in sorted(offers)) for service, offers in by_service.items()}


def _endpoint(spec: Dataplane, inbound: Inbound) -> ServiceEndpoint:
    networking = spec.networking
    host = networking.advertised_address or inbound.address or networking.address
    if inbound.service_probe is None or networking.address == ADMIN_HOST:
        return ServiceEndpoint(host, inbound.port)
    health_at = (networking.advertised_address or networking.address, admin_port(spec))
    return ServiceEndpoint(host, inbound.port, health_at, health_name(spec, inbound))


Stamp = tuple[int, ...]


class MeshReader:
    """Reads a Dataplane file or a folder of them; a file that has not changed is not read again."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._stamps: dict[Path, Stamp] | None = None
        self._cache: dict[Path, tuple[Stamp, Resource]] = {}

    def changed(self) -> bool:
        """Return whether any file has changed since `read`. May block."""
        return self._stamps is None or self._look() != self._stamps

    def read(self) -> Mesh:
        """Read all files that have changed. May block. Raises ResourceError with all problems of all files."""
        self._stamps = self._look()
        problems: list[Problem] = []
        resources: list[Resource] = []
        for file, stamp in self._stamps.items():
            try:
                resources.append(self._load(file, stamp))
            except ResourceError as error:
                problems += error.problems
        self._cache = {file: cached for file, cached in self._cache.items() if file in self._stamps}
        if problems:
            raise ResourceError(problems)
        return self._assemble([resource for resource in resources if isinstance(resource.spec, Dataplane)])

    def _look(self) -> dict[Path, Stamp]:
        try:
            inside = sorted(self._path.iterdir()) if self._path.is_dir() else None
        except OSError as error:
            raise ResourceError([Problem("", f"cannot be read: {error.strerror}", file=str(self._path))]) from None
        if inside is None:
            return {self._path: _stamp(self._path)}
        files = (file for file in inside if file.suffix in SUFFIXES and not file.name.startswith("."))
        return {file: _stamp(file) for file in files if not file.is_dir()}

    def _load(self, file: Path, stamp: Stamp) -> Resource:
        cached = self._cache.get(file)
        if cached is not None and stamp and cached[0] == stamp:
            return cached[1]
        resource = load_resource_file(file, version=STANDALONE)
        self._cache[file] = (stamp, resource)
        return resource

    def _assemble(self, dataplanes: list[Resource]) -> Mesh:
        duplicates = _duplicates(dataplanes)
        if duplicates:
            raise ResourceError(duplicates)
        if not dataplanes:
            hint = f"files end in {', '.join(SUFFIXES)}"
            raise ResourceError([Problem("", "holds no Dataplane", hint, str(self._path))])
        ours = _choose(dataplanes, self._path, self._name)
        assert isinstance(ours.spec, Dataplane)  # noqa: S101
        address, unresolved = _resolve(ours, ours.spec.networking.address)
        problems = [*unresolved, *unsupported_fields(ours, ours.spec)]
        if problems:
            raise ResourceError(problems)
        others = (resource for resource in dataplanes if resource.mesh == ours.mesh)
        by_service = _offers(others)
        by_label = _by_label(offer for offers in by_service.values() for offer in offers)
        return Mesh(ours, ours.spec, address, by_service, by_label)


def read_mesh(path: Path, name: str) -> Mesh:
    """Read a Dataplane file or a folder of them once; see `MeshReader.read`."""
    return MeshReader(path, name).read()


def _stamp(file: Path) -> Stamp:
    """Return what changes if a file is written, replaced or made readable; empty if there is no file."""
    try:
        entry = file.stat()
    except OSError:
        return ()
    return (entry.st_dev, entry.st_ino, entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns)


def _resolve(resource: Resource, host: str) -> tuple[str, list[Problem]]:
    """Resolve a host name, as Kuma's control plane does with ``networking.address``: Envoy binds IP addresses only."""
    try:
        return str(ipaddress.ip_address(host)), []
    except ValueError:
        pass
    try:
        results = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        file, line = resource.where("networking.address")
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        problem = Problem("networking.address", f"{host}: {reason}", "write an IP address", file, line)
        return host, [problem]
    addresses = [address_text(info[4]) for info in results]
    usable = next((address for address in addresses if "%" not in address), None)
    if usable is None:
        file, line = resource.where("networking.address")
        message = f"{host} resolves to {addresses[0]} only, which no other host can reach"
        return host, [Problem("networking.address", message, "write an IP address", file, line)]
    return usable, []


def _duplicates(dataplanes: Iterable[Resource]) -> list[Problem]:
    seen: dict[tuple[str, str], str] = {}
    problems = []
    for resource in dataplanes:
        first = seen.setdefault((resource.mesh, resource.name), resource.source)
        if first != resource.source:
            file, line = resource.where("name")
            problems.append(Problem("name", f"{resource.name} is also in {first}", "each Dataplane once", file, line))
    return problems


def _choose(dataplanes: list[Resource], path: Path, name: str) -> Resource:
    named = [resource for resource in dataplanes if not name or resource.name == name]
    if len(named) == 1:
        return named[0]
    names = ", ".join(sorted(resource.name for resource in dataplanes))
    if not named:
        raise ResourceError([Problem("--name", f"no Dataplane {name!r} in {path}", f"there are: {names}")])
    raise ResourceError([Problem("--name", f"{path} holds several Dataplanes", f"choose one with --name: {names}")])
