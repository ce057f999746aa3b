"""A CoreDNS is tried with a Corefile before it serves with it: it loads all of it and ends without binding anything."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.host.private_file import write_private
from kumadp.host.work_dir import COREFILE, TRIAL_SUFFIX
from kumadp.process.program_output import output_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger("kumadp.dns")

DEADLINE = 10.0
# Zones are compared after every directive was read and before anything is bound or started (CoreDNS 1.9 to 1.14:
# MakeServers, which checks that no zone is served twice): a zone that is there twice ends CoreDNS just then.
_TWICE = "kumadp-trial.invalid"
_END = f"\n{_TWICE}:1 {{\n}}\n{_TWICE}:1 {{\n}}\n"
_PLACE = re.compile(r"(?:(?P<before>.*?): )?(?P<file>\S*/Corefile\S*):(?P<line>\d+) - (?P<text>.*)")
_LONGEST_LINE = 2000
_NOISE = ("maxprocs:", "[INFO]", "[DEBUG]")


@dataclass(frozen=True, slots=True)
class CorefileRejection:
    """Why a CoreDNS does not load a Corefile: its own words, and the line of the Corefile, 0 where it names none."""

    message: str
    line: int = 0


async def check_corefile(
    binary: Path, corefile: str, folder: Path, environment: Mapping[str, str]
) -> CorefileRejection | None:
    """Have ``binary`` load a Corefile in ``folder``; None when it can, or does not say within `DEADLINE`.

    What only shows when it binds its ports is not found here. Raises OSError where it cannot be run.
    """
    # Beside the real one: what a Corefile imports is looked for where it is itself.
    path = folder / f"{COREFILE}.{secrets.token_hex(4)}{TRIAL_SUFFIX}"
    try:
        await asyncio.to_thread(write_private, path, (corefile + _END).encode())
        arguments = ("-conf", str(path), "-quiet")
        output = await output_of(binary, *arguments, environment=environment, deadline=DEADLINE, with_errors=True)
    except TimeoutError:
        log.warning("CoreDNS did not say within %.0f s whether it can load its Corefile", DEADLINE)
        return None
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)
    return _read(output, corefile)


def _read(output: str, corefile: str) -> CorefileRejection | None:
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith(_NOISE)]
    if any(_TWICE in line and "already defined" in line for line in lines):
        return None
    placed = next((found for line in lines if (found := _PLACE.search(line[:_LONGEST_LINE]))), None)
    if placed is None:
        return CorefileRejection(lines[-1] if lines else "it ends at once and does not say why")
    # A block that is not closed is found out by what we put behind it: the last line is the one to name.
    line = min(int(placed["line"]), corefile.rstrip("\n").count("\n") + 1)
    before = f"{placed['before']}: " if placed["before"] else ""
    if _TWICE in placed["text"]:
        return CorefileRejection("a } too many, or a { that is missing", line)
    return CorefileRejection(before + placed["text"], line)


@dataclass(frozen=True, slots=True)
class BinaryIdentity:
    """One build of a program: another one has another of these."""

    path: str
    inode: int
    modified: int
    size: int


def identity_of_binary(path: Path) -> BinaryIdentity:
    """What tells this file from one that is put in its place; raises OSError."""
    found = path.stat()
    return BinaryIdentity(str(path), found.st_ino, found.st_mtime_ns, found.st_size)
