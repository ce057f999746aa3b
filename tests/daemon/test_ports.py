"""What is decided before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from msgspec.structs import replace

from kumadp.daemon.ports import check_plan, envoy_addresses, own_addresses
from kumadp.dns.plan import plan_dns
from kumadp.envoy.launch import restart_budget
from kumadp.errors import ResourceError, SettingsError
from kumadp.probes.plan import ProbesPlan, plan_probes
from kumadp.resources.load import load_resource
from kumadp.resources.transparent_proxy import Redirected, TransparentProxy
from kumadp.resources.types import Dataplane
from kumadp.settings.model import Settings

if TYPE_CHECKING:
    from kumadp.resources.resource import Resource

COREDNS = Path("/usr/bin/coredns")
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def dataplane(
    *,
    inbound: int = 11011,
    outbound: int = 33033,
    probes: int = 0,
    admin: int = 0,
    metrics: int = 0,
    address: str = "127.0.0.1",
) -> Resource:
    tree: dict[str, Any] = {
        "type": "Dataplane",
        "mesh": "default",
        "name": "web",
        "networking": {
            "address": address,
            "inbound": [{"port": inbound, "servicePort": 8080, "tags": {"kuma.io/service": "web"}}],
            "outbound": [{"port": outbound, "tags": {"kuma.io/service": "b"}}],
        },
    }
    if admin:
        tree["networking"]["admin"] = {"port": admin}
    if metrics:
        tree["metrics"] = {"type": "prometheus", "conf": {"port": metrics}}
    if probes:
        endpoint = {"inboundPort": 11011, "inboundPath": "/a", "path": "/b"}
        tree["probes"] = {"port": probes, "endpoints": [endpoint]}
    return load_resource(yaml.safe_dump(tree), "dp.yaml")


def check(resource: Resource, *, standalone: bool = False, coredns: Path | None = COREDNS, **settings: Any) -> None:
    chosen = Settings(**settings)
    dns = plan_dns(chosen, coredns)
    assert isinstance(resource.spec, Dataplane)
    probes, _ = plan_probes(chosen, resource.spec, {})
    own = own_addresses(chosen, dns, probes)
    check_plan(own, envoy_addresses(resource, standalone=standalone, dns=dns), resource)


def test_the_usual_ports_do_not_clash() -> None:
    check(dataplane(probes=9000, admin=9901))
    check(dataplane(probes=9000), standalone=True)
    check(dataplane(probes=9000), standalone=True, coredns=None)


@pytest.mark.parametrize(
    ("port", "purpose"),
    [
        (9902, "readiness"),
        (15053, "DNS"),
        (19153, "CoreDNS metrics"),
        (9901, "Envoy's admin"),
    ],
)
def test_an_outbound_on_a_port_of_ours_is_named_with_field_and_line(port: int, purpose: str) -> None:
    with pytest.raises(ResourceError) as clash:
        check(dataplane(outbound=port, probes=9000), standalone=True)
    (problem,) = clash.value.problems
    assert purpose in str(problem)
    assert "networking.outbound[0].port" in str(problem)


def test_what_standalone_mode_adds_is_counted() -> None:
    with pytest.raises(ResourceError, match="Prometheus"):
        check(dataplane(metrics=11011, address="127.0.0.2"), standalone=True)
    with pytest.raises(ResourceError, match="/ready for other data planes"):
        check(dataplane(inbound=9901, address="127.0.0.2"), standalone=True)
    check(dataplane(inbound=9901, address="127.0.0.2"))


def test_settings_that_clash_with_each_other_are_named() -> None:
    with pytest.raises(SettingsError) as clash:
        check(dataplane(), coredns_port=9902, dns_prometheus_port=9902)
    assert {problem.path for problem in clash.value.problems} == {"--dns-coredns-port", "--dns-prometheus-port"}


def test_other_addresses_do_not_clash() -> None:
    check(dataplane(outbound=9902, address="127.0.0.9"), readiness_port=9903)
    check(dataplane(outbound=19153), coredns=None)


@pytest.mark.parametrize(
    ("settings", "environ", "own", "plan", "reported"),
    [
        ({}, {}, 9000, ProbesPlan("127.0.0.1", 9000, ()), ""),
        ({}, {}, 9005, ProbesPlan("127.0.0.1", 9005, ()), ""),
        ({}, {}, 0, None, ""),
        ({}, KUBERNETES, 9000, None, "on Kubernetes"),
        ({"virtual_probes": "on"}, KUBERNETES, 9000, ProbesPlan("127.0.0.1", 9000, ()), ""),
        ({"virtual_probes": "off"}, {}, 9000, None, "off by setting"),
        ({"virtual_probes_address": "127.0.0.5"}, {}, 9000, ProbesPlan("127.0.0.5", 9000, ()), ""),
        (
            {"virtual_probes": "on", "virtual_probes_ports": (8080,), "virtual_probes_port": 9009},
            {},
            0,
            ProbesPlan("127.0.0.1", 9009, (8080,)),
            "",
        ),
    ],
)
def test_where_virtual_probes_are_served(
    settings: dict[str, Any], environ: dict[str, str], own: int, plan: ProbesPlan | None, reported: str
) -> None:
    spec = dataplane(probes=own).spec
    assert isinstance(spec, Dataplane)
    made, why = plan_probes(Settings(**settings), spec, environ)
    assert made == plan
    assert reported in why


def test_in_a_pod_the_generic_form_is_served_on_the_pod_s_address() -> None:
    settings = Settings(virtual_probes="on", virtual_probes_ports=(8080,), instance_ip="192.0.2.7")
    assert plan_probes(settings, None, KUBERNETES) == (ProbesPlan("192.0.2.7", 9000, (8080,)), "")
    elsewhere = replace(settings, virtual_probes_address="192.0.2.8")
    assert plan_probes(elsewhere, None, KUBERNETES) == (ProbesPlan("192.0.2.8", 9000, (8080,)), "")


@pytest.mark.parametrize("setting", ["auto", "on", "off"])
def test_probes_without_endpoints_are_none(setting: str) -> None:
    tree = {**dict(dataplane().tree), "probes": {"port": 9005}}
    spec = load_resource(yaml.safe_dump(tree), "dp.yaml").spec
    assert isinstance(spec, Dataplane)
    generic = Settings(virtual_probes=setting, virtual_probes_ports=(8080,))
    assert plan_probes(generic, spec, {}) == (ProbesPlan("127.0.0.1", 9000, (8080,)) if setting == "on" else None, "")


def test_on_with_nothing_to_serve_is_an_error() -> None:
    with pytest.raises(SettingsError, match="--virtual-probes-ports"):
        plan_probes(Settings(virtual_probes="on"), None, {})


@pytest.mark.parametrize(
    ("setting", "environ", "budget"),
    [
        (None, {}, 5),
        (None, KUBERNETES, 0),
        (None, {"POD_NAME": "a", "POD_NAMESPACE": "b"}, 0),
        (2, KUBERNETES, 2),
        (0, {}, 0),
    ],
)
def test_the_budget_of_envoy(setting: int | None, environ: dict[str, str], budget: int) -> None:
    assert restart_budget(Settings(envoy_restart_budget=setting), environ) == budget


def test_with_transparent_proxying_two_ports_are_bound_and_no_inbound() -> None:
    def bound(transparent: TransparentProxy | None) -> set[int]:
        found = envoy_addresses(dataplane(admin=9901), standalone=False, dns=None, transparent=transparent)
        return {address.port for address in found}

    assert bound(None) == {11011, 33033, 9901}
    # The application may listen on the inbound's own port.
    assert bound(TransparentProxy()) == {15006, 15001, 9901}
    half = TransparentProxy(inbound=Redirected(enabled=False, port=15006))
    assert bound(half) == {11011, 15001, 9901}
