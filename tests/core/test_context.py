"""What the parts of one run share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from kumadp.core import context
from kumadp.core.context import Run
from kumadp.errors import WorkDirError
from kumadp.host.work_dir import WorkDir
from kumadp.settings.resolve import resolve

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("setting", "temporary", "fate"),
    [("auto", False, "keep"), ("auto", True, "kill"), ("keep", False, "keep"), ("kill", True, "kill")],
)
async def test_children_outlive_us_only_where_the_next_run_finds_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    setting: str,
    temporary: bool,
    fate: str,
) -> None:
    monkeypatch.setattr(context, "find_container_sign", lambda _environ: "")
    caplog.set_level(logging.WARNING)
    settings = resolve("run", {"name": "web", "mesh": "default", "on_parent_death": setting}, {}).settings
    run = Run(settings, None, None, {})
    run.take(WorkDir(tmp_path, tmp_path, tmp_path, temporary=temporary))
    command = await run.command("envoy", ("/bin/true",))()
    assert (command.on_parent_death, command.fifo is not None, run.keeps) == (fate, fate == "keep", fate == "keep")
    assert not caplog.records


def test_children_that_are_to_outlive_us_need_a_work_directory_that_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "find_container_sign", lambda _environ: "")
    settings = resolve("run", {"name": "web", "mesh": "default", "on_parent_death": "keep"}, {}).settings
    run = Run(settings, None, None, {})
    with pytest.raises(WorkDirError, match="the work directory is temporary"):
        run.take(WorkDir(tmp_path, tmp_path, tmp_path, temporary=True))
