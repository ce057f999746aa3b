"""Request and response of the bootstrap exchange, with Kuma's exact JSON names (Kuma 2.8 to 2.14)."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from msgspec import Struct

from kumadp.bootstrap.prepare import Aggregated
from kumadp.decoding import decode_json


class RequestFacts(Struct, frozen=True):
    """The content of a bootstrap request. ``resource`` is the text of `kumadp.resources.wire.request_json` or empty.

    ``app_probe_proxy``: the application probe proxy is on. ``transparent_proxy`` is `TransparentProxy.wire`,
    ``otel_env`` is what `kumadp.otel.environment.inventory` returns.
    """

    mesh: str
    name: str
    proxy_type: str
    token: str
    token_path: str
    resource: str
    kumadp_version: str
    envoy_version: str
    envoy_build: str
    envoy_compatible: bool
    ca_cert: str
    metadata: dict[str, str]
    dns_port: int
    readiness_port: int
    features: tuple[str, ...]
    max_heap_bytes: int
    workdir: str
    metrics_cert_path: str
    metrics_key_path: str
    system_ca_path: str
    ipv6_enabled: bool
    spire_socket_path: str
    app_probe_proxy: bool = False
    transparent_proxy: dict[str, Any] | None = None
    otel_env: dict[str, Any] | None = None
    operating_system: str = "linux"


def encode_request(facts: RequestFacts) -> bytes:
    """Encode the body of ``POST /bootstrap``: JSON indented by one space, keys in Kuma's order, empty ones omitted."""
    body: dict[str, Any] = {"mesh": facts.mesh, "name": facts.name, "proxyType": facts.proxy_type}
    optional = {
        "dataplaneToken": facts.token,
        "dataplaneTokenPath": facts.token_path,
        "dataplaneResource": facts.resource,
    }
    body |= {key: value for key, value in optional.items() if value}
    unknown = {"gitTag": "unknown", "gitCommit": "unknown", "buildDate": "unknown"}
    body["version"] = {
        "kumaDp": {"version": facts.kumadp_version, **unknown},
        "envoy": {
            "version": facts.envoy_version,
            "build": facts.envoy_build,
            "kumaDpCompatible": facts.envoy_compatible,
        },
    }
    body |= {"caCert": facts.ca_cert, "dynamicMetadata": facts.metadata}
    if facts.otel_env is not None:
        body["otelEnv"] = facts.otel_env
    body |= {key: port for key, port in (("dnsPort", facts.dns_port), ("readinessPort", facts.readiness_port)) if port}
    if facts.app_probe_proxy:
        # In Kuma, since 2.9, the name is the opposite of its meaning.
        body["appProbeProxyDisabled"] = True
    body |= {
        "operatingSystem": facts.operating_system,
        "features": list(facts.features),
        "resources": {"maxHeapSizeBytes": facts.max_heap_bytes},
        "workdir": facts.workdir,
        "metricsResources": {"certPath": facts.metrics_cert_path, "keyPath": facts.metrics_key_path},
        "systemCaPath": facts.system_ca_path,
    }
    if facts.transparent_proxy is not None:
        body["dataplaneConfig"] = facts.transparent_proxy
    body |= {"ipv6Enabled": facts.ipv6_enabled, "spireResources": {"socketPath": facts.spire_socket_path}}
    return json.dumps(body, indent=1, ensure_ascii=False).encode()


class BootstrapAnswer(Struct, frozen=True):
    """The control plane's answer: the bootstrap's YAML, and the configuration of the sidecar itself.

    ``url`` is the control plane address that answered.
    """

    bootstrap: bytes
    corefile_template: str | None
    address: str
    url: str = ""
    aggregate: tuple[Aggregated, ...] = ()


class UndecodableAnswer(ValueError):
    """A 200 whose body is not a bootstrap; it is retried, as it may be of a proxy in between."""


def decode_answer(body: bytes, url: str = "") -> BootstrapAnswer:
    """Decode the answer of ``url`` to a request that accepts JSON; raises UndecodableAnswer."""
    try:
        tree = decode_json(body)
        text = base64.b64decode(tree["bootstrap"], validate=True)
        sidecar = tree.get("kumaSidecarConfiguration") or {}
        networking = sidecar.get("networking") or {}
        template = networking.get("corefileTemplate")
        corefile = base64.b64decode(template).decode() if template else None
        aggregate = tuple(map(_aggregated, (sidecar.get("metrics") or {}).get("aggregate") or ()))
        return BootstrapAnswer(text, corefile, str(networking.get("address") or ""), url, aggregate)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise UndecodableAnswer(f"the answer is not a bootstrap: {type(error).__name__}") from None


def _aggregated(entry: dict[str, Any]) -> Aggregated:
    name, address, path = (str(entry.get(key) or "") for key in ("name", "address", "path"))
    return Aggregated(name, address, int(entry.get("port") or 0), path)
