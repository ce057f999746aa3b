"""Checks a Corefile before CoreDNS serves with it: a CoreDNS loads all of it and exits without binding a port."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.host.private_file import write_private
from kumadp.host.work_dir import COREFILE, TRIAL_SUFFIX
from kumadp.process.program_output import output_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger("kumadp.dns")

DEADLINE = 10.0
# CoreDNS looks for duplicate zones after it has read every directive and before it binds or starts anything (1.9 to
# 1.14: MakeServers): a duplicate zone at the end makes a CoreDNS exit that has loaded the Corefile.
_DUPLICATE = "kumadp-trial.invalid"
_END = f"\n{_DUPLICATE}:1 {{\n}}\n{_DUPLICATE}:1 {{\n}}\n"
# The end of a path, a line, and what is wrong there. CoreDNS quotes names of the Corefile, which can be anything: no
# character may be read more than twice.
_PLACE = re.compile(r"/Corefile[^\s:/]*+:(?P<line>[0-9]{1,9}) - (?P<text>.*)")
_LONGEST_LINE = 2000
_NOISE = ("maxprocs:", "[INFO]", "[DEBUG]")


class CorefileRejection(Struct, frozen=True):
    """Why CoreDNS does not load a Corefile: its own words, and the line of the Corefile, 0 if it names none."""

    message: str
    line: int = 0


async def check_corefile(
    binary: Path, corefile: str, folder: Path, environment: Mapping[str, str]
) -> CorefileRejection | None:
    """Have ``binary`` load a Corefile in ``folder``; None if it can, or gives no result within `DEADLINE`.

    Errors that occur only when CoreDNS binds its ports are not detected. Raises OSError if it cannot be run.
    """
    # Next to the real one: imports of a Corefile are relative to it.
    path = folder / f"{COREFILE}.{secrets.token_hex(4)}{TRIAL_SUFFIX}"
    try:
        await asyncio.to_thread(write_private, path, (corefile + _END).encode())
        arguments = ("-conf", str(path), "-quiet")
        output = await output_of(binary, *arguments, environment=environment, deadline=DEADLINE, with_errors=True)
    except TimeoutError:
        log.warning("CoreDNS did not report within %.0f s whether it can load its Corefile", DEADLINE)
        return None
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)
    return _parse(output, corefile)


def _parse(output: str, corefile: str) -> CorefileRejection | None:
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith(_NOISE)]
    if any(_DUPLICATE in line and "already defined" in line for line in lines):
        return None
    placed = next((match for line in lines if (match := _PLACE.search(line[:_LONGEST_LINE]))), None)
    if placed is None:
        return CorefileRejection(lines[-1] if lines else "it exits at once without giving a reason")
    # An unclosed block is reported with a line of `_END`: the last line of the Corefile is meant.
    line = min(int(placed["line"]), corefile.rstrip("\n").count("\n") + 1)
    before = placed.string[: placed.string.rfind(" ", 0, placed.start()) + 1]
    before = before if before.endswith(": ") else ""
    if _DUPLICATE in placed["text"]:
        return CorefileRejection("a } is superfluous, or a { is missing", line)
    return CorefileRejection(before + placed["text"], line)


class BinaryIdentity(Struct, frozen=True):
    """Identifies one build of a program."""

    path: str
    inode: int
    modified: int
    size: int


def identity_of_binary(path: Path) -> BinaryIdentity:
    """Return what distinguishes this file from one that replaces it; raises OSError."""
    stat = path.stat()
    return BinaryIdentity(str(path), stat.st_ino, stat.st_mtime_ns, stat.st_size)
