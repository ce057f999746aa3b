"""Two bootstraps by meaning: what is another spelling, what is a difference, and what each takes."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from kumadp.bootstrap.comparison import Difference, Restart, differences, restart_needed, same_node
from kumadp.bootstrap.fields import snake
from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.rewrite import rewrite_for_relay

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
CAPTURED = sorted(path.parent.relative_to(CAPTURES).as_posix() for path in CAPTURES.glob("*/*/bootstrap.yaml"))


def captured(name: str = "kuma-2.13.5/full") -> dict[str, Any]:
    return parse_bootstrap((CAPTURES / name / "bootstrap.yaml").read_bytes())


def relayed(tree: dict[str, Any]) -> dict[str, Any]:
    return rewrite_for_relay(tree, "/run/kumadp/xds.sock").bootstrap


def respelled(tree: Any, names: bool = True) -> Any:
    """Maps in another order, fields in snake_case but for those of a Struct."""
    if isinstance(tree, dict):
        items = list(tree.items())
        random.Random(1).shuffle(items)
        return {
            snake(key) if names and "." not in key else key: respelled(value, names and key != "metadata")
            for key, value in items
        }
    return [respelled(item, names) for item in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("name", CAPTURED)
def test_another_spelling_is_no_difference(name: str) -> None:
    tree = captured(name)
    original = copy.deepcopy(tree)
    assert differences(tree, respelled(tree)) == []
    assert differences(respelled(tree), tree) == []
    assert tree == original


def change(tree: dict[str, Any], name: str) -> None:
    node = tree["node"]["metadata"]
    ads = tree["dynamicResources"]["adsConfig"]
    resource = json.loads(node["dataplane.resource"])
    match name:
        case "order of features":
            node["features"].reverse()
        case "order of clusters":
            tree["staticResources"]["clusters"].reverse()
        case "number as text":
            tree["admin"]["address"]["socketAddress"]["portValue"] = "9901"
        case "duration":
            tree["staticResources"]["clusters"][0]["connectTimeout"] = "1.000s"
        case "nothing":
            tree["watchdogs"] = None
            tree["statsSinks"] = []
        case "token":
            ads["grpcServices"][0]["initialMetadata"][0]["value"] = "another"
        case "no token":
            del ads["grpcServices"][0]["initialMetadata"]
        case "times of the resource":
            resource["modificationTime"] = "2026-11-25T00:00:00Z"
            node["dataplane.resource"] = json.dumps(resource)
        case "order in the resource":
            node["dataplane.resource"] = json.dumps(dict(reversed(resource.items())), indent=1)


@pytest.mark.parametrize(
    "name",
    [
        "order of features",
        "order of clusters",
        "number as text",
        "duration",
        "nothing",
        "token",
        "no token",
        "times of the resource",
        "order in the resource",
    ],
)
def test_what_means_the_same(name: str) -> None:
    tree = captured()
    change(tree, name)
    assert tree != captured() or name.startswith("order")
    assert differences(captured(), tree) == []
    assert differences(tree, captured()) == []


def as_text(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [str(difference) for difference in differences(old, new)]


def test_each_difference_has_its_path() -> None:
    old, new = captured(), captured()
    new["admin"]["address"]["socketAddress"]["portValue"] = 9902
    new["node"]["metadata"]["features"].append("feature-otel")
    resource = json.loads(new["node"]["metadata"]["dataplane.resource"])
    resource["networking"]["inbound"][0]["port"] = 18082
    new["node"]["metadata"]["dataplane.resource"] = json.dumps(resource)
    del new["staticResources"]["clusters"][0]
    new["layeredRuntime"]["layers"][0]["staticLayer"]["re2.max_program_size.warn_level"] = 2000
    new["flagsPath"] = "/etc/flags"
    assert as_text(old, new) == [
        "admin.address.socketAddress.portValue changed from 9901 to 9902",
        'flagsPath was added: "/etc/flags"',
        'layeredRuntime.layers[kuma].staticLayer["re2.max_program_size.warn_level"] changed from 1000 to 2000',
        'node.metadata["dataplane.resource"].networking.inbound[0].port changed from 18081 to 18082',
        "node.metadata.features has 5 elements instead of 4",
        "staticResources.clusters[access_log_sink] was removed",
    ]


def test_the_node_is_the_same_by_meaning() -> None:
    old, new = captured(), respelled(captured())
    new["node"]["metadata"]["features"].reverse()
    new["admin"] = {"address": {"pipe": {"path": "/elsewhere"}}}
    new["node"]["metadata"]["version"]["kumaDp"]["version"] = "9.9.9"
    assert same_node(old, new)
    new["node"]["metadata"]["features"].pop()
    assert not same_node(old, new)
    assert same_node({}, {})
    assert not same_node({}, old)


def test_what_has_presence_is_not_the_same_as_nothing() -> None:
    old, new = captured(), captured()
    del new["dynamicResources"]["cdsConfig"]["initialFetchTimeout"]
    del new["dynamicResources"]["ldsConfig"]["ads"]
    assert as_text(old, new) == [
        "dynamicResources.cdsConfig.initialFetchTimeout was removed",
        "dynamicResources.ldsConfig.ads was removed",
    ]


def test_a_number_in_the_node_is_not_its_text() -> None:
    old, new = captured(), captured()
    new["node"]["metadata"]["dataplane.admin.port"] = 9901
    assert as_text(old, new) == ['node.metadata["dataplane.admin.port"] changed from "9901" to 9901']


def test_no_secret_is_in_a_difference() -> None:
    old, new = captured(), captured()
    new["staticResources"]["secrets"][0]["validationContext"]["trustedCa"] = {"inlineString": "short"}
    for tree, value in ((old, "s3cr3t-1"), (new, "s3cr3t-2")):
        service = tree["dynamicResources"]["adsConfig"]["grpcServices"][0]
        service["initialMetadata"].append({"key": "x-api-key", "value": value})
    changes = as_text(old, new)
    assert len(changes) == 3
    assert "s3cr3t" not in "".join(changes)
    assert "short" not in "".join(changes)


@pytest.mark.parametrize("name", CAPTURED)
def test_behind_the_relay_ca_and_address_need_nothing(name: str) -> None:
    old, new = captured(name), captured(name)
    cluster = new["staticResources"]["clusters"][1]
    endpoint = cluster["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"]
    endpoint["address"]["socketAddress"] = {"address": "other.example", "portValue": 5679}
    cluster["transportSocket"]["typedConfig"]["sni"] = "other.example"
    cluster["type"] = "STRICT_DNS"
    new["staticResources"]["secrets"][0]["validationContext"]["trustedCa"] = {"inlineBytes": "eA=="}
    assert differences(old, new) != []
    assert differences(relayed(old), relayed(new)) == []


def test_what_each_takes() -> None:
    old, new = captured(), captured()
    assert restart_needed([]) is Restart.NONE
    new["node"]["cluster"] = "other"
    changes = differences(old, new)
    assert changes == [Difference("node.cluster", 'changed from "backend" to "other"', Restart.EPOCH, node=True)]
    new["statsConfig"]["statsTags"] = []
    changes = differences(old, new)
    assert [(change.path, change.restart, change.node) for change in changes] == [
        ("node.cluster", Restart.EPOCH, True),
        ("statsConfig.statsTags", Restart.EPOCH, False),
    ]
    assert restart_needed(changes) is Restart.EPOCH
    new["bootstrapExtensions"] = [{"name": "envoy.bootstrap.internal_listener"}]
    assert restart_needed(differences(old, new)) is Restart.COLD


def test_without_hot_restart_all_is_cold() -> None:
    old, new = captured(), captured()
    new["node"]["cluster"] = "other"
    assert [change.restart for change in differences(old, new, hot=False)] == [Restart.COLD]
