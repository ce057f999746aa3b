"""Names of the sockets in the work directory that control planes know."""

from __future__ import annotations

import os
from pathlib import Path

# Kuma (2.8 to 2.14) cuts here, before ".sock", so that every name fits into the 108 bytes of sockaddr_un.
LONGEST = 98

READINESS = "kuma-readiness-reporter"


def kuma_socket(folder: Path, base: str) -> Path:
    """Where Kuma, on both sides, expects the socket ``base``."""
    return Path(os.fsdecode(os.fsencode(folder / base)[:LONGEST] + b".sock"))
