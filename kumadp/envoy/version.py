"""Envoy's version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.errors import BinaryNotFound
from kumadp.process.output import output_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEADLINE = 10.0


@dataclass(frozen=True, slots=True)
class EnvoyVersion:
    """``version`` as in 1.40.0, ``build`` the whole ``commit/version/status/type/tls`` text."""

    version: str
    build: str


async def envoy_version(path: Path, environment: Mapping[str, str]) -> EnvoyVersion:
    """Ask the binary (Kuma 2.8: the text after ``version:`` has five parts); raises BinaryNotFound."""
    try:
        text = await output_of(path, "--version", environment=environment, deadline=DEADLINE)
    except TimeoutError:
        raise BinaryNotFound(
            f"{path} --version did not end within {DEADLINE:g} s", "name Envoy with --binary-path"
        ) from None
    except OSError as error:
        raise BinaryNotFound(f"{path} cannot be run: {error.strerror}", "name Envoy with --binary-path") from None
    build = text.partition("version:")[2].strip()
    parts = build.split("/")
    if len(parts) != 5:
        raise BinaryNotFound(f"{path} does not answer --version as Envoy does", "name Envoy with --binary-path")
    return EnvoyVersion(parts[1], build)
