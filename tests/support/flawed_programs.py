"""Programs that stand before a real Envoy or CoreDNS, and fail while a file is there."""

from __future__ import annotations

import shutil
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# e_machine of an ELF header (elf(5)).
_MACHINE_AT, _OTHERS = 18, 0xF7


def failing_program(real: Path, path: Path, flag: Path, instead: str) -> Path:
    """Write a program that becomes ``real``, or runs the shell command ``instead`` while ``flag`` is there."""
    path.write_text(f'#!/bin/sh\nif [ -e {flag} ]; then {instead}; fi\nexec {real} "$@"\n')
    path.chmod(0o755)
    return path


def put_foreign_program(real: Path, path: Path) -> None:
    """Put the beginning of ``real`` there as a program for an architecture that no host of ours has."""
    with real.open("rb") as file:
        head = bytearray(file.read(4096))
    struct.pack_into("<H", head, _MACHINE_AT, _OTHERS)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(head)
    shutil.copymode(real, fresh)
    fresh.rename(path)
