"""The applications that the application probe proxy may probe, and their hosts."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from kumadp.bootstrap.admin_address import AdminAddress, TcpAdmin, UnixAdmin
from kumadp.core.context import Context, Inputs
from kumadp.host.net.ports import BindAddress
from kumadp.probes.targets import ProbeTargets, applications, is_limited
from kumadp.resources.load import load_resource
from kumadp.resources.types import Dataplane
from kumadp.settings.model import Settings
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kumadp.resources.resource import Resource

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


opened: list[ProbeTargets] = []


@pytest.fixture(autouse=True)
def _close_targets() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()


def targets(
    *,
    dataplane: bool = True,
    environ: dict[str, str] | None = None,
    own: tuple[BindAddress, ...] = (),
    admin: AdminAddress | None = None,
    children: tuple[int, ...] = (),
    **settings: Any,
) -> ProbeTargets:
    context = Context(Inputs(replace(Settings(), **settings), resource() if dataplane else None, environ or {}))
    opened.append(ProbeTargets(context, own, lambda: children, lambda: admin))
    return opened[-1]


def test_applications_are_where_envoy_finds_them() -> None:
    spec = resource().spec
    assert isinstance(spec, Dataplane)
    assert applications(spec) == {8080: "127.0.0.1", 9090: "192.0.2.1", 8081: "192.0.2.7"}
    assert applications(None) == {}


async def test_the_dataplane_s_applications_and_what_the_option_adds_are_probed() -> None:
    host_of = targets(probe_proxy_ports=(22,))
    assert await host_of(8080) == "127.0.0.1"
    assert await host_of(8081) == "192.0.2.7"
    assert await host_of(22) == "192.0.2.1"
    assert await host_of(23) is None
    # Envoy's own, in front of the application.
    assert await host_of(18080) is None


async def test_on_kubernetes_any_port_is_probed_at_the_pod_s_address() -> None:
    host_of = targets(dataplane=False, environ=POD)
    assert await host_of(8080) == ""
    host_of.address = "10.0.0.1"
    assert await host_of(8080) == "10.0.0.1"
    assert await targets(dataplane=False, environ=POD, instance_ip="10.0.0.2")(8080) == "10.0.0.2"


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


async def test_what_is_our_own_is_never_probed(caplog: pytest.LogCaptureFixture) -> None:
    readiness = BindAddress("127.0.0.1", 9902, "tcp", "readiness", "")
    everywhere = BindAddress("::", 9001, "tcp", "the proxy", "")
    dns = BindAddress("0.0.0.0", 15053, "udp", "DNS", "")
    settings: dict[str, Any] = {"probe_proxy_allow": "any", "instance_ip": "127.0.0.1", "dataplane": False}
    host_of = targets(own=(readiness, everywhere, dns), admin=TcpAdmin("127.0.0.1", 9901), **settings)
    assert [await host_of(port) for port in (9902, 9001, 9901, 9902)] == [None] * 4
    assert await host_of(15053) == "127.0.0.1"
    assert len([line for line in caplog.messages if "port 9902 is not probed" in line]) == 1
    assert await targets(admin=UnixAdmin("/run/admin.sock"), **settings)(9901) == "127.0.0.1"
    # Another address is another application's.
    settings["instance_ip"] = "192.0.2.1"
    assert await targets(own=(readiness,), **settings)(9902) == "192.0.2.1"


async def test_what_a_process_of_ours_listens_on_is_never_probed() -> None:
    port, other = free_ports(2)
    settings: dict[str, Any] = {"probe_proxy_allow": "any", "instance_ip": "127.0.0.1", "dataplane": False}
    host_of = targets(**settings)
    with socket.create_server(("127.0.0.1", port)):
        assert await host_of(port) is None
        assert await host_of(other) == "127.0.0.1"
    assert await host_of(port) == "127.0.0.1"
