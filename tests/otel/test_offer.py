"""The offer of the pipe in bootstrap requests."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from kumadp.otel import offer
from kumadp.otel.offer import is_installed, pipe_offer
from kumadp.settings.model import Settings

ENVIRON = {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret"}


@pytest.mark.parametrize(("enabled", "installed"), [(True, False), (False, True), (False, False)])
def test_no_offer_without_setting_or_extra(monkeypatch: pytest.MonkeyPatch, enabled: bool, installed: bool) -> None:
    monkeypatch.setattr(offer, "is_installed", lambda: installed)
    assert pipe_offer(Settings(otel_pipe_enabled=enabled), ENVIRON) is None


def test_an_offer_is_the_inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer, "is_installed", lambda: True)
    entries = pipe_offer(Settings(otel_pipe_enabled=True), ENVIRON)
    assert entries is not None
    assert entries["pipeEnabled"] is True
    assert entries["shared"]["headersPresent"] is True
    assert "secret" not in str(entries)


def test_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> Any:
        raise ModuleNotFoundError("opentelemetry")

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert not is_installed()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert not is_installed()
