"""A kuma-dp as a service of a compose file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.errors import CommandRefused
from kumadp.migrate.compose_file import service

if TYPE_CHECKING:
    from pathlib import Path

COMPOSE = """
services:
  control-plane: {image: "kumahq/kuma-cp:2.14.3"}
  sidecar:
    image: docker.io/kumahq/kuma-dp:2.14.3
    user: "5678"
    command: ["run", "--cp-address=https://control-plane:5678"]
    env_file: [dp.env]
    environment:
      KUMA_DATAPLANE_RUNTIME_OTEL_PIPE_ENABLED: false
      KUMA_DATAPLANE_NAME: ${NAME}
      KUMA_READINESS_PORT: 9902
  wrapped:
    image: web
    entrypoint: /usr/bin/tini -- kuma-dp
    command: run --name x
    environment: ["KUMA_DATAPLANE_MESH=default"]
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "dp.env").write_text("KUMA_DATAPLANE_MESH=default\n# x=y\n")
    file = tmp_path / "compose.yaml"
    file.write_text(COMPOSE)
    return str(file)


def test_a_service(path: str) -> None:
    found = service(path, "sidecar")
    assert found.arguments == ("run", "--cp-address=https://control-plane:5678")
    assert found.environ == {
        "KUMA_DATAPLANE_MESH": "default",
        "KUMA_DATAPLANE_RUNTIME_OTEL_PIPE_ENABLED": "false",
        "KUMA_DATAPLANE_NAME": "${NAME}",
        "KUMA_READINESS_PORT": "9902",
    }
    assert (found.user, found.service) == ("5678", "sidecar")
    assert len(found.problems) == 1
    assert "KUMA_DATAPLANE_NAME is set from a variable of the shell" in found.problems[0]


def test_an_entrypoint_as_text(path: str) -> None:
    found = service(path, "wrapped")
    assert found.arguments == ("run", "--name", "x")
    assert found.environ == {"KUMA_DATAPLANE_MESH": "default"}


def test_several_services(path: str) -> None:
    with pytest.raises(CommandRefused, match=r"several services.*--service: sidecar, wrapped"):
        service(path)
    with pytest.raises(CommandRefused, match="no service control-plane that runs kuma-dp"):
        service(path, "control-plane")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("services: {web: {image: nginx}}", "no service runs kuma-dp"),
        ("web: {}", "it has no services"),
        ("a: [", "not YAML"),
    ],
)
def test_what_is_no_compose_file_of_kuma_dp(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(text)
    with pytest.raises(CommandRefused, match=why):
        service(str(file))


def test_a_missing_environment_file(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text("services: {dp: {image: kuma-dp, command: run, env_file: no.env}}")
    assert service(str(file)).problems == ("env_file no.env cannot be read",)
    file.write_text("services: {dp: {image: kuma-dp, command: run, env_file: 7, environment: 8}}")
    assert service(str(file)).problems == ("env_file 7 cannot be read",)
