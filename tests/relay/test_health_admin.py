"""Where the check of Envoy's admin goes."""

from __future__ import annotations

import pytest
from envoy.service.health.v3 import hds_pb2
from google.protobuf import json_format

from kumadp.relay.health_admin import admin_socket, with_admin_socket

SOCKET = "dataplane.admin.socketPath"
PATH = "/run/kumadp/web-01/kuma-envoy-admin.sock"


def first_message(**metadata: str) -> bytes:
    """Encode what Envoy sends first, with the metadata of its bootstrap."""
    node = {"id": "default.web-01", "metadata": {"features": ["one"], **metadata, "version": {"envoy": {}}}}
    tree = {"healthCheckRequest": {"node": node, "capability": {"healthCheckProtocols": ["HTTP"]}}}
    message = json_format.ParseDict(tree, hds_pb2.HealthCheckRequestOrEndpointHealthResponse())
    return bytes(message.SerializeToString())


def check(name: str, port: int, **more: object) -> dict[str, object]:
    address = {"socketAddress": {"address": "127.0.0.1", "portValue": port}}
    checks = [{"timeout": "1s", "interval": "1s", "unhealthyThreshold": 1, "healthyThreshold": 1, **more}]
    return {
        "clusterName": name,
        "healthChecks": checks,
        "localityEndpoints": [{"endpoints": [{"address": address}]}],
        "upstreamBindConfig": {"sourceAddress": {"address": "127.0.0.6", "portValue": 0}},
    }


def specifier(*checks: dict[str, object]) -> hds_pb2.HealthCheckSpecifier:
    tree = {"clusterHealthChecks": list(checks), "interval": "5s"}
    return json_format.ParseDict(tree, hds_pb2.HealthCheckSpecifier())


def test_the_socket_is_read_from_the_node() -> None:
    assert admin_socket(first_message(**{"dataplane.admin.port": "9901"})) == ""
    metadata = {"dataplane.admin.port": "9901", SOCKET: PATH, "dataplane.proxyType": "dataplane"}
    assert admin_socket(first_message(**metadata)) == PATH


@pytest.mark.parametrize("data", [b"", b"\x0a", b"\x0a\x04\x0a\x02\x1a\x7f", b"\x07", b"node"])
def test_what_cannot_be_read_has_no_socket(data: bytes) -> None:
    assert admin_socket(data) == ""


@pytest.mark.parametrize("name", ["kuma:envoy:admin", "system_envoy_admin"])
def test_the_admin_is_checked_at_its_socket_and_nothing_else_changes(name: str) -> None:
    sent = specifier(
        check("localhost:8080", 8080, tcpHealthCheck={}), check(name, 9901, httpHealthCheck={"path": "/ready"})
    )
    changed = hds_pb2.HealthCheckSpecifier.FromString(with_admin_socket(sent.SerializeToString(), PATH))
    (locality,) = changed.cluster_health_checks[1].locality_endpoints
    (endpoint,) = locality.endpoints
    assert endpoint.address.pipe.path == PATH
    endpoint.address.CopyFrom(sent.cluster_health_checks[1].locality_endpoints[0].endpoints[0].address)
    assert changed == sent
    again = with_admin_socket(sent.SerializeToString(), PATH)
    assert with_admin_socket(again, PATH) == again


def test_without_a_check_of_the_admin_nothing_changes() -> None:
    sent = bytes(specifier(check("localhost:8080", 8080, tcpHealthCheck={})).SerializeToString(deterministic=True))
    assert (
        hds_pb2.HealthCheckSpecifier.FromString(with_admin_socket(sent, PATH)).SerializeToString(deterministic=True)
        == sent
    )


@pytest.mark.parametrize("data", [b"\x0a\x7f", b"\x07", b"\x0a\x02\x0a\x7f"])
def test_an_unreadable_specifier_is_passed_on(data: bytes) -> None:
    assert with_admin_socket(data, PATH) == data
