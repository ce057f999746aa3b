"""Warnings about secrets that other users of the host can read: one for each, at start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kumadp.cli.exposure import exposures
from kumadp.settings.model import Settings

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"


def results(config: str = "", origin: dict[str, str] | None = None, **fields: Any) -> list[str]:
    warnings = list(exposures(Settings(**fields), origin or {}, config))
    assert not any(TOKEN in warning or "hunter2" in warning for warning in warnings)
    return warnings


@pytest.mark.parametrize(
    ("mode", "expected"),
        [
        (0o600, ""),
        (0o400, ""),
        (0o700, ""),
        (0o640, "by its group"),
        (0o660, "by its group"),
        (0o644, "by every user"),
        (0o604, "by every user"),
        (0o602, "by every user"),
        (0o666, "by every user"),
    ],
)  # fmt: skip
def test_a_token_file_that_others_can_read(tmp_path: Path, mode: int, expected: str) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(mode)
    warnings = results(token_path=str(file))
    assert len(warnings) == bool(expected)
    assert all(expected in warning and f"chmod 600 {file}" in warning for warning in warnings)


def test_a_link_to_a_token_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o644)
    (tmp_path / "link").symlink_to("token")
    assert len(results(token_path=str(tmp_path / "link"))) == 1
    assert results(token_path=str(tmp_path / "none")) == []


def test_a_file_of_kubernetes_is_not_checked() -> None:
    assert results(token_path="/var/run/secrets/kubernetes.io/serviceaccount/token") == []


@pytest.mark.parametrize(
    ("origin", "count"),
    [("flag --dataplane-token", 1), ("variable KUMA_DATAPLANE_RUNTIME_TOKEN", 0), ("file /nowhere.yaml:3: token", 0)],
)
def test_a_token_on_the_command_line(origin: str, count: int) -> None:
    warnings = results(token=TOKEN, origin={"token": origin})
    assert len(warnings) == count
    assert all(warning.startswith("--dataplane-token: every user of this host") for warning in warnings)


def test_a_password_in_the_address_on_the_command_line() -> None:
    address = "https://me:hunter2@cp.example:5678"
    assert len(results(cp_address=address, origin={"cp_address": "flag --cp-address"})) == 1
    assert results(cp_address=address, origin={"cp_address": "variable KUMA_CONTROL_PLANE_URL"}) == []


def test_a_settings_file_with_the_token_in_it(tmp_path: Path) -> None:
    file = tmp_path / "kumadp.yaml"
    file.write_text("")
    file.chmod(0o644)
    origin = {"token": f"file {file}:3: dataplaneRuntime.token"}
    assert len(results(str(file), token=TOKEN, origin=origin)) == 1
    file.chmod(0o600)
    assert results(str(file), token=TOKEN, origin=origin) == []
