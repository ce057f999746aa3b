from __future__ import annotations

import pytest

from kumadp.addresses import with_port
from kumadp.standalone.config_fragments import assignment, overload_manager, socket_address, stat_name


def test_a_socket_address_names_its_protocol_unless_it_is_tcp() -> None:
    assert socket_address("::1", 53) == {"socketAddress": {"address": "::1", "portValue": 53}}
    assert socket_address("::1", 53, "UDP")["socketAddress"]["protocol"] == "UDP"


@pytest.mark.parametrize(("host", "text"), [("10.0.0.1", "10.0.0.1:80"), ("fd00::1", "[fd00::1]:80")])
def test_host_and_port(host: str, text: str) -> None:
    assert with_port(host, 80) == text


@pytest.mark.parametrize(
    ("text", "name"), [("back-end_1", "back-end_1"), ("localhost:8080@[::1]:80", "localhost_8080____1__80"), ("ü", "_")]
)
def test_a_name_for_statistics(text: str, name: str) -> None:
    assert stat_name(text) == name


def test_a_cluster_may_have_no_endpoints() -> None:
    assert assignment("backend", []) == {"clusterName": "backend", "endpoints": []}


def test_the_heap_is_four_fifths_of_the_memory() -> None:
    manager = overload_manager(1000)
    assert manager["resourceMonitors"][0]["typedConfig"]["maxHeapSizeBytes"] == 800
    names = [action["name"].rpartition(".")[2] for action in manager["actions"]]
    assert names == ["shrink_heap", "stop_accepting_requests"]
