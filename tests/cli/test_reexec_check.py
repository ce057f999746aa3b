"""The check that the running kumadp makes of the program that is to replace it."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from kumadp.cli.reexec_check import import_all
from kumadp.errors import HandoverFailed


def test_a_module_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []

    def import_module(name: str) -> Any:
        imported.append(name)
        if name == "kumadp.errors":
            raise SyntaxError("broken")

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(HandoverFailed, match=r"kumadp\.errors cannot be imported: SyntaxError: broken"):
        import_all()
    assert imported[-1] == "kumadp.errors"


def test_all_modules_of_a_run_but_none_of_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(importlib, "import_module", imported.append)
    import_all()
    assert {"kumadp.daemon.start", "kumadp.relay.part", "kumadp.settings.reload", "aiohttp.web"} <= set(imported)
    assert not any(name.startswith("kumadp.cli.") for name in imported)
    assert "kumadp.cli.reexec_check" in sys.modules
