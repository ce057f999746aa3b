"""The bootstrap turned to the relay: what changes is held as a diff, and a real Envoy takes the result."""

from __future__ import annotations

import base64
import copy
import difflib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.rewrite import LONGEST_SOCKET_PATH, rewrite_for_relay
from kumadp.errors import BootstrapError
from kumadp.host.private_file import write_json
from tests.support.needs import need_envoy

DATA = Path(__file__).resolve().parents[1] / "data"
CAPTURES = DATA / "captures"
GOLDEN = DATA / "rewrite"
CAPTURED = sorted(path.parent.relative_to(CAPTURES).as_posix() for path in CAPTURES.glob("*/*/bootstrap.yaml"))
SOCKET = "/run/kumadp/xds.sock"
TOKEN = "TOKEN"


def captured(name: str) -> dict[str, Any]:
    return parse_bootstrap((CAPTURES / name / "bootstrap.yaml").read_bytes())


def services(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [config["grpcServices"][0] for config in (tree["dynamicResources"]["adsConfig"], tree["hdsConfig"])]


def unified() -> dict[str, Any]:
    """Unified naming (Kuma 2.13) gives the clusters system names; a host name makes the cluster STRICT_DNS."""
    tree = captured("kuma-2.13.5/full")
    for service in services(tree):
        service["envoyGrpc"]["clusterName"] = "system_ads"
    log_sink, ads = tree["staticResources"]["clusters"]
    log_sink["name"] = log_sink["loadAssignment"]["clusterName"] = "system_access_log_sink"
    ads["name"] = ads["loadAssignment"]["clusterName"] = "system_ads"
    ads |= {"type": "STRICT_DNS", "dnsLookupFamily": "V4_ONLY"}
    address = ads["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"]["address"]["socketAddress"]
    address["address"] = ads["transportSocket"]["typedConfig"]["sni"] = "kuma-cp.example"
    return tree


def google(ca: bytes | None = None) -> dict[str, Any]:
    """Option enableReloadableTokens: Google's client with a token file, and no cluster for it."""
    tree = captured("kuma-2.13.5/full")
    name = "envoy.grpc_credentials.file_based_metadata"
    config = {
        "@type": "type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig",
        "secretData": {"filename": "/run/secrets/token"},
    }
    ca = ca or base64.b64decode(tree["staticResources"]["secrets"][0]["validationContext"]["trustedCa"]["inlineBytes"])
    service = {
        "googleGrpc": {
            "targetUri": "kuma-cp.example:5678",
            "statPrefix": "ads",
            "credentialsFactoryName": name,
            "callCredentials": [{"fromPlugin": {"name": name, "typedConfig": config}}],
            "channelArgs": {"args": {"grpc.keepalive_time_ms": {"intValue": "10000"}}},
            "channelCredentials": {"sslCredentials": {"rootCerts": {"inlineBytes": base64.b64encode(ca).decode()}}},
        }
    }
    for holder in (tree["dynamicResources"]["adsConfig"], tree["hdsConfig"]):
        holder["grpcServices"] = [copy.deepcopy(service)]
    del tree["staticResources"]["clusters"][1]
    return tree


def delta() -> dict[str, Any]:
    tree = captured("kuma-2.13.5/full")
    tree["dynamicResources"]["adsConfig"]["apiType"] = "DELTA_GRPC"
    return tree


FORMS = {name.replace("/", "-"): captured(name) for name in CAPTURED} | {
    "unified": unified(),
    "google": google(),
    "delta": delta(),
}


@pytest.mark.parametrize("form", ["kuma-2.8.8-dataplane", "kuma-2.13.5-full", "unified", "google", "delta"])
def test_exactly_this_changes(form: str) -> None:
    original, after = (
        re.sub("inlineBytes: .*", "inlineBytes: (the CA)", yaml.safe_dump(tree, width=120)).splitlines()
        for tree in (FORMS[form], rewrite_for_relay(FORMS[form], SOCKET).bootstrap)
    )
    changed = difflib.unified_diff(original, after, n=2, lineterm="")
    text = "\n".join(line for line in changed if not line.startswith(("---", "+++", "@@"))) + "\n"
    path = GOLDEN / f"{form}.diff"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), "WRITE_GOLDEN=1 writes it again: look at what changed"


