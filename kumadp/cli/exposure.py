"""Secrets that other users of this host can read because of how kumadp was started: one warning each."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kumadp.settings.model import Settings

# Kubernetes decides on the mode of what it mounts there, and nobody else is in the container.
_OF_KUBERNETES = "/var/run/secrets/kubernetes.io/"


def exposures(settings: Settings, origin: Mapping[str, str], config: str) -> Iterator[str]:
    """Warnings in plain words, which quote no secret.

    ``origin`` says where each setting came from (`kumadp.settings.resolve.Resolved`), ``config`` is the settings file.
    """
    if settings.token and (flag := _flag(origin, "token")):
        yield (
            f"{flag}: every user of this host can read the token in the list of processes; give a file, readable for"
            " kumadp alone, with --dataplane-token-file"
        )
    if any(urlsplit(address).password for address in settings.cp_addresses) and (flag := _flag(origin, "cp_address")):
        yield (
            f"{flag}: every user of this host can read its password in the list of processes; put the address into"
            " the settings file or a variable"
        )
    if settings.standalone:
        return
    if settings.token_path and not settings.token and not settings.token_path.startswith(_OF_KUBERNETES):
        yield from _file(settings.token_path, "the token file")
    if settings.token and config not in {"", "-"} and origin.get("token", "").startswith("file"):
        yield from _file(config, "the settings file with the token in it,")


def _flag(origin: Mapping[str, str], field: str) -> str:
    kind, _, name = origin.get(field, "").partition(" ")
    return name if kind == "flag" else ""


def _file(name: str, what: str) -> Iterator[str]:
    try:
        found = Path(name).stat()
    except OSError:
        # Whoever reads it says so.
        return
    if not stat.S_ISREG(found.st_mode):
        return
    # A group that is not the owner's way to read it is somebody else's: `kumadp install` has root own the file, and
    # the group of the service read it.
    by_group = found.st_mode & (stat.S_IRGRP | stat.S_IWGRP) and found.st_uid == os.geteuid()
    if found.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        yield f"{what} {name} can be read or changed by every user of this host: chmod 600 {name}"
    elif by_group:
        yield f"{what} {name} can be read or changed by its group: chmod 600 {name}"
