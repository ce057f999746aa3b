"""What `kumadp run` checks before the run loop: resource, proxy type, transparent proxy, options without effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kumadp.cli.run import checked, overruled, read_settings_file, read_transparent_files
from kumadp.errors import ResourceError, SettingsError
from kumadp.settings.model import Settings

if TYPE_CHECKING:
    from pathlib import Path

WEB = """\
type: {kind}
mesh: default
name: web
networking:
  address: 192.0.2.1
  port: 10001
"""
DATAPLANE = """\
type: Dataplane
mesh: default
name: web
networking:
  address: 192.0.2.1
  admin: {port: 9905}
  inbound: [{port: 80, servicePort: 8080, tags: {kuma.io/service: web}}]
probes: {port: 9001}
"""


def settings(**changes: Any) -> Settings:
    return Settings(**changes)


@pytest.mark.parametrize(("kind", "proxy_type"), [("ZoneIngress", "ingress"), ("ZoneEgress", "egress")])
def test_the_proxy_type_is_that_of_the_resource(kind: str, proxy_type: str) -> None:
    result, resource, mesh = checked(settings(dataplane=WEB.format(kind=kind)))
    assert (result.proxy_type, mesh) == (proxy_type, None)
    assert resource is not None
    assert resource.kind == kind
    with pytest.raises(SettingsError, match=f"does not match the given {kind} .*set it to {proxy_type}"):
        checked(
            settings(dataplane=WEB.format(kind=kind), proxy_type="egress" if proxy_type == "ingress" else "ingress")
        )


def test_without_a_resource_nothing_changes() -> None:
    assert checked(settings(name="web", mesh="default")) == (settings(name="web", mesh="default"), None, None)


def test_a_file_takes_precedence_over_the_inline_resource(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(DATAPLANE)
    _, resource, _ = checked(settings(dataplane="type: none", dataplane_file=str(tmp_path / "web.yaml")))
    assert resource is not None
    assert resource.name == "web"
    with pytest.raises(ResourceError, match="'none' is not known"):
        checked(settings(dataplane="type: none"))


def test_standalone_has_a_mesh(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(DATAPLANE)
    _, resource, mesh = checked(settings(standalone=str(tmp_path)))
    assert mesh is not None
    assert mesh.ours == resource


def test_arguments_that_could_expose_the_admin() -> None:
    with pytest.raises(SettingsError, match="--config-yaml is not allowed"):
        checked(settings(name="web", mesh="default", envoy_args=("--config-yaml", "{}")))


def test_options_that_the_dataplane_overrules() -> None:
    _, resource, _ = checked(settings(dataplane=DATAPLANE))
    assert overruled(settings(admin_port=9902, virtual_probes_port=9003), resource) == [
        "--admin-port 9902 is ignored: the Dataplane sets networking.admin.port 9905",
        "--virtual-probes-port 9003 is ignored: the Dataplane sets probes.port 9001",
    ]
    assert overruled(settings(admin_port=9905), resource) == []
    assert overruled(settings(admin_port=9902), None) == []


def test_transparent_proxy_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("redirect: {inbound: {port: 15016}}\n")
    second.write_text("ipFamilyMode: ipv4\n")
    assert read_transparent_files(settings()) is None
    assert read_transparent_files(settings(standalone="web.yaml", transparent_proxy=True)) is None
    for names in ((str(first), str(second)), (f"{first},{second}",)):
        transparent = read_transparent_files(settings(transparent_proxy_config=names))
        assert transparent is not None
        assert (transparent.inbound.port, transparent.dual_stack) == (15016, False)
    with pytest.raises(SettingsError, match="--transparent-proxy-config: /none: No such file"):
        read_transparent_files(settings(transparent_proxy_config=("/none",)))


def test_a_settings_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--config: /none: No such file or directory"):
        read_settings_file("/none")
    (tmp_path / "latin.yaml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="is not UTF-8 text"):
        read_settings_file(str(tmp_path / "latin.yaml"))
