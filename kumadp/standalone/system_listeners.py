"""Adds listeners that belong to no inbound or outbound: ``/ready``, Prometheus, DNS."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.resources.dns_defaults import DEFAULT_TTL
from kumadp.resources.types import SERVICE
from kumadp.standalone.config_fragments import Json, assignment, http_manager, listener, socket_address
from kumadp.standalone.mesh import ADMIN_HOST, Mesh, admin_port, health_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kumadp.resources.types import Inbound
    from kumadp.standalone.generated_config import DnsListener, GeneratedConfig

ADMIN_CLUSTER = "kuma_envoy_admin"
ADMIN_LISTENER = "kuma:envoy:admin"
# Kuma's service names may have underscores.
_DNS_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


def add_admin(mesh: Mesh, config: GeneratedConfig) -> None:
    """Add the cluster for Envoy's own admin."""
    config.clusters[ADMIN_CLUSTER] = {
        "name": ADMIN_CLUSTER,
        "type": "STATIC",
        "connectTimeout": "1s",
        "loadAssignment": assignment(ADMIN_CLUSTER, [{"address": socket_address(ADMIN_HOST, admin_port(mesh.spec))}]),
    }


def add_ready(mesh: Mesh, unhealthy: Sequence[Inbound], config: GeneratedConfig) -> None:
    """Add Kuma's ``/ready`` on the data plane's address, which has the health of each inbound by host name.

    An inbound that is not in ``unhealthy`` is ready if Envoy is, which is not ready while it drains.
    """
    if mesh.address == ADMIN_HOST:
        if any(inbound.service_probe is not None for inbound in mesh.spec.networking.inbound):
            config.notes.append(
                f"{mesh.where('networking.address')}: on {ADMIN_HOST} other hosts cannot check the health of an "
                "inbound; they see failed requests only"
            )
        return
    routes = [_unhealthy_route(health_name(mesh.spec, inbound)) for inbound in unhealthy]
    routes.append({"match": {"path": "/ready"}, "route": {"cluster": ADMIN_CLUSTER}})
    manager = http_manager("kuma_envoy_admin", routes)
    port = admin_port(mesh.spec)
    config.listeners[ADMIN_LISTENER] = listener(ADMIN_LISTENER, mesh.address, port, [manager], "INBOUND")
    config.origin[ADMIN_LISTENER] = mesh.where("networking.admin.port")


def _unhealthy_route(name: str) -> Json:
    # Not Envoy's health check filter: it reads the statistics of a cluster, which do not change if the cluster loses
    # its last endpoint (Envoy 1.40).
    headers = [{"name": ":authority", "stringMatch": {"exact": name}}]
    return {"match": {"path": "/ready", "headers": headers}, "directResponse": {"status": 503}}


def add_prometheus(mesh: Mesh, config: GeneratedConfig) -> None:
    """Add Envoy's metrics for Prometheus, by default where Kuma serves them: port 5670, ``/metrics``."""
    metrics = mesh.spec.metrics
    if metrics is None or metrics.type != "prometheus":
        return
    port, path = int(metrics.conf.get("port") or 5670), str(metrics.conf.get("path") or "/metrics")
    route = {
        "match": {"path": path},
        "route": {"cluster": ADMIN_CLUSTER, "prefixRewrite": "/stats/prometheus?usedonly"},
    }
    name = "kuma:metrics:prometheus"
    manager = http_manager("kuma_metrics_prometheus", [route])
    config.listeners[name] = listener(name, mesh.address, port, [manager], "INBOUND")
    config.origin[name] = mesh.where("metrics.conf.port")


def add_dns(mesh: Mesh, dns: DnsListener, config: GeneratedConfig) -> None:
    """Add Envoy's DNS filter, with the names of `dns_names`."""
    domains = [
        {"name": name, "endpoint": {"addressList": {"address": sorted(addresses)}}, "answerTtl": f"{DEFAULT_TTL}s"}
        for name, addresses in sorted(dns_names(mesh).items())
    ]
    filter_config: Json = {
        "@type": "type.googleapis.com/envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig",
        "statPrefix": "kuma_dns",
        "serverConfig": {"inlineDnsTable": {"virtualDomains": domains}},
    }
    config.listeners["kuma:dns"] = {
        "name": "kuma:dns",
        "address": socket_address(dns.host, dns.port, "UDP"),
        "enableReusePort": True,
        "trafficDirection": "OUTBOUND",
        "listenerFilters": [{"name": "envoy.filters.udp.dns_filter", "typedConfig": filter_config}],
    }


def dns_names(mesh: Mesh) -> dict[str, set[str]]:
    """Return the names of the outbounds' services, and their addresses.

    A name is ``<service>.mesh``, also with dots in place of underscores, as in Kuma; that of a backendRef is also
    ``<service>.svc.mesh.local``, as in Kuma 3.0. A service whose name cannot be a DNS name is left out, as is what a
    backendRef selects by labels.
    """
    names: dict[str, set[str]] = {}
    for outbound in mesh.spec.networking.outbound:
        reference = outbound.backend_ref
        service = reference.name if reference is not None else outbound.tags[SERVICE]
        domains = ("mesh",) if reference is None else ("mesh", "svc.mesh.local")
        # Envoy's filter is case-sensitive (1.30 to 1.40): a name is added as written and in lower case.
        for name in {text for cased in (service, service.lower()) for text in (cased, cased.replace("_", "."))}:
            if _DNS_NAME.fullmatch(name):
                for domain in domains:
                    names.setdefault(f"{name}.{domain}", set()).add(outbound.address or "127.0.0.1")
    return names
