"""Which resources may be written to disk: keys and tokens are detected anywhere; resources of Kuma pass."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, grpc_service_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.config.trace.v3 import opentelemetry_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.extensions.access_loggers.open_telemetry.v3 import logs_service_pb2
from envoy.extensions.filters.http.basic_auth.v3 import basic_auth_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2  # noqa: F401 - a type of a captured listener
from envoy.extensions.filters.http.oauth2.v3 import oauth_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401 - as above
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401 - as above
from google.protobuf import any_pb2, json_format, struct_pb2, wrappers_pb2

from kumadp.relay.secret_scan import _has_token, why_secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
AUTHORITY = trustme.CA()
ISSUED = AUTHORITY.issue_cert("external.example")
CERTIFICATE = ISSUED.cert_chain_pems[0].bytes()
KEY = ISSUED.private_key_pem.bytes()
PLAIN = serialization.NoEncryption()


def packed(message: Message, prefix: str = "type.googleapis.com/") -> any_pb2.Any:
    built = any_pb2.Any()
    built.Pack(message, prefix)
    return built


def raw(message: Message) -> bytes:
    return bytes(packed(message).SerializeToString(deterministic=True))


def cluster(context: Message, prefix: str = "type.googleapis.com/") -> bytes:
    """A cluster with this as its transport socket."""
    built = cluster_pb2.Cluster(name="external")
    built.transport_socket.name = "envoy.transport_sockets.tls"
    built.transport_socket.typed_config.CopyFrom(packed(context, prefix))
    return raw(built)


def upstream(**certificate: Any) -> tls_pb2.UpstreamTlsContext:
    one = common_pb2.TlsCertificate(certificate_chain=base_pb2.DataSource(inline_bytes=CERTIFICATE), **certificate)
    return tls_pb2.UpstreamTlsContext(
        sni="external.example",
        common_tls_context=tls_pb2.CommonTlsContext(
            tls_certificates=[one],
            validation_context=common_pb2.CertificateValidationContext(
                trusted_ca=base_pb2.DataSource(inline_bytes=AUTHORITY.cert_pem.bytes())
            ),
        ),
    )


def listener(*filters: Message, route: route_pb2.RouteConfiguration | None = None, **connection: Any) -> bytes:
    """A listener with these HTTP filters."""
    manager = hcm_pb2.HttpConnectionManager(stat_prefix="web", **connection)
    if route is not None:
        manager.route_config.CopyFrom(route)
    for one in (*filters, router_pb2.Router()):
        manager.http_filters.add(name="filter").typed_config.CopyFrom(packed(one))
    built = listener_pb2.Listener(name="inbound")
    built.filter_chains.add().filters.add(name="hcm").typed_config.CopyFrom(packed(manager))
    return raw(built)


def source(value: bytes | str) -> base_pb2.DataSource:
    if isinstance(value, str):
        return base_pb2.DataSource(inline_string=value)
    return base_pb2.DataSource(inline_bytes=value)


def der(key: Any, form: serialization.PrivateFormat, encryption: Any = PLAIN) -> bytes:
    return bytes(key.private_bytes(serialization.Encoding.DER, form, encryption))


PKCS8, TRADITIONAL = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL
RSA, RSA1024, EC = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 1024), ec.generate_private_key
KEYS: dict[str, Callable[[], bytes]] = {
    "PEM": lambda: KEY,
    "PEM in base64": lambda: base64.b64encode(KEY),
    "PEM in base64, one further": lambda: base64.b64encode(b" " + KEY),
    "PEM in base64, two further": lambda: base64.b64encode(b"  " + KEY),
    "encrypted PEM": lambda: RSA.private_bytes(
        serialization.Encoding.PEM, PKCS8, serialization.BestAvailableEncryption(b"x")
    ),
    "PKCS 8 RSA": lambda: der(RSA, PKCS8),
    "PKCS 8 P-256": lambda: der(EC(ec.SECP256R1()), PKCS8),
    "PKCS 8 Ed25519": lambda: der(ed25519.Ed25519PrivateKey.generate(), PKCS8),
    "PKCS 8 encrypted": lambda: der(RSA, PKCS8, serialization.BestAvailableEncryption(b"x")),
    "PKCS 1": lambda: der(RSA, TRADITIONAL),
    "PKCS 1, 1024 bits": lambda: der(RSA1024, TRADITIONAL),
    "DSA": lambda: der(dsa.generate_private_key(1024), TRADITIONAL),
    "SEC 1 P-256": lambda: der(EC(ec.SECP256R1()), TRADITIONAL),
    "SEC 1 P-521": lambda: der(EC(ec.SECP521R1()), TRADITIONAL),
    "PKCS 12": lambda: pkcs12.serialize_key_and_certificates(b"x", RSA, None, None, PLAIN),
}


@pytest.mark.parametrize("form", KEYS)
def test_a_key_is_detected_in_any_type(form: str) -> None:
    built = cluster_pb2.Cluster(name="external")
    built.typed_extension_protocol_options["x"].CopyFrom(
        packed(file_pb2.FileAccessLog(path=base64.b85encode(b"nothing").decode()))
    )
    assert why_secret(raw(built)) == ""
    # In a field that no type forbids, as somebody's proxy patch could put it.
    value = KEYS[form]()
    holder = any_pb2.Any(
        type_url="type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        value=wrappers_pb2.BytesValue(value=value).SerializeToString(),
    )
    built.typed_extension_protocol_options["y"].CopyFrom(holder)
    assert why_secret(raw(built)).startswith(("a private key", "an encrypted private key", "a PKCS #12 store"))


@pytest.mark.parametrize(
    "certificate",
    [
        {"private_key": source(KEY)},
        {"private_key": source(KEY.decode())},
        {"private_key": source(b"a form of tomorrow")},
        {"private_key": source("a form of tomorrow")},
        {"password": source("a")},
        {"pkcs12": source(b"a")},
        {"private_key_provider": common_pb2.PrivateKeyProvider(provider_name="cryptomb")},
    ],
)
@pytest.mark.parametrize("prefix", ["type.googleapis.com/", "/", "other.example/some/where/"])
def test_the_client_key_of_an_external_service(certificate: dict[str, Any], prefix: str) -> None:
    for context in (
        upstream(**certificate),
        tls_pb2.DownstreamTlsContext(common_tls_context=upstream(**certificate).common_tls_context),
    ):
        reason = why_secret(cluster(context, prefix))
        assert reason.endswith("TlsContext holds a secret")
        assert "tomorrow" not in reason


def test_certificates_and_files_are_no_secret() -> None:
    assert why_secret(cluster(upstream())) == ""
    assert why_secret(cluster(upstream(private_key=base_pb2.DataSource(filename="/etc/key.pem")))) == ""
    chain = x509.load_pem_x509_certificate(CERTIFICATE).public_bytes(serialization.Encoding.DER)
    context = upstream()
    context.common_tls_context.validation_context.trusted_ca.inline_bytes = chain
    assert why_secret(cluster(context)) == ""
    names = secret_pb2.SdsSecretConfig(name="identity_cert:secret:default")
    common = tls_pb2.CommonTlsContext(tls_certificate_sds_secret_configs=[names])
    assert why_secret(cluster(tls_pb2.UpstreamTlsContext(common_tls_context=common))) == ""


def test_session_ticket_keys() -> None:
    keys = common_pb2.TlsSessionTicketKeys(keys=[source(b"k" * 80)])
    assert "holds a secret" in why_secret(cluster(tls_pb2.DownstreamTlsContext(session_ticket_keys=keys)))
    keys = common_pb2.TlsSessionTicketKeys(keys=[base_pb2.DataSource(filename="/etc/tickets")])
    assert why_secret(cluster(tls_pb2.DownstreamTlsContext(session_ticket_keys=keys))) == ""


@pytest.mark.parametrize(
    "secret",
    [
        secret_pb2.Secret(name="identity"),
        secret_pb2.Secret(name="hmac", generic_secret=secret_pb2.GenericSecret(secret=source("hmac"))),
    ],
)
def test_a_secret_resource_is_always_secret(secret: secret_pb2.Secret) -> None:
    assert why_secret(raw(secret)) == "it is a Secret"


def test_filters_with_passwords_are_not_let_through() -> None:
    users = basic_auth_pb2.BasicAuth(users=source("user:{SHA}t0pS3cr3t="))
    assert why_secret(listener(users)) == "envoy.extensions.filters.http.basic_auth.v3.BasicAuth could hold a secret"
    sds = secret_pb2.SdsSecretConfig(name="hmac")
    oauth = oauth_pb2.OAuth2(
        config=oauth_pb2.OAuth2Config(credentials=oauth_pb2.OAuth2Credentials(client_id="web", hmac_secret=sds))
    )
    assert "OAuth2 could hold a secret" in why_secret(listener(oauth))
    assert why_secret(listener(struct_pb2.Struct())) == "google.protobuf.Struct could hold a secret"


def test_a_password_for_one_route() -> None:
    route = route_pb2.RouteConfiguration(name="inbound")
    host = route.virtual_hosts.add(name="web", domains=["*"])
    host.typed_per_filter_config["envoy.filters.http.basic_auth"].CopyFrom(
        packed(basic_auth_pb2.BasicAuthPerRoute(users=source("user:{SHA}t0pS3cr3t=")))
    )
    assert "BasicAuthPerRoute could hold a secret" in why_secret(raw(route))
    assert "BasicAuthPerRoute could hold a secret" in why_secret(listener(route=route))


@pytest.mark.parametrize(
    "name", ["authorization", "Authorization", "X-Api-Key", "cookie", "x-vault-token", "db-password"]
)
def test_credentials_that_a_route_adds(name: str) -> None:
    for header in (
        base_pb2.HeaderValue(key=name, value="t0pS3cr3t"),
        base_pb2.HeaderValue(key=name, raw_value=b"t0pS3cr3t"),
        base_pb2.HeaderValue(key=name, value="t0pS3cr3t" * 100),
    ):
        route = route_pb2.RouteConfiguration(name="inbound")
        route.request_headers_to_add.add().header.CopyFrom(header)
        assert why_secret(listener(route=route)) == "credentials in a header or in metadata"


@pytest.mark.parametrize("name", ["authorization", "secret-santa", "cookie-shop", "token"])
def test_a_service_may_be_called_so(name: str) -> None:
    route = route_pb2.RouteConfiguration(name=name)
    host = route.virtual_hosts.add(name=name, domains=["cookie-shop.mesh"])
    weighted = host.routes.add(name=name).route.weighted_clusters.clusters.add(name=name)
    weighted.weight.value = 100
    assert why_secret(listener(route=route)) == ""
    assert why_secret(raw(route)) == ""
    endpoints = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    endpoints.endpoints.add().lb_endpoints.add().metadata.filter_metadata["envoy.lb"].update({"kuma.io/service": name})
    assert why_secret(raw(endpoints)) == ""
    assert why_secret(raw(cluster_pb2.Cluster(name=name, load_assignment=endpoints, alt_stat_name=name))) == ""


def test_a_secret_in_metadata() -> None:
    built = cluster_pb2.Cluster(name="external")
    built.metadata.filter_metadata["some.filter"].update({"client_secret": "t0pS3cr3t"})
    assert why_secret(raw(built)) == "credentials in a header or in metadata"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Bearer 0123456789abcdef", "credentials in a header"),
        ("basic dXNlcjpwYXNzd29yZA==", "credentials in a header"),
        ("eyJhbGciOiJSUzI1NiJ9.eyJOYW1lIjoid2ViIn0.c2lnbmF0dXJl", "a token (JWT)"),
        ("https://user:t0pS3cr3t@collector.example/", "a password in an address"),
    ],
)
def test_forms_that_tokens_have(text: str, reason: str) -> None:
    assert why_secret(raw(cluster_pb2.Cluster(name="external", alt_stat_name=text))) == reason


def test_a_health_check_that_logs_in() -> None:
    built = cluster_pb2.Cluster(name="redis")
    built.health_checks.add().tcp_health_check.send.text = "2a320d0a"
    assert "Cluster holds a secret" in why_secret(raw(built))
    built.health_checks[0].tcp_health_check.Clear()
    built.health_checks[0].tcp_health_check.SetInParent()
    assert why_secret(raw(built)) == ""


def test_credentials_of_googles_client() -> None:
    envoy = grpc_service_pb2.GrpcService(envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name="collector"))
    google = grpc_service_pb2.GrpcService()
    google.google_grpc.target_uri = "collector:4317"
    google.google_grpc.call_credentials.add().access_token = "t0pS3cr3t"
    secret = "holds a secret"
    for service, reason in ((envoy, ""), (google, secret)):
        common = als_pb2.CommonGrpcAccessLogConfig(log_name="x", grpc_service=service)
        for holder in (
            opentelemetry_pb2.OpenTelemetryConfig(grpc_service=service),
            logs_service_pb2.OpenTelemetryAccessLogConfig(common_config=common),
            als_pb2.HttpGrpcAccessLogConfig(common_config=common),
            als_pb2.TcpGrpcAccessLogConfig(common_config=common),
        ):
            assert why_secret(cluster(holder)).endswith(reason)
            assert bool(why_secret(cluster(holder))) == bool(reason)
    envoy.initial_metadata.add(key="authorization", value="t0pS3cr3t")
    assert why_secret(cluster(opentelemetry_pb2.OpenTelemetryConfig(grpc_service=envoy)))


def test_a_type_is_seen_after_a_length_that_ends_in_a_line_feed() -> None:
    # 10 is both the tag of an Any's first field and the end of the length 0xca 0x0a: the two overlap.
    for size in range(1290, 1420):
        users = basic_auth_pb2.BasicAuth(users=source("x" * (size - 80)))
        assert "BasicAuth could hold a secret" in why_secret(listener(users))


@pytest.mark.parametrize("data", [b"", b"\x0a", b"\x12\x00", b"\xff\xff", raw(cluster_pb2.Cluster(name="a"))[:-1]])
def test_what_cannot_be_read_is_not_written(data: bytes) -> None:
    assert why_secret(data)


def test_a_log_format_with_a_path_in_it_is_no_type() -> None:
    log = file_pb2.FileAccessLog(path="/dev/stdout")
    log.log_format.text_format_source.inline_string = "a\n<http://example/a.B.C and more\n"
    assert why_secret(cluster(log)) == ""


def captured() -> list[Any]:
    """Every resource that a real control plane sent, as Envoy showed it; secrets are left out there."""
    listed = []
    for path in sorted(CAPTURES.glob("*/*/config_dump.json")):
        for part in json.loads(path.read_text())["configs"]:
            for name, key in (("dynamic_active_clusters", "cluster"), ("dynamic_endpoint_configs", "endpoint_config")):
                listed += [item[key] for item in part.get(name, ())]
            listed += [item["active_state"]["listener"] for item in part.get("dynamic_listeners", ())]
    return listed


def test_all_that_a_real_control_plane_sent_passes() -> None:
    resources = captured()
    assert len(resources) > 20
    for resource in resources:
        message = json_format.ParseDict(resource, any_pb2.Any())
        assert why_secret(message.SerializeToString()) == "", resource.get("name")


TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJOYW1lIjoid2ViIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize("before", ["", "A", "xeyJ", "-_9", "eyJhbGciOiJSUzI1NiJ9.", "a.b.", " "])
def test_a_token_is_seen_wherever_it_stands(before: str) -> None:
    """The length before a text is often a letter."""
    assert _has_token(f"{before}{TOKEN}".encode())


@pytest.mark.parametrize("text", ["eyJ.eyJ.", "eyJhbGciOiJS.eyJ.c2ln", "eyJhbGciOiJS.x.eyJOYW1lIjoid2Vi.", "eyJ" * 9])
def test_what_is_no_token(text: str) -> None:
    assert not _has_token(text.encode())
