"""The schema of Kuma's resources as data: one table serves parsing, normalising and the JSON Schema.

Source: Kuma 2.8's documentation of the data plane proxy (Dataplane schema) and its ZoneIngress and ZoneEgress, and the
fields that 2.9 to 2.14 added (api/mesh/v1alpha1); 3.0 adds none, and has no advertisedAddress, metrics, probes, tags of
inbounds and outbounds, reachableServices.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Kind = Literal["text", "integer", "boolean", "enum", "duration", "message", "list", "tags", "mapping", "free"]

# The schema's pattern for serviceProbe.interval and timeout: Kuma 2.8 to 2.14 reads them with Go's time.ParseDuration.
DURATION_PATTERN = r"^\+?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$"


class Field(Struct, frozen=True):
    """One field: its name on the wire and its type. ``of`` is the message, or the kind of a list's items."""

    name: str
    kind: Kind
    help: str = ""
    of: Message | Kind | None = None
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None


class Message(Struct, frozen=True):
    """A mapping with known fields. Unknown ones are kept, with a note unless it is ``open``."""

    name: str
    fields: tuple[Field, ...]
    open: bool = False

    def lookup(self, key: str) -> Field | None:
        """Return the field of ``key`` in any of its spellings (`redirectPortInbound`, `redirect_port_inbound`...)."""
        normalised = _normalised(key)
        return next((item for item in self.fields if _normalised(item.name) == normalised), None)


def _normalised(key: str) -> str:
    return key.replace("_", "").lower()


def _port(name: str, text: str, minimum: int = 1) -> Field:
    return Field(name, "integer", text, minimum=minimum, maximum=65535)


