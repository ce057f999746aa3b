"""A hostile control plane tries to show Envoy's admin to others: by its bootstrap, and by what comes later."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from typing import TYPE_CHECKING, Any

import psutil
import pytest

# Imported for its descriptor.
from envoy.extensions.filters.listener.proxy_protocol.v3 import proxy_protocol_pb2  # noqa: F401

from kumadp.addresses import is_loopback
from kumadp.errors import ExitCode
from tests.bootstrap.hostile import FILTERS, HOSTILE, Tree, http_listener, manager
from tests.support.daemon import Ports, get, run_kumadp, workload
from tests.support.needs import missing, need_envoy
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.rig import NODE, Rig
from tests.support.scripted_control_plane import (
    TOKEN,
    ScriptedControlPlane,
    bootstrap_answer,
    socket_address,
    static_listener,
)
from tests.support.xds import resources
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import CLUSTER, LISTENER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.xds.mesh import Mesh

pytestmark = pytest.mark.process


@pytest.fixture
def outside() -> str:
    """An address of this host that others reach."""
    entries = [entry for each in psutil.net_if_addrs().values() for entry in each if entry.family == socket.AF_INET]
    addresses = [entry.address for entry in entries if not is_loopback(entry.address)]
    return addresses[0] if addresses else missing("no address but loopback here")


def arguments(tmp_path: Path, plane: ScriptedControlPlane) -> tuple[str, ...]:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    return (
        f"--cp-address={plane.url}",
        f"--ca-cert-file={plane.write_ca(tmp_path / 'ca.crt')}",
        f"--dataplane-token-file={tmp_path / 'token'}",
        "--name=web-1",
        "--mesh=default",
        "--drain-time=1s",
    )


STATIC = ("assignment in two spellings", "original destination by header", "a forward proxy", "a chain of two")


@pytest.mark.parametrize("name", [*STATIC[:2], *(pytest.param(name, marks=pytest.mark.attack) for name in STATIC[2:])])
def test_a_static_listener_that_exposes_the_admin_ends_kumadp(tmp_path: Path, name: str) -> None:
    ports = Ports.take()
    with (
        ScriptedControlPlane(bootstrap_answer(HOSTILE[name])) as plane,
        run_kumadp(tmp_path, ports, *arguments(tmp_path, plane)) as daemon,
    ):
        assert daemon.wait() == ExitCode.BOOTSTRAP
        assert "staticResources" in daemon.output().splitlines()[-1]
        assert "epoch 0" not in daemon.output()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with XdsControlPlane() as plane, workload("backend-01") as app:
        yield Rig(tmp_path, plane, app)


def mesh(rig: Rig) -> Mesh:
    assert isinstance(rig.plane, XdsControlPlane)
    return rig.plane.mesh(NODE)


def original_dst(name: str, **options: Any) -> Tree:
    return {
        "name": name,
        "type": "ORIGINAL_DST",
        "lbPolicy": "CLUSTER_PROVIDED",
        "connectTimeout": "1s",
        "originalDstLbConfig": {"useHttpHeader": True, **options},
    }


def admin_cluster(ports: Ports, name: str = "way") -> Tree:
    return resources.static_cluster(name, "127.0.0.1", ports.admin)


def proxied(port: int) -> Tree:
    """A listener that wants a proxy's header before anything else."""
    listener = static_listener("evil", port, "way", "0.0.0.0")
    kind = f"{FILTERS}.listener.proxy_protocol.v3.ProxyProtocol"
    return listener | {"listenerFilters": [{"name": "proxy", "typedConfig": {"@type": kind}}]}


def http2_only(port: int) -> Tree:
    chain = {"filters": [manager("way")]}
    chain["filters"][0]["typedConfig"]["codecType"] = "HTTP2"
    return http_listener("evil", port, [chain])


def tunnelled(port: int) -> Tree:
    """A proxy that takes CONNECT."""
    chain = {"filters": [manager("way", {"connectMatcher": {}}, upgradeConfigs=[_CONNECT])]}
    chain["filters"][0]["typedConfig"]["upgradeConfigs"] = [{"upgradeType": "CONNECT"}]
    return http_listener("evil", port, [chain])


_CONNECT = {"upgradeType": "CONNECT", "connectConfig": {}}


def by_path(path: str) -> Any:
    return lambda port: http_listener("evil", port, [{"filters": [manager("way", {"path": path})]}])


def hidden(**changes: Any) -> Any:
    """An HTTP listener whose one route demands what only its author knows."""

    def make(port: int) -> Tree:
        chain = {"filters": [manager("way", {"prefix": "/s3cret/"}, prefixRewrite="/")]}
        host = chain["filters"][0]["typedConfig"]["routeConfig"]["virtualHosts"][0]
        host |= changes
        return http_listener("evil", port, [chain])

    return make


def chosen(port: int) -> Tree:
    """An HTTP listener whose one route leads to the cluster that a header names."""
    chain = {"filters": [manager("", {"prefix": "/s3cret/"})]}
    (route,) = chain["filters"][0]["typedConfig"]["routeConfig"]["virtualHosts"][0]["routes"]
    route["route"] = {"clusterHeader": "x-to", "prefixRewrite": "/"}
    return http_listener("evil", port, [chain])


