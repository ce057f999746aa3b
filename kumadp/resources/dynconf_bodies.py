"""JSON bodies that Kuma's control plane sends to a data plane through Envoy (Kuma 2.8 to 2.14), one per path.

Unknown fields are ignored, so that a newer control plane harms nothing. Go writes an empty list or map as null, None
here. Enumerations that may grow (types, profiles, modes) stay text: the code that uses them checks the value.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec

from kumadp.decoding import Undecodable, decode_json
from kumadp.resources.dns_defaults import DEFAULT_TTL

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class _Body(msgspec.Struct, frozen=True, rename="camel", gc=False):
    pass


class MeshMetricApplication(_Body, frozen=True):
    """An application whose metrics are scraped; an empty ``address`` is the data plane's own."""

    port: Port
    path: str = ""
    address: str = ""
    name: str | None = None


class OpenTelemetryBackend(_Body, frozen=True):
    """A Unix socket to which metrics are pushed every ``refresh_interval`` (a Go duration, such as 1m0s)."""

    endpoint: str
    refresh_interval: str = ""


class MetricsBackend(_Body, frozen=True):
    """``type`` is Prometheus or OpenTelemetry."""

    type: str
    name: str | None = None
    open_telemetry: OpenTelemetryBackend | None = None


class MetricProfile(_Body, frozen=True):
    """``name`` is All, Basic or None."""

    name: str


class MetricSelector(_Body, frozen=True):
    """Metrics by name; ``type`` is Prefix, Regex, Exact or Contains."""

    type: str
    match: str


class MetricProfiles(_Body, frozen=True):
    """The selection of Envoy's metrics; ``include`` takes precedence over ``exclude``."""

    append_profiles: tuple[MetricProfile, ...] | None = None
    exclude: tuple[MetricSelector, ...] | None = None
    include: tuple[MetricSelector, ...] | None = None


class SidecarMetrics(_Body, frozen=True):
    """The options for Envoy's own metrics."""

    profiles: MetricProfiles | None = None
    include_unused: bool | None = None


class DataplaneMetrics(_Body, frozen=True):
    """A data plane's MeshMetric policies, merged."""

    applications: tuple[MeshMetricApplication, ...] | None = None
    backends: tuple[MetricsBackend, ...] | None = None
    sidecar: SidecarMetrics | None = None
    extra_labels: dict[str, str] | None = None


class Observability(_Body, frozen=True):
    """Wraps `DataplaneMetrics`."""

    metrics: DataplaneMetrics


class MeshMetricBody(_Body, frozen=True):
    """Body of ``/meshmetric``."""

    observability: Observability


class DnsRecord(_Body, frozen=True):
    """A DNS name of the mesh, without the final dot, and its addresses of both families."""

    name: str
    ips: tuple[str, ...] | None = None


class DnsBody(_Body, frozen=True):
    """Body of ``/dns`` (Kuma 2.11 and later); ``ttl`` in seconds, ``extra_labels`` for metrics (2.14)."""

    records: tuple[DnsRecord, ...] | None = None
    ttl: int = DEFAULT_TTL
    extra_labels: dict[str, str] | None = None


class OtelEnvPolicy(_Body, frozen=True):
    """How OTEL_ variables are used. ``mode``: Disabled, Optional, Required; ``precedence``: ExplicitFirst, EnvFirst."""

    mode: str = ""
    precedence: str = ""
    allow_signal_overrides: bool = False


class PipeSignal(_Body, frozen=True):
    """How traces, logs or metrics are sent; ``refresh_interval`` is a Go duration."""

    enabled: bool = False
    env_input_present: bool = False
    override_kinds: tuple[str, ...] | None = None
    missing_fields: tuple[str, ...] | None = None
    blocked_reasons: tuple[str, ...] | None = None
    refresh_interval: str = ""


class PipeBackend(_Body, frozen=True):
    """A collector, and the Unix socket at which kumadp receives Envoy's messages for it."""

    socket_path: str
    endpoint: str
    name: str = ""
    use_http: bool = msgspec.field(default=False, name="useHTTP")
    use_https: bool = msgspec.field(default=False, name="useHTTPS")
    path: str = ""
    env_policy: OtelEnvPolicy | None = None
    traces: PipeSignal | None = None
    logs: PipeSignal | None = None
    metrics: PipeSignal | None = None


class OtelBody(_Body, frozen=True):
    """Body of ``/otel`` (Kuma 2.14)."""

    backends: tuple[PipeBackend, ...] | None = None


Body = MeshMetricBody | DnsBody | OtelBody
# Called with the decoded body of one path; with None when the policy behind it was removed.
BodyHandler = Callable[[Any], Awaitable[None]]

MESH_METRIC, DNS, OTEL = "/meshmetric", "/dns", "/otel"
BODIES: dict[str, type[Body]] = {DNS: DnsBody, MESH_METRIC: MeshMetricBody, OTEL: OtelBody}


class InvalidBody(Exception):
    """A body does not match the schema of its path; the text names the field, and quotes no value."""


def decode(path: str, data: bytes) -> Body:
    """Decode the body of a path of `BODIES`; raises InvalidBody."""
    try:
        return decode_json(data, BODIES[path])
    except Undecodable as error:
        raise InvalidBody(str(error)) from None
