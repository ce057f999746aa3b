"""Rewrite of a bootstrap's xDS services to the relay's Unix socket: Envoy then has no control plane, token or CA."""

from __future__ import annotations

import base64
import copy
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msgspec import Struct

from kumadp.bootstrap.fields import drop, get, put
from kumadp.bootstrap.generation import requires_delta
from kumadp.errors import BootstrapError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# unix(7): sun_path has 108 bytes, the last one is 0.
LONGEST_SOCKET_PATH = 107
# Kuma 2.8 to 2.14 give the control plane's CA in this static secret and use it nowhere else.
CA_SECRET = "cp_validation_ctx"  # noqa: S105 - the name of a certificate
# Kuma's own name of the cluster, if the bootstrap names none (googleGrpc).
CLUSTER = "ads_cluster"
# With Envoy's default of 0.5 s to 30 s it would stay disconnected long after the relay is back.
RETRY = {"retryBackOff": {"baseInterval": "0.1s", "maxInterval": "1s"}}
# Fields of a cluster that still apply to a Unix socket.
_CLUSTER_FIELDS = ("name", "altStatName", "connectTimeout", "lbPolicy", "circuitBreakers", "metadata")
_PROTOCOL = ("typedExtensionProtocolOptions", "http2ProtocolOptions")
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_HTTP2 = {
    _OPTIONS: {"@type": f"type.googleapis.com/{_OPTIONS}", "explicitHttpConfig": {"http2ProtocolOptions": {}}},
}


class Upstream(Struct, frozen=True):
    """The control plane's address that was in the bootstrap.

    ``server_name`` is the name that the certificate must have; ``tls`` is False if the cluster had no TLS. ``metadata``
    are the request headers without ``authorization``; ``ca_inline`` is the CA as PEM, None without one.
    """

    host: str
    port: int
    server_name: str
    metadata: dict[str, str]
    ca_inline: bytes | None
    tls: bool = True


class Rewritten(Struct, frozen=True):
    """A bootstrap whose ADS and HDS go to the relay's socket, and their original destination.

    ``delta`` is True if the control plane offered delta xDS; the relay uses state of the world, so Envoy does too.
    """

    bootstrap: dict[str, Any]
    upstream: Upstream
    delta: bool = False


def rewrite_for_relay(bootstrap: Mapping[str, Any], socket_path: str) -> Rewritten:
    """Return a copy of ``bootstrap`` whose xDS goes to the Unix socket at ``socket_path``; raises BootstrapError.

    Supports the bootstraps of Kuma 2.8 to 2.14: ``envoyGrpc`` to a static cluster of any name, or ``googleGrpc`` with a
    token file (option enableReloadableTokens). ``node`` and everything else are unchanged.
    """
    if len(socket_path.encode()) > LONGEST_SOCKET_PATH:
        hint = f"a Unix socket's path has at most {LONGEST_SOCKET_PATH} bytes: choose a shorter --work-dir"
        raise BootstrapError([Problem(socket_path, "is too long for a socket", hint)])
    tree = copy.deepcopy(dict(bootstrap))
    sources = [
        (path, config)
        for path, config in (
            ("dynamicResources.adsConfig", get(tree, "dynamicResources", "adsConfig")),
            ("hdsConfig", get(tree, "hdsConfig")),
        )
        if isinstance(config, dict)
    ]
    if not sources or sources[0][0] == "hdsConfig":
        raise BootstrapError([Problem("dynamicResources.adsConfig", "is missing", "--xds-relay=off works without it")])
    name = next(filter(None, (_cluster_name(config) for _, config in sources)), CLUSTER)
    upstream: Upstream | None = None
    for path, config in sources:
        service = _service(path, config)
        upstream = upstream or _upstream(tree, path, service)
        _send_to_socket(tree, service, name, socket_path)
    _service(*sources[0])["envoyGrpc"]["retryPolicy"] = RETRY
    delta = requires_delta(tree)
    for _, config in sources:
        put(config, "apiType", "GRPC")
    _drop_ca(tree)
    assert upstream is not None  # noqa: S101 - the source of ADS exists
    return Rewritten(tree, upstream, delta)


def _service(path: str, config: dict[str, Any]) -> dict[str, Any]:
    services = get(config, "grpcServices")
    if not isinstance(services, list) or len(services) != 1 or not isinstance(services[0], dict):
        raise BootstrapError([Problem(f"{path}.grpcServices", "is not one service")])
    service: dict[str, Any] = services[0]
    return service


def _cluster_name(config: dict[str, Any]) -> str:
    for service in get(config, "grpcServices") or []:
        if name := get(service, "envoyGrpc", "clusterName"):
            return str(name)
    return ""


