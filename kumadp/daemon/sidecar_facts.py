"""What follows from the plans of DNS and probes, for a run and for `kumadp doctor` alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.addresses import LOOPBACK
from kumadp.controlplane.bootstrap_client import Sidecar
from kumadp.otel.offer import pipe_offer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.dns.plan import DnsPlan
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.settings.model import Settings
    from kumadp.standalone.generated_config import DnsListener


def sidecar_of(
    settings: Settings,
    environ: Mapping[str, str],
    dns: DnsPlan | None,
    transparent: TransparentProxy | None,
    *,
    serves_probes: bool,
) -> Sidecar:
    """Return what the bootstrap request reports of this sidecar."""
    return Sidecar(
        dns_port=dns.envoy_port if dns is not None else None,
        resolves=dns is not None and dns.coredns is None,
        serves_probes=serves_probes,
        transparent=transparent,
        otel_env=pipe_offer(settings, environ),
    )


def dns_listener(dns: DnsPlan | None) -> DnsListener | None:
    """Return the listener of Envoy that CoreDNS queries in standalone mode; None without CoreDNS."""
    from kumadp.standalone.generated_config import DnsListener

    return DnsListener(LOOPBACK, dns.envoy_port) if dns is not None and dns.coredns is not None else None
