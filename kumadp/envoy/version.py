"""Envoy's version."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.errors import BinaryNotFound

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE = 10.0


@dataclass(frozen=True, slots=True)
class EnvoyVersion:
    """``version`` as in 1.40.0, ``build`` the whole ``commit/version/status/type/tls`` text."""

    version: str
    build: str


async def envoy_version(path: Path) -> EnvoyVersion:
    """Ask the binary (Kuma 2.8: the text after ``version:`` has five parts); raises BinaryNotFound."""
    text = await run_for_text(path, "--version")
    build = text.partition("version:")[2].strip()
    parts = build.split("/")
    if len(parts) != 5:
        raise BinaryNotFound(f"{path} does not answer --version as Envoy does", "name Envoy with --binary-path")
    return EnvoyVersion(parts[1], build)


async def run_for_text(path: Path, *arguments: str) -> str:
    """Standard output of a short run; raises BinaryNotFound when it cannot run or does not end in 10 s."""
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise BinaryNotFound(f"{path} cannot be run: {error.strerror}") from None
    try:
        async with asyncio.timeout(DEADLINE):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise BinaryNotFound(f"{path} {' '.join(arguments)} did not end within {DEADLINE:.0f} s") from None
    return output.decode("utf-8", "replace")
