"""The options that `kumadp doctor` reads from a running kumadp."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kumadp.cli.doctor import _options_of
from kumadp.errors import UsageError
from tests.support.poll import poll

pytestmark = pytest.mark.process


def options_of(place: Path, *arguments: str) -> tuple[dict[str, object], dict[str, str]] | None:
    """Options read from a process with this command line and directory."""
    here = Path.cwd()
    with subprocess.Popen([sys.executable, "-c", "input()", *arguments], stdin=subprocess.PIPE, cwd=place) as process:
        try:
            # Until execve(2) it has our own command line.
            poll(lambda: b"input()" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), what="the process")
            results = _options_of(process.pid)
        finally:
            os.chdir(here)
            process.kill()
    return results[:2] if results is not None else None


def test_the_command_line_of_a_running_kumadp(tmp_path: Path) -> None:
    results = options_of(tmp_path, "run", "--name=web", "--drain-time", "3s", "-v", "a=b", "-v", "c=d")
    assert results is not None
    params, typed = results
    assert (params["name"], params["drain_time"], params["dataplane_vars"]) == ("web", "3s", ("a=b", "c=d"))
    assert typed == {"name": "--name", "drain_time": "--drain-time", "dataplane_vars": "-v"}
    assert options_of(tmp_path, "wait") is None
    assert _options_of(2**22 + 1) is None


def test_standard_input_of_a_running_kumadp_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="standard input"):
        options_of(tmp_path, "run", "--dataplane-file=-")
