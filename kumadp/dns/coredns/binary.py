"""The installed CoreDNS: its path and version."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.host.programs import find_program
from kumadp.process.program_output import output_of

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("kumadp.dns")

DEADLINE = 10.0
"""For a run of the binary, in seconds."""
DEFAULT = "coredns"


def find_coredns(path: str) -> Path | None:
    """Return the absolute path of the binary ``path``, a path or a name on PATH; None if there is none."""
    binary = find_program(path)
    return Path(binary).absolute() if binary else None


async def coredns_version(path: Path, environment: Mapping[str, str]) -> str:
    """Return its version, such as 1.14.7 (``CoreDNS-1.14.7`` in the output of ``--version``), empty if unknown."""
    match = re.search(r"CoreDNS-(\S+)", await _output(path, "--version", environment))
    return match[1] if match else ""


async def _output(path: Path, argument: str, environment: Mapping[str, str]) -> str:
    try:
        return await output_of(path, argument, environment=environment, deadline=DEADLINE, with_errors=True)
    except TimeoutError:
        return ""
    except OSError as error:
        log.warning("%s cannot be run: %s", path, error.strerror)
        return ""
