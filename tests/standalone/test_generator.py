"""Envoy accepts every configuration of the table, and each does what the mesh requires."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kumadp.errors import ResourceError
from kumadp.standalone.generated_config import GeneratedConfig, clashes
from kumadp.standalone.generator import bootstrap, generate
from kumadp.standalone.mesh import Mesh, read_mesh
from tests.standalone.meshes import CASES, PROBE, of_protocol, ours
from tests.support.mesh import Tree, dataplane, inbound, outbound, write
from tests.support.needs import need_envoy

XDS = Path("/run/kumadp/xds")


def mesh_of(folder: Path, *dataplanes: Tree) -> Mesh:
    return read_mesh(write(folder, *dataplanes), "web")


def generated(folder: Path, name: str) -> GeneratedConfig:
    case = CASES[name]
    return generate(mesh_of(folder, *case.dataplanes), case.dns, case.unhealthy)


def hosts(config: GeneratedConfig, cluster: str) -> list[str]:
    return [
        f"{address['address']}:{address['portValue']}"
        for locality in config.clusters[cluster]["loadAssignment"]["endpoints"]
        for entry in locality["lbEndpoints"]
        if (address := entry["endpoint"]["address"]["socketAddress"])
    ]


def filter_of(config: GeneratedConfig, listener: str) -> dict[str, Any]:
    first: dict[str, Any] = config.listeners[listener]["filterChains"][0]["filters"][0]
    return first


def kind_of(config: GeneratedConfig, listener: str) -> str:
    return str(filter_of(config, listener)["name"]).rpartition(".")[2]


def speaks_http2(config: GeneratedConfig, cluster: str) -> bool:
    return "http2ProtocolOptions" in json.dumps(config.clusters[cluster])


def written_in(mesh: Mesh, config: GeneratedConfig) -> dict[str, Any]:
    """Return a bootstrap with all resources: `--mode validate` does not read xDS files."""
    tree = bootstrap(mesh, XDS, memory=512 << 20)
    del tree["dynamicResources"]
    return {
        **tree,
        "staticResources": {"clusters": list(config.clusters.values()), "listeners": list(config.listeners.values())},
    }


@pytest.mark.process
@pytest.mark.parametrize("name", CASES)
def test_envoy_accepts_every_configuration(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    mesh = mesh_of(tmp_path / "mesh", *case.dataplanes)
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps(written_in(mesh, generate(mesh, case.dns, case.unhealthy))))
    argv = [str(need_envoy()), "--mode", "validate", "-c", str(path), "--log-level", "error", "--concurrency", "1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deprecated" not in (done.stdout + done.stderr).lower()


@pytest.mark.parametrize("name", CASES)
def test_the_same_mesh_makes_the_same_bytes_whatever_the_order_of_the_files(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    first = generated(tmp_path / "mesh", name)
    for index, file in enumerate(sorted((tmp_path / "mesh").iterdir(), reverse=True)):
        file.rename(tmp_path / "mesh" / f"{index}.yaml")
    mesh = read_mesh(tmp_path / "mesh", "web")
    assert mesh.ours.source != str(tmp_path / "mesh" / "web.yaml")
    again = generate(mesh, case.dns, case.unhealthy)
    for part in ("clusters", "listeners"):
        assert json.dumps(getattr(first, part)) == json.dumps(getattr(again, part))


@pytest.mark.parametrize(
    ("protocol", "filters", "http2"),
    [
        ("tcp", "tcp_proxy", False),
        ("http", "http_connection_manager", False),
        ("http2", "http_connection_manager", True),
        ("grpc", "http_connection_manager", True),
        ("kafka", "tcp_proxy", False),
        ("", "tcp_proxy", False),
    ],
)
def test_protocol_decides_filter_and_upstream(tmp_path: Path, protocol: str, filters: str, http2: bool) -> None:
    config = generate(mesh_of(tmp_path, *of_protocol(protocol).dataplanes), None)
    assert kind_of(config, "inbound:10.0.0.1:18080") == filters
    assert kind_of(config, "outbound:127.0.0.1:10001") == filters
    assert speaks_http2(config, "localhost:8080") is http2
    assert speaks_http2(config, "backend") is http2


@pytest.mark.parametrize(
    ("offered", "tag", "filters", "http2"),
    [
        (("http", "http"), "", "http_connection_manager", False),
        (("grpc", "http2"), "", "http_connection_manager", True),
        (("http", "http2"), "", "tcp_proxy", False),
        (("http", "tcp"), "", "tcp_proxy", False),
        (("kafka",), "", "tcp_proxy", False),
        (("http", "tcp"), "http", "http_connection_manager", False),
        ((), "", "http_connection_manager", False),
        ((), "tcp", "tcp_proxy", False),
        ((), "grpc", "http_connection_manager", True),
    ],
)
def test_an_outbound_speaks_what_all_its_endpoints_speak(
    tmp_path: Path, offered: tuple[str, ...], tag: str, filters: str, http2: bool
) -> None:
    others = [
        dataplane(f"b{index}", [inbound(7000, 1, "backend", protocol)], address=f"10.0.0.{index + 2}")
        for index, protocol in enumerate(offered)
    ]
    mesh = mesh_of(tmp_path, ours(outbound(10001, "backend", **({"kuma.io/protocol": tag} if tag else {}))), *others)
    config = generate(mesh, None)
    assert kind_of(config, "outbound:127.0.0.1:10001") == filters
    assert speaks_http2(config, next(name for name in config.clusters if name.startswith("backend"))) is http2


def test_health_never_changes_the_protocol(tmp_path: Path) -> None:
    config = generated(tmp_path, "not ready")
    assert hosts(config, "backend") == []
    assert kind_of(config, "outbound:127.0.0.1:10001") == "tcp_proxy"
    assert hosts(config, "localhost:8080") == hosts(config, "localhost:8081") == []
    assert any("backend: no Dataplane that offers it is ready" in note for note in config.notes)


def test_subset_tags_choose_endpoints(tmp_path: Path) -> None:
    config = generated(tmp_path, "subset tags")
    assert hosts(config, "backend") == ["10.0.0.2:7000", "10.0.0.3:7000"]
    assert hosts(config, "backend{version=2}") == ["10.0.0.3:7000"]
    assert hosts(config, "backend{a=b}") == []


def test_references_in_the_form_of_kuma_3(tmp_path: Path) -> None:
    config = generated(tmp_path, "without tags")
    by_name, by_labels, nobody = (
        "kri_msvc_default___backend_7000",
        "kri_msvc_default___app=shop_7000",
        "kri_msvc_default___backend_7001",
    )
    assert hosts(config, by_name) == hosts(config, by_labels) == ["10.0.0.2:7000"]
    assert hosts(config, nobody) == []
    assert speaks_http2(config, by_name)
    assert kind_of(config, "outbound:127.0.0.1:10001") == "http_connection_manager"
    (note,) = config.notes
    assert note.endswith(
        f"{nobody}: no Dataplane offers it at port 7001, its inbounds have 7000 now; requests fail until there is one"
    )


def test_the_field_protocol_counts_without_tags(tmp_path: Path) -> None:
    config = generated(tmp_path, "without tags")
    assert kind_of(config, "inbound:10.0.0.1:18080") == "http_connection_manager"
    assert kind_of(config, "inbound:10.0.0.1:18081") == "tcp_proxy"
    assert speaks_http2(config, "localhost:8082")


def test_the_field_protocol_goes_before_the_tag(tmp_path: Path) -> None:
    """As in Kuma 2.14 and 3.0."""
    tree = ours(inbounds=[{**inbound(18080, 8080, protocol="tcp"), "protocol": "http"}])
    config = generate(mesh_of(tmp_path, tree), None)
    assert kind_of(config, "inbound:127.0.0.1:18080") == "http_connection_manager"


def test_addresses(tmp_path: Path) -> None:
    assert hosts(generated(tmp_path / "a", "advertisedAddress"), "backend") == ["192.0.2.1:7000"]
    names = generated(tmp_path / "b", "host names")
    assert names.clusters["backend"]["type"] == "STRICT_DNS"
    assert "backend.example" in json.dumps(names.clusters["backend"])
    assert any("no endpoint is health-checked" in note for note in names.notes)
    assert set(names.listeners) & {"inbound:127.0.0.1:18080", "inbound:[::1]:18080"}
    assert "inbound:[fd00::1]:18080" in generated(tmp_path / "c", "IPv6").listeners


def test_each_inbound_has_a_separate_cluster_and_ignored_ones_none(tmp_path: Path) -> None:
    config = generated(tmp_path, "several inbounds")
    assert [name for name in config.listeners if name.startswith("inbound")] == [
        "inbound:10.0.0.1:18080",
        "inbound:10.0.0.3:18081",
        "inbound:10.0.0.1:18082",
    ]
    clusters = {json.dumps(config.listeners[name]).split('"cluster": "')[1].split('"')[0] for name in config.listeners}
    assert {"localhost:8080", "localhost:8080@10.0.0.3:18081", "localhost:9090"} <= clusters
    assert set(config.clusters) >= {"localhost:8080", "localhost:8080@10.0.0.3:18081", "localhost:9090"}


def test_a_checked_inbound_reports_its_health_and_unhealthy_ones_have_no_endpoint(tmp_path: Path) -> None:
    config = generated(tmp_path / "a", "serviceProbe")
    assert hosts(config, "localhost:8080") == ["127.0.0.1:8080"]
    backend = config.clusters["backend"]
    assert backend["commonLbConfig"] == {"healthyPanicThreshold": {"value": 0}}
    one, two = (entry["endpoint"] for entry in backend["loadAssignment"]["endpoints"][0]["lbEndpoints"])
    assert one["healthCheckConfig"]["hostname"] == "inbound-10.0.0.2-7000"
    assert one["healthCheckConfig"]["address"]["socketAddress"] == {"address": "10.0.0.2", "portValue": 9902}
    assert two["healthCheckConfig"] == {"disableActiveHealthCheck": True}
    case = CASES["unhealthy"]
    mesh = mesh_of(tmp_path / "b", *case.dataplanes)
    well, down = generate(mesh, None), generate(mesh, None, case.unhealthy)
    assert hosts(well, "localhost:8080") == ["127.0.0.1:8080"]
    assert hosts(down, "localhost:8080") == []
    assert '"inbound-10.0.0.1-18080"' not in json.dumps(well.listeners["kuma:envoy:admin"])
    assert '"inbound-10.0.0.1-18080"' in json.dumps(down.listeners.pop("kuma:envoy:admin"))
    assert down.listeners.items() <= well.listeners.items()


def test_unchanged_parts_are_the_same_json(tmp_path: Path) -> None:
    previous = generate(mesh_of(tmp_path, ours(outbound(10001, "a"))), None)
    after = generate(mesh_of(tmp_path, ours(outbound(10001, "a"), outbound(10002, "b"))), None)
    assert {name: after.listeners[name] for name in previous.listeners} == previous.listeners
    assert {name: after.clusters[name] for name in previous.clusters} == previous.clusters


def test_ready_and_prometheus_and_names(tmp_path: Path) -> None:
    config = generated(tmp_path / "a", "Prometheus")
    assert config.listeners["kuma:metrics:prometheus"]["address"]["socketAddress"]["portValue"] == 1234
    assert config.listeners["kuma:envoy:admin"]["address"]["socketAddress"] == {
        "address": "10.0.0.1",
        "portValue": 19901,
    }
    default = generated(tmp_path / "b", "Prometheus by default")
    assert default.listeners["kuma:metrics:prometheus"]["address"]["socketAddress"]["portValue"] == 5670
    assert "kuma:envoy:admin" not in default.listeners
    dns = json.dumps(generated(tmp_path / "c", "DNS without resolvers").listeners["kuma:dns"])
    assert '"back_end.mesh"' in dns
    assert '"back.end.mesh"' in dns
    assert '["127.0.0.1", "127.0.0.2"]' in dns


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"metrics": {"type": "prometheus", "conf": {"port": 18080}}, "address": "10.0.0.1"}, "metrics.conf.port"),
        ({"metrics": {"type": "prometheus", "conf": {"port": 19901}}}, "metrics.conf.port"),
        ({"metrics": {"type": "prometheus"}, "inbounds": [inbound(5670, 1, address="0.0.0.0")]}, "metrics.conf.port"),
    ],
)
def test_clashes_of_one_configuration_are_named(tmp_path: Path, change: dict[str, Any], where: str) -> None:
    config = generate(mesh_of(tmp_path, ours(**change)), None)
    messages = clashes(config, ("127.0.0.1", 19901))
    assert messages
    assert where in messages[0]
    assert str(tmp_path / "web.yaml") in messages[0]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            dataplane("web", [], networking={"gateway": {"type": "BUILTIN", "tags": {"kuma.io/service": "edge"}}}),
            "networking.gateway.type: a builtin gateway needs a control plane",
        ),
        (
            ours({"port": 10001, "backendRef": {"kind": "MeshExternalService", "name": "b"}}),
            "networking.outbound[0].backendRef.kind: needs a control plane",
        ),
        (
            ours(networking={"transparentProxying": {"redirectPortInbound": 15006, "redirectPortOutbound": 15001}}),
            "networking.transparentProxying: needs a control plane",
        ),
        (ours(inbounds=[inbound(18080)]), "networking.inbound[0].servicePort: the inbound would forward to itself"),
        (dataplane("web", []), "networking: there is no inbound, no outbound and no gateway"),
        (
            dataplane("web", [], networking={"listeners": [{"type": "ZoneEgress", "address": "10.0.0.1", "port": 1}]}),
            "networking.listeners: a zone proxy needs a control plane",
        ),
        (ours(outbound(10001, "kuma_envoy_admin")), "is a name that kumadp uses itself"),
        (ours(metrics={"type": "prometheus", "conf": {"port": "abc"}}), "metrics.conf.port: 'abc' is not a port"),
        (ours(address="no-such-host.invalid"), "networking.address: no-such-host.invalid"),
    ],
)
def test_unsupported_fields_are_errors_with_their_line(tmp_path: Path, tree: Tree, message: str) -> None:
    with pytest.raises(ResourceError) as caught:
        mesh_of(tmp_path, tree)
    problem = next(problem for problem in caught.value.problems if message in str(problem))
    assert problem.file == str(tmp_path / "web.yaml")
    assert problem.line
    assert problem.hint


def test_ignored_fields_are_reported(tmp_path: Path) -> None:
    metrics = {"type": "prometheus", "conf": {"aggregate": [{"name": "app", "port": 1}]}}
    config = generate(mesh_of(tmp_path, ours(metrics=metrics, inbounds=[inbound(1, 2, serviceProbe=PROBE)])), None)
    assert any("metrics.conf.aggregate: is ignored" in note for note in config.notes)
    assert any("other hosts cannot check the health" in note for note in config.notes)
