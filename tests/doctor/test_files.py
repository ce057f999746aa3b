"""The doctor's checks of token and files, each with something wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from kumadp.doctor import files
from kumadp.doctor.report import DoctorCheck, run_checks
from kumadp.doctor.subject import Subject
from kumadp.settings.resolve import resolve

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.doctor.report import Finding


def jwt(**claims: Any) -> str:
    parts = (json.dumps(part).encode() for part in ({"alg": "RS256"}, claims))
    return ".".join([*(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts), "c2ln"])


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    token = tmp_path / "token"
    token.write_text(jwt())
    token.chmod(0o600)
    flags = {"name": "web", "mesh": "default", "token_path": str(token), "work_dir": str(tmp_path / "work")}
    flags["state_dir"] = str(tmp_path / "state")
    return Subject(resolve("run", flags, {}).settings, None, None, None, {})


def token(subject: Subject, text: str) -> list[Finding]:
    changed = replace(subject, settings=replace(subject.settings, token=text, token_path=""))
    return asyncio.run(run_checks([DoctorCheck("token", lambda: files.token(changed))]))


@pytest.mark.parametrize(
    ("claims", "state", "expected"),
    [
        ({}, "ok", "for any data plane, valid forever"),
        ({"Mesh": "default", "Name": "web"}, "ok", "for mesh default, name web, valid forever"),
        ({"Mesh": "other"}, "failed", "the token is for mesh other, but this data plane has mesh default"),
        ({"Name": "api"}, "failed", "the token is for name api, but this data plane has name web"),
        ({"exp": -7200}, "failed", "the token expired 2h ago"),
        ({"exp": 1800}, "warning", "the token expires in 29m"),
        ({"exp": 86400}, "ok", "for any data plane, valid until 20"),
        ({"nbf": 7200}, "failed", "the token becomes valid only in 1h 59m"),
    ],
)
def test_claims_and_expiry_of_a_token(subject: Subject, claims: dict[str, Any], state: str, expected: str) -> None:
    now = time.time()
    result = {name: value + now if name in {"exp", "nbf"} else value for name, value in claims.items()}
    (results,) = token(subject, jwt(**result))
    assert results.state == state
    assert expected in results.text


def test_an_invalid_token(subject: Subject, tmp_path: Path) -> None:
    assert token(subject, "no.jwt")[0].state == "failed"
    assert token(subject, "")[0].state == "warning"
    (tmp_path / "token").unlink()
    (results,) = asyncio.run(run_checks([DoctorCheck("token", lambda: files.token(subject))]))
    assert "cannot be read" in results.text


def modes(subject: Subject) -> list[tuple[str, str]]:
    return [(result.state, result.text) for result in asyncio.run(files.modes(subject))]


def test_files_that_others_may_read_or_change(subject: Subject, tmp_path: Path) -> None:
    assert modes(subject)[0][0] == "ok"
    (tmp_path / "token").chmod(0o644)
    assert modes(subject) == [("failed", f"--dataplane-token-file {tmp_path / 'token'} can be read by everybody")]
    (tmp_path / "token").unlink()
    assert "No such file" in modes(subject)[0][1]
    (tmp_path / "token").touch(0o600)
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o770)
    assert modes(subject) == [("failed", f"{work} can be written by others")]
    work.chmod(0o700)
    (work / "bootstrap.yaml").touch()
    (work / "bootstrap.yaml").chmod(0o644)
    assert modes(subject)[0][0] == "ok", "in a directory that nobody else enters"
    work.chmod(0o755)
    assert modes(subject) == [("failed", f"{work / 'bootstrap.yaml'} can be read by others")]
    nowhere = tmp_path / "token"
    lost = replace(subject.settings, work_dir=str(nowhere / "work"), state_dir=str(nowhere / "state"))
    assert modes(replace(subject, settings=lost)) == [
        ("warning", f"{nowhere / name} does not exist and cannot be created") for name in ("work", "state")
    ]
