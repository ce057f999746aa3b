"""Envoy's version."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.errors import BinaryNotFound
from kumadp.host.programs import is_foreign
from kumadp.process.program_output import output_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEADLINE = 10.0
# Envoy's minor versions that Kuma 2.8.0 to 2.14.3 and 3.0 (development snapshot of 2026-08-21) ship with, each with the
# first patch that one of them has, and the Kuma versions (`ENVOY_VERSION` of their builds).
SUPPORTED: dict[tuple[int, int], tuple[int, str]] = {
    (1, 30): (2, "2.8"),
    (1, 31): (8, "2.9"),
    (1, 32): (3, "2.10"),
    (1, 33): (12, "2.10"),
    (1, 34): (1, "2.11"),
    (1, 35): (1, "2.12"),
    (1, 36): (4, "2.13"),
    (1, 38): (2, "2.14"),
    (1, 39): (0, "3.0"),
}


class EnvoyVersion(Struct, frozen=True):
    """``version`` as in 1.40.0, ``build`` the whole ``commit/version/status/type/tls`` text."""

    version: str
    build: str


def is_supported(version: str) -> bool:
    """Return whether a data plane of Kuma 2.8 to 3.0 would call this Envoy compatible: same minor, its patch or later.

    kuma-dp compares with the one Envoy of its own build, pre-releases stripped, whatever the control plane is, and the
    control plane shows the result and does nothing with it. kumadp replaces each of them, so each one's Envoy is
    supported.
    """
    parts = version.partition("-")[0].split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        return False
    major, minor, patch = map(int, parts)
    supported = SUPPORTED.get((major, minor))
    return supported is not None and patch >= supported[0]


def supported_versions() -> str:
    """Return which Envoy each Kuma ships with, for people."""
    return ", ".join(f"{major}.{minor}.{patch} (Kuma {kuma})" for (major, minor), (patch, kuma) in SUPPORTED.items())


async def envoy_version(path: Path, environment: Mapping[str, str], deadline: float = DEADLINE) -> EnvoyVersion:
    """Run ``--version``, for ``deadline`` seconds at most, and parse it; raises BinaryNotFound.

    Kuma 2.8: the text after ``version:`` has five parts.
    """
    try:
        text = await output_of(path, "--version", environment=environment, deadline=deadline)
    except TimeoutError:
        raise BinaryNotFound(
            f"{path} --version did not end within {deadline:g} s", "name Envoy with --binary-path"
        ) from None
    except OSError as error:
        raise BinaryNotFound(f"{path} cannot be run: {error.strerror}", "name Envoy with --binary-path") from None
    build = text.partition("version:")[2].strip()
    parts = build.split("/")
    if len(parts) != 5 and await asyncio.to_thread(is_foreign, path):
        raise BinaryNotFound(f"{path} is a program for another architecture", "name Envoy with --binary-path")
    if len(parts) != 5:
        raise BinaryNotFound(f"{path} does not answer --version as Envoy does", "name Envoy with --binary-path")
    return EnvoyVersion(parts[1], build)
