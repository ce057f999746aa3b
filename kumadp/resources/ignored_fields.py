"""Fields of a Dataplane that some control planes accept and ignore: the answer is 200, without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.resources.kuma_versions import KUMA_3, ONLY_2_8, SINCE_2_13

if TYPE_CHECKING:
    from kumadp.resources.findings import Findings
    from kumadp.resources.types import Dataplane


def check_ignored(spec: Dataplane, findings: Findings) -> None:
    """Add the fields without effect; for tags and protocols see `kumadp.resources.tag_rules`."""
    networking = spec.networking
    if networking.advertised_address:
        hint = "networking.address must be one that others reach"
        findings.ignored("networking.advertisedAddress", hint, KUMA_3)
    if spec.metrics is not None:
        findings.ignored("metrics", "use a MeshMetric policy", KUMA_3)
    if spec.probes is not None:
        hint = "nothing to do, unless --virtual-probes=off"
        findings.ignored("probes", hint, KUMA_3, consequence="only kumadp itself serves them")
    transparent = networking.transparent_proxying
    if transparent is None:
        return
    path = "networking.transparentProxying"
    if transparent.reachable_services:
        findings.ignored(f"{path}.reachableServices", "use reachableBackends", KUMA_3)
    if transparent.reachable_backends is not None:
        findings.ignored(f"{path}.reachableBackends", "use reachableServices", ONLY_2_8)
    if transparent.redirect_port_inbound_v6:
        hint = "remove it: redirectPortInbound is for IPv6 too"
        findings.ignored(f"{path}.redirectPortInboundV6", hint, SINCE_2_13)