WAYS: dict[str, tuple[Any, Any]] = {
    "a TCP listener": (lambda port: static_listener("evil", port, "way", "0.0.0.0"), admin_cluster),
    "an HTTP listener": (lambda port: http_listener("evil", port, [{"filters": [manager("way")]}]), admin_cluster),
    "one path": (by_path("/config_dump"), admin_cluster),
    "another path": (by_path("/clusters"), admin_cluster),
    "by header": (
        lambda port: http_listener("evil", port, [{"filters": [manager("way")]}]),
        lambda _ports: original_dst("way"),
    ),
    "by CONNECT": (tunnelled, admin_cluster),
    "HTTP/2 alone": (http2_only, admin_cluster),
    "behind a proxy's header": (proxied, admin_cluster),
    "a path that is rewritten": (hidden(), admin_cluster),
    "an own host name": (hidden(domains=["evil.example"]), admin_cluster),
    "an own header": (
        lambda port: http_listener(
            "evil",
            port,
            [{"filters": [manager("way", {"prefix": "/", "headers": [{"name": "x-key", "presentMatch": True}]})]}],
        ),
        admin_cluster,
    ),
    "a cluster of the client's choice": (chosen, admin_cluster),
    "by a header that it chooses": (
        lambda port: http_listener("evil", port, [{"filters": [manager("way")]}]),
        lambda _ports: original_dst("way", httpHeaderName="x-to"),
    ),
    "by a name": (
        lambda port: http_listener("evil", port, [{"filters": [manager("way", {"path": "/x"}, prefixRewrite="/")]}]),
        # An IPv6 address of the name would be queried first, where the admin is not.
        lambda ports: (
            resources.static_cluster("way", "localhost", ports.admin)
            | {"type": "STRICT_DNS", "dnsLookupFamily": "V4_ONLY"}
        ),
    ),
    "on an IPv6 wildcard": (lambda port: static_listener("evil", port, "way", "::"), admin_cluster),
}


@pytest.mark.attack
@pytest.mark.parametrize("way", WAYS)
def test_a_way_that_is_there_from_the_start_kills_envoy(rig: Rig, outside: str, way: str) -> None:
    (port,) = free_ports(1)
    listener, cluster = WAYS[way]
    served = mesh(rig)
    served.inbound(rig.ports.inbound, rig.app.port)
    served.put(CLUSTER, cluster(rig.ports))
    served.put(LISTENER, listener(port))
    with rig.run() as daemon:
        assert daemon.wait() == ExitCode.ADMIN_EXPOSED
        last = daemon.output().splitlines()[-1]
        assert f":{port}" in last or "listener evil by way" in last
        assert "READY: Envoy is LIVE" not in daemon.output()
        assert get(port, "/ready", host=outside)[0] == 0


@pytest.mark.attack
def test_a_way_by_redirected_traffic_alone_kills_envoy(rig: Rig, outside: str) -> None:
    """As with a transparent proxy: what is redirected to the one listener is served by the other one."""
    redirected, port = free_ports(2)
    served = mesh(rig)
    served.inbound(rig.ports.inbound, rig.app.port)
    served.put(CLUSTER, admin_cluster(rig.ports))
    entry = static_listener("redirected", redirected, f"localhost:{rig.app.port}", "0.0.0.0")
    served.put(LISTENER, entry | {"useOriginalDst": True})
    served.put(LISTENER, static_listener("evil", port, "way", outside) | {"bindToPort": False})
    with rig.run() as daemon:
        assert daemon.wait() == ExitCode.ADMIN_EXPOSED
        assert "listener evil by way" in daemon.output().splitlines()[-1]


@pytest.mark.attack
@pytest.mark.parametrize("change", ["a listener", "a cluster", "endpoints", "a listener beside one that is rejected"])
def test_a_way_that_comes_later_kills_envoy(rig: Rig, outside: str, change: str) -> None:
    (port,) = free_ports(1)
    served = mesh(rig)
    served.inbound(rig.ports.inbound, rig.app.port)
    open_listener = static_listener("evil", port, "way", "0.0.0.0")
    if change != "endpoints":
        target = rig.app.port if change == "a cluster" else rig.ports.admin
        served.put(CLUSTER, resources.static_cluster("way", "127.0.0.1", target))
    else:
        served.services["way"] = "way"
        served.endpoints["way"] = [("127.0.0.1", rig.app.port)]
        served.put(CLUSTER, resources.eds_cluster("way"))
    if change in {"a cluster", "endpoints"}:
        served.put(LISTENER, open_listener)
    with rig.run() as daemon:
        daemon.wait_ready()
        if change == "a cluster":
            assert get(port, "/", host=outside)[0] == 200
            served.put(CLUSTER, admin_cluster(rig.ports))
        elif change == "endpoints":
            assert get(port, "/", host=outside)[0] == 200
            served.endpoints["way"] = [("127.0.0.1", rig.ports.admin)]
            served.apply()
        else:
            if "rejected" in change:
                served.trees[LISTENER]["bad"] = static_listener("bad", rig.app.port, "way", "127.0.0.1")
            served.put(LISTENER, open_listener)
        assert daemon.wait() == ExitCode.ADMIN_EXPOSED
        assert "listener evil by way" in daemon.output().splitlines()[-1]
        assert get(port, "/ready", host=outside)[0] == 0


