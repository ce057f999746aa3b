"""Which connections are the workload's."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest

from kumadp.envoy.admin import AdminClient, AdminUnreachable
from kumadp.envoy.workload_connections import Direction, until_idle, workload_connections


def listener(name: str, host: str, port: int, *more: tuple[str, int]) -> dict[str, Any]:
    def socket(at: str, number: int) -> dict[str, Any]:
        return {"socket_address": {"address": at, "port_value": number}}

    return {
        "name": name,
        "local_address": socket(host, port),
        "additional_local_addresses": [socket(*address) for address in more],
    }


LISTENERS = {
    "listener_statuses": [
        listener("inbound:10.0.0.1:80", "10.0.0.1", 80),
        listener("outbound:[::1]:81", "::1", 81),
        listener("kuma:envoy:admin", "10.0.0.1", 9901),
        listener("_kuma:metrics:prometheus", "10.0.0.1", 5670, ("fd00::1", 5670)),
    ]
}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("10.0.0.1_80", True),
        ("[__1]_81", True),
        ("10.0.0.1_9901", False),
        ("10.0.0.1_5670", False),
        ("[fd00__1]_5670", False),
        ("admin", False),
        ("admin.main_thread", False),
        ("10.0.0.1_80.worker_0", False),
        ("worker_1.10.0.0.1_80", False),
        ("self_inbound_dp_http", True),
        ("self_transparentproxy_passthrough_outbound_ipv4", True),
        ("self_zoneingress_dp_zi", True),
        ("system_envoy_admin", False),
        ("system_dynamicconfig", False),
        ("system_meshmetric_prometheus_default-backend", False),
        ("/run/kumadp/kuma-mesh-metric-config.sock", False),
        ("kri_dp_default_zone_ns_web_80", True),
    ],
)
def test_only_the_workload_s_listeners_count(name: str, counts: bool) -> None:
    count = workload_connections(LISTENERS, {f"listener.{name}.downstream_cx_active": 2})
    assert count == (2 if counts else 0)


@pytest.mark.parametrize(
    ("name", "direction", "counts"),
    [
        ("10.0.0.1_80", "inbound", True),
        ("10.0.0.1_80", "outbound", False),
        ("[__1]_81", "inbound", False),
        ("[__1]_81", "outbound", True),
        ("10.0.0.1_9901", "outbound", False),
        ("kri_dp_default_zone_ns_web_80", "inbound", True),
        ("self_inbound_dp_main", "inbound", True),
        ("self_inbound_dp_main", "outbound", False),
        ("self_transparentproxy_passthrough_inbound_ipv6", "inbound", True),
        ("self_transparentproxy_passthrough_outbound_ipv6", "inbound", False),
        ("self_transparentproxy_passthrough_outbound_ipv6", "outbound", True),
        ("self_zoneegress_dp_ze", "inbound", True),
        ("kri_msvc_default_zone_ns_backend_80", "inbound", False),
        ("kri_msvc_default_zone_ns_backend_80", "outbound", True),
    ],
)
def test_each_direction_counts_by_itself(name: str, direction: Direction, counts: bool) -> None:
    count = workload_connections(LISTENERS, {f"listener.{name}.downstream_cx_active": 2}, direction)
    assert count == (2 if counts else 0)


@pytest.mark.parametrize(("direction", "expected"), [("both", 7), ("inbound", 1), ("outbound", 6)])
def test_listeners_of_kuma_3(direction: Direction, expected: int) -> None:
    # Names and addresses of captures/kuma-3.0-dev/tp.
    listeners = {
        "listener_statuses": [
            listener("kri_msvc_default_default__web_main", "241.0.0.0", 80),
            listener("self_inbound_dp_main", "127.0.0.1", 28081),
            listener("self_transparentproxy_passthrough_inbound_ipv4", "0.0.0.0", 15006),
            listener("self_transparentproxy_passthrough_outbound_ipv4", "0.0.0.0", 15001),
            listener("system_meshmetric_prometheus_default-backend", "127.0.0.1", 5670),
            {"name": "system_dynamicconfig", "local_address": {"pipe": {"path": "/run/kumadp/x.sock"}}},
        ]
    }
    active = {
        "self_inbound_dp_main": 1,
        "kri_msvc_default_default__web_main": 2,
        "self_transparentproxy_passthrough_outbound_ipv4": 4,
        "system_meshmetric_prometheus_default-backend": 8,
        "system_dynamicconfig": 16,
        "/run/kumadp/kuma-mesh-metric-config.sock": 32,
    }
    stats = {f"listener.{name}.downstream_cx_active": number for name, number in active.items()}
    assert workload_connections(listeners, stats, direction) == expected


def test_other_statistics_do_not_count() -> None:
    assert workload_connections(LISTENERS, {"listener.10.0.0.1_80.downstream_cx_total": 2}) == 0


async def test_it_returns_once_no_connection_is_left_and_outlasts_a_silent_admin() -> None:
    answers: list[dict[str, int] | Exception] = [
        {"listener.10.0.0.1_80.downstream_cx_active": 1},
        AdminUnreachable("no answer within 5 s"),
        ValueError("no JSON"),
        {"listener.10.0.0.1_80.downstream_cx_active": 0},
    ]

    class Admin:
        async def get(self, _path: str) -> tuple[int, bytes]:
            return 200, json.dumps(LISTENERS).encode()

        async def stats(self, _pattern: str) -> dict[str, int]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    await asyncio.wait_for(until_idle(cast("AdminClient", Admin()), pause=0.0), 10)
    assert answers == []
