"""Decides if a resource may be written to disk: no private key, password or token may be in its bytes.

Two checks. First the types: a resource consists of google.protobuf.Any messages, and only those pass that Kuma 2.8 to
2.14 sends and that cannot hold a secret, or hold none in the fields where they could. Unknown types are not written.
Second the bytes: the formats of keys and tokens, anywhere. Certificates are public.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.relay.protobuf import BadMessage, fields

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - the name of a type

Path = tuple[int, ...]
# Fields of CommonTlsContext: tls_certificates with an inline private_key, password or pkcs12, or with a provider.
_CERTIFICATE: tuple[Path, ...] = tuple((2, *path) for path in ((2, 2), (2, 3), (3, 2), (3, 3), (8, 2), (8, 3), (6,)))
# Types that can hold a secret: paths of field numbers that must be absent.
_FORBIDDEN: dict[str, tuple[Path, ...]] = {
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext": tuple((1, *path) for path in _CERTIFICATE),
    # session_ticket_keys too
    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext": (
        *((1, *path) for path in _CERTIFICATE),
        (4, 1, 2),
        (4, 1, 3),
    ),
    # grpc_service.google_grpc has call credentials.
    "envoy.config.trace.v3.OpenTelemetryConfig": ((1, 2),),
    "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig": ((1, 2, 2),),
    "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig": ((1, 2, 2),),
    "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig": ((1, 2, 2),),
    # tcp_health_check.send can be a password.
    "envoy.config.cluster.v3.Cluster": ((8, 9, 1),),
}
_HARMLESS = frozenset(
    {
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        "envoy.config.listener.v3.Listener",
        "envoy.config.rbac.v3.Action",
        "envoy.config.route.v3.FilterConfig",
        "envoy.config.route.v3.RouteConfiguration",
        "envoy.config.route.v3.ScopedRouteConfiguration",
        "envoy.config.route.v3.VirtualHost",
        "envoy.config.trace.v3.DatadogConfig",
        "envoy.config.trace.v3.ZipkinConfig",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "envoy.extensions.clusters.aggregate.v3.ClusterConfig",
        "envoy.extensions.clusters.dns.v3.DnsCluster",
        "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
        "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
        "envoy.extensions.common.matching.v3.ExtensionWithMatcherPerRoute",
        "envoy.extensions.filters.common.matcher.action.v3.SkipFilter",
        "envoy.extensions.filters.http.buffer.v3.Buffer",
        "envoy.extensions.filters.http.compressor.v3.Compressor",
        "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute",
        "envoy.extensions.filters.http.cors.v3.Cors",
        "envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
        "envoy.extensions.filters.http.fault.v3.HTTPFault",
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "envoy.extensions.filters.http.rbac.v3.RBAC",
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
        "envoy.extensions.filters.http.router.v3.Router",
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        "envoy.extensions.filters.listener.original_src.v3.OriginalSrc",
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        "envoy.extensions.filters.network.direct_response.v3.Config",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "envoy.extensions.filters.network.kafka_broker.v3.KafkaBroker",
        "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
        "envoy.extensions.filters.network.rbac.v3.RBAC",
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
        "envoy.extensions.filters.network.sni_cluster.v3.SniCluster",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig",
        "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig",
        "envoy.extensions.regex_engines.v3.GoogleRE2",
        "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
        "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions",
        "envoy.service.runtime.v3.Runtime",
    }
)
_HARMLESS_FAMILIES = (
    "envoy.extensions.access_loggers.filters.",
    "envoy.extensions.access_loggers.stream.",
    "envoy.extensions.compression.",
    "envoy.extensions.formatter.",
    "envoy.extensions.health_check.event_sinks.",
    "envoy.extensions.load_balancing_policies.",
    "envoy.extensions.matching.",
    "envoy.extensions.network.dns_resolver.",
    "envoy.extensions.outlier_detection_monitors.",
    "envoy.extensions.path.",
    "envoy.extensions.retry.",
    "xds.type.matcher.v3.",
)

# An Any's type_url: field 1, a length, and a text that ends in /package.Type. The byte of the tag can be the end of
# another length, so that two matches overlap: hence the lookahead.
_TYPE_URL = re.compile(rb"\x0a(?=([\x03-\x7f]|[\x80-\xff]\x01)([!-~]*/(?:[a-z]\w*\.)+[A-Z]\w*))")
_NAME = re.compile(rb"[!-~]*/((?:[a-z]\w*\.)+[A-Z]\w*)")
# Searched first, since a plain search is a hundred times as fast.
_WORDS = (b"authorization", b"cookie", b"token", b"secret", b"passw", b"api-key", b"apikey", b"credential")
# A HeaderValue (key, then value or raw_value) or an entry of a Struct, which messages have as field 1
# (HeaderValueOption, Struct), 3 (gRPC health check) or 5 (GrpcService). A virtual host, whose name can contain these
# words, is field 2.
_HEADER = re.compile(
    rb"[\x0a\x1a\x2a](?=(?:[\x04-\x7f]|[\x80-\xff][\x01-\x7f])"
    rb"\x0a[\x04-\x40][\w./-]{0,40}(?:%b)[\w./-]{0,40}"
    rb"[\x12\x1a](?:[\x00-\x7f]|[\x80-\xff][\x01-\x7f])([^\x00]{3}))" % b"|".join(_WORDS),
    re.IGNORECASE,
)
# A part of a JWT with the next one. Each run of letters is searched once, wherever in it a token may begin.
_TOKEN = re.compile(rb"(?<![\w-])([\w-]++)\.(?=eyJ[\w-]{8,}+\.)")
# Name, plain texts in lower case of which at least one must occur (a quick check; none: no check), pattern.
_PATTERNS: tuple[tuple[str, tuple[bytes, ...], re.Pattern[bytes]], ...] = (
    ("a private key (PEM)", (), re.compile(rb"PRIVATE KEY")),
    # "PRIVATE KEY" in base64, wherever it begins within three bytes
    (
        "a private key (base64)",
        (b"ufjjvkfursblrv", b"bssvzbveugs0vz", b"quklwqvrfiet"),
        re.compile(rb"UFJJVkFURSBLRV|BSSVZBVEUgS0VZ|QUklWQVRFIEtFW"),
    ),
    # PKCS #8 (RFC 5958): version 0 or 1, the algorithm's OID (RSA, RSA-PSS, EC, X25519 to Ed448)
    (
        "a private key (PKCS #8)",
        (),
        re.compile(
            rb"\x02\x01[\x00\x01]\x30.(?:\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01[\x01\x0a]"
            rb"|\x06\x07\x2a\x86\x48\xce\x3d\x02\x01|\x06\x03\x2b\x65[\x6e-\x71])",
            re.DOTALL,
        ),
    ),
    # PKCS #1 (RFC 8017): a sequence of version 0 and a long number
    ("a private key (PKCS #1)", (), re.compile(rb"\x30\x82..\x02\x01\x00\x02(?:\x82..|\x81.)\x00", re.DOTALL)),
    # SEC 1 (RFC 5915): version 1, then the number as 24 to 66 bytes
    ("a private key (SEC 1)", (), re.compile(rb"\x30(?:.|\x81.)\x02\x01\x01\x04[\x18-\x42]", re.DOTALL)),
    # PBES2, and PKCS #12: version 3, then data or signed data
    ("an encrypted private key", (), re.compile(rb"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05[\x0d\x03\x0a]")),
    (
        "a PKCS #12 store",
        (),
        re.compile(rb"\x02\x01\x03\x30.{1,5}?\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07[\x01\x02]", re.DOTALL),
    ),
    (
        "credentials in a header",
        (b"bearer ", b"basic "),
        re.compile(rb"\b(?:Bearer|Basic) [\w+/=.~-]{8,}", re.IGNORECASE),
    ),
    ("a password in an address", (), re.compile(rb"://[^/@\x00-\x20\x7f:]{1,100}:[^/@\x00-\x20\x7f]{1,100}@")),
)


def why_secret(resource: bytes) -> str:
    """Return why a raw google.protobuf.Any may not be written, without quoting it; empty if it may."""
    try:
        top = next((resource[start:end] for number, start, end in fields(resource) if number == 1), b"")
        if not top.rpartition(b"/")[2]:
            return "it has no type"
        for name, end in _types(resource):
            if reason := _check_type(name, resource, end):
                return reason
    except BadMessage:
        return "it cannot be read"
    low = resource.lower()
    if _has_word(low) and _has_header(resource):
        return "credentials in a header or in metadata"
    for name, hints, pattern in _PATTERNS:
        if (not hints or any(hint in low for hint in hints)) and pattern.search(resource):
            return name
    return "a token (JWT)" if _has_token(resource) else ""


def _has_token(data: bytes) -> bool:
    """Return True if there are two texts in base64 that begin like JSON, each followed by a dot (RFC 7515)."""
    return b".eyJ" in data and any(b"eyJ" in match[1][:-8] for match in _TOKEN.finditer(data))


def _has_word(low: bytes) -> bool:
    # A loop: an expression of a generator takes twice as long, and there are thousands of resources.
    for word in _WORDS:  # noqa: SIM110
        if word in low:
            return True
    return False


def _types(data: bytes) -> Iterator[tuple[str, int]]:
    """Yield each Any in ``data`` at any depth: the name of its type, and where that ends."""
    for match in _TYPE_URL.finditer(data):
        size = match[1][0] if len(match[1]) == 1 else (match[1][0] & 0x7F) + 0x80
        end = match.start(2) + size
        name = _NAME.fullmatch(data, match.start(2), end)
        if name is None:
            continue  # a text that contains a path, such as the format of an access log
        yield name[1].decode("ascii"), end


def _check_type(name: str, data: bytes, end: int) -> str:
    if name == SECRET:
        return "it is a Secret"
    if name in _HARMLESS or name.startswith(_HARMLESS_FAMILIES):
        return ""
    if name not in _FORBIDDEN:
        return f"{name} could hold a secret"
    # The value follows; an empty one is omitted.
    if data[end : end + 1] == b"\x12":
        _, start, stop = next(fields(data, end))
        if any(_has(data, start, stop, path) for path in _FORBIDDEN[name]):
            return f"{name} holds a secret"
    return ""


def _has(data: bytes, start: int, end: int, path: Path) -> bool:
    """Return True if there is a field at ``path``."""
    return any(
        len(path) == 1 or _has(data, first, last, path[1:])
        for number, first, last in fields(data, start, end)
        if number == path[0]
    )


def _has_header(data: bytes) -> bool:
    for match in _HEADER.finditer(data):
        # A text, or (in a Struct) a Value with a text; a message would begin with a tag, which is not a letter.
        value = match[1]
        if value[0] == 0x1A:
            value = value[2:]
        if all(letter >= 0x20 for letter in value):
            return True
    return False
