"""The man pages have everything that the option table has, and are what groff reads."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from kumadp.cli.main import COMMANDS
from kumadp.cli.man_pages import main, pages
from kumadp.errors import EXIT_CODE_MEANING
from kumadp.settings.model import options, options_of

if TYPE_CHECKING:
    from pathlib import Path


def plain(page: str) -> str:
    return pages()[page].replace("\\-", "-").replace("\\e", "\\")


def test_commands_options_and_exit_codes() -> None:
    page = plain("kumadp.1")
    for name in COMMANDS:
        assert f".SS kumadp {name}\n" in page
    for option in options_of("run"):
        assert ", ".join([*(f"{flag} {option.placeholder}" for flag in option.flags), *option.variables]) in page
    for code, meaning in EXIT_CODE_MEANING.items():
        assert f".B {int(code)}\n{meaning.replace('`', '')}\n" in page
    for flag in ("--undo", "--schema", "--purge", "--kuma"):
        assert f".B {flag}" in page.replace("-w, ", "")


def test_every_key() -> None:
    page = plain("kumadp.yaml.5")
    for option in options():
        if option.key:
            assert f".B {option.key} ({option.kind})\n" in page
            assert f"The same: {', '.join((*option.flags, *option.variables))}\n" in page


@pytest.mark.parametrize("page", pages())
def test_groff_has_no_objection(page: str, tmp_path: Path) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("no groff here")
    main([str(tmp_path)])
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-z", tmp_path / page], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_no_line_is_taken_for_a_request() -> None:
    known = {".TH", ".SH", ".SS", ".TP", ".B", ".PP", ".br", ".nf", ".fi", ".nh", ".ad"}
    for text in pages().values():
        requests = {line.split()[0] for line in text.splitlines() if line.startswith((".", "'"))}
        assert requests <= known
