"""What one kumadp leaves to the next in the work directory, which may be somebody's own folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kumadp.daemon.adoption import forget, tidy

if TYPE_CHECKING:
    from pathlib import Path

OURS = ("bootstrap.1.yaml", "bootstrap.27.yaml", "bootstrap.yaml.new", "bootstrap.2.yaml.new", "state.json.new")
OURS_AT_THE_END = ("source.json",)
THEIRS = ("a.out", "build.out.gz", "letter.new", "bootstrap.old.yaml", "bootstrap.yaml", "config.yaml")


def test_only_what_is_ours_goes(tmp_path: Path) -> None:
    for name in (*OURS, *OURS_AT_THE_END, *THEIRS):
        (tmp_path / name).write_text("x")
    dead, living = tmp_path / "envoy.out.0.1.17.1", tmp_path / "coredns.18.out"
    for fifo in (dead, living, tmp_path / "envoy.out"):
        os.mkfifo(fifo)
    tidy(tmp_path, {living})
    assert {path.name for path in tmp_path.iterdir()} == {*OURS_AT_THE_END, *THEIRS, living.name}
    forget(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(THEIRS)
