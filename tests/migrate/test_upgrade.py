"""What a version of Kuma to come ignores, refuses and needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ResourceError
from kumadp.migrate.upgrade import SINCE, load_for, of_envoy, of_mesh, of_resource, of_settings
from kumadp.resources.kuma_versions import ALL
from kumadp.settings.model import Settings, options_of
from kumadp.settings.resolve import resolve

if TYPE_CHECKING:
    from pathlib import Path

NAMED = {"name": "web", "mesh": "default"}


def effects(version: str, **flags: str) -> dict[str, str]:
    resolved = resolve("run", {**NAMED, **flags}, {})
    return {one.where: one.effect for one in of_settings(resolved.settings, resolved.origin, version)}


@pytest.mark.parametrize("version", ALL)
def test_defaults_are_for_each_version(version: str) -> None:
    assert effects(version) == {}


@pytest.mark.parametrize(
    ("flags", "by_version"),
    [
        ({"proxy_type": "ingress"}, {"3.0": {"--proxy-type": "refused"}}),
        ({"envoy_dns_port": "1054"}, {"3.0": {"--dns-envoy-port": "ignored"}}),
        ({"dns_mode": "coredns"}, {"3.0": {"--dns-mode": "needed"}}),
        ({"bind_outbounds": "true"}, {"2.8": {"--bind-outbounds": "ignored"}}),
    ],
)
def test_options(flags: dict[str, str], by_version: dict[str, dict[str, str]]) -> None:
    assert {version: effects(version, **flags) for version in ALL} == {
        version: by_version.get(version, {}) for version in ALL
    }


def test_variables_of_later_versions() -> None:
    variables = {
        "KUMA_DATAPLANE_RUNTIME_OTEL_PIPE_ENABLED": "false",
        "KUMA_DATAPLANE_RUNTIME_STRICT_INBOUND_PORTS_ENABLED": "false",
    }
    resolved = resolve("run", NAMED, variables)
    found = {
        version: {one.where for one in of_settings(resolved.settings, resolved.origin, version)} for version in ALL
    }
    assert found == {"2.8": set(variables), "2.13": {next(iter(variables))}, "2.14": set(), "3.0": set()}


def test_versions_of_options_are_those_of_the_help() -> None:
    by_field = {option.field: option for option in options_of("run")}
    for field, (major, minor) in SINCE.items():
        if "(Kuma " in by_field[field].help:
            assert f"(Kuma {major}.{minor}" in by_field[field].help


def test_the_same_file_for_two_versions(tmp_path: Path) -> None:
    file = tmp_path / "dp.yaml"
    file.write_text("""
type: Dataplane
mesh: default
name: web
networking:
  address: 192.0.2.1
  advertisedAddress: 192.0.2.2
  inbound: [{port: 80, tags: {kuma.io/service: web}}]
  outbound: [{port: 81, tags: {kuma.io/service: backend}}]
""")
    settings = Settings(dataplane_file=str(file))
    (found,) = load_for("2.13", settings, [])
    assert [one.effect for one in of_resource(found)] == []
    (found,) = load_for("3.0", settings, [])
    assert isinstance(found, ResourceError)
    assert [(one.effect, one.where) for one in of_resource(found)] == [
        ("refused", f"{file}:9: networking.outbound[0].backendRef")
    ]
    file.write_text(
        file.read_text().replace(
            "tags: {kuma.io/service: backend}", "backendRef: {kind: MeshService, name: b, port: 1}"
        )
    )
    (found,) = load_for("3.0", None, [str(file)])
    assert ("ignored", f"{file}:7: networking.advertisedAddress") in [
        (one.effect, one.where) for one in of_resource(found)
    ]


def test_what_only_the_control_plane_has() -> None:
    assert [list(of_mesh(version)) for version in ("2.8", "2.13", "2.14")] == [[], [], []]
    assert {one.where for one in of_mesh("3.0")} >= {"Mesh", "MeshService"}


@pytest.mark.parametrize(
    ("installed", "version", "count"),
    [("1.30.11", "2.8", 0), ("1.30.11", "3.0", 1), ("1.40.0", "3.0", 0), ("1.36.4", "2.14", 1), ("", "3.0", 0)],
)
def test_an_older_envoy(installed: str, version: str, count: int) -> None:
    assert len(list(of_envoy(installed, version))) == count
