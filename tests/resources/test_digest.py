"""The digest that distinguishes an edited resource from the one that the control plane took."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kumadp.resources.load import load_resource
from kumadp.resources.resource import with_admin_port
from kumadp.resources.wire import digest

INBOUND = {"port": 8080, "tags": {"kuma.io/service": "web"}}
TREE: dict[str, Any] = {
    "type": "Dataplane",
    "mesh": "default",
    "name": "web",
    "networking": {"address": "127.0.0.1", "inbound": [INBOUND]},
}


def digest_of(tree: dict[str, Any]) -> str:
    return digest(load_resource(json.dumps(tree), "dp.yaml"))


def test_neither_the_order_of_keys_nor_a_chosen_admin_port_changes_it() -> None:
    resource = load_resource(json.dumps(TREE), "dp.yaml")
    assert digest(with_admin_port(resource, 9901)) == digest(resource)
    assert digest_of(dict(reversed(TREE.items()))) == digest(resource)


@pytest.mark.parametrize(
    "edit",
    [
        {"name": "api"},
        {"labels": {"team": "a"}},
        {"networking": {**TREE["networking"], "inbound": [{**INBOUND, "port": 8081}]}},
        {"probes": {"port": 9000, "endpoints": [{"inboundPort": 8080, "inboundPath": "/", "path": "/x"}]}},
    ],
)
def test_an_edit_changes_it(edit: dict[str, Any]) -> None:
    assert digest_of(TREE | edit) != digest_of(TREE)


def test_without_a_resource_there_is_none() -> None:
    assert digest(None) == ""