@pytest.mark.process
@pytest.mark.parametrize("form", FORMS)
def test_envoy_takes_it(tmp_path: Path, form: str) -> None:
    path = write_json(tmp_path / "bootstrap.yaml", rewrite_for_relay(FORMS[form], SOCKET).bootstrap)
    done = subprocess.run(
        [need_envoy(), "--mode", "validate", "-c", path, "-l", "warning"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "ads_cluster" not in done.stderr


@pytest.mark.parametrize("form", FORMS)
def test_token_ca_and_control_plane_are_removed(form: str) -> None:
    text = json.dumps(rewrite_for_relay(FORMS[form], SOCKET).bootstrap)
    for word in (TOKEN, "authorization", "inlineBytes", "sslCredentials", "5678", "cp_validation_ctx", "/run/secrets"):
        assert word not in text


@pytest.mark.parametrize("form", FORMS)
def test_node_and_the_other_cluster_stay(form: str) -> None:
    original = copy.deepcopy(FORMS[form])
    after = rewrite_for_relay(FORMS[form], SOCKET).bootstrap
    assert FORMS[form] == original
    assert after["node"] == original["node"]
    assert after["staticResources"]["clusters"][0] == original["staticResources"]["clusters"][0]
    assert after["dynamicResources"]["ldsConfig"] == original["dynamicResources"]["ldsConfig"]


@pytest.mark.parametrize("name", CAPTURED)
def test_the_original_destination_is_returned(name: str) -> None:
    upstream = rewrite_for_relay(captured(name), SOCKET).upstream
    host = "localhost" if name.startswith(("kuma-2.14", "kuma-3")) else "127.0.0.1"
    assert (upstream.host, upstream.port, upstream.server_name, upstream.tls) == (host, 5678, host, True)
    assert upstream.metadata == {}
    assert upstream.ca_inline is not None
    assert upstream.ca_inline.startswith(b"-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize("form", ["unified", "google"])
def test_a_host_name_is_returned_as_server_name(form: str) -> None:
    upstream = rewrite_for_relay(FORMS[form], SOCKET).upstream
    assert (upstream.host, upstream.port, upstream.server_name) == ("kuma-cp.example", 5678, "kuma-cp.example")
    assert upstream.ca_inline is not None
    assert upstream.ca_inline.startswith(b"-----BEGIN CERTIFICATE-----")


def test_the_ca_of_googles_client_is_its_own() -> None:
    pem = trustme.CA().cert_pem.bytes()
    assert rewrite_for_relay(google(pem), SOCKET).upstream.ca_inline == pem


def test_the_relay_gets_the_headers_without_the_token() -> None:
    tree = captured("kuma-2.13.5/full")
    services(tree)[0]["initialMetadata"] = [
        {"key": "Authorization", "value": "TOKEN"},
        {"key": "x-tenant", "value": "blue"},
    ]
    rewritten = rewrite_for_relay(tree, SOCKET)
    assert rewritten.upstream.metadata == {"x-tenant": "blue"}
    assert "initialMetadata" not in json.dumps(rewritten.bootstrap)


def test_delta_is_reported_and_replaced_by_state_of_the_world() -> None:
    rewritten = rewrite_for_relay(delta(), SOCKET)
    assert rewritten.delta
    assert rewritten.bootstrap["dynamicResources"]["adsConfig"]["apiType"] == "GRPC"
    assert not rewrite_for_relay(captured("kuma-2.13.5/full"), SOCKET).delta


def test_snake_case_is_the_same() -> None:
    tree = captured("kuma-2.13.5/full")
    ads = tree["dynamicResources"].pop("adsConfig")
    ads = {"api_type": "DELTA_GRPC", "grpc_services": ads["grpcServices"], "transport_api_version": "V3"}
    service = ads["grpc_services"][0]
    service["envoy_grpc"] = {"cluster_name": service.pop("envoyGrpc")["clusterName"]}
    service["initial_metadata"] = service.pop("initialMetadata")
    tree["dynamic_resources"] = {**tree.pop("dynamicResources"), "ads_config": ads}
    cluster = tree["staticResources"]["clusters"][1]
    cluster["load_assignment"] = cluster.pop("loadAssignment")
    cluster["transport_socket"] = cluster.pop("transportSocket")
    tree["static_resources"] = tree.pop("staticResources")
    rewritten = rewrite_for_relay(tree, SOCKET)
    assert rewritten.delta
    assert rewritten.upstream.port == 5678
    assert rewritten.upstream.ca_inline
    ads = rewritten.bootstrap["dynamic_resources"]["ads_config"]
    assert ads["api_type"] == "GRPC"
    assert ads["grpc_services"][0]["envoyGrpc"]["clusterName"] == "ads_cluster"
    text = json.dumps(rewritten.bootstrap)
    assert TOKEN not in text
    assert "transport_socket" not in text
    assert "load_assignment" not in text


def test_another_static_secret_stays() -> None:
    tree = captured("kuma-2.13.5/full")
    other = {"name": "other", "validationContext": {"trustedCa": {"filename": "/ca.pem"}}}
    tree["staticResources"]["secrets"].append(other)
    assert rewrite_for_relay(tree, SOCKET).bootstrap["staticResources"]["secrets"] == [other]


def test_what_cannot_be_turned_is_refused_with_its_place() -> None:
    without = captured("kuma-2.13.5/full")
    del without["dynamicResources"]["adsConfig"]
    stray = captured("kuma-2.13.5/full")
    services(stray)[0]["envoyGrpc"]["clusterName"] = "elsewhere"
    two = captured("kuma-2.13.5/full")
    two["dynamicResources"]["adsConfig"]["grpcServices"] *= 2
    bad = google()
    services(bad)[0]["googleGrpc"]["targetUri"] = "kuma-cp.example"
    for tree, place in (
        (without, "adsConfig"),
        (stray, "elsewhere"),
        (two, "grpcServices"),
        (bad, "targetUri"),
    ):
        with pytest.raises(BootstrapError, match=place):
            rewrite_for_relay(tree, SOCKET)


def test_a_socket_path_that_the_kernel_cannot_take_is_refused() -> None:
    tree = captured("kuma-2.13.5/full")
    rewrite_for_relay(tree, "/" + "x" * (LONGEST_SOCKET_PATH - 1))
    with pytest.raises(BootstrapError, match="--work-dir"):
        rewrite_for_relay(tree, "/" + "x" * LONGEST_SOCKET_PATH)
