"""Decisions taken before anything starts, from settings, the Dataplane and the environment alone."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.addresses import ANY_IPV4, ANY_IPV6, overlap
from kumadp.errors import BinaryNotFound, Problem, ResourceError, SettingsError
from kumadp.host.environment import on_kubernetes
from kumadp.host.facts import has_ipv6
from kumadp.host.net.ports import BindAddress, every_address
from kumadp.host.programs import why_not_runnable
from kumadp.resources.types import Dataplane
from kumadp.resources.validate import bound_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from kumadp.resources.load import Resource
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.settings.model import Settings

LOOPBACK = "127.0.0.1"
DEFAULT_ADMIN_PORT = 9901
# Kuma's own names end so: <service>.mesh, and <name>.svc.<zone>.mesh.local from 2.9 on (HostnameGenerator).
SUFFIXES = ("mesh", "mesh.local")
WAY = "configured by "
ENVOY_RESTART_BUDGET = 5
# How long others may go on sending after the control plane was told (seconds); then who has nothing to do may go.
MIN_DRAIN_TIME = 5.0


def way_of(settings: Settings, *, standalone: bool) -> str:
    """How Envoy gets its configuration: no reload, and no adoption, takes it from one way to another."""
    return WAY + ("files" if standalone else f"xds-relay={settings.xds_relay}")


@dataclass(frozen=True, slots=True)
class DnsPlan:
    """How names are answered: ``coredns`` is the binary, None for the embedded resolver, which has ``addresses``; ports
    as the workload and Envoy see them. For clients in ``networks`` and on this host others are asked, but not for names
    below ``suffixes``.
    """

    coredns: Path | None
    port: int
    envoy_port: int
    prometheus_port: int
    addresses: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = SUFFIXES


@dataclass(frozen=True, slots=True)
class ProbesPlan:
    """Where virtual probes are served; ``ports`` is the list of the generic form, empty for the Dataplane's own."""

    host: str
    port: int
    generic_ports: tuple[int, ...]


# Labels as they are written in a Corefile too.
_DOMAIN = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")


def wants_coredns(settings: Settings) -> bool:
    """Whether a CoreDNS is looked for. A proxy port asks for the resolver of kuma-dp's own (2.14), and so for ours."""
    if not settings.dns_enabled or settings.proxy_type != "dataplane":
        return False
    return settings.dns_mode == "coredns" or (settings.dns_mode == "auto" and not settings.dns_proxy_port)


def chosen_coredns(settings: Settings) -> Path | None:
    """The CoreDNS to run; None where none is wanted, or there is none and nothing that was named needs one. May block.

    Raises BinaryNotFound.
    """
    if not wants_coredns(settings):
        return None
    from kumadp.dns.coredns.binary import DEFAULT, find_coredns

    found = find_coredns(settings.coredns_path)
    required_by = "--dns-mode=coredns" if settings.dns_mode == "coredns" else ""
    if not required_by and settings.coredns_config_template_path:
        required_by = "--dns-coredns-config-template-path"
    if found is None and (required_by or settings.coredns_path != DEFAULT):
        reason = f", which {required_by} needs" if required_by else ""
        raise BinaryNotFound(
            f"no CoreDNS: {why_not_runnable(settings.coredns_path)}{reason}", "check --dns-coredns-path and --dns-mode"
        )
    return found


def plan_dns(settings: Settings, coredns: Path | None, transparent: TransparentProxy | None = None) -> DnsPlan | None:
    """None when DNS is off: by setting, and always for zone proxies (Kuma: never for ingress and egress).

    ``KUMA_DNS_PROXY_PORT``, set by Kubernetes' injector from 2.14 on, names the port that the redirected queries reach.
    """
    if not settings.dns_enabled or settings.dns_mode == "off" or settings.proxy_type != "dataplane":
        return None
    if not wants_coredns(settings):
        coredns = None
    return DnsPlan(
        coredns=coredns,
        port=settings.dns_proxy_port or settings.coredns_port,
        envoy_port=settings.envoy_dns_port,
        prometheus_port=settings.dns_prometheus_port,
        addresses=() if coredns is not None else _resolver_addresses(transparent),
        networks=_networks(settings, transparent),
        suffixes=_suffixes(settings),
    )


