"""The port plan: every address that kumadp, its children and Envoy bind, and the clashes among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.addresses import LOOPBACK, overlap
from kumadp.errors import Problem, ResourceError, SettingsError
from kumadp.host.net.ports import BindAddress, every_address
from kumadp.resources.sockets import bound_sockets
from kumadp.resources.types import Dataplane

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kumadp.dns.plan import DnsPlan
    from kumadp.probes.plan import ProbesPlan
    from kumadp.resources.resource import Resource
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.settings.model import Settings

DEFAULT_ADMIN_PORT = 9901


def own_addresses(settings: Settings, dns: DnsPlan | None, probes: ProbesPlan | None) -> list[BindAddress]:
    """What kumadp and CoreDNS bind themselves."""
    wanted = [BindAddress(LOOPBACK, settings.readiness_port, "tcp", "readiness", "KUMA_READINESS_PORT")]
    if settings.application_probe_proxy_port:
        port, variable = settings.application_probe_proxy_port, "KUMA_APPLICATION_PROBE_PROXY_PORT"
        wanted.append(BindAddress(every_address(), port, "tcp", "the application probe proxy", variable))
    if probes is not None:
        wanted.append(BindAddress(probes.host, probes.port, "tcp", "virtual probes", "probes.port"))
    if dns is not None and dns.coredns is not None:
        # CoreDNS' server block ".:port" binds every local address, UDP and TCP.
        wanted.append(BindAddress("0.0.0.0", dns.port, "udp", "DNS", "--dns-coredns-port"))  # noqa: S104
        wanted.append(BindAddress("0.0.0.0", dns.port, "tcp", "DNS", "--dns-coredns-port"))  # noqa: S104
        wanted.append(BindAddress(LOOPBACK, dns.prometheus_port, "tcp", "CoreDNS metrics", "--dns-prometheus-port"))
    if dns is not None:
        for host in dns.addresses:
            wanted.append(BindAddress(host, dns.port, "udp", "DNS", "--dns-coredns-port"))
            wanted.append(BindAddress(host, dns.port, "tcp", "DNS", "--dns-coredns-port"))
    return wanted


def envoy_addresses(
    resource: Resource | None, *, standalone: bool, dns: DnsPlan | None, transparent: TransparentProxy | None = None
) -> list[BindAddress]:
    """What Envoy will bind for this resource, as far as it is known before the bootstrap.

    Without ``networking.admin.port`` the control plane chooses the admin (a Unix socket from 2.14 on), so only the
    standalone mode counts its own default here.
    """
    if resource is None:
        return []
    wanted = [
        BindAddress(
            socket.address, socket.port, "udp" if socket.protocol == "udp" else "tcp", socket.purpose, socket.path
        )
        for socket in bound_sockets(resource, transparent)
    ]
    if standalone and isinstance(resource.spec, Dataplane):
        wanted += _standalone_addresses(resource.spec)
    if dns is not None and (dns.coredns is not None or not standalone):
        wanted.append(BindAddress(LOOPBACK, dns.envoy_port, "udp", "Envoy's DNS filter", "--dns-envoy-port"))
    return wanted


def _standalone_addresses(spec: Dataplane) -> Iterator[BindAddress]:
    """What our own control plane adds: the admin where no port is named, with its ``/ready``, and Prometheus."""
    address, admin = spec.networking.address, spec.networking.admin
    if admin is None or not admin.port:
        path = "networking.admin.port"
        yield BindAddress(LOOPBACK, DEFAULT_ADMIN_PORT, "tcp", "Envoy's admin", path)
        if address != LOOPBACK:
            yield BindAddress(address, DEFAULT_ADMIN_PORT, "tcp", "/ready for other data planes", path)
    if spec.metrics is not None and spec.metrics.type == "prometheus":
        yield BindAddress(address, int(spec.metrics.conf.get("port") or 5670), "tcp", "Prometheus", "metrics.conf.port")


def check_plan(own: Sequence[BindAddress], envoy: Sequence[BindAddress], resource: Resource | None) -> None:
    """Raise when two sockets of ours, Envoy's among them, would take the same address and port; all pairs at once.

    SettingsError where only settings decide, ResourceError where the Dataplane does.
    """
    problems: list[Problem] = []
    wanted = [*own, *envoy]
    for index, later in enumerate(wanted):
        earlier = next((one for one in wanted[:index] if _same_socket(one, later)), None)
        if earlier is not None:
            file, line = resource.where(later.path) if resource is not None and "." in later.path else ("", 0)
            wants = f"{later.port}/{later.protocol} for {later.purpose}"
            message = f"{wants} is also the port of {earlier.purpose} ({earlier.path})"
            problems.append(Problem(later.path, message, "choose another port", file, line))
    if any(problem.file for problem in problems):
        raise ResourceError(problems)
    if problems:
        raise SettingsError(problems)


def _same_socket(one: BindAddress, other: BindAddress) -> bool:
    return (one.port, one.protocol) == (other.port, other.protocol) and overlap(one.host, other.host)
