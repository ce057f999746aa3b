"""The features that a data plane announces to the control plane: names and order as in Kuma 2.13 and 2.14."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.settings.model import Settings

    IsOn = Callable[[Settings, bool], bool]

# Each feature with a condition on the settings and on transparent proxying being reported. Features that are missing
# here are not implemented, and the control plane would rely on them. Most of these need nothing but the announcement.
_FEATURES: tuple[tuple[str, IsOn], ...] = (
    # Access logs for TCP destinations go through our FIFO (2.0).
    ("feature-tcp-accesslog-via-named-pipe", lambda _settings, _transparent: True),
    # Redirection is reported in the request instead of the Dataplane (`dataplaneConfig`, 2.11).
    ("feature-transparent-proxy-in-dataplane-metadata", lambda _settings, transparent: transparent),
    # Outbounds get listeners on addresses of 127.0.0.0/8, all of which Linux has on loopback (2.11).
    ("feature-bind-outbounds", lambda settings, _transparent: settings.bind_outbounds),
    # Other names of resources, in a mesh whose meshServices.mode is Exclusive (2.12).
    ("feature-unified-resource-naming", lambda settings, _transparent: settings.unified_resource_naming),
    # Envoy requests its identity from SPIRE's agent on its socket (2.12).
    ("feature-spire", lambda settings, _transparent: settings.spire_supported),
    # Requests for /ready on the admin's port are answered by our Unix socket (2.12 and 2.13).
    ("feature-readiness-unix-socket", lambda settings, _transparent: not settings.readiness_unix_socket_disabled),
    # Redirected traffic to a port without an inbound is rejected (2.13).
    ("feature-strict-inbound-ports", lambda settings, _transparent: settings.strict_inbound_ports),
    # Listeners with SO_REUSEPORT, one socket per worker (2.14).
    ("feature-reuse-port", lambda settings, _transparent: settings.reuse_port_enabled),
)


# Envoy sends OTLP to our sockets, from where it is forwarded to the collectors (`otelEnv`, 2.14).
_OTEL = "feature-otel-via-kuma-dp"
# Names are dynamic configuration for our embedded resolver, instead of for Envoy's DNS filter (2.11).
_EMBEDDED_DNS = "feature-embedded-dns"


def announced_features(
    settings: Settings, *, transparent: bool, resolves: bool = False, pipe: bool = False
) -> tuple[str, ...]:
    """Return the ``features`` of a bootstrap request.

    ``transparent``: the request has a ``dataplaneConfig``; ``resolves``: the embedded resolver is used; ``pipe``: the
    request has an ``otelEnv``.
    """
    first, *others = (name for name, is_on in _FEATURES if is_on(settings, transparent))
    more = (name for name, is_on in ((_OTEL, pipe), (_EMBEDDED_DNS, resolves)) if is_on)
    return (first, *more, *others)
