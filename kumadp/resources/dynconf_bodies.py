"""What Kuma's control plane tells a data plane through Envoy (Kuma 2.8 to 2.14): one JSON body a path.

Fields that are not known are passed over, so that a newer control plane harms nothing. Go writes an empty list or map
as null, None here. Words that may become more (types, profiles, modes) stay text: who uses them says which it knows.
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


class Application(_Body, frozen=True):
    """An application whose metrics are scraped; ``address`` empty: the data plane's own."""

    port: Port
    path: str = ""
    address: str = ""
    name: str | None = None


class OpenTelemetryBackend(_Body, frozen=True):
    """Where metrics are pushed to: a Unix socket, every ``refresh_interval`` (Go's form of durations, as 1m0s)."""

    endpoint: str
    refresh_interval: str = ""


class MetricsBackend(_Body, frozen=True):
    """``type`` is Prometheus or OpenTelemetry."""

    type: str
    name: str | None = None
    open_telemetry: OpenTelemetryBackend | None = None


class Profile(_Body, frozen=True):
    """``name`` is All, Basic or None."""

    name: str


class Selector(_Body, frozen=True):
    """Metrics by name; ``type`` is Prefix, Regex, Exact or Contains."""

    type: str
    match: str


class Profiles(_Body, frozen=True):
    """Which of Envoy's metrics are wanted; ``include`` goes before ``exclude``."""

    append_profiles: tuple[Profile, ...] | None = None
    exclude: tuple[Selector, ...] | None = None
    include: tuple[Selector, ...] | None = None


class Sidecar(_Body, frozen=True):
    """What of Envoy's own metrics is wanted."""

    profiles: Profiles | None = None
    include_unused: bool | None = None


class Metrics(_Body, frozen=True):
    """The whole of a data plane's MeshMetric policies."""

    applications: tuple[Application, ...] | None = None
    backends: tuple[MetricsBackend, ...] | None = None
    sidecar: Sidecar | None = None
    extra_labels: dict[str, str] | None = None


class Observability(_Body, frozen=True):
    """Holds `Metrics`."""

    metrics: Metrics


class MeshMetric(_Body, frozen=True):
    """Body of ``/meshmetric``."""

    observability: Observability


class Record(_Body, frozen=True):
    """A name of the mesh, without the final dot, and its addresses of both families."""

    name: str
    ips: tuple[str, ...] | None = None


class Dns(_Body, frozen=True):
    """Body of ``/dns`` (Kuma 2.11 and later); ``ttl`` in seconds, ``extra_labels`` for metrics (2.14)."""

    records: tuple[Record, ...] | None = None
    ttl: int = DEFAULT_TTL
    extra_labels: dict[str, str] | None = None


class EnvPolicy(_Body, frozen=True):
    """How OTEL_ variables count. ``mode``: Disabled, Optional, Required; ``precedence``: ExplicitFirst, EnvFirst."""

    mode: str = ""
    precedence: str = ""
    allow_signal_overrides: bool = False


class Signal(_Body, frozen=True):
    """What is done with traces, logs or metrics; ``refresh_interval`` in Go's form of durations."""

    enabled: bool = False
    env_input_present: bool = False
    override_kinds: tuple[str, ...] | None = None
    missing_fields: tuple[str, ...] | None = None
    blocked_reasons: tuple[str, ...] | None = None
    refresh_interval: str = ""


class OtelBackend(_Body, frozen=True):
    """A collector, and the Unix socket at which Envoy finds us in its place."""

    socket_path: str
    endpoint: str
    name: str = ""
    use_http: bool = msgspec.field(default=False, name="useHTTP")
    use_https: bool = msgspec.field(default=False, name="useHTTPS")
    path: str = ""
    env_policy: EnvPolicy | None = None
    traces: Signal | None = None
    logs: Signal | None = None
    metrics: Signal | None = None


class Otel(_Body, frozen=True):
    """Body of ``/otel`` (Kuma 2.14)."""

    backends: tuple[OtelBackend, ...] | None = None


Body = MeshMetric | Dns | Otel
# Called with the body of the handler's own path, with None when there is no policy any more.
BodyHandler = Callable[[Any], Awaitable[None]]

MESH_METRIC, DNS, OTEL = "/meshmetric", "/dns", "/otel"
BODIES: dict[str, type[Body]] = {DNS: Dns, MESH_METRIC: MeshMetric, OTEL: Otel}


class WrongBody(Exception):
    """A body that is not what its path promises; the text says where, and quotes nothing."""


def decode(path: str, data: bytes) -> Body:
    """The body of a path of `BODIES`; raises WrongBody."""
    try:
        return decode_json(data, BODIES[path])
    except Undecodable as error:
        raise WrongBody(str(error)) from None
