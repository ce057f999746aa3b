"""Decides how names are answered, before anything starts: by settings, Dataplane and transparent proxy."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from kumadp.addresses import ANY_IPV4, ANY_IPV6, LOOPBACK
from kumadp.bootstrap.generation import Generation
from kumadp.errors import BinaryNotFound, Problem, SettingsError
from kumadp.host.facts import has_ipv6
from kumadp.host.programs import why_not_runnable
from kumadp.resources.types import Dataplane

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.resources.resource import Resource
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.settings.model import Settings

# Suffixes of Kuma's names: <service>.mesh, and <name>.svc.<zone>.mesh.local from 2.9 on (HostnameGenerator).
SUFFIXES = ("mesh", "mesh.local")


class DnsPlan(Struct, frozen=True):
    """``coredns`` is the binary of CoreDNS, None for the embedded resolver, which listens on ``addresses``.

    ``port`` is where clients send queries, ``envoy_port`` that of Envoy's DNS filter. Queries of clients on this host
    and in ``networks`` are forwarded to name servers, except those for names below ``suffixes``.
    """

    coredns: Path | None
    port: int
    envoy_port: int
    prometheus_port: int
    addresses: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = SUFFIXES


# Accepted in a Corefile too.
_DOMAIN = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")


def wants_coredns(settings: Settings) -> bool:
    """Return whether CoreDNS is to be used. A proxy port means kuma-dp's embedded resolver (2.14), and so ours."""
    if not settings.dns_enabled or settings.proxy_type != "dataplane":
        return False
    return settings.dns_mode == "coredns" or (settings.dns_mode == "auto" and not settings.dns_proxy_port)


def chosen_coredns(settings: Settings) -> Path | None:
    """Return the CoreDNS to run; None if it is not to be used, or is neither installed nor required. May block.

    Raises BinaryNotFound if it is required: by the mode, a template, or a configured path.
    """
    if not wants_coredns(settings):
        return None
    from kumadp.dns.coredns.binary import DEFAULT, find_coredns

    binary = find_coredns(settings.coredns_path)
    required_by = "--dns-mode=coredns" if settings.dns_mode == "coredns" else ""
    if not required_by and settings.coredns_config_template_path:
        required_by = "--dns-coredns-config-template-path"
    if binary is None and (required_by or settings.coredns_path != DEFAULT):
        reason = f", which {required_by} needs" if required_by else ""
        raise BinaryNotFound(
            f"no CoreDNS: {why_not_runnable(settings.coredns_path)}{reason}", "check --dns-coredns-path and --dns-mode"
        )
    return binary


def plan_dns(settings: Settings, coredns: Path | None, transparent: TransparentProxy | None = None) -> DnsPlan | None:
    """Return the plan; None if DNS is off, which it always is for zone proxies (Kuma: never for ingress and egress).

    ``KUMA_DNS_PROXY_PORT``, set by the injector for Kubernetes from 2.14 on, is the port of redirected queries. Raises
    SettingsError.
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


def names_missing(settings: Settings, generation: Generation | None) -> str:
    """Return why names of the mesh are not answered by the settings and this control plane; empty if they are."""
    if generation is not Generation.KUMA_3 or not wants_coredns(settings) or settings.dns_mode != "coredns":
        return ""
    return (
        "--dns-mode=coredns: a control plane of Kuma 3 gives Envoy no DNS filter, so CoreDNS cannot answer names of "
        "the mesh; remove the option, or use --dns-mode=embedded, and restart kumadp"
    )


def embedded_plan(plan: DnsPlan, transparent: TransparentProxy | None) -> DnsPlan:
    """Return the plan for a control plane without CoreDNS and without a DNS filter in Envoy (Kuma 3.0)."""
    return replace(plan, coredns=None, addresses=_resolver_addresses(transparent))


def names_expected(settings: Settings, resource: Resource | None, transparent: TransparentProxy | None) -> bool:
    """Return whether the control plane may send names, by what is known before the request.

    Kuma 2.11 to 2.14 send them if ``dataplaneConfig`` of the request or ``transparentProxying`` of the Dataplane
    redirects traffic, and never with bound outbounds; 2.8 to 2.10 only with ``transparentProxying`` (their dns
    generators). True if only the control plane has the Dataplane.
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
    """Return the networks whose queries are forwarded, in addition to this host's; raises SettingsError."""
    problems = []
    for text in settings.dns_allow:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            problems.append(Problem("--dns-allow", f"{text} is not a network", "write it as 10.0.0.0/8 or fd00::/8"))
    if problems:
        raise SettingsError(problems)
    virtual = (network.partition(":")[2] for network in (transparent.networks if transparent is not None else ()))
    return (*settings.dns_allow, *(network for network in virtual if network))


def _suffixes(settings: Settings) -> tuple[str, ...]:
    """Return the domains whose names are never forwarded to name servers; raises SettingsError."""
    suffixes = tuple(text.strip(".").lower() for text in settings.dns_suffixes or SUFFIXES)
    problems = [
        Problem("--dns-suffix", f"{text!r} is not a domain name", "write it as mesh or mesh.local")
        for text in suffixes
        if not _DOMAIN.fullmatch(text)
    ]
    if problems:
        raise SettingsError(problems)
    return suffixes


def _resolver_addresses(transparent: TransparentProxy | None) -> tuple[str, ...]:
    """Return where redirected queries arrive: those of virtual networks keep an address of the host (Kuma 2.14)."""
    if transparent is None:
        return (ANY_IPV4,)
    four, six = (ANY_IPV4, ANY_IPV6) if transparent.networks else (LOOPBACK, "::1")
    return (four, six) if transparent.dual_stack and has_ipv6() else (four,)
