"""A bootstrap as Kuma's control planes answer it: the captured ones, with the caller's own names, ports and trust."""

from __future__ import annotations

import base64
import functools
import ipaddress
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from tests.support.xds.resources import Tree

CAPTURES = Path(__file__).resolve().parents[2] / "data" / "captures"
CAPTURED = {"2.8.8": "kuma-2.8.8/dataplane", "2.13.5": "kuma-2.13.5/full"}


@functools.cache
def _captured(version: str) -> str:
    tree = yaml.load((CAPTURES / CAPTURED[version] / "bootstrap.yaml").read_text(), yaml.CSafeLoader)
    return json.dumps(tree)


def bootstrap(request: Tree, version: str, host: str, port: int, *, tls: bool, turn: int = 0) -> Tree:
    """The bootstrap for a request, as the control plane of ``version`` makes it; ADS and HDS are at ``host:port``.

    Kuma 2.13 lists the features in the random order of a Go map, here in another one at each ``turn``.
    """
    tree: Tree = json.loads(_captured(version))
    resource = json.loads(request["dataplaneResource"]) if request.get("dataplaneResource") else {}
    networking = resource.get("networking") or {}
    admin = (networking.get("admin") or {}).get("port", 9901)
    tree["admin"]["address"]["socketAddress"]["portValue"] = admin
    _fill_node(tree["node"], request, networking, admin)
    if version != "2.8.8":
        features = tree["node"]["metadata"]["features"]
        first = turn % max(1, len(features))
        tree["node"]["metadata"]["features"] = [*features[first:], *features[:first]]
    dynamic = tree["dynamicResources"]["adsConfig"]
    for service in (*dynamic["grpcServices"], *tree["hdsConfig"]["grpcServices"]):
        service["initialMetadata"] = [{"key": "authorization", "value": request.get("dataplaneToken", "")}]
    if "feature-delta-grpc" in request.get("features", ()):
        dynamic["apiType"] = "DELTA_GRPC"
    sink, ads = tree["staticResources"]["clusters"]
    pipe = f"{request['workdir']}/kuma-al-{request['name']}-{request['mesh']}.sock"
    _endpoint(sink)["address"] = {"pipe": {"path": pipe}}
    _endpoint(ads)["address"] = {"socketAddress": {"address": host, "portValue": port}}
    if not _is_address(host):
        ads |= {"type": "STRICT_DNS", "dnsLookupFamily": "V4_ONLY"}
    if tls:
        ads["transportSocket"]["typedConfig"]["sni"] = host
        trust = tree["staticResources"]["secrets"][0]["validationContext"]
        for name in trust["matchTypedSubjectAltNames"]:
            name["matcher"]["exact"] = host
        trust["trustedCa"]["inlineBytes"] = base64.b64encode(request.get("caCert", "").encode()).decode()
    else:
        del ads["transportSocket"], tree["staticResources"]["secrets"]
    return tree


def _fill_node(node: Tree, request: Tree, networking: Tree, admin: int) -> None:
    inbounds = networking.get("inbound") or []
    node["id"] = f"{request['mesh']}.{request['name']}"
    node["cluster"] = inbounds[0]["tags"]["kuma.io/service"] if inbounds else request["name"]
    metadata = node["metadata"]
    metadata |= {"dataplane.admin.port": str(admin), "dataplane.proxyType": request["proxyType"]}
    metadata["version"] = request["version"]
    metadata["features"] = request.get("features", [])
    del metadata["dataplane.resource"]
    optional: dict[str, Any] = {
        "dataplane.resource": request.get("dataplaneResource"),
        "dataplane.dns.port": str(request["dnsPort"]) if request.get("dnsPort") else None,
        "dataplane.readinessReporter.port": str(request["readinessPort"]) if request.get("readinessPort") else None,
        "dynamicMetadata": request.get("dynamicMetadata") or None,
    }
    metadata |= {key: value for key, value in optional.items() if value}
    if "workdir" in metadata:
        metadata["workdir"] = request["workdir"]


def _endpoint(cluster: Tree) -> Tree:
    endpoint: Tree = cluster["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"]
    return endpoint


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
