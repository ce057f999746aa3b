"""The bootstrap request that follows a reload holds the new values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from kumadp.controlplane.bootstrap_client import KumaClient, Sidecar, Versions
from kumadp.host.work_dir import open_work_dir
from kumadp.settings.model import Settings
from kumadp.settings.reload import reloaded

if TYPE_CHECKING:
    from pathlib import Path

# {"alg": "RS256"} and {}.
TOKEN = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"
CURRENT = Settings(name="web", mesh="default", strict_inbound_ports=False, ipv6_enabled=False)


def sent(client: KumaClient) -> dict[str, Any]:
    body, _trust = client._request()
    read: dict[str, Any] = json.loads(body)
    return read


@pytest.fixture
def client(tmp_path: Path) -> KumaClient:
    work = open_work_dir("web", str(tmp_path / "work"), "", "", {})
    return KumaClient(CURRENT, None, work, Versions("1.40.0"), Sidecar())


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("host_ip", "192.0.2.1", ("dynamicMetadata", "HOST_IP")),
        ("max_memory_bytes", 1 << 30, ("resources", "maxHeapSizeBytes")),
        ("metrics_cert_path", "/tls/cert", ("metricsResources", "certPath")),
        ("metrics_key_path", "/tls/key", ("metricsResources", "keyPath")),
        ("spire_socket_path", "/spire.sock", ("spireResources", "socketPath")),
        ("system_ca_path", "/ca.pem", ("systemCaPath",)),
        ("token", TOKEN, ("dataplaneToken",)),
    ],
)
def test_a_value_of_the_request(client: KumaClient, field: str, value: object, path: tuple[str, ...]) -> None:
    def in_force() -> object:
        part: Any = sent(client)
        for key in path:
            part = part.get(key, {})
        return part

    assert in_force() != value
    client.settings, restart = reloaded(CURRENT, replace(CURRENT, **{field: value}))
    assert (in_force(), restart) == (value, ())


@pytest.mark.parametrize(
    ("field", "feature"),
    [
        ("spire_supported", "feature-spire"),
        ("strict_inbound_ports", "feature-strict-inbound-ports"),
        ("unified_resource_naming", "feature-unified-resource-naming"),
    ],
)
def test_a_feature_of_the_request(client: KumaClient, field: str, feature: str) -> None:
    assert feature not in sent(client)["features"]
    client.settings, restart = reloaded(CURRENT, replace(CURRENT, **{field: True}))
    assert feature in sent(client)["features"]
    assert restart == ()


def test_ipv6_of_the_request(client: KumaClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kumadp.host.facts.has_ipv6", lambda: True)
    assert sent(client)["ipv6Enabled"] is False
    client.settings, _ = reloaded(CURRENT, replace(CURRENT, ipv6_enabled=True))
    assert sent(client)["ipv6Enabled"] is True


def test_how_the_control_plane_is_verified(client: KumaClient, tmp_path: Path) -> None:
    assert client.trust().verify
    client.settings, _ = reloaded(CURRENT, replace(CURRENT, skip_verify=True))
    assert not client.trust().verify


def test_the_file_of_the_token(client: KumaClient, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    assert "dataplaneToken" not in sent(client)
    client.settings, _ = reloaded(CURRENT, replace(CURRENT, token_path=str(tmp_path / "token")))
    assert sent(client)["dataplaneToken"] == TOKEN
