"""The CoreDNS that is there: where it is, and what version."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.process.program_output import output_of

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("kumadp.dns")

DEADLINE = 10.0


DEFAULT = "coredns"


def find_coredns(path: str) -> Path | None:
    """The CoreDNS binary: a path, or a name looked up on PATH; None when there is none."""
    found = shutil.which(path)
    return Path(found).absolute() if found else None


async def coredns_version(path: Path, environment: Mapping[str, str]) -> str:
    """Its version, as in 1.14.7 (``CoreDNS-1.14.7`` in the answer to ``--version``), empty when unknown."""
    match = re.search(r"CoreDNS-(\S+)", await _ask(path, "--version", environment))
    return match[1] if match else ""


async def _ask(path: Path, argument: str, environment: Mapping[str, str]) -> str:
    try:
        return await output_of(path, argument, environment=environment, deadline=DEADLINE, with_errors=True)
    except TimeoutError:
        return ""
    except OSError as error:
        log.warning("%s cannot be run: %s", path, error.strerror)
        return ""
