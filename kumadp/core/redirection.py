"""Whether traffic of the workload may be redirected to Envoy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.host.environment import on_kubernetes
from kumadp.resources.types import Dataplane

if TYPE_CHECKING:
    from kumadp.core.context import Context


def may_be_redirected(context: Context) -> bool:
    """Return whether traffic may be redirected here, so that probes need the address that is not redirected.

    kuma-dp (2.9 to 2.14) always uses that address; if IPv6 is not redirected, no probe then succeeds over IPv6.
    """
    settings = context.settings
    spec = context.resource.spec if context.resource is not None else None
    in_dataplane = isinstance(spec, Dataplane) and spec.networking.transparent_proxying is not None
    configured = settings.transparent_proxy or bool(settings.transparent_proxy_config)
    return in_dataplane or configured or on_kubernetes(context.environ)
