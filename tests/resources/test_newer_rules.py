"""Rules of Kuma 2.13 to 3.0: metrics, reachable backends, listeners of zone proxies."""

from __future__ import annotations

from typing import Any

import pytest

from kumadp.resources.findings import Findings
from kumadp.resources.load import load_resource
from kumadp.resources.newer_rules import check_listeners, check_metrics, check_reachable, is_port
from kumadp.resources.types import Gateway, Inbound, Listener, Metrics, Networking, ReachableBackendRef


class Problems(Findings):
    """Findings for a resource without fields."""

    def __init__(self) -> None:
        super().__init__(load_resource('{"type": "ZoneEgress", "name": "e", "networking": {"port": 1}}', "e.yaml"))

    def of(self, version: str) -> list[str]:
        return [f"{problem.path}: {problem.message}" for problem in self.for_version(version).problems]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, True), (65535, True), ("8080", True), (65536, False), (-1, False), ("x", False), (True, False), ("²", False)],
)
def test_a_port_as_jsonpb_reads_it(value: object, expected: bool) -> None:
    assert is_port(value) is expected


@pytest.mark.parametrize(
    ("conf", "problem"),
    [
        ({}, None),
        ({"port": "5670", "skipMTLS": True, "tls": {"mode": "disabled"}}, None),
        ({"port": "x"}, "metrics.conf.port: 'x' is not a port"),
        ({"skipMTLS": True, "tls": {}}, "metrics.conf: skipMTLS and tls contradict each other"),
        ({"envoy": {"filterRegex": "("}}, "metrics.conf.envoy.filterRegex: is not a regular expression: "),
        ({"aggregate": [{"name": "a"}, {"name": "a"}]}, "metrics.conf.aggregate[1].name: 'a' is given twice"),
        ({"aggregate": [{}, {}]}, "metrics.conf.aggregate[1].name: is missing twice"),
    ],
)
def test_metrics(conf: dict[str, Any], problem: str | None) -> None:
    problems = Problems()
    check_metrics(Metrics(type="prometheus", conf=conf), problems)
    assert [text.startswith(problem or "none") for text in problems.of("2.8")] == [True] * (problem is not None)
    assert problems.of("3.0") == []


def test_the_type_of_metrics() -> None:
    problems = Problems()
    check_metrics(Metrics(type="graphite"), problems)
    check_metrics(Metrics(), problems)
    assert problems.of("2.14") == ["metrics.type: 'graphite' is not known", "metrics.type: is missing"]


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        (ReachableBackendRef(kind="MeshService", name="web.shop"), []),
        (ReachableBackendRef(kind="MeshService", labels={"app": "web"}), []),
        (ReachableBackendRef(kind="Service", name="web"), ["r.kind: 'Service' is not known"]),
        (ReachableBackendRef(kind="MeshService", name="Web"), ["r.name: 'Web' is not a name"]),
        (ReachableBackendRef(kind="MeshService", namespace="shop"), ["r.name: is missing"]),
        (ReachableBackendRef(kind="MeshService"), ["r.name: is missing"]),
        (
            ReachableBackendRef(kind="MeshService", name="a", labels={"a": "b"}),
            ["r.labels: cannot be given with a name"],
        ),
    ],
)
def test_a_reachable_backend(ref: ReachableBackendRef, expected: list[str]) -> None:
    problems = Problems()
    check_reachable(ref, "r", problems)
    assert problems.of("2.13") == expected
    assert problems.of("2.8") == []


def test_listeners() -> None:
    problems = Problems()
    networking = Networking(
        inbound=(Inbound(port=80),),
        listeners=(
            Listener(type="ZoneIngress", address="192.0.2.1", port=10001, name="in"),
            Listener(address="192.0.2.1", name="in"),
            Listener(type="ZoneEgress", port=10002, name="80"),
        ),
    )
    assert check_listeners(networking, problems) == [
        ("networking.listeners[0].address", "192.0.2.1"),
        ("networking.listeners[1].address", "192.0.2.1"),
        ("networking.listeners[2].address", ""),
    ]
    assert problems.of("2.13") == []
    assert problems.of("2.14") == [
        "networking.listeners[1].type: is missing",
        "networking.listeners[1].port: is missing",
        "networking.listeners[1].name: in is taken by another listener or inbound",
        "networking.listeners[2].name: 80 is taken by another listener or inbound",
    ]


def test_a_gateway_has_no_listeners() -> None:
    problems = Problems()
    networking = Networking(gateway=Gateway(), listeners=(Listener(),))
    assert check_listeners(networking, problems) == []
    assert problems.of("3.0") == ["networking.listeners: are not allowed for a gateway"]
