"""The new program is tried first: a fault is reported, and has no other effect."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kumadp import __version__
from kumadp.core.previous import SECTION
from kumadp.errors import HandoverFailed
from kumadp.host.reexec.handover import Handover, collect
from kumadp.process.handover_check import check_new_program
from tests.support.command import ROOT
from tests.support.descriptors import open_descriptors

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

# Of `kumadp.core.previous.DaemonSection`.
OWN: dict[str, Any] = {
    "work": {"path": "/nowhere", "temporary": False, "lock": -1},
    "ready": True,
    "started": 0.0,
    "children": [],
    "at": 0.0,
}


def handed(folder: Path) -> Handover:
    """What is handed over by a run that works in ``folder``."""
    return collect({SECTION: msgspec.msgpack.encode({**OWN, "work": {**OWN["work"], "path": str(folder)}})}, [])


DATAPLANE = ROOT / "configs" / "dataplane.yaml"


def program(folder: Path, *arguments: str) -> tuple[str, ...]:
    """`kumadp run` of a copy of the package, which a test may break."""
    shutil.copytree(ROOT / "kumadp", folder / "kumadp", ignore=shutil.ignore_patterns("__pycache__"))
    start = f"import sys; sys.path.insert(0, {str(folder)!r}); from kumadp.cli.main import main; main()"
    return (sys.executable, "-c", start, "run", f"--standalone={DATAPLANE}", *arguments)


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("KUMA", "POD_"))}


async def test_a_good_program_reports_its_version_and_does_nothing(tmp_path: Path) -> None:
    before = open_descriptors()
    output = await check_new_program(
        handed(tmp_path), environment(), argv=program(tmp_path, f"--work-dir={tmp_path}/work")
    )
    assert output == f"kumadp {__version__}"
    assert open_descriptors() <= before
    assert not (tmp_path / "work").exists()


async def test_a_module_that_is_imported_late_is_looked_at_too(tmp_path: Path) -> None:
    argv = program(tmp_path)
    (tmp_path / "kumadp" / "probes" / "virtual.py").write_text("def broken(:\n")
    with pytest.raises(HandoverFailed, match=r"does not start: .*kumadp\.probes\.virtual cannot be .*SyntaxError"):
        await check_new_program(handed(tmp_path), environment(), argv=argv)


async def test_a_program_that_dies_at_its_first_import_is_reported_with_its_last_line(tmp_path: Path) -> None:
    argv = program(tmp_path)
    (tmp_path / "kumadp" / "errors.py").write_text("import a_library_that_was_not_installed\n")
    with pytest.raises(HandoverFailed, match="does not start: ModuleNotFoundError: No module named 'a_library"):
        await check_new_program(handed(tmp_path), environment(), argv=argv)


async def test_settings_that_are_wrong_by_now_are_reported(tmp_path: Path) -> None:
    with pytest.raises(HandoverFailed, match="--drain-time"):
        await check_new_program(handed(tmp_path), environment(), argv=program(tmp_path, "--drain-time=5"))


async def test_a_program_that_cannot_read_what_is_handed_over_is_not_taken(tmp_path: Path) -> None:
    argv = program(tmp_path)
    source = tmp_path / "kumadp" / "host" / "reexec" / "handover.py"
    source.write_text(source.read_text().replace("FORMAT = 1\n", "FORMAT = 2\n"))
    with pytest.raises(HandoverFailed, match="has format 1, this kumadp knows 2"):
        await check_new_program(handed(tmp_path), environment(), argv=argv)


@pytest.mark.parametrize(
    "sections", [{}, {SECTION: b"\xc1"}, {SECTION: msgspec.msgpack.encode({**OWN, "children": {"pid": 1}})}]
)
async def test_a_program_that_knows_another_form_of_what_each_part_hands_over_is_not_taken(
    tmp_path: Path, sections: dict[str, bytes]
) -> None:
    with pytest.raises(HandoverFailed, match="cannot be read"):
        await check_new_program(collect(sections, []), environment(), argv=program(tmp_path))


async def test_a_program_that_hangs_is_not_waited_for_and_ends(tmp_path: Path) -> None:
    hanging = ("/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    with pytest.raises(HandoverFailed, match="did not pass its check within 1 s"):
        await check_new_program(handed(tmp_path), environment(), argv=hanging, deadline=1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_missing_program_is_reported(tmp_path: Path) -> None:
    with pytest.raises(HandoverFailed, match="cannot be started: No such file"):
        await check_new_program(handed(tmp_path), environment(), argv=(str(tmp_path / "none"),))