HEALTH = Message("Health", (Field("ready", "boolean", "Whether this inbound accepts traffic."),))
SERVICE_PROBE = Message(
    "ServiceProbe",
    (
        Field("interval", "duration", "Interval between checks."),
        Field("timeout", "duration", "Timeout of one check."),
        Field("unhealthyThreshold", "integer", "Number of consecutive failed checks until unhealthy.", minimum=1),
        Field("healthyThreshold", "integer", "Number of consecutive successful checks until healthy.", minimum=1),
        Field("tcp", "message", "Check by connecting.", of=Message("Tcp", ())),
    ),
)
INBOUND = Message(
    "Inbound",
    (
        _port("port", "Port of the inbound listener."),
        _port("servicePort", "Port of the application; defaults to port.", 0),
        Field("serviceAddress", "text", "Address of the application; defaults to the inbound's address."),
        Field("address", "text", "Address of the listener; defaults to networking.address."),
        Field("tags", "tags", "Tags; kuma.io/service is required up to 2.13, none is read by 3.0."),
        Field("health", "message", "Health set by the platform.", of=HEALTH),
        Field("serviceProbe", "message", "Checks of the application.", of=SERVICE_PROBE),
        Field("state", "enum", "State of the inbound.", choices=("Ready", "NotReady", "Ignored")),
        Field("name", "text", "Name of the port, for MeshService."),
        Field("protocol", "text", "Protocol of the application; goes before the tag (2.14), the only source (3.0)."),
    ),
)
BACKEND_REF = Message(
    "BackendRef",
    (
        Field("kind", "text", "MeshService, MeshExternalService or MeshMultiZoneService."),
        Field("name", "text", "Name of the target."),
        _port("port", "Port of the target; none for a MeshExternalService.", 0),
        Field("labels", "tags", "Labels of the target, instead of its name (2.9)."),
    ),
)
OUTBOUND = Message(
    "Outbound",
    (
        Field("address", "text", "Address of the listener; defaults to 127.0.0.1."),
        _port("port", "Port of the listener."),
        Field(
            "tags",
            "tags",
            "Tags of the consumed service; kuma.io/service is required. Refused by 3.0 without backendRef.",
        ),
        Field("backendRef", "message", "The consumed service by reference, the only form of 3.0.", of=BACKEND_REF),
    ),
)
GATEWAY = Message(
    "Gateway",
    (
        Field("tags", "tags", "Tags; kuma.io/service is required up to 2.13, and if there are any."),
        Field("type", "enum", "Kind of gateway; 3.0 has no BUILTIN.", choices=("DELEGATED", "BUILTIN")),
    ),
)
REACHABLE_BACKENDS = Message(
    "ReachableBackends",
    (
        Field(
            "refs",
            "list",
            "The services.",
            of=Message(
                "ReachableBackendRef",
                (
                    Field("kind", "text", "MeshService, MeshExternalService or MeshMultiZoneService."),
                    Field("name", "text", "Name of the service."),
                    Field("namespace", "text", "Namespace of the service."),
                    _port("port", "Port of the service.", 0),
                    Field("labels", "tags", "Labels that select services."),
                ),
            ),
        ),
    ),
)
TRANSPARENT = Message(
    "TransparentProxying",
    (
        _port("redirectPortInbound", "Port that inbound traffic is redirected to.", 0),
        _port("redirectPortOutbound", "Port that outbound traffic is redirected to.", 0),
        Field("directAccessServices", "list", "Services reached by address and port; * for all.", of="text"),
        _port("redirectPortInboundV6", "Port that inbound IPv6 traffic is redirected to.", 0),
        Field("reachableServices", "list", "Services that are reachable. Ignored by 3.0.", of="text"),
        Field("ipFamilyMode", "enum", "IP families.", choices=("UnSpecified", "DualStack", "IPv4", "IPv6")),
        Field("reachableBackends", "message", "Services that are reachable (2.9).", of=REACHABLE_BACKENDS),
    ),
)
ADMIN = Message("EnvoyAdmin", (_port("port", "Port of Envoy's admin, always on loopback.", 0),))
LISTENER = Message(
    "Listener",
    (
        Field("type", "enum", "Kind of zone proxy.", choices=("Unspecified", "ZoneIngress", "ZoneEgress")),
        Field("address", "text", "Address of the listener."),
        _port("port", "Port of the listener."),
        Field("name", "text", "Name of the listener; defaults to its port."),
        Field("state", "enum", "State of the listener.", choices=("Ready", "NotReady")),
    ),
)
NETWORKING = Message(
    "Networking",
    (
        Field("address", "text", "IP address or host name at which other data planes reach this one."),
        Field(
            "advertisedAddress",
            "text",
            "Address advertised to other data planes, if `address` is private. Ignored by 3.0.",
        ),
        Field("gateway", "message", "This is a gateway.", of=GATEWAY),
        Field("inbound", "list", "Services of this data plane.", of=INBOUND),
        Field("outbound", "list", "Services that it consumes.", of=OUTBOUND),
        Field("transparentProxying", "message", "Transparent proxying.", of=TRANSPARENT),
        Field("admin", "message", "Envoy's admin.", of=ADMIN),
        Field("listeners", "list", "Listeners of a zone proxy (2.14).", of=LISTENER),
    ),
)
PROBES = Message(
    "Probes",
    (
        _port("port", "Port of the virtual probes."),
        Field(
            "endpoints",
            "list",
            "Probes served without mTLS.",
            of=Message(
                "Endpoint",
                (
                    _port("inboundPort", "Port of the application (the inbound's own port is accepted too)."),
                    Field("inboundPath", "text", "Path on the application."),
                    Field("path", "text", "Path on the probes port."),
                ),
            ),
        ),
    ),
)
PROMETHEUS = Message(
    "PrometheusMetricsBackendConfig",
    (
        Field("port", "free", "Port that Prometheus scrapes."),
        Field("path", "text", "Path that Prometheus scrapes."),
        Field("tags", "tags", "Tags of the listener."),
        Field("skipMTLS", "boolean", "Whether it is served without mTLS."),
        Field(
            "aggregate",
            "list",
            "Applications whose metrics are merged.",
            of=Message(
                "PrometheusAggregateMetricsConfig",
                (
                    Field("name", "text", "Name of the application, unique in the list."),
                    _port("port", "Port of the application.", 0),
                    Field("path", "text", "Path of the application."),
                    Field("enabled", "boolean", "Whether it is scraped."),
                    Field("address", "text", "Address of the application."),
                ),
            ),
        ),
        Field(
            "envoy",
            "message",
            "Metrics of Envoy.",
            of=Message(
                "PrometheusEnvoyConfig",
                (
                    Field("filterRegex", "text", "Regular expression that selects metrics."),
                    Field("usedOnly", "boolean", "Whether metrics that were never updated are omitted."),
                ),
            ),
        ),
        Field(
            "tls",
            "message",
            "TLS of the listener.",
            of=Message(
                "PrometheusTlsConfig",
                (Field("mode", "enum", "Kind.", choices=("activeMTLSBackend", "providedTLS", "disabled")),),
            ),
        ),
    ),
    open=True,
)
METRICS = Message(
    "MetricsBackend",
    (
        Field("name", "text", "Name of the backend."),
        Field("type", "text", "Type of the backend: prometheus."),
        Field("conf", "message", "Configuration of the backend.", of=PROMETHEUS),
    ),
)
META = (
    Field("type", "text", "Type of the resource."),
    Field("mesh", "text", "Mesh of the resource."),
    Field("name", "text", "Name of the resource."),
    Field("labels", "tags", "Labels: what MeshService, MeshIdentity and policies select by."),
    Field("creationTime", "text", "Set by the control plane."),
    Field("modificationTime", "text", "Set by the control plane."),
    Field("kri", "text", "Set by the control plane (2.12)."),
)
DATAPLANE = Message(
    "Dataplane",
    (
        *META,
        Field("networking", "message", "Addresses, inbounds, outbounds.", of=NETWORKING),
        Field("metrics", "message", "Metrics of this data plane. Ignored by 3.0.", of=METRICS),
        Field("probes", "message", "Virtual probes.", of=PROBES),
    ),
)
ZONE_INGRESS = Message(
    "ZoneIngress",
    (
        *META,
        Field("zone", "text", "Zone, set by the control plane."),
        Field(
            "networking",
            "message",
            "Addresses.",
            of=Message(
                "ZoneIngressNetworking",
                (
                    Field("address", "text", "Address that Envoy binds."),
                    _port("port", "Port that Envoy binds."),
                    Field("advertisedAddress", "text", "Address advertised to other zones."),
                    _port("advertisedPort", "Port advertised to other zones."),
                    Field("admin", "message", "Envoy's admin.", of=ADMIN),
                ),
            ),
        ),
        Field("availableServices", "free", "Set by the control plane."),
    ),
)
ZONE_EGRESS = Message(
    "ZoneEgress",
    (
        *META,
        Field("zone", "text", "Zone, set by the control plane."),
        Field(
            "networking",
            "message",
            "Addresses.",
            of=Message(
                "ZoneEgressNetworking",
                (
                    Field("address", "text", "Address that Envoy binds."),
                    _port("port", "Port that Envoy binds."),
                    Field("admin", "message", "Envoy's admin.", of=ADMIN),
                ),
            ),
        ),
    ),
)
RESOURCES: dict[str, Message] = {message.name: message for message in (DATAPLANE, ZONE_INGRESS, ZONE_EGRESS)}
