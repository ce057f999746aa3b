"""Each kind of proxy and each feature that is announced, against a real control plane, where KUMA_CP names one."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.daemon.control_client import query_status
from kumadp.envoy.version import is_supported
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.compatibility import GONE
from tests.support.daemon import Ports, get, is_listening, run_kumadp, workload
from tests.support.file_lock import file_lock
from tests.support.kuma_control_plane import KumaControlPlane, get_json
from tests.support.kuma_resources import dataplane, external_service, zone_proxy
from tests.support.needs import need_kuma_cp
from tests.support.poll import poll
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.support.daemon import Daemon, Workload

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp]

# A real control plane needs some seconds for what a test's own does at once.
SOON = 40.0
# Control planes from 2.12 on, which know the features that have to do with names and addresses.
NEW = "meshidentities"


@contextlib.contextmanager
def control_plane(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[KumaControlPlane]:
    binary = need_kuma_cp()
    with file_lock("kuma-cp"), KumaControlPlane(binary, folder / "kuma-cp", environment) as plane:
        yield plane


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[KumaControlPlane]:
    with control_plane(tmp_path) as running:
        yield running


@pytest.fixture
def app() -> Iterator[Workload]:
    with workload("backend") as server:
        yield server


@contextlib.contextmanager
def proxy(
    plane: KumaControlPlane,
    resource: dict[str, Any],
    ports: Ports,
    *more: str,
    environment: dict[str, str] | None = None,
    dns: bool = False,
) -> Iterator[Daemon]:
    """A running kumadp for this resource, with its relay."""
    with tempfile.TemporaryDirectory(prefix="kp") as name:
        folder = Path(name)
        file, token = folder / "resource.json", folder / "token"
        file.write_text(json.dumps(plane.suit(resource)))
        token.write_text(plane.token() if resource["type"] == "Dataplane" else plane.zone_token())
        with run_kumadp(
            folder,
            ports,
            *(f"--cp-address={plane.url}", f"--ca-cert-file={plane.write_ca(folder / 'ca.crt')}"),
            *(f"--dataplane-token-file={token}", f"--dataplane-file={file}", "--drain-time=1s", *more),
            environment=environment,
            dns=dns,
        ) as daemon:
            daemon.wait_ready(SOON)
            yield daemon
            assert status(daemon, resource)["relay"]["state"] == "open"
            assert "Traceback" not in daemon.output()


def status(daemon: Daemon, resource: dict[str, Any]) -> dict[str, Any]:
    return query_status(control_socket_path(resource["name"], daemon.environment))


def survives_envoy(daemon: Daemon, resource: dict[str, Any], serves: Callable[[], bool]) -> None:
    """Traffic, and traffic again after Envoy was killed, by what kumadp remembers and on the same stream."""
    poll(serves, what="traffic", deadline=SOON)
    since = status(daemon, resource)["relay"]["connected_since"]
    killed = daemon.kill_envoy()
    poll(lambda: (envoy := daemon.children().get("envoy")) and envoy.pid != killed.pid, what="the next Envoy")
    daemon.wait_ready(SOON)
    poll(serves, what="traffic through the next Envoy", deadline=SOON)
    assert status(daemon, resource)["relay"]["connected_since"] == since


def online(kind: str, name: str) -> bool:
    """Whether the control plane has a stream of this zone proxy."""
    overview = get_json(f"/{kind}/{name}/_overview") or get_json(f"/{kind}+insights/{name}") or {}
    insight = overview.get("zoneIngressInsight") or overview.get("zoneEgressInsight") or overview
    subscriptions = insight.get("subscriptions") or []
    return any("disconnectTime" not in subscription for subscription in subscriptions)


def runs(plane: KumaControlPlane, kind: str, name: str) -> Callable[[], bool]:
    """Whether the control plane has a stream of this zone proxy, for a poll."""
    return lambda: bool(plane.stream(f"default.{name}")) if not plane.by_tags else online(kind, name)


def listeners(daemon: Daemon) -> list[dict[str, Any]]:
    code, text = daemon.get_admin("/listeners?format=json")
    statuses: list[dict[str, Any]] = json.loads(text)["listener_statuses"] if code == 200 else []
    return statuses


def listening(daemon: Daemon) -> set[tuple[str, int]]:
    """Where Envoy has listeners."""
    sockets = [listener.get("local_address", {}).get("socket_address") for listener in listeners(daemon)]
    return {(address["address"], address["port_value"]) for address in sockets if address}


def backend_of_the_mesh(plane: KumaControlPlane, app: Workload, protocol: str = "tcp") -> None:
    """A Dataplane whose inbound is the application's own port, as if a proxy stood in front of it.

    Data planes speak HTTP/2 with each other where the protocol is http, builtin gateways do not.
    """
    plane.put_dataplane(
        {
            "type": "Dataplane",
            "mesh": "default",
            "name": "backend-00",
            "networking": {
                "address": "127.0.0.1",
                "inbound": [{"port": app.port, "tags": {"kuma.io/service": "backend", "kuma.io/protocol": protocol}}],
            },
        }
    )


@pytest.mark.contract("zone ingress")
def test_an_ingress(plane: KumaControlPlane, app: Workload) -> None:
    ports = Ports.take()
    ingress: dict[str, Any] = {
        "type": "ZoneIngress",
        "name": "zi-01",
        "networking": {
            "address": "127.0.0.1",
            "port": ports.inbound,
            "advertisedAddress": "127.0.0.1",
            "advertisedPort": ports.inbound,
            "admin": {"port": ports.admin},
        },
    }
    if not plane.by_tags:
        # Without an identity and something to lead to it has no listener.
        plane.use_mtls()
        backend_of_the_mesh(plane, app)
        ingress = zone_proxy("ZoneIngress", "zi-01", ports)
    with proxy(plane, ingress, ports, dns=True) as daemon:
        poll(runs(plane, "zoneingresses", "zi-01"), what="the ingress online", deadline=SOON)
        survives_envoy(daemon, ingress, lambda: is_listening(ports.inbound))
        # Not even a line that it is missing. From 3.0 on it is a data plane like any other.
        assert not plane.by_tags or "CoreDNS" not in daemon.output()


def external(plane: KumaControlPlane, app: Workload) -> dict[str, Any]:
    """Put the application into the mesh as an external service; return where an outbound leads to it."""
    if not plane.by_tags:
        plane.put_resource(external_service("ext", app.port))
        return {"backendRef": {"kind": "MeshExternalService", "name": "ext"}}
    mtls = {"enabledBackend": "ca-1", "backends": [{"name": "ca-1", "type": "builtin"}]}
    plane.put("/meshes/default", {"type": "Mesh", "name": "default", "mtls": mtls, "routing": {"zoneEgress": True}})
    tags = {"kuma.io/service": "ext", "kuma.io/protocol": "http"}
    networking = {"address": f"127.0.0.1:{app.port}"}
    plane.put(
        "/meshes/default/external-services/ext",
        {"type": "ExternalService", "mesh": "default", "name": "ext", "tags": tags, "networking": networking},
    )
    return {"tags": {"kuma.io/service": "ext"}}


@pytest.mark.contract("zone egress")
def test_traffic_through_an_egress(plane: KumaControlPlane, app: Workload) -> None:
    """A data plane reaches an external service through the egress, and in no other way."""
    ports, own = Ports.take(), Ports.take()
    egress: dict[str, Any] = {
        "type": "ZoneEgress",
        "name": "ze-01",
        "networking": {"address": "127.0.0.1", "port": ports.inbound, "admin": {"port": ports.admin}},
    }
    plane.use_mtls()
    web = dataplane("web-01", "web", own, app.port, probes=False)
    web["networking"]["outbound"] = [{"port": own.outbound, **external(plane, app)}]
    if not plane.by_tags:
        egress = zone_proxy("ZoneEgress", "ze-01", ports)

    def serves() -> bool:
        return get(own.outbound) == (200, "backend")

    with proxy(plane, egress, ports) as daemon, proxy(plane, web, own):
        poll(runs(plane, "zoneegresses", "ze-01"), what="the egress online", deadline=SOON)
        survives_envoy(daemon, egress, serves)
        code, text = daemon.get_admin("/stats?filter=cluster.*upstream_rq_total&format=json")
        assert code == 200
        assert any(stat["value"] for stat in json.loads(text)["stats"] if "ext" in stat["name"])


@pytest.mark.contract("builtin gateway, memory limit")
def test_a_builtin_gateway(plane: KumaControlPlane, app: Workload) -> None:
    if not plane.by_tags:
        pytest.skip(f"{GONE}: builtin gateways")
    ports = Ports.take()
    backend_of_the_mesh(plane, app, "http")
    plane.put(
        "/meshes/default/meshgateways/edge",
        {
            "type": "MeshGateway",
            "mesh": "default",
            "name": "edge",
            "selectors": [{"match": {"kuma.io/service": "edge"}}],
            "conf": {"listeners": [{"port": ports.inbound, "protocol": "HTTP", "tags": {"port": "http"}}]},
        },
    )
    matches = [{"path": {"type": "PathPrefix", "value": "/"}}]
    default = {"backendRefs": [{"kind": "MeshService", "name": "backend"}]}
    plane.put(
        "/meshes/default/meshhttproutes/edge",
        {
            "type": "MeshHTTPRoute",
            "mesh": "default",
            "name": "edge",
            "spec": {
                "targetRef": {"kind": "MeshGateway", "name": "edge"},
                "to": [{"targetRef": {"kind": "Mesh"}, "rules": [{"matches": matches, "default": default}]}],
            },
        },
    )
    gateway = {
        "type": "Dataplane",
        "mesh": "default",
        "name": "edge-01",
        "networking": {
            "address": "127.0.0.1",
            "gateway": {"type": "BUILTIN", "tags": {"kuma.io/service": "edge"}},
            "admin": {"port": ports.admin},
        },
    }
    memory = {"KUMA_DATAPLANE_RESOURCES_MAX_MEMORY_BYTES": str(1 << 30)}
    with proxy(plane, gateway, ports, environment=memory) as daemon:
        survives_envoy(daemon, gateway, lambda: get(ports.inbound) == (200, "backend"))
        # What the control plane makes of the memory limit: Kuma gives gateways alone an overload manager.
        dump = json.loads(daemon.get_admin("/config_dump")[1])["configs"][0]["bootstrap"]
        monitors = dump["overload_manager"]["resource_monitors"]
        assert str(1 << 30) in {monitor["typed_config"].get("max_heap_size_bytes") for monitor in monitors}


@pytest.mark.contract("delegated gateway")
def test_a_delegated_gateway(plane: KumaControlPlane, app: Workload) -> None:
    ports = Ports.take()
    backend_of_the_mesh(plane, app)
    gateway = {
        "type": "Dataplane",
        "mesh": "default",
        "name": "kong-01",
        "networking": {
            "address": "127.0.0.1",
            "gateway": {"tags": {"kuma.io/service": "kong"}},
            "outbound": [{"port": ports.outbound, "tags": {"kuma.io/service": "backend"}}],
            "admin": {"port": ports.admin},
        },
    }
    with proxy(plane, gateway, ports) as daemon:
        survives_envoy(daemon, gateway, lambda: get(ports.outbound) == (200, "backend"))


@pytest.mark.contract("unified resource naming")
def test_unified_resource_naming(plane: KumaControlPlane, app: Workload) -> None:
    """All of Envoy's names are others, the control plane's own cluster among them; an old control plane knows none."""
    ports = Ports.take()
    new = plane.knows(NEW)
    backend_of_the_mesh(plane, app)
    if new and plane.by_tags:
        exclusive = {"meshServices": {"mode": "Exclusive"}}
        plane.put("/meshes/default", {"type": "Mesh", "name": "default", **exclusive})
        plane.put(
            "/meshes/default/meshservices/backend",
            {
                "type": "MeshService",
                "mesh": "default",
                "name": "backend",
                "labels": {"kuma.io/origin": "zone"},
                "spec": {
                    "selector": {"dataplaneTags": {"kuma.io/service": "backend"}},
                    "ports": [{"port": 80, "targetPort": app.port, "appProtocol": "tcp"}],
                },
            },
        )
    web = dataplane("web-01", "web", ports, app.port, probes=False)
    reference = {"backendRef": {"kind": "MeshService", "name": "backend", "port": 80}}
    target = reference if new else {"tags": {"kuma.io/service": "backend"}}
    web["networking"]["outbound"] = [{"port": ports.outbound, **target}]
    environment = {"KUMA_DATAPLANE_RUNTIME_UNIFIED_RESOURCE_NAMING_ENABLED": "true"}
    with proxy(plane, web, ports, environment=environment) as daemon:
        survives_envoy(daemon, web, lambda: get(ports.outbound) == (200, "backend"))
        _, clusters = daemon.get_admin("/clusters")
        assert ("system_ads::" in clusters, "ads_cluster::" in clusters) == (new, not new)
        assert ("kri_msvc_default_default__backend_" in clusters) is new


@pytest.mark.contract("bound outbounds")
def test_outbounds_that_are_bound(tmp_path: Path, app: Workload) -> None:
    """Virtual addresses in 127.0.0.0/8 are bound by Envoy, and Linux answers them without any redirection."""
    ports = Ports.take()
    names = ("KUMA_DNS_SERVER_CIDR", "KUMA_IPAM_MESH_SERVICE_CIDR")
    with control_plane(tmp_path, {name: f"127.{number}.0.0/16" for number, name in enumerate(names, 1)}) as plane:
        new = plane.knows(NEW)
        backend_of_the_mesh(plane, app)
        web = dataplane("web-01", "web", ports, app.port, probes=False)
        web["networking"]["outbound"] = [{"port": ports.outbound, "tags": {"kuma.io/service": "backend"}}]

        def virtual() -> list[str]:
            return [host for host, port in listening(daemon) if host.startswith(("127.1.", "127.2.")) and port == 80]

        def serves() -> bool:
            if not new:
                return get(ports.outbound) == (200, "backend")
            return any(get(80, host=host) == (200, "backend") for host in virtual())

        with proxy(plane, web, ports, "--bind-outbounds") as daemon:
            survives_envoy(daemon, web, serves)


@pytest.mark.contract("transparent proxying in the bootstrap request")
def test_transparent_proxying_sent_with_the_bootstrap_request(
    plane: KumaControlPlane, app: Workload, tmp_path: Path
) -> None:
    """The control plane takes what is merged of two files: Envoy has listeners on the ports that traffic goes to."""
    ports = Ports.take()
    inbound, outbound = free_port(), free_port()
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"ipFamilyMode: ipv4\nredirect: {{inbound: {{port: {inbound}, includePorts: [1]}}}}\n")
    second.write_text(
        json.dumps({"redirect": {"outbound": {"port": outbound}, "vnet": {"networks": ["br+:10.0.0.0/8"]}}})
    )
    web = dataplane("web-01", "web", ports, app.port, probes=False)
    del web["networking"]["outbound"]
    files = (f"--transparent-proxy-config={first}", f"--transparent-proxy-config={second}")
    with proxy(plane, web, ports, "--transparent-proxy", *files) as daemon:
        new = plane.knows(NEW)
        expected = {("0.0.0.0", inbound), ("0.0.0.0", outbound)} if new else {("127.0.0.1", ports.inbound)}
        survives_envoy(daemon, web, lambda: expected <= listening(daemon))
        if not new:
            assert get(ports.inbound) == (200, "backend")


@pytest.mark.contract("strict inbound ports, SO_REUSEPORT, readiness socket; compatibility of Envoy")
def test_features_that_are_always_announced(plane: KumaControlPlane, app: Workload) -> None:
    """Strict inbound ports and SO_REUSEPORT, on by default: the control plane knows of them, and traffic flows."""
    ports = Ports.take()
    web = dataplane("web-01", "web", ports, app.port, probes=False)
    with proxy(plane, web, ports) as daemon:
        survives_envoy(daemon, web, lambda: get(ports.outbound) == (200, "backend"))
        _, dump = daemon.get_admin("/config_dump")
        for feature in ("feature-strict-inbound-ports", "feature-reuse-port", "feature-readiness-unix-socket"):
            assert feature in dump
        overview = get_json("/meshes/default/dataplanes/web-01/_overview")
        version = overview["dataplaneInsight"]["subscriptions"][-1]["version"]["envoy"]
        assert bool(version.get("kumaDpCompatible")) is is_supported(version["version"])


# What Kuma 3.0 answers with 500 and without a text, and what is written instead.
REFUSED = {
    "ingress": ("it has no proxy type ingress", "networking.listeners: [{type: ZoneIngress"),
    "egress": ("it has no proxy type egress", "networking.listeners: [{type: ZoneEgress"),
    "builtin": ("networking.gateway.type", "write DELEGATED"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_kuma_3_refuses_without_a_text_is_explained(plane: KumaControlPlane, tmp_path: Path, kind: str) -> None:
    if plane.by_tags:
        pytest.skip("Kuma 2 has these proxies")
    ports = Ports.take()
    networking: dict[str, Any] = {"address": "127.0.0.1", "port": ports.inbound, "admin": {"port": ports.admin}}
    resource: dict[str, Any] = {"type": f"Zone{kind.capitalize()}", "name": f"old-{kind}", "networking": networking}
    if kind == "builtin":
        networking = {"address": "127.0.0.1", "gateway": {"type": "BUILTIN"}, "admin": {"port": ports.admin}}
        resource = {"type": "Dataplane", "mesh": "default", "name": "old-builtin", "networking": networking}
    file, token = tmp_path / "resource.json", tmp_path / "token"
    file.write_text(json.dumps(resource))
    token.write_text(plane.token())
    with run_kumadp(
        tmp_path,
        ports,
        *(f"--cp-address={plane.url}", f"--ca-cert-file={plane.write_ca(tmp_path / 'ca.crt')}"),
        *(f"--dataplane-token-file={token}", f"--dataplane-file={file}"),
        *(() if kind == "builtin" else (f"--proxy-type={kind}",)),
    ) as daemon:
        field, advice = REFUSED[kind]
        lines = poll(
            lambda: [line for line in daemon.output().splitlines() if advice in line and "HTTP 500" in line],
            what="what to write instead",
            deadline=SOON,
        )
        assert all(field in line for line in lines)
        assert kind != "builtin" or "resource.json:1" in lines[0]

        def is_shown() -> bool:
            with contextlib.suppress(TimeoutError):
                return advice in json.dumps(status(daemon, resource))
            return False

        poll(is_shown, what="the same in the status", deadline=SOON)
