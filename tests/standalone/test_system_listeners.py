"""Listeners of Envoy's admin, Prometheus and DNS, and the names for DNS."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kumadp.standalone.generated_config import DnsListener, GeneratedConfig
from kumadp.standalone.mesh import Mesh, read_mesh
from kumadp.standalone.system_listeners import add_admin, add_dns, add_prometheus, add_ready, dns_names
from tests.standalone.meshes import PROBE, ours
from tests.support.mesh import Tree, inbound, outbound, reference, write

if TYPE_CHECKING:
    from pathlib import Path


def mesh_of(folder: Path, tree: Tree) -> Mesh:
    return read_mesh(write(folder, tree), "web")


@pytest.mark.parametrize(
    ("service", "names"),
    [
        ("backend", {"backend.mesh"}),
        ("back_end", {"back_end.mesh", "back.end.mesh"}),
        ("BackEnd", {"BackEnd.mesh", "backend.mesh"}),
        ("Back_End", {"Back_End.mesh", "Back.End.mesh", "back_end.mesh", "back.end.mesh"}),
        ("_", {"_.mesh"}),
        ("x" * 64, set()),
    ],
)
def test_names_of_a_service(tmp_path: Path, service: str, names: set[str]) -> None:
    mesh = mesh_of(tmp_path, ours(outbound(10001, service)))
    assert dns_names(mesh) == {name: {"127.0.0.1"} for name in names}


def test_names_of_references_are_those_of_both_generations(tmp_path: Path) -> None:
    mesh = mesh_of(tmp_path, ours(reference(10001, "backend", 80, "127.0.0.2"), reference(10002, "", 80, app="shop")))
    assert dns_names(mesh) == {"backend.mesh": {"127.0.0.2"}, "backend.svc.mesh.local": {"127.0.0.2"}}


def test_a_service_with_several_outbounds_has_all_their_addresses(tmp_path: Path) -> None:
    mesh = mesh_of(tmp_path, ours(outbound(10001, "backend", "127.0.0.3"), outbound(10001, "backend", "127.0.0.2")))
    assert dns_names(mesh) == {"backend.mesh": {"127.0.0.2", "127.0.0.3"}}
    config = GeneratedConfig()
    add_dns(mesh, DnsListener("127.0.0.1", 15053), config)
    (dns_filter,) = config.listeners["kuma:dns"]["listenerFilters"]
    (domain,) = dns_filter["typedConfig"]["serverConfig"]["inlineDnsTable"]["virtualDomains"]
    assert domain == {
        "name": "backend.mesh",
        "endpoint": {"addressList": {"address": ["127.0.0.2", "127.0.0.3"]}},
        "answerTtl": "30s",
    }
    assert config.listeners["kuma:dns"]["address"]["socketAddress"]["protocol"] == "UDP"


def test_the_admin_cluster(tmp_path: Path) -> None:
    config = GeneratedConfig()
    add_admin(mesh_of(tmp_path, ours()), config)
    assert '"portValue": 19901' in json.dumps(config.clusters["kuma_envoy_admin"])


def test_ready_has_a_503_for_each_unhealthy_inbound(tmp_path: Path) -> None:
    mesh = mesh_of(tmp_path, ours(inbounds=[inbound(18080, 8080, serviceProbe=PROBE)], address="10.0.0.1"))
    config = GeneratedConfig()
    add_ready(mesh, mesh.spec.networking.inbound, config)
    listener = config.listeners["kuma:envoy:admin"]
    assert listener["address"]["socketAddress"] == {"address": "10.0.0.1", "portValue": 19901}
    routes = listener["filterChains"][0]["filters"][0]["typedConfig"]["routeConfig"]["virtualHosts"][0]["routes"]
    assert [route.get("directResponse") for route in routes] == [{"status": 503}, None]
    assert routes[0]["match"]["headers"][0]["stringMatch"] == {"exact": "inbound-10.0.0.1-18080"}
    assert config.notes == []


@pytest.mark.parametrize("checked", [True, False])
def test_on_loopback_there_is_no_ready_and_a_note_if_it_is_missed(tmp_path: Path, checked: bool) -> None:
    mesh = mesh_of(
        tmp_path,
        ours(inbounds=[inbound(18080, 8080, serviceProbe=PROBE) if checked else inbound(18080, 8080)]),
    )
    config = GeneratedConfig()
    add_ready(mesh, (), config)
    assert config.listeners == {}
    assert len(config.notes) == checked


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (None, None),
        ({"type": "prometheus"}, (5670, "/metrics")),
        ({"type": "prometheus", "conf": {"port": 1234, "path": "/m"}}, (1234, "/m")),
    ],
)
def test_prometheus(tmp_path: Path, metrics: Tree | None, expected: tuple[int, str] | None) -> None:
    config = GeneratedConfig()
    add_prometheus(mesh_of(tmp_path, ours() if metrics is None else ours(metrics=metrics)), config)
    if expected is None:
        assert config.listeners == {}
        return
    listener = config.listeners["kuma:metrics:prometheus"]
    assert listener["address"]["socketAddress"]["portValue"] == expected[0]
    assert f'"path": "{expected[1]}"' in json.dumps(listener)
    assert config.origin["kuma:metrics:prometheus"].endswith("metrics.conf.port")
