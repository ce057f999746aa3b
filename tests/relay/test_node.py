"""Envoy's Node from a bootstrap, against Envoy's own message types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.relay.node import encode_node

CAPTURES = sorted((Path(__file__).parent.parent / "data" / "captures").rglob("bootstrap.yaml"))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def theirs(node: dict[str, Any]) -> Any:
    return json_format.ParseDict(node, base_pb2.Node())


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}")
def test_the_node_of_a_real_bootstrap(path: Path) -> None:
    node = parse_bootstrap(path.read_bytes())["node"]
    assert base_pb2.Node.FromString(encode_node(node)) == theirs(node)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.text(), st.text())
def test_any_metadata(metadata: dict[str, Any], name: str, zone: str) -> None:
    node = {"id": name, "metadata": metadata, "locality": {"zone": zone, "subZone": "rack"}}
    assert base_pb2.Node.FromString(encode_node(node)) == theirs(node)


def test_all_that_is_passed_on_and_both_spellings() -> None:
    camel = {
        "id": "a",
        "cluster": "b",
        "userAgentName": "envoy",
        "userAgentBuildVersion": {
            "version": {"majorNumber": 1, "minorNumber": 40, "patch": 0},
            "metadata": {"ssl.version": "BoringSSL"},
        },
        "clientFeatures": ["envoy.lb.does_not_support_overprovisioning"],
    }
    snake = {
        "id": "a",
        "cluster": "b",
        "user_agent_name": "envoy",
        "user_agent_build_version": {
            "version": {"major_number": 1, "minor_number": 40},
            "metadata": {"ssl.version": "BoringSSL"},
        },
        "client_features": ["envoy.lb.does_not_support_overprovisioning"],
    }
    assert base_pb2.Node.FromString(encode_node(camel)) == theirs(camel)
    assert encode_node(snake) == encode_node(camel)


def test_equal_nodes_are_equal_bytes_and_extensions_are_left_out() -> None:
    one = {"id": "a", "metadata": {"x": 1, "y": [None, True, "z"]}, "extensions": [{"name": "envoy.filters"}]}
    two = {"metadata": {"y": [None, True, "z"], "x": 1}, "id": "a"}
    assert encode_node(one) == encode_node(two)
    assert b"envoy.filters" not in encode_node(one)


def test_another_shape_is_refused_without_its_value() -> None:
    with pytest.raises(ValueError, match=r"node\.metadata") as caught:
        encode_node({"metadata": "s3cret"})
    assert "s3cret" not in str(caught.value)
