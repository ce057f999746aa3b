"""Where a signal of a backend goes: the control plane's word, and the OTEL_ variables of this process (Kuma 2.14)."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from kumadp.addresses import authority, dialled_host
from kumadp.otel.environment import GRPC, HTTP, SIGNALS, longest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kumadp.otel.environment import Environment, Layer

# Why environment or overrides are not looked at; what the policy names itself is used.
_NO_ENVIRONMENT, _NO_OVERRIDES = "EnvDisabledByPolicy", "SignalOverridesDisallowed"
_SEVERAL = "MultipleBackendsForSignal"
_PLAIN = {"http", "unix"}
# How long an export may take where nothing says so (seconds).
DEFAULT_TIMEOUT = 30.0
_HTTP_PORTS = {True: 443, False: 80}
_GRPC_PORT = 4317


class Signal(Protocol):
    """What the control plane says of a signal."""

    @property
    def enabled(self) -> bool:
        """Whether it is wanted."""

    @property
    def missing_fields(self) -> Sequence[str] | None:
        """What is needed and not there."""

    @property
    def blocked_reasons(self) -> Sequence[str] | None:
        """What is not to be used, or why nothing is."""


class Policy(Protocol):
    """How variables count."""

    @property
    def precedence(self) -> str:
        """ExplicitFirst or EnvFirst."""


class Backend(Protocol):
    """A collector, as the control plane tells of it."""

    @property
    def endpoint(self) -> str:
        """Host and port."""

    @property
    def use_http(self) -> bool:
        """OTLP over HTTP."""

    @property
    def use_https(self) -> bool:
        """With TLS."""

    @property
    def path(self) -> str:
        """What comes before /v1/<signal>."""

    @property
    def env_policy(self) -> Policy | None:
        """How variables count."""

    @property
    def traces(self) -> Signal | None:
        """None where it is not wanted."""

    @property
    def logs(self) -> Signal | None:
        """None where it is not wanted."""

    @property
    def metrics(self) -> Signal | None:
        """None where it is not wanted."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to connect to: equal targets can share a connection. Files hold PEM, empty for none."""

    protocol: str = GRPC
    endpoint: str = ""
    tls: bool = False
    certificate: str = ""
    client_certificate: str = ""
    client_key: str = field(default="", repr=False)

    @property
    def address(self) -> tuple[str, int] | str:
        """Host and port, or the path of a Unix socket; raises ValueError where it is neither."""
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
        """What it is called in requests."""
        address = self.address
        if isinstance(address, str):
            return "localhost"
        return authority(*address)


@dataclass(frozen=True, slots=True)
class Route:
    """How a signal is sent; ``why_not`` says why it is not, empty where it is. ``timeout`` in seconds."""

    target: Target = Target()
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    gzip: bool = False
    timeout: float = DEFAULT_TIMEOUT
    why_not: str = ""

    def __str__(self) -> str:
        return f"{self.target.authority}{self.path} ({self.target.protocol}{', TLS' if self.target.tls else ''})"


def routes(backend: Backend, environment: Environment) -> dict[str, Route]:
    """By signal."""
    told = {"traces": backend.traces, "logs": backend.logs, "metrics": backend.metrics}
    return {signal: _route(backend, environment, signal, told[signal]) for signal in SIGNALS}


def usable_for_metrics(signal: Signal | None) -> bool:
    """Whether metrics are pushed: any reason blocks but that variables or overrides are not looked at (Kuma 2.14)."""
    reasons = set((signal.blocked_reasons if signal is not None else None) or ())
    return signal is not None and signal.enabled and not reasons - {_NO_ENVIRONMENT, _NO_OVERRIDES}


def _route(backend: Backend, environment: Environment, signal: str, told: Signal | None) -> Route:
    if told is None or not told.enabled:
        return Route(why_not="it is not enabled")
    reasons = set(told.blocked_reasons or ())
    # kuma-dp 2.14 goes on with what the policy names where several backends want the variables.
    if hard := sorted(reasons - {_NO_ENVIRONMENT, _NO_OVERRIDES, _SEVERAL}):
        return Route(why_not=f"blocked: {', '.join(hard)}")
    if told.missing_fields:
        return Route(why_not=f"not configured: {', '.join(told.missing_fields)}")
    layers: list[Layer] = []
    if not reasons & {_NO_ENVIRONMENT, _SEVERAL}:
        layers.append(environment.shared)
        if _NO_OVERRIDES not in reasons:
            layers.append(environment.of(signal))
    environment_last = backend.env_policy is None or backend.env_policy.precedence != "ExplicitFirst"
    found = Route(Target(protocol=_protocol(backend, layers, environment_last=environment_last)))
    for source in (None, *layers) if environment_last else (*layers, None):
        if source is None:
            found = _explicit(found, backend, environment.host_ip, signal)
        else:
            found = _by_layer(found, source, signal)
    if found.target.protocol == HTTP and not found.path:
        found = replace(found, path=posixpath.join("/", backend.path, "v1", signal))
    if not found.target.endpoint:
        return Route(why_not="no endpoint is configured")
    try:
        found.target.address  # noqa: B018
    except ValueError as error:
        return Route(why_not=str(error))
    return found


def _protocol(backend: Backend, layers: Sequence[Layer], *, environment_last: bool) -> str:
    explicit = HTTP if backend.use_http else GRPC
    if not environment_last:
        return explicit
    return next((layer.protocol for layer in reversed(layers) if layer.protocol is not None), explicit)


def _explicit(route: Route, backend: Backend, host_ip: str, signal: str) -> Route:
    endpoint = backend.endpoint
    if endpoint.startswith(":"):
        host = host_ip or "127.0.0.1"
        endpoint = (f"[{host}]" if ":" in host else host) + endpoint
    path = posixpath.join("/", backend.path, "v1", signal) if backend.use_http else route.path
    return replace(route, target=replace(route.target, endpoint=endpoint, tls=backend.use_https), path=path)


def _by_layer(route: Route, layer: Layer, signal: str) -> Route:
    target = _endpoint(route.target, layer)
    if layer["certificate"] is not None:
        target = replace(target, certificate=layer["certificate"])
    if layer["clientCertificate"] is not None and layer["clientKey"] is not None:
        target = replace(target, client_certificate=layer["clientCertificate"], client_key=layer["clientKey"])
    path = route.path
    if layer.url is not None and target.protocol == HTTP:
        # For one signal it is the whole path, for all of them the beginning (OpenTelemetry's specification).
        own = layer.signal != "shared"
        path = (layer.url.path or "/") if own else posixpath.join("/", layer.url.path, "v1", signal)
    return replace(
        route,
        target=target,
        path=path,
        headers=layer.headers or route.headers,
        gzip=route.gzip if layer.gzip is None else layer.gzip,
        timeout=longest(layer.timeout, route.timeout),
    )


def _endpoint(target: Target, layer: Layer) -> Target:
    """TLS goes by the URL's scheme, else by the variable."""
    url, endpoint = layer.url, layer["endpoint"]
    if url is not None and (target.protocol == HTTP or not url.path):
        return replace(target, endpoint=url.netloc.rpartition("@")[2], tls=url.scheme.lower() not in _PLAIN)
    if endpoint is not None and url is None:
        target = replace(target, endpoint=endpoint)
    return target if layer.insecure is None else replace(target, tls=not layer.insecure)
