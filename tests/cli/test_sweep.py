"""`kumadp sweep`: which directory, and the cases in which nothing is to be done."""

from __future__ import annotations

from pathlib import Path

import pytest

from kumadp.cli.sweep import _directory, sweep
from kumadp.errors import UsageError
from tests.support.command import invoke


def test_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert _directory("web", "") == Path("/run/kumadp/web")
    assert _directory("web", "/work") == Path("/work")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/kumadp/api:/run/other")
    assert _directory("web", "") == Path("/run/kumadp/api")
    assert _directory("", "/work") == Path("/work")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc"])
def test_a_name_that_is_not_a_directory_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with pytest.raises(UsageError, match="--name or --work-dir is required"):
        _directory(name, "")


def test_nothing_to_do(tmp_path: Path) -> None:
    assert invoke(sweep, f"--work-dir={tmp_path}/none") == f"{tmp_path}/none: no such directory\n"


def test_a_unit_that_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[tuple[str, str]] = []

    def is_over(result: str, unit: str, _environ: object) -> bool:
        queries.append((result, unit))
        return False

    monkeypatch.setattr("kumadp.daemon.sweep.is_over", is_over)
    monkeypatch.setenv("SERVICE_RESULT", "signal")
    output = invoke(sweep, f"--work-dir={tmp_path}", "--unit=kumadp@web.service")
    assert output == "kumadp@web.service will be restarted: running processes are kept for it\n"
    assert queries == [("signal", "kumadp@web.service")]
