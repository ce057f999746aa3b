"""Standalone mode: traffic of each protocol, the choice of endpoints, and the listeners beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.message
import dns.query
import dns.rcode
import psutil
import pytest

from tests.support.daemon import Ports, get
from tests.support.http2 import Http2Server, call
from tests.support.mesh import Tree, dataplane, inbound, outbound, reference, untagged, write
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.standalone import answers, echo_of, echo_server, run_standalone, workloads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


@pytest.fixture
def echo() -> Iterator[int]:
    with echo_server() as port:
        yield port


def web(ports: Ports, app: int, *outbounds: Tree, **more: object) -> Tree:
    return dataplane("web", [inbound(ports.inbound, app)], list(outbounds), admin=ports.admin, **more)  # type: ignore[arg-type]


def test_each_protocol_goes_through_inbound_and_outbound(tmp_path: Path, ports: Ports, echo: int) -> None:
    tcp_in, h2_in, grpc_in, tcp_out, h2_out, grpc_out, kafka_out = free_ports(7)
    with workloads("web", "backend") as (app, backend), Http2Server("second") as h2:
        mine = dataplane(
            "web",
            [
                inbound(ports.inbound, app.port),
                inbound(tcp_in, echo, "raw", "tcp"),
                inbound(h2_in, h2.port, "h2", "http2"),
                inbound(grpc_in, h2.port, "rpc", "grpc"),
            ],
            [
                outbound(ports.outbound, "backend"),
                outbound(tcp_out, "raw-b"),
                outbound(h2_out, "h2-b"),
                outbound(grpc_out, "rpc-b"),
                outbound(kafka_out, "kafka-b"),
            ],
            admin=ports.admin,
        )
        others = [
            dataplane("b1", [inbound(backend.port, 0, "backend")]),
            dataplane(
                "b2", [inbound(echo, 0, "raw-b", "tcp"), inbound(echo, 0, "kafka-b", "kafka", address="127.0.0.2")]
            ),
            dataplane("b3", [inbound(h2.port, 0, "h2-b", "http2")]),
            dataplane("b4", [inbound(h2.port, 0, "rpc-b", "grpc")]),
        ]
        with run_standalone(write(tmp_path / "mesh", mine, *others), ports):
            assert get(ports.inbound) == (200, "web")
            assert get(ports.outbound) == (200, "backend")
            assert echo_of(tcp_in) == echo_of(tcp_out) == b"echo ping\n"
            for port in (h2_in, grpc_in, h2_out, grpc_out):
                assert call(port) == ("second", True), port


def test_dataplanes_without_tags(tmp_path: Path, ports: Ports, echo: int) -> None:
    """In the form of Kuma 3.0: protocols by field, services by label, consumed by reference."""
    tcp_in, h2_in, tcp_out, h2_out, labelled = free_ports(5)
    with workloads("web", "backend") as (app, backend), Http2Server("second") as h2:
        mine = dataplane(
            "web",
            [untagged(ports.inbound, app.port), untagged(tcp_in, echo, ""), untagged(h2_in, h2.port, "http2")],
            [
                reference(ports.outbound, "backend", backend.port),
                reference(labelled, "", backend.port, app="shop"),
                reference(tcp_out, "raw", echo),
                reference(h2_out, "h2", h2.port),
            ],
            admin=ports.admin,
            labels={"kuma.io/workload": "web"},
        )
        others = [
            dataplane("b-1", [untagged(backend.port)], labels={"kuma.io/workload": "backend", "app": "shop"}),
            dataplane("raw", [untagged(echo, protocol="tcp")]),
            dataplane("b-3", [inbound(h2.port, 0, "h2", "http2")]),
        ]
        with run_standalone(write(tmp_path / "mesh", mine, *others), ports):
            assert get(ports.inbound) == (200, "web")
            assert get(ports.outbound) == get(labelled) == (200, "backend")
            assert echo_of(tcp_in) == echo_of(tcp_out) == b"echo ping\n"
            assert call(h2_in) == call(h2_out) == ("second", True)


def test_a_dataplane_without_inbound_follows_the_others(tmp_path: Path, ports: Ports) -> None:
    with workloads("one", "two") as (one, two):
        mine = dataplane("web", [], [reference(ports.outbound, "backend", one.port)], admin=ports.admin)
        folder = write(tmp_path / "mesh", mine, dataplane("backend", [untagged(one.port)]))
        with run_standalone(folder, ports):
            assert get(ports.outbound) == (200, "one")
            write(folder, dataplane("web", [], [reference(ports.outbound, "backend", two.port)], admin=ports.admin))
            poll(lambda: get(ports.outbound)[0] == 503, what="nobody at the other port")
            write(folder, dataplane("backend", [untagged(one.port), untagged(two.port)]))
            poll(lambda: get(ports.outbound) == (200, "two"), what="the other port")


def test_a_delegated_gateway_has_outbounds_alone(tmp_path: Path, ports: Ports) -> None:
    with workloads("backend") as (backend,):
        gateway: Tree = {"gateway": {"type": "DELEGATED", "tags": {"kuma.io/service": "edge"}}}
        mine = dataplane("web", [], [outbound(ports.outbound, "backend")], admin=ports.admin, networking=gateway)
        folder = write(tmp_path / "mesh", mine, dataplane("backend", [inbound(backend.port, 0, "backend")]))
        with run_standalone(folder, ports) as daemon:
            assert get(ports.outbound) == (200, "backend")
            bound = daemon.envoy().net_connections("tcp")
            listening = {connection.laddr.port for connection in bound if connection.status == psutil.CONN_LISTEN}
            assert listening == {ports.outbound, ports.admin}


def test_tags_health_and_state_choose_the_endpoints(tmp_path: Path, ports: Ports) -> None:
    first, second = free_ports(2)
    with workloads("web", "one", "two", "three") as (app, one, two, three):
        folder = write(
            tmp_path / "mesh",
            web(
                ports,
                app.port,
                outbound(ports.outbound, "backend"),
                outbound(first, "backend", version="1"),
                outbound(second, "backend", version="2"),
            ),
            dataplane("one", [inbound(one.port, 0, "backend", tags={"version": "1"})]),
            dataplane("two", [inbound(two.port, 0, "backend", tags={"version": "2"})]),
            dataplane("three", [inbound(three.port, 0, "backend", state="NotReady")]),
            dataplane("four", [inbound(three.port, 0, "backend", state="Ignored")], address="127.0.0.2"),
        )
        with run_standalone(folder, ports):
            assert {get(first) for _ in range(6)} == {(200, "one")}
            assert {get(second) for _ in range(6)} == {(200, "two")}
            assert {get(ports.outbound) for _ in range(12)} == {(200, "one"), (200, "two")}
            write(
                folder,
                dataplane("one", [inbound(one.port, 0, "backend", tags={"version": "1"}, health={"ready": False})]),
            )
            poll(lambda: get(first)[0] == 503, what="nobody for version 1")
            assert {get(ports.outbound) for _ in range(12)} == {(200, "two")}
            write(folder, dataplane("three", [inbound(three.port, 0, "backend", state="Ready")]))
            poll(lambda: get(ports.outbound) == (200, "three"), what="the third endpoint")


def test_an_inbound_that_is_not_ready_answers_503_and_an_ignored_one_is_not_there(tmp_path: Path, ports: Ports) -> None:
    not_ready, ignored = free_ports(2)
    with workloads("web") as (app,):
        tree = dataplane(
            "web",
            [
                inbound(ports.inbound, app.port, health={"ready": False}),
                inbound(not_ready, app.port, state="NotReady"),
                inbound(ignored, app.port, state="Ignored"),
            ],
            admin=ports.admin,
        )
        with run_standalone(write(tmp_path / "mesh", tree), ports):
            assert get(ports.inbound)[0] == get(not_ready)[0] == 503
            assert get(ignored)[0] == 0


def test_an_outbound_nobody_answers_is_503_and_comes_alive_with_whatever_protocol(
    tmp_path: Path, ports: Ports, echo: int
) -> None:
    (second,) = free_ports(1)
    with workloads("web", "backend") as (app, backend):
        folder = write(
            tmp_path / "mesh",
            web(ports, app.port, outbound(ports.outbound, "backend"), outbound(second, "raw")),
        )
        with run_standalone(folder, ports) as daemon:
            envoy = daemon.envoy().pid
            assert get(ports.outbound)[0] == get(second)[0] == 503
            write(folder, dataplane("backend", [inbound(backend.port, 0, "backend")]))
            answers(ports.outbound, (200, "backend"), "the endpoint that was added")
            write(folder, dataplane("raw", [inbound(echo, 0, "raw", "tcp")]))
            poll(lambda: echo_of(second) == b"echo ping\n", what="the TCP endpoint that was added")
            (folder / "backend.yaml").unlink()
            poll(lambda: get(ports.outbound)[0] == 503, what="503 after the endpoint went")
            assert daemon.envoy().pid == envoy


def test_ready_and_metrics_on_the_data_planes_address_and_the_admin_nowhere_else(tmp_path: Path, ports: Ports) -> None:
    (metrics,) = free_ports(1)
    with workloads("web") as (app,):
        conf = {"type": "prometheus", "conf": {"port": metrics, "path": "/metrics"}}
        folder = write(tmp_path / "mesh", web(ports, app.port, address="127.0.0.2", metrics=conf))
        with run_standalone(folder, ports):
            assert get(ports.admin, "/ready", "127.0.0.2") == (200, "LIVE\n")
            for path in ("/", "/config_dump", "/stats", "/quitquitquit", "/ready/", "/readyz"):
                assert get(ports.admin, path, "127.0.0.2")[0] == 404, path
            status, text = get(metrics, "/metrics", "127.0.0.2")
            assert status == 200
            assert "# TYPE envoy_" in text
            assert get(metrics, "/config_dump", "127.0.0.2")[0] == 404
            assert get(ports.inbound, host="127.0.0.2") == (200, "web")


def _query(name: str, port: int, kind: str = "A") -> dns.message.Message:
    return dns.query.udp(dns.message.make_query(name, kind), "127.0.0.1", timeout=5, port=port)


def test_envoy_answers_names_and_follows_changes(tmp_path: Path, ports: Ports) -> None:
    (other,) = free_ports(1, "127.0.0.3")
    with workloads("web", "backend") as (app, backend):
        backends = dataplane("backend", [inbound(backend.port, 0, "Back_end")])
        mine = [outbound(ports.outbound, "Back_end", "127.0.0.3")]
        folder = write(tmp_path / "mesh", web(ports, app.port, *mine), backends)
        environment = {"PATH": str(tmp_path), "KUMA_DNS_ENABLED": "true"}
        with run_standalone(folder, ports, environment=environment):
            for name in ("Back_end.mesh", "back_end.mesh", "back.end.mesh"):
                answer = _query(name, ports.dns)
                assert [str(item) for rrset in answer.answer for item in rrset] == ["127.0.0.3"], name
            assert get(ports.outbound, host="127.0.0.3") == (200, "backend")
            write(folder, web(ports, app.port, *mine, outbound(other, "new", "127.0.0.4")))

            def new_address() -> bool:
                answer = _query("new.mesh", ports.dns)
                return [str(item) for rrset in answer.answer for item in rrset] == ["127.0.0.4"]

            poll(new_address, what="the new name")
            assert _query("back_end.mesh", ports.dns).rcode() == dns.rcode.NOERROR