@pytest.mark.attack
@pytest.mark.parametrize("change", ["a listener", "a cluster"])
def test_without_the_relay_a_way_that_comes_later_kills_envoy(rig: Rig, outside: str, change: str) -> None:
    (port,) = free_ports(1)
    served = mesh(rig)
    served.inbound(rig.ports.inbound, rig.app.port)
    target = rig.app.port if change == "a cluster" else rig.ports.admin
    served.put(CLUSTER, resources.static_cluster("way", "127.0.0.1", target))
    if change == "a cluster":
        served.put(LISTENER, static_listener("evil", port, "way", "0.0.0.0"))
    with rig.run("--xds-relay=off") as daemon:
        daemon.wait_ready()
        if change == "a cluster":
            served.put(CLUSTER, admin_cluster(rig.ports))
        else:
            served.put(LISTENER, static_listener("evil", port, "way", "0.0.0.0"))
        assert daemon.wait() == ExitCode.ADMIN_EXPOSED
        assert get(port, "/ready", host=outside)[0] == 0


@pytest.mark.attack
def test_a_probed_application_is_requested_once(rig: Rig, outside: str) -> None:
    """Changes of other services and their endpoints, which are frequent, probe no application again."""
    served = mesh(rig)
    served.inbound(rig.ports.inbound, rig.app.port, host=outside)
    served.outbound(rig.ports.outbound, "other", ("192.0.2.1", 80))
    with rig.run() as daemon:
        daemon.wait_ready()
        seen = len(rig.app.seen)  # type: ignore[attr-defined]
        (more,) = free_ports(1)
        served.add_endpoint("other", "192.0.2.2", 80)
        served.outbound(more, "third", ("192.0.2.3", 80))
        poll(lambda: get(more, "/")[0] != 0, what="the new listener")
        # Only a listener that others reach is probed; the others would have been probed by then.
        (shown,) = free_ports(1)
        served.put(LISTENER, static_listener("shown", shown, f"localhost:{rig.app.port}", outside))
        poll(lambda: len(rig.app.seen) > seen, what="a request to the new listener")  # type: ignore[attr-defined]
        hosts = {request["host"] for request in rig.app.seen[seen:]}  # type: ignore[attr-defined]
        assert f"{outside}:{rig.ports.inbound}" not in hosts
        assert get(rig.ports.inbound, "/", host=outside)[0] == 200
        assert daemon.process.poll() is None


class Silent(socketserver.StreamRequestHandler):
    """Waits for more, whatever comes, as a database does; notes whether kumadp was READY by then."""

    def handle(self) -> None:
        """Take one connection."""
        begun = self.rfile.readline()
        self.server.ready.append((begun, get(self.server.readiness, "/ready")[0]))  # type: ignore[attr-defined]
        self.rfile.read()


@pytest.mark.attack
def test_a_silent_application_does_not_delay_ready_and_is_probed_again(rig: Rig, outside: str) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Silent) as server:
        server.daemon_threads = True
        seen: list[tuple[bytes, int]] = []
        server.ready, server.readiness = seen, rig.ports.readiness  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        served = mesh(rig)
        port = server.server_address[1]
        served.put(CLUSTER, resources.static_cluster("database", "127.0.0.1", port))
        served.put(LISTENER, static_listener("database", rig.ports.inbound, "database", outside))
        with rig.run() as daemon:
            daemon.wait_ready()
            poll(lambda: any(begun.startswith(b"PROXY ") for begun, _ in seen), what="the last request")
            assert {code for begun, code in seen if begun.startswith(b"PROXY ")} == {200}
            assert daemon.process.poll() is None
        server.shutdown()


@pytest.mark.attack
def test_an_application_that_is_another_envoy_is_accepted(rig: Rig, outside: str, tmp_path: Path) -> None:
    """Its admin answers as ours would, and is somebody else's to show."""
    (port,) = free_ports(1)
    config = tmp_path / "other.json"
    config.write_text(json.dumps({"node": {"id": "x", "cluster": "y"}, "admin": {"address": socket_address(port)}}))
    other = psutil.Popen([need_envoy(), "-c", config, "--use-dynamic-base-id", "-l", "off"])
    try:
        poll(lambda: get(port, "/ready")[0] == 200, what="the other Envoy")
        served = mesh(rig)
        served.inbound(rig.ports.inbound, port, host=outside)
        with rig.run() as daemon:
            daemon.wait_ready()
            assert get(rig.ports.inbound, "/server_info", host=outside)[0] == 200
            assert daemon.process.poll() is None
    finally:
        other.kill()
        other.wait()
