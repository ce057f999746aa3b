"""The application behind an inbound, and the inbound of a virtual probe."""

from __future__ import annotations

import json

import msgspec
import pytest

from kumadp.resources.resource import Resource
from kumadp.resources.types import Dataplane, Inbound, Networking, ZoneEgress
from kumadp.resources.workload import InboundPorts, service_of, workload_of

NETWORKING = Networking(address="192.0.2.1")


@pytest.mark.parametrize(
    ("inbound", "expected"),
    [
        (Inbound(port=80), ("192.0.2.1", 80)),
        (Inbound(port=80, service_port=8080), ("192.0.2.1", 8080)),
        (Inbound(port=80, address="192.0.2.2"), ("192.0.2.2", 80)),
        (Inbound(port=80, address="192.0.2.2", service_address="127.0.0.1"), ("127.0.0.1", 80)),
    ],
)
def test_the_application(inbound: Inbound, expected: tuple[str, int]) -> None:
    assert workload_of(NETWORKING, inbound) == expected


def indexes(*inbounds: Inbound, port: int) -> tuple[int, int | None] | None:
    probed = InboundPorts(Networking(inbound=inbounds)).probed(port)
    return (probed.index, probed.other) if probed is not None else None


def test_the_number_is_the_application_s_port() -> None:
    first, second = Inbound(port=80, service_port=8080), Inbound(port=81, service_port=8081)
    assert indexes(first, second, port=8081) == (1, None)
    assert indexes(first, second, port=81) == (1, None)
    assert indexes(first, second, port=82) is None


def test_the_last_inbound_of_an_application_is_used() -> None:
    assert indexes(Inbound(port=80, service_port=8080), Inbound(port=81, service_port=8080), port=8080) == (1, None)


def test_a_number_with_two_meanings() -> None:
    assert indexes(Inbound(port=80, service_port=8080), Inbound(port=8080, service_port=9090), port=8080) == (0, 1)


def test_ports_in_messages() -> None:
    assert InboundPorts(Networking()).shown == "none"
    assert InboundPorts(Networking(inbound=(Inbound(port=81), Inbound(port=80)))).shown == "80, 81"
    many = tuple(Inbound(port=1000 + number) for number in range(30))
    assert InboundPorts(Networking(inbound=many)).shown.endswith("1019, ...")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            '"labels": {"kuma.io/workload": "shop"}, "networking": {"inbound": [{"tags": {"kuma.io/service": "a"}}]}',
            "shop",
        ),
        ('"networking": {"inbound": [{}, {"tags": {"kuma.io/service": "a"}}]}', "a"),
        ('"networking": {"gateway": {"tags": {"kuma.io/service": "edge"}}}', "edge"),
        ('"networking": {"gateway": {}}', ""),
        ('"networking": {"listeners": [{"type": "ZoneIngress"}]}', ""),
    ],
)
def test_the_service_of_a_dataplane(document: str, expected: str) -> None:
    tree = json.loads(f"{{{document}}}")
    spec = msgspec.convert({"networking": tree["networking"]}, Dataplane)
    resource = Resource("Dataplane", "default", "web-1", tree.get("labels", {}), tree, spec, "dp.yaml")
    assert service_of(resource) == expected


def test_a_zone_proxy_has_no_service() -> None:
    assert service_of(Resource("ZoneEgress", "", "e", {}, {}, ZoneEgress(), "e.yaml")) == ""
