"""The transparent proxy configuration: merge of files, and problems."""

from __future__ import annotations

import pytest

from kumadp.errors import SettingsError
from kumadp.resources.transparent_proxy import Redirected, TransparentProxy, read_transparent

DNS = Redirected(enabled=True, port=15054)


def read(*texts: str) -> TransparentProxy:
    return read_transparent((f"{number}.yaml", text) for number, text in enumerate(texts))


def test_without_a_file_it_is_kuma_s_default() -> None:
    assert read() == read("") == read("{}") == TransparentProxy()
    assert read().wire(DNS) == {
        "ipFamilyMode": "dualstack",
        "redirect": {
            "inbound": {"enabled": True, "port": 15006},
            "outbound": {"enabled": True, "port": 15001},
            "dns": {"enabled": True, "port": 15054},
            "vnet": {},
        },
    }


def test_a_later_file_overrides_keys_and_replaces_lists() -> None:
    first = """
kumaDPUser: envoy
ipFamilyMode: IPv4
redirect:
  dns: {enabled: true, port: 1}
  inbound: {enabled: false, port: 16006, includePorts: [1, 2]}
  vnet: {networks: ["docker0:172.17.0.0/16", "br+:10.0.0.0/8"]}
"""
    second = """
redirect:
  inbound: {enabled: true}
  outbound: {port: "16001"}
  vnet: {networks: ["veth+:10.1.0.0/16"]}
verbose: true
"""
    results = read(first, second)
    assert results == TransparentProxy(
        "ipv4",
        Redirected(enabled=True, port=16006),
        Redirected(enabled=True, port=16001),
        ("veth+:10.1.0.0/16",),
    )
    assert not results.dual_stack
    assert results.wire(DNS)["redirect"]["dns"] == {"enabled": True, "port": 15054}
    assert results.wire(DNS)["redirect"]["vnet"] == {"networks": ["veth+:10.1.0.0/16"]}


def test_keys_in_any_case_and_null_as_in_go() -> None:
    assert read('{"IPFAMILYMODE": "", "Redirect": {"INBOUND": {"Port": 1234}, "outbound": null, "vnet": {}}}') == (
        TransparentProxy(inbound=Redirected(enabled=True, port=1234))
    )


def test_all_problems_with_file_and_key() -> None:
    with pytest.raises(SettingsError) as wrong:
        read(
            "redirect: {inbound: {port: 0, enabled: 1}, outbound: {port: true}, vnet: {networks: docker0}}",
            "ipFamilyMode: ipv6\nredirect: []",
            "a: [",
        )
    message = [(problem.file, problem.path) for problem in wrong.value.problems]
    assert message == [
        ("0.yaml", "redirect.inbound.port"),
        ("0.yaml", "redirect.inbound.enabled"),
        ("0.yaml", "redirect.outbound.port"),
        ("0.yaml", "redirect.vnet.networks"),
        ("1.yaml", "ipFamilyMode"),
        ("1.yaml", "redirect"),
        ("2.yaml", ""),
    ]
