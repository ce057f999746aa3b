"""What the application probe proxy may ask, and where."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.bootstrap.admin_address import AdminAddress, TcpAdmin, UnixAdmin
from kumadp.core.context import Run
from kumadp.host.net.ports import BindAddress
from kumadp.probes.targets import Places, applications, is_limited, is_sourced
from kumadp.resources.load import load_resource
from kumadp.resources.types import Dataplane
from kumadp.settings.model import Settings
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from kumadp.resources.load import Resource

DATAPLANE = """
type: Dataplane
mesh: default
name: web
networking:
  address: 192.0.2.1
  inbound:
  - {port: 18080, servicePort: 8080, serviceAddress: 127.0.0.1, tags: {kuma.io/service: web}}
  - {port: 9090, tags: {kuma.io/service: own}}
  - {port: 18081, servicePort: 8081, address: 192.0.2.7, tags: {kuma.io/service: other}}
"""
POD = {"POD_NAME": "a", "POD_NAMESPACE": "b"}


def resource() -> Resource:
    return load_resource(DATAPLANE, "web.yaml", variables={})


def places(
    *,
    dataplane: bool = True,
    environ: dict[str, str] | None = None,
    own: tuple[BindAddress, ...] = (),
    admin: AdminAddress | None = None,
    children: tuple[int, ...] = (),
    **settings: Any,
) -> Places:
    run = Run(replace(Settings(), **settings), resource() if dataplane else None, None, environ or {})
    return Places(run, own, lambda: children, lambda: admin)


def test_applications_are_where_envoy_finds_them() -> None:
    spec = resource().spec
    assert isinstance(spec, Dataplane)
    assert applications(spec) == {8080: "127.0.0.1", 9090: "192.0.2.1", 8081: "192.0.2.7"}
    assert applications(None) == {}


async def test_the_dataplane_s_applications_and_what_the_option_adds_are_asked() -> None:
    ask = places(probe_proxy_ports=(22,))
    assert await ask(8080) == "127.0.0.1"
    assert await ask(8081) == "192.0.2.7"
    assert await ask(22) == "192.0.2.1"
    assert await ask(23) is None
    # Envoy's own, in front of the application.
    assert await ask(18080) is None


async def test_on_kubernetes_any_port_is_asked_at_the_pod_s_address() -> None:
    ask = places(dataplane=False, environ=POD)
    assert await ask(8080) == ""
    ask.told = "10.0.0.1"
    assert await ask(8080) == "10.0.0.1"
    assert await places(dataplane=False, environ=POD, instance_ip="10.0.0.2")(8080) == "10.0.0.2"


@pytest.mark.parametrize(
    ("allow", "environ", "limited"),
    [
        ("auto", {}, True),
        ("auto", POD, False),
        ("dataplane", POD, True),
        ("any", {}, False),
    ],
)
def test_the_allow_list(allow: str, environ: dict[str, str], limited: bool) -> None:
    assert is_limited(replace(Settings(), probe_proxy_allow=allow), environ) is limited


async def test_what_is_our_own_is_never_asked(caplog: pytest.LogCaptureFixture) -> None:
    readiness = BindAddress("127.0.0.1", 9902, "tcp", "readiness", "")
    everywhere = BindAddress("::", 9001, "tcp", "the proxy", "")
    dns = BindAddress("0.0.0.0", 15053, "udp", "DNS", "")
    settings: dict[str, Any] = {"probe_proxy_allow": "any", "instance_ip": "127.0.0.1", "dataplane": False}
    ask = places(own=(readiness, everywhere, dns), admin=TcpAdmin("127.0.0.1", 9901), **settings)
    assert [await ask(port) for port in (9902, 9001, 9901, 9902)] == [None] * 4
    assert await ask(15053) == "127.0.0.1"
    assert len([line for line in caplog.messages if "port 9902 is not asked" in line]) == 1
    assert await places(admin=UnixAdmin("/run/admin.sock"), **settings)(9901) == "127.0.0.1"
    # Another address is another application's.
    settings["instance_ip"] = "192.0.2.1"
    assert await places(own=(readiness,), **settings)(9902) == "192.0.2.1"


async def test_what_a_process_of_ours_listens_on_is_never_asked() -> None:
    port, other = free_ports(2)
    settings: dict[str, Any] = {"probe_proxy_allow": "any", "instance_ip": "127.0.0.1", "dataplane": False}
    ask = places(**settings)
    with socket.create_server(("127.0.0.1", port)):
        assert await ask(port) is None
        assert await ask(other) == "127.0.0.1"
    assert await ask(port) == "127.0.0.1"


def test_the_source_is_taken_where_traffic_may_be_redirected() -> None:
    spec = resource().spec
    assert isinstance(spec, Dataplane)
    assert not is_sourced(Settings(), spec, {})
    assert is_sourced(Settings(), None, POD)
    assert is_sourced(replace(Settings(), transparent_proxy=True), spec, {})
    assert is_sourced(replace(Settings(), transparent_proxy_config=("tp.yaml",)), spec, {})
    redirected = load_resource(
        DATAPLANE + "  transparentProxying: {redirectPortInbound: 15006, redirectPortOutbound: 15001}\n",
        "web.yaml",
        variables={},
    ).spec
    assert isinstance(redirected, Dataplane)
    assert is_sourced(Settings(), redirected, {})
