"""The OTEL_EXPORTER_OTLP_ variables of this process, and what the control plane is told of them (Kuma 2.14).

Their values stay here: the inventory says which are there and whether they can be used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SIGNALS = ("traces", "logs", "metrics")
GRPC, HTTP = "grpc", "http/protobuf"
_PREFIX = "OTEL_EXPORTER_OTLP_"
# Fields by the name that Kuma has for them, and the end of their variables.
_FIELDS = {
    "endpoint": "ENDPOINT",
    "protocol": "PROTOCOL",
    "headers": "HEADERS",
    "timeout": "TIMEOUT",
    "compression": "COMPRESSION",
    "insecure": "INSECURE",
    "certificate": "CERTIFICATE",
    "clientCertificate": "CLIENT_CERTIFICATE",
    "clientKey": "CLIENT_KEY",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """What is set for all signals, or for one; ``signal`` is shared for the former. Nothing is empty."""

    signal: str
    fields: Mapping[str, str]

    def __getitem__(self, field: str) -> str | None:
        return self.fields.get(field)

    @property
    def protocol(self) -> str | None:
        """That which is set and known."""
        told = self["protocol"]
        return told if told in {GRPC, HTTP} else None

    @property
    def headers(self) -> dict[str, str]:
        """Pairs with commas, values percent-encoded (OpenTelemetry's specification of OTLP exporters)."""
        pairs = (pair.partition("=") for pair in (self["headers"] or "").split(","))
        return {name.strip(): unquote(value.strip()) for name, equals, value in pairs if equals and name.strip()}

    @property
    def timeout(self) -> float | None:
        """Seconds; the variable has milliseconds."""
        told = self["timeout"] or ""
        return int(told) / 1000 if told.isascii() and told.isdigit() else None

    @property
    def gzip(self) -> bool | None:
        """Whether to compress."""
        return {"gzip": True, "none": False}.get((self["compression"] or "").lower())

    @property
    def insecure(self) -> bool | None:
        """As Go reads booleans."""
        told = self["insecure"] or ""
        if told in {"1", "t", "T", "true", "TRUE", "True"}:
            return True
        return False if told in {"0", "f", "F", "false", "FALSE", "False"} else None

    @property
    def url(self) -> SplitResult | None:
        """The endpoint where it is a URL with a host, and no mere host and port."""
        try:
            found = urlsplit(self["endpoint"] or "")
        except ValueError:
            return None
        return found if found.scheme and found.netloc else None


@dataclass(frozen=True, slots=True)
class Environment:
    """The layers by signal, ``shared`` for all of them; ``host_ip`` is where a collector without a host is."""

    shared: Layer
    traces: Layer
    logs: Layer
    metrics: Layer
    host_ip: str = ""

    def of(self, signal: str) -> Layer:
        """The layer of one signal."""
        return {"traces": self.traces, "logs": self.logs, "metrics": self.metrics}[signal]

    def secrets(self) -> Iterator[str]:
        """Values of headers, as they are set and as they are sent."""
        for layer in (self.shared, self.traces, self.logs, self.metrics):
            for pair in (layer["headers"] or "").split(","):
                yield pair.partition("=")[2].strip()
            yield from layer.headers.values()


def read(environ: Mapping[str, str]) -> Environment:
    """What is set; blank counts as not."""

    def layer(signal: str) -> Layer:
        prefix = _PREFIX + ("" if signal == "shared" else f"{signal.upper()}_")
        found = ((field, environ.get(prefix + end, "").strip()) for field, end in _FIELDS.items())
        return Layer(signal, {field: value for field, value in found if value})

    shared, traces, logs, metrics = (layer(signal) for signal in ("shared", *SIGNALS))
    return Environment(shared, traces, logs, metrics, environ.get("HOST_IP", "").strip())


def inventory(environment: Environment) -> dict[str, Any]:
    """The ``otelEnv`` of a bootstrap request where the pipe is on; what is empty is left out."""
    shared = environment.shared
    layers = {"shared": _told(shared, None), **{name: _told(environment.of(name), shared) for name in SIGNALS}}
    errors = [error for layer in layers.values() for error in layer.get("validationErrors", ())]
    found: dict[str, Any] = {"pipeEnabled": True, **{name: layer for name, layer in layers.items() if layer}}
    return {**found, "validationErrors": errors} if errors else found


def _told(layer: Layer, shared: Layer | None) -> dict[str, Any]:
    if not layer.fields:
        return {}
    signal, url, errors = layer.signal, layer.url, []
    protocol = ""
    if layer["protocol"] is not None:
        protocol = layer.protocol or "unknown"
        if layer.protocol is None:
            errors.append(f"{signal}.protocol")
    if url is not None and url.path and _protocol_of(layer, shared) == GRPC:
        errors.append(f"{signal}.endpoint")
    if layer["compression"] is not None and layer.gzip is None:
        errors.append(f"{signal}.compression")
    if layer["timeout"] is not None and layer.timeout is None:
        errors.append(f"{signal}.timeout")
    certificates = layer["clientCertificate"] is not None, layer["clientKey"] is not None
    if certificates[0] != certificates[1]:
        errors.append(f"{signal}.mtls")
    mode = "none"
    if all(certificates):
        mode = "mtls"
    elif layer["certificate"] is not None:
        mode = "tls"
    elif layer["headers"] is not None:
        mode = "headers"
    overrides = sorted(field for field, value in layer.fields.items() if shared is not None and shared[field] != value)
    found: dict[str, Any] = {
        "signal": signal,
        "endpointPresent": layer["endpoint"] is not None,
        "endpointParsedAsURL": url is not None,
        "endpointHasPath": url is not None and url.path != "",
        **{f"{field}Present": layer[field] is not None for field in _FIELDS if field != "endpoint"},
        "effectiveProtocol": protocol,
        "effectiveAuthMode": mode,
        "overrideKinds": overrides,
        "validationErrors": errors,
    }
    return {name: value for name, value in found.items() if value}


def _protocol_of(layer: Layer, shared: Layer | None) -> str:
    for told in (layer, shared):
        if told is not None and told["protocol"] is not None:
            return told.protocol or "unknown"
    return GRPC


def longest(timeout: float | None, default: float) -> float:
    """Seconds that an export may take: none, and 0, is ``default``."""
    return timeout if timeout and math.isfinite(timeout) else default
