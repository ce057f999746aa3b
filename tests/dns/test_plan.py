"""How names are answered, by settings, Dataplane and transparent proxy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from msgspec.structs import replace

from kumadp.dns.plan import DnsPlan, chosen_coredns, names_expected, plan_dns, wants_coredns
from kumadp.errors import BinaryNotFound, SettingsError
from kumadp.resources.load import load_resource
from kumadp.resources.transparent_proxy import Redirected, TransparentProxy
from kumadp.settings.model import Settings
from tests.support.mesh import dataplane, inbound

COREDNS = Path("/usr/bin/coredns")


def test_dns_is_planned_for_dataplanes_only() -> None:
    assert plan_dns(Settings(), COREDNS) == DnsPlan(COREDNS, 15053, 15054, 19153)
    assert plan_dns(Settings(dns_proxy_port=15999), None) == DnsPlan(None, 15999, 15054, 19153, ("0.0.0.0",))
    assert plan_dns(Settings(dns_enabled=False), COREDNS) is None
    assert plan_dns(Settings(dns_mode="off"), COREDNS) is None
    for embedded in (Settings(dns_mode="embedded"), Settings(dns_proxy_port=15053)):
        assert plan_dns(embedded, COREDNS) == DnsPlan(None, 15053, 15054, 19153, ("0.0.0.0",))
    assert plan_dns(Settings(proxy_type="ingress"), COREDNS) is None
    assert plan_dns(Settings(proxy_type="egress"), COREDNS) is None


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (Settings(), True),
        (Settings(dns_mode="coredns"), True),
        (Settings(dns_mode="coredns", dns_proxy_port=15999), True),
        (Settings(dns_proxy_port=15999), False),
        (Settings(dns_mode="embedded"), False),
        (Settings(dns_mode="off"), False),
        (Settings(dns_enabled=False), False),
        (Settings(proxy_type="ingress"), False),
    ],
)
def test_when_coredns_is_wanted(settings: Settings, wanted: bool) -> None:
    assert wants_coredns(settings) is wanted


def test_coredns_is_found_on_path_or_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert chosen_coredns(Settings()) is None
    binary = tmp_path / "coredns"
    binary.touch(mode=0o755)
    assert chosen_coredns(Settings()) == binary
    assert chosen_coredns(Settings(coredns_path=str(binary))) == binary
    assert chosen_coredns(Settings(coredns_path=str(binary), dns_mode="embedded")) is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(dns_mode="coredns"), "which --dns-mode=coredns needs"),
        (Settings(coredns_config_template_path="/etc/own"), "which --dns-coredns-config-template-path needs"),
        (Settings(coredns_path="/none/coredns"), "/none/coredns"),
    ],
)
def test_a_required_coredns_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, reason: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinaryNotFound, match=reason):
        chosen_coredns(settings)


def test_networks_and_suffixes_of_names() -> None:
    settings = Settings(dns_allow=("10.0.0.0/8",), dns_suffixes=("Mesh.", "corp.internal"))
    plan = plan_dns(settings, None, TransparentProxy(networks=("docker0:172.17.0.0/16", "br+")))
    assert plan is not None
    assert (plan.networks, plan.suffixes) == (("10.0.0.0/8", "172.17.0.0/16"), ("mesh", "corp.internal"))
    for invalid in (Settings(dns_allow=("everybody",)), Settings(dns_suffixes=("a b",)), Settings(dns_suffixes=("",))):
        with pytest.raises(SettingsError, match=r"--dns-(allow|suffix)"):
            plan_dns(invalid, None)


REDIRECTED = TransparentProxy()
NOTHING_REDIRECTED = TransparentProxy(inbound=Redirected(False, 15006), outbound=Redirected(False, 15001))


@pytest.mark.parametrize(
    ("in_dataplane", "transparent", "settings", "address", "expected"),
    [
        # The default: no redirection, so Kuma's dns generator generates nothing.
        (False, None, Settings(), "127.0.0.1", False),
        (False, REDIRECTED, Settings(), "127.0.0.1", True),
        (False, REDIRECTED, Settings(bind_outbounds=True), "127.0.0.1", False),
        (False, REDIRECTED, Settings(envoy_dns_port=0), "127.0.0.1", False),
        (False, NOTHING_REDIRECTED, Settings(), "127.0.0.1", False),
        (False, replace(REDIRECTED, ip_family_mode="ipv4"), Settings(), "127.0.0.1", True),
        (False, replace(REDIRECTED, ip_family_mode="ipv4"), Settings(), "fd00::1", False),
        # Kuma up to 2.10 only reads this, and does not support bound outbounds.
        (True, None, Settings(), "127.0.0.1", True),
        (True, None, Settings(bind_outbounds=True), "127.0.0.1", True),
    ],
)
def test_when_names_may_come(
    in_dataplane: bool, transparent: TransparentProxy | None, settings: Settings, address: str, expected: bool
) -> None:
    ports = {"redirectPortInbound": 15006, "redirectPortOutbound": 15001}
    networking = {"transparentProxying": ports} if in_dataplane else {}
    tree = dataplane("web", [inbound(11011, 8080)], address=address, networking=networking)
    del tree["networking"]["outbound"]
    resource = load_resource(yaml.safe_dump(tree), "dp.yaml")
    assert names_expected(settings, resource, transparent) is expected


def test_names_may_come_for_a_dataplane_that_the_control_plane_has() -> None:
    assert names_expected(Settings(), None, None)
