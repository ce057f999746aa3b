"""The OTEL_EXPORTER_OTLP_ variables of this process, and the inventory of them for the control plane (Kuma 2.14).

The inventory lists which variables are set and whether they are valid; their values are not sent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SIGNALS = ("traces", "logs", "metrics")
GRPC, HTTP = "grpc", "http/protobuf"
_PREFIX = "OTEL_EXPORTER_OTLP_"
# Of a timeout in milliseconds; more are none that anybody means.
_MOST_DIGITS = 18
# Kuma's names of the fields, and the suffixes of their variables.
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


class OtelVariables(Struct, frozen=True):
    """The variables of one signal, or of all signals (``signal`` is ``shared``); ``fields`` has no empty values."""

    signal: str
    fields: Mapping[str, str]

    def __getitem__(self, field: str) -> str | None:
        return self.fields.get(field)

    @property
    def protocol(self) -> str | None:
        """The protocol, None if it is not set or not supported."""
        protocol = self["protocol"]
        return protocol if protocol in {GRPC, HTTP} else None

    @property
    def headers(self) -> dict[str, str]:
        """The headers: pairs with commas, values percent-encoded (OpenTelemetry's specification of OTLP exporters)."""
        pairs = (pair.partition("=") for pair in (self["headers"] or "").split(","))
        return {name.strip(): unquote(value.strip()) for name, equals, value in pairs if equals and name.strip()}

    @property
    def timeout(self) -> float | None:
        """The timeout in seconds; the variable is in milliseconds."""
        text = self["timeout"] or ""
        return int(text) / 1000 if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None

    @property
    def gzip(self) -> bool | None:
        """Whether messages are compressed; None if the variable is not set or not valid."""
        return {"gzip": True, "none": False}.get((self["compression"] or "").lower())

    @property
    def insecure(self) -> bool | None:
        """Whether TLS is off, parsed as Go parses booleans; None if the variable is not set or not valid."""
        text = self["insecure"] or ""
        if text in {"1", "t", "T", "true", "TRUE", "True"}:
            return True
        return False if text in {"0", "f", "F", "false", "FALSE", "False"} else None

    @property
    def url(self) -> SplitResult | None:
        """The endpoint if it is a URL with a host; None if it is only host and port."""
        try:
            url = urlsplit(self["endpoint"] or "")
        except ValueError:
            return None
        return url if url.scheme and url.netloc else None


class OtelEnvironment(Struct, frozen=True):
    """The variables by signal, ``shared`` for all signals; ``host_ip`` is the host of endpoints that have none."""

    shared: OtelVariables
    traces: OtelVariables
    logs: OtelVariables
    metrics: OtelVariables
    host_ip: str = ""

    def of(self, signal: str) -> OtelVariables:
        """Return the variables of one signal."""
        return {"traces": self.traces, "logs": self.logs, "metrics": self.metrics}[signal]

    def secrets(self) -> Iterator[str]:
        """Return the values of headers, as they are set and as they are sent."""
        for variables in (self.shared, self.traces, self.logs, self.metrics):
            for pair in (variables["headers"] or "").split(","):
                yield pair.partition("=")[2].strip()
            yield from variables.headers.values()


def read_environment(environ: Mapping[str, str]) -> OtelEnvironment:
    """Read the variables; blank ones count as not set."""

    def variables(signal: str) -> OtelVariables:
        prefix = _PREFIX + ("" if signal == "shared" else f"{signal.upper()}_")
        values = ((field, environ.get(prefix + suffix, "").strip()) for field, suffix in _FIELDS.items())
        return OtelVariables(signal, {field: value for field, value in values if value})

    shared, traces, logs, metrics = (variables(signal) for signal in ("shared", *SIGNALS))
    return OtelEnvironment(shared, traces, logs, metrics, environ.get("HOST_IP", "").strip())


def inventory(environment: OtelEnvironment) -> dict[str, Any]:
    """Return the ``otelEnv`` of a bootstrap request when the pipe is enabled; empty parts are omitted."""
    shared = environment.shared
    inventories = {"shared": _inventory_of(shared, None)}
    inventories |= {signal: _inventory_of(environment.of(signal), shared) for signal in SIGNALS}
    errors = [error for entry in inventories.values() for error in entry.get("validationErrors", ())]
    entries: dict[str, Any] = {"pipeEnabled": True}
    entries |= {signal: entry for signal, entry in inventories.items() if entry}
    return {**entries, "validationErrors": errors} if errors else entries


def _inventory_of(variables: OtelVariables, shared: OtelVariables | None) -> dict[str, Any]:
    if not variables.fields:
        return {}
    signal, url, errors = variables.signal, variables.url, []
    protocol = ""
    if variables["protocol"] is not None:
        protocol = variables.protocol or "unknown"
        if variables.protocol is None:
            errors.append(f"{signal}.protocol")
    if url is not None and url.path and _protocol_of(variables, shared) == GRPC:
        errors.append(f"{signal}.endpoint")
    if variables["compression"] is not None and variables.gzip is None:
        errors.append(f"{signal}.compression")
    if variables["timeout"] is not None and variables.timeout is None:
        errors.append(f"{signal}.timeout")
    certificates = variables["clientCertificate"] is not None, variables["clientKey"] is not None
    if certificates[0] != certificates[1]:
        errors.append(f"{signal}.mtls")
    mode = "none"
    if all(certificates):
        mode = "mtls"
    elif variables["certificate"] is not None:
        mode = "tls"
    elif variables["headers"] is not None:
        mode = "headers"
    shared_fields = shared.fields if shared is not None else variables.fields
    overrides = sorted(field for field, value in variables.fields.items() if shared_fields.get(field) != value)
    entries: dict[str, Any] = {
        "signal": signal,
        "endpointPresent": variables["endpoint"] is not None,
        "endpointParsedAsURL": url is not None,
        "endpointHasPath": url is not None and url.path != "",
        **{f"{field}Present": variables[field] is not None for field in _FIELDS if field != "endpoint"},
        "effectiveProtocol": protocol,
        "effectiveAuthMode": mode,
        "overrideKinds": overrides,
        "validationErrors": errors,
    }
    return {name: value for name, value in entries.items() if value}


def _protocol_of(own: OtelVariables, shared: OtelVariables | None) -> str:
    for variables in (own, shared):
        if variables is not None and variables["protocol"] is not None:
            return variables.protocol or "unknown"
    return GRPC


def timeout_or_default(timeout: float | None, default: float) -> float:
    """Return the timeout of an export in seconds; ``default`` if it is None, 0 or not finite."""
    return timeout if timeout and math.isfinite(timeout) else default
