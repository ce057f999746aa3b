"""Routes of a backend's signals, from the policy and the OTEL_ variables of this process (Kuma 2.14)."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from msgspec import Struct, field
from msgspec.structs import replace

from kumadp.addresses import authority, dialled_host
from kumadp.otel.environment import GRPC, HTTP, SIGNALS, timeout_or_default
from kumadp.records import hiding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kumadp.otel.environment import OtelEnvironment, OtelVariables
    from kumadp.resources.dynconf_bodies import PipeBackend, PipeSignal

# Reasons for which the variables, or those of one signal, are ignored; the policy's own values are used.
_NO_ENVIRONMENT, _NO_OVERRIDES = "EnvDisabledByPolicy", "SignalOverridesDisallowed"
_SEVERAL = "MultipleBackendsForSignal"
_PLAIN = {"http", "unix"}
# Timeout of an export if none is configured (seconds).
DEFAULT_TIMEOUT = 30.0
_HTTP_PORTS = {True: 443, False: 80}
_GRPC_PORT = 4317


class Collector(Struct, frozen=True):
    """A collector; messages for equal ones share a connection. Certificates and key are PEM files, empty for none."""

    protocol: str = GRPC
    endpoint: str = ""
    tls: bool = False
    certificate: str = ""
    client_certificate: str = ""
    client_key: str = ""

    __repr__ = hiding("client_key")

    @property
    def address(self) -> tuple[str, int] | str:
        """Host and port, or the path of a Unix socket; raises ValueError if the endpoint is neither."""
        endpoint = self.endpoint.removeprefix("dns:///")
        if endpoint.startswith("unix:"):
            return "/" + endpoint.removeprefix("unix:").lstrip("/")
        host, colon, port = endpoint.rpartition(":")
        if not colon or endpoint.endswith("]") or (":" in host and not host.startswith("[")):
            host, port = endpoint, str(_GRPC_PORT if self.protocol == GRPC else _HTTP_PORTS[self.tls])
        if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"the collector's endpoint {self.endpoint!r} is no host and port")
        try:
            return dialled_host(host.removeprefix("[").removesuffix("]")), int(port)
        except ValueError as error:
            raise ValueError(f"the collector's endpoint {self.endpoint!r}: {error}") from None

    @property
    def authority(self) -> str:
        """The value of the Host header, or of :authority."""
        address = self.address
        if isinstance(address, str):
            return "localhost"
        return authority(*address)


class Route(Struct, frozen=True):
    """How a signal is sent; ``why_not`` is the reason if it is not sent, else empty. ``timeout`` in seconds."""

    collector: Collector = Collector()
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    gzip: bool = False
    timeout: float = DEFAULT_TIMEOUT
    why_not: str = ""

    __repr__ = hiding("headers")

    def __str__(self) -> str:
        collector = self.collector
        return f"{collector.authority}{self.path} ({collector.protocol}{', TLS' if collector.tls else ''})"


def routes(backend: PipeBackend, environment: OtelEnvironment) -> dict[str, Route]:
    """Return the routes of a backend by signal."""
    policies = {"traces": backend.traces, "logs": backend.logs, "metrics": backend.metrics}
    return {signal: _route(backend, environment, signal, policies[signal]) for signal in SIGNALS}


def usable_for_metrics(signal: PipeSignal | None) -> bool:
    """Return whether metrics are pushed: every reason blocks, except those that only ignore variables (Kuma 2.14)."""
    reasons = set((signal.blocked_reasons if signal is not None else None) or ())
    return signal is not None and signal.enabled and not reasons - {_NO_ENVIRONMENT, _NO_OVERRIDES}


def _route(backend: PipeBackend, environment: OtelEnvironment, signal: str, policy: PipeSignal | None) -> Route:
    if policy is None or not policy.enabled:
        return Route(why_not="it is not enabled")
    reasons = set(policy.blocked_reasons or ())
    # If several backends compete for the variables, kuma-dp 2.14 uses the policy's own values.
    if blocking := sorted(reasons - {_NO_ENVIRONMENT, _NO_OVERRIDES, _SEVERAL}):
        return Route(why_not=f"blocked: {', '.join(blocking)}")
    if policy.missing_fields:
        return Route(why_not=f"not configured: {', '.join(policy.missing_fields)}")
    layers: list[OtelVariables] = []
    if not reasons & {_NO_ENVIRONMENT, _SEVERAL}:
        layers.append(environment.shared)
        if _NO_OVERRIDES not in reasons:
            layers.append(environment.of(signal))
    environment_last = backend.env_policy is None or backend.env_policy.precedence != "ExplicitFirst"
    route = Route(Collector(protocol=_protocol(backend, layers, environment_last=environment_last)))
    for source in (None, *layers) if environment_last else (*layers, None):
        if source is None:
            route = _apply_policy(route, backend, environment.host_ip, signal)
        else:
            route = _apply_variables(route, source, signal)
    if route.collector.protocol == HTTP and not route.path:
        route = replace(route, path=posixpath.join("/", backend.path, "v1", signal))
    if not route.collector.endpoint:
        return Route(why_not="no endpoint is configured")
    try:
        route.collector.address  # noqa: B018
    except ValueError as error:
        return Route(why_not=str(error))
    return route


def _protocol(backend: PipeBackend, layers: Sequence[OtelVariables], *, environment_last: bool) -> str:
    explicit = HTTP if backend.use_http else GRPC
    if not environment_last:
        return explicit
    return next((layer.protocol for layer in reversed(layers) if layer.protocol is not None), explicit)


def _apply_policy(route: Route, backend: PipeBackend, host_ip: str, signal: str) -> Route:
    endpoint = backend.endpoint
    if endpoint.startswith(":"):
        host = host_ip or "127.0.0.1"
        endpoint = (f"[{host}]" if ":" in host else host) + endpoint
    path = posixpath.join("/", backend.path, "v1", signal) if backend.use_http else route.path
    return replace(route, collector=replace(route.collector, endpoint=endpoint, tls=backend.use_https), path=path)


def _apply_variables(route: Route, variables: OtelVariables, signal: str) -> Route:
    collector = _endpoint(route.collector, variables)
    if variables["certificate"] is not None:
        collector = replace(collector, certificate=variables["certificate"])
    if variables["clientCertificate"] is not None and variables["clientKey"] is not None:
        collector = replace(
            collector, client_certificate=variables["clientCertificate"], client_key=variables["clientKey"]
        )
    path = route.path
    if variables.url is not None and collector.protocol == HTTP:
        # The endpoint of one signal has the whole path, that of all signals a prefix (OpenTelemetry's specification).
        is_whole = variables.signal != "shared"
        path = (variables.url.path or "/") if is_whole else posixpath.join("/", variables.url.path, "v1", signal)
    return replace(
        route,
        collector=collector,
        path=path,
        headers=variables.headers or route.headers,
        gzip=route.gzip if variables.gzip is None else variables.gzip,
        timeout=timeout_or_default(variables.timeout, route.timeout),
    )


def _endpoint(collector: Collector, variables: OtelVariables) -> Collector:
    """Return the collector with the variables' endpoint; the URL's scheme decides on TLS, else the variable does."""
    url, endpoint = variables.url, variables["endpoint"]
    if url is not None and (collector.protocol == HTTP or not url.path):
        return replace(collector, endpoint=url.netloc.rpartition("@")[2], tls=url.scheme.lower() not in _PLAIN)
    if endpoint is not None and url is None:
        collector = replace(collector, endpoint=endpoint)
    return collector if variables.insecure is None else replace(collector, tls=not variables.insecure)
