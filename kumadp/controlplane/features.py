"""What a data plane tells the control plane that it can do: names and order as in Kuma 2.13 and 2.14."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.settings.model import Settings

    Says = Callable[[Settings, bool], bool]

# Feature, and whether it is on, by the settings and by whether transparent proxying is reported. What is not here is
# not done here: the control plane would wait for it. Most of what is here asks nothing of the data plane but to say it.
_FEATURES: tuple[tuple[str, Says], ...] = (
    # Access logs for TCP destinations go through our FIFO (2.0).
    ("feature-tcp-accesslog-via-named-pipe", lambda _settings, _transparent: True),
    # Redirection is told with the request instead of the Dataplane (`dataplaneConfig`, 2.11).
    ("feature-transparent-proxy-in-dataplane-metadata", lambda _settings, transparent: transparent),
    # Outbounds get listeners on addresses of 127.0.0.0/8, which Linux answers by itself (2.11).
    ("feature-bind-outbounds", lambda settings, _transparent: settings.bind_outbounds),
    # Other names of resources, in a mesh whose meshServices.mode is Exclusive (2.12).
    ("feature-unified-resource-naming", lambda settings, _transparent: settings.unified_resource_naming),
    # Envoy asks SPIRE's agent at its socket for the identity (2.12).
    ("feature-spire", lambda settings, _transparent: settings.spire_supported),
    # Who asks for /ready on the admin's port has it from our Unix socket (2.12 and 2.13).
    ("feature-readiness-unix-socket", lambda settings, _transparent: not settings.readiness_unix_socket_disabled),
    # Redirected traffic to a port that is no inbound's is refused (2.13).
    ("feature-strict-inbound-ports", lambda settings, _transparent: settings.strict_inbound_ports),
    # Listeners with SO_REUSEPORT, one socket a worker (2.14).
    ("feature-reuse-port", lambda settings, _transparent: settings.reuse_port_enabled),
)


# Envoy's OTLP goes to sockets of ours, and on to the collectors from there (`otelEnv`, 2.14).
_OTEL = "feature-otel-via-kuma-dp"
# Names come as dynamic configuration, for a resolver of our own, instead of into Envoy's DNS filter (2.11).
_EMBEDDED_DNS = "feature-embedded-dns"


def announced(settings: Settings, *, transparent: bool, resolves: bool = False, pipe: bool = False) -> tuple[str, ...]:
    """The ``features`` of a bootstrap request; ``transparent``: the request has a ``dataplaneConfig``; ``resolves``:
    the embedded resolver answers; ``pipe``: the request has an ``otelEnv``.
    """
    first, *others = (name for name, is_on in _FEATURES if is_on(settings, transparent))
    more = (name for name, is_on in ((_OTEL, pipe), (_EMBEDDED_DNS, resolves)) if is_on)
    return (first, *more, *others)
