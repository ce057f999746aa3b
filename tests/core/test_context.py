"""The context that parts share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from kumadp.core import context
from kumadp.core.context import Context, Inputs
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
    shared = Context(Inputs(settings, None, {}))
    shared.use_work_dir(WorkDir(tmp_path, tmp_path, tmp_path, temporary=temporary))
    command = await shared.command("envoy", ("/bin/true",))()
    assert (command.on_parent_death, command.fifo is not None, shared.keeps_children) == (
        fate,
        fate == "keep",
        fate == "keep",
    )
    assert not caplog.records


def test_children_that_are_to_outlive_us_need_a_work_directory_that_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "find_container_sign", lambda _environ: "")
    settings = resolve("run", {"name": "web", "mesh": "default", "on_parent_death": "keep"}, {}).settings
    shared = Context(Inputs(settings, None, {}))
    with pytest.raises(WorkDirError, match="the work directory is temporary"):
        shared.use_work_dir(WorkDir(tmp_path, tmp_path, tmp_path, temporary=True))