def names_expected(settings: Settings, resource: Resource | None, transparent: TransparentProxy | None) -> bool:
    """Whether the control plane may send names at all, as far as that is known before the request.

    Kuma 2.11 to 2.14 send them where ``dataplaneConfig`` of the request or ``transparentProxying`` of the Dataplane
    redirects traffic, and never with bound outbounds; 2.8 to 2.10 with ``transparentProxying`` alone (their dns
    generators). True where the Dataplane is not ours to read: the control plane has it.
    """
    if not settings.envoy_dns_port:
        return False
    spec = resource.spec if resource is not None else None
    if resource is None or (isinstance(spec, Dataplane) and spec.networking.transparent_proxying is not None):
        return True
    if transparent is None or settings.bind_outbounds or not isinstance(spec, Dataplane):
        return False
    four_only = not transparent.dual_stack and ":" in spec.networking.address
    return (transparent.inbound.enabled or transparent.outbound.enabled) and not four_only


def _networks(settings: Settings, transparent: TransparentProxy | None) -> tuple[str, ...]:
    """Whose queries are passed on, beside this host's; raises SettingsError."""
    problems = []
    for text in settings.dns_allow:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            problems.append(Problem("--dns-allow", f"{text} is no network", "write it as 10.0.0.0/8 or fd00::/8"))
    if problems:
        raise SettingsError(problems)
    virtual = (network.partition(":")[2] for network in (transparent.networks if transparent is not None else ()))
    return (*settings.dns_allow, *(network for network in virtual if network))


def _suffixes(settings: Settings) -> tuple[str, ...]:
    """Whose names are never asked of other name servers; raises SettingsError."""
    found = tuple(text.strip(".").lower() for text in settings.dns_suffixes or SUFFIXES)
    problems = [
        Problem("--dns-suffix", f"{text!r} is no domain name", "write it as mesh or mesh.local")
        for text in found
        if not _DOMAIN.fullmatch(text)
    ]
    if problems:
        raise SettingsError(problems)
    return found


def _resolver_addresses(transparent: TransparentProxy | None) -> tuple[str, ...]:
    """Where redirected queries arrive: from virtual networks they keep an address of the host (Kuma 2.14)."""
    if transparent is None:
        return (ANY_IPV4,)
    four, six = (ANY_IPV4, ANY_IPV6) if transparent.networks else (LOOPBACK, "::1")
    return (four, six) if transparent.dual_stack and has_ipv6() else (four,)


def plan_probes(
    settings: Settings, dataplane: Dataplane | None, environ: Mapping[str, str]
) -> tuple[ProbesPlan | None, str]:
    """Whether and where virtual probes are served, and one line why not ("" where there is nothing to say).

    ``auto`` leaves the port alone on Kubernetes: there the control plane makes the Dataplane and Kuma 2.8 gives Envoy
    a listener on 9000. Without a Dataplane of ours they are served on the pod's address. Raises SettingsError where
    ``on`` has nothing to serve.
    """
    own = dataplane.probes if dataplane is not None and dataplane.probes and dataplane.probes.endpoints else None
    if settings.virtual_probes == "off":
        return None, "virtual probes are off by setting" if own else ""
    if settings.virtual_probes == "on" and own is None:
        if not settings.virtual_probes_ports:
            message = "on, but no Dataplane with probes is given, so there is nothing to serve"
            raise SettingsError([Problem("--virtual-probes", message, "name ports with --virtual-probes-ports")])
        told = dataplane.networking.address if dataplane is not None else settings.instance_ip
        host = settings.virtual_probes_address or told or LOOPBACK
        return ProbesPlan(host, settings.virtual_probes_port, settings.virtual_probes_ports), ""
    if settings.virtual_probes == "auto" and on_kubernetes(environ):
        return None, "virtual probes: on Kubernetes the control plane owns port 9000, so it is left alone"
    if own is None:
        return None, ""
    assert dataplane is not None  # noqa: S101
    host = settings.virtual_probes_address or dataplane.networking.address
    return ProbesPlan(host, own.port or settings.virtual_probes_port, ()), ""


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


def envoy_budget(settings: Settings, environ: Mapping[str, str]) -> int:
    """Restarts of Envoy within the window: the setting, else 0 on Kubernetes (kuma-dp's behaviour), else 5."""
    if settings.envoy_restart_budget is not None:
        return settings.envoy_restart_budget
    return 0 if on_kubernetes(environ) else ENVOY_RESTART_BUDGET


def min_drain_time(settings: Settings, environ: Mapping[str, str]) -> float | None:
    """Seconds of a drain with nothing to wait for: the setting, else all of it on Kubernetes (as kuma-dp), else 5."""
    if settings.min_drain_time is not None:
        return settings.min_drain_time
    return None if on_kubernetes(environ) else MIN_DRAIN_TIME
