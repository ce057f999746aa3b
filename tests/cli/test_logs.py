"""The log of a command: level, format and file as configured."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from kumadp.cli.logs import open_logs
from kumadp.errors import SettingsError
from kumadp.settings.model import Settings

if TYPE_CHECKING:
    from pathlib import Path


def logged(settings: Settings, auto: str, path: Path) -> str:
    logs = open_logs(settings, auto=auto)
    try:
        logging.getLogger("kumadp.test").info("not shown")
        logging.getLogger("kumadp.test").warning("shown")
    finally:
        logs.close()
    return path.read_text()


@pytest.mark.parametrize(("log_format", "auto", "is_json"), [("auto", "json", True), ("text", "json", False)])
def test_the_format(tmp_path: Path, log_format: str, auto: str, is_json: bool) -> None:
    path = tmp_path / "log"
    text = logged(Settings(log_level="warning", log_format=log_format, log_output_path=str(path)), auto, path)
    assert "not shown" not in text
    (line,) = text.splitlines()
    assert (json.loads(line)["message"] == "shown") if is_json else line.endswith("shown")


def test_a_file_that_cannot_be_written() -> None:
    with pytest.raises(SettingsError, match="/none/log"):
        open_logs(Settings(log_output_path="/none/log"))