def _upstream(tree: dict[str, Any], path: str, service: dict[str, Any]) -> Upstream:
    metadata = {
        str(get(item, "key")): str(get(item, "value") or "")
        for item in get(service, "initialMetadata") or []
        if str(get(item, "key")).lower() != "authorization"
    }
    if (google := get(service, "googleGrpc")) is not None:
        return _from_google(path, google, metadata)
    name = get(service, "envoyGrpc", "clusterName")
    cluster = _cluster(tree, name)
    if cluster is None:
        raise BootstrapError([Problem(path, f"names the cluster {name!r}, which does not exist")])
    address = next(_addresses(cluster), None)
    host, port = get(address, "address"), get(address, "portValue")
    if not host or not str(port).isdigit():
        raise BootstrapError([Problem(f"cluster {name!r}", "has no address and port")])
    tls = get(cluster, "transportSocket", "typedConfig")
    ca = _ca(tree, tls)
    server_name = str(get(tls, "sni") or host)
    return Upstream(str(host), int(port), server_name, metadata, ca, tls is not None)


def _from_google(path: str, google: Any, metadata: dict[str, str]) -> Upstream:
    target = str(get(google, "targetUri") or "")
    try:
        # gRPC's name syntax has an optional scheme: dns:///host:port.
        parts = urlsplit("//" + target.rpartition("/")[2])
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or not port:
        raise BootstrapError([Problem(f"{path}.googleGrpc.targetUri", f"{target!r} is not host:port")])
    roots = get(google, "channelCredentials", "sslCredentials", "rootCerts")
    return Upstream(host, port, host, metadata, _data(roots, path))


def _ca(tree: dict[str, Any], tls: Any) -> bytes | None:
    """Return the CA that a TLS context trusts: its own, or that of the static secret it names."""
    common = get(tls, "commonTlsContext")
    direct = get(common, "validationContext") or get(common, "combinedValidationContext", "defaultValidationContext")
    if direct is not None:
        return _data(get(direct, "trustedCa"), "validationContext")
    secret_name = get(common, "validationContextSdsSecretConfig", "name")
    for secret in get(tree, "staticResources", "secrets") or []:
        if secret_name and get(secret, "name") == secret_name:
            return _data(get(secret, "validationContext", "trustedCa"), str(secret_name))
    return None


def _data(source: Any, where: str) -> bytes | None:
    """Return what an inline DataSource holds, None if it is empty or a file."""
    if text := get(source, "inlineString"):
        return str(text).encode()
    if encoded := get(source, "inlineBytes"):
        try:
            return base64.b64decode(str(encoded), validate=True)
        except ValueError:
            raise BootstrapError([Problem(where, "the CA is not base64")]) from None
    return None


def _send_to_socket(tree: dict[str, Any], service: dict[str, Any], name: str, socket_path: str) -> None:
    """Send one gRPC service to the socket: no headers, no Google client, a cluster with a pipe."""
    name = str(get(service, "envoyGrpc", "clusterName") or name)
    for field in ("initialMetadata", "googleGrpc", "envoyGrpc"):
        drop(service, field)
    service["envoyGrpc"] = {"clusterName": name}
    cluster = _cluster(tree, name)
    piped = _piped(cluster or {"name": name, "connectTimeout": "1s"}, name, socket_path)
    if cluster is None:
        _clusters(tree).append(piped)
    else:
        cluster.clear()
        cluster.update(piped)


def _piped(cluster: dict[str, Any], name: str, socket_path: str) -> dict[str, Any]:
    fields = {key: value for key in _CLUSTER_FIELDS if (value := get(cluster, key)) is not None}
    protocol = {key: value for key in _PROTOCOL if (value := get(cluster, key)) is not None}
    endpoint = {"endpoint": {"address": {"pipe": {"path": socket_path}}}}
    return {
        **fields,
        "type": "STATIC",
        "loadAssignment": {"clusterName": name, "endpoints": [{"lbEndpoints": [endpoint]}]},
        **(protocol or {"typedExtensionProtocolOptions": _HTTP2}),
    }


def _clusters(tree: dict[str, Any]) -> list[Any]:
    static = get(tree, "staticResources")
    if not isinstance(static, dict):
        static = {}
        put(tree, "staticResources", static)
    if not isinstance(static.get("clusters"), list):
        static["clusters"] = []
    clusters: list[Any] = static["clusters"]
    return clusters


def _cluster(tree: dict[str, Any], name: Any) -> dict[str, Any] | None:
    for cluster in get(tree, "staticResources", "clusters") or []:
        if isinstance(cluster, dict) and cluster.get("name") == name:
            return cluster
    return None


def _addresses(cluster: dict[str, Any]) -> Iterator[Any]:
    for locality in get(cluster, "loadAssignment", "endpoints") or []:
        for endpoint in get(locality, "lbEndpoints") or []:
            yield get(endpoint, "endpoint", "address", "socketAddress")


def _drop_ca(tree: dict[str, Any]) -> None:
    static = get(tree, "staticResources")
    secrets = get(static, "secrets")
    if not isinstance(secrets, list):
        return
    others = [secret for secret in secrets if get(secret, "name") != CA_SECRET]
    if others:
        static["secrets"] = others
    else:
        del static["secrets"]
