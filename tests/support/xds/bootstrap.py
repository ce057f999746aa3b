"""A bootstrap as Kuma's control planes answer it: the captured ones, with the caller's own names, ports and trust."""

from __future__ import annotations

import base64
import functools
import ipaddress
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.xds.profiles import DeltaBootstrap, profile_of

if TYPE_CHECKING:
    from tests.support.xds.resources import Tree

CAPTURES = Path(__file__).resolve().parents[2] / "data" / "captures"


@functools.cache
def _captured(folder: str) -> str:
    tree = yaml.load((CAPTURES / folder / "bootstrap.yaml").read_text(), yaml.CSafeLoader)
    return json.dumps(tree)


def bootstrap(request: Tree, version: str, host: str, port: int, *, tls: bool, turn: int = 0) -> Tree:
    """The bootstrap for a request, as the control plane of ``version`` makes it; ADS and HDS are at ``host:port``.

    Kuma lists the features from 2.13 on in the random order of a Go map, here in another one at each ``turn``.
    """
    profile = profile_of(version)
    tree: Tree = json.loads(_captured(profile.capture))
    resource = json.loads(request["dataplaneResource"]) if request.get("dataplaneResource") else {}
    networking = resource.get("networking") or {}
    admin = (networking.get("admin") or {}).get("port", 9901)
    _place_admin(tree, request["workdir"], admin)
    _fill_node(tree["node"], request, networking, admin)
    if profile.delta_bootstrap is not DeltaBootstrap.NEVER:
        features = tree["node"]["metadata"]["features"]
        first = turn % max(1, len(features))
        tree["node"]["metadata"]["features"] = [*features[first:], *features[:first]]
    dynamic = tree["dynamicResources"]["adsConfig"]
    for service in (*dynamic["grpcServices"], *tree["hdsConfig"]["grpcServices"]):
        service["initialMetadata"] = [{"key": "authorization", "value": request.get("dataplaneToken", "")}]
    announced = "feature-delta-grpc" in request.get("features", ())
    if profile.delta_bootstrap is DeltaBootstrap.ANNOUNCED:
        dynamic["apiType"] = "DELTA_GRPC" if announced else "GRPC"
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


def _place_admin(tree: Tree, work: str, port: int) -> None:
    address, metadata = tree["admin"]["address"], tree["node"]["metadata"]
    if "pipe" in address:
        address["pipe"]["path"] = metadata["dataplane.admin.socketPath"] = f"{work}/kuma-envoy-admin.sock"
    else:
        address["socketAddress"]["portValue"] = port


def _fill_node(node: Tree, request: Tree, networking: Tree, admin: int) -> None:
    inbounds = networking.get("inbound") or []
    node["id"] = f"{request['mesh']}.{request['name']}"
    tags = inbounds[0].get("tags", {}) if inbounds else {}
    metadata = node["metadata"]
    if node["cluster"] != "unknown":
        node["cluster"] = tags.get("kuma.io/service", "unknown") if inbounds else request["name"]
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
