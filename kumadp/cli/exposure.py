"""Warnings about secrets that other users of this host can read because of how kumadp was started."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kumadp.settings.model import Settings

# Kubernetes sets the mode of files that it mounts there, and the container has no other users.
_OF_KUBERNETES = "/var/run/secrets/kubernetes.io/"


def exposures(settings: Settings, origin: Mapping[str, str], config: str) -> Iterator[str]:
    """Return the warnings, which contain no secret.

    ``origin`` is the origin of each setting (`kumadp.settings.resolve.Resolved`), ``config`` the settings file.
    """
    if settings.token and (flag := _flag(origin, "token")):
        yield (
            f"{flag}: every user of this host can read the token in the process list; use --dataplane-token-file with"
            " a file that only kumadp can read"
        )
    if any(urlsplit(address).password for address in settings.cp_addresses) and (flag := _flag(origin, "cp_address")):
        yield (
            f"{flag}: every user of this host can read its password in the process list; set the address in the"
            " settings file or a variable"
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
        status = Path(name).stat()
    except OSError:
        # Reported when the file is read.
        return
    if not stat.S_ISREG(status.st_mode):
        return
    # With another owner the group is how this user reads the file: `kumadp install` makes root the owner and lets the
    # group of the service read it.
    by_group = status.st_mode & (stat.S_IRGRP | stat.S_IWGRP) and status.st_uid == os.geteuid()
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        yield f"{what} {name} can be read or changed by every user of this host: chmod 600 {name}"
    elif by_group:
        yield f"{what} {name} can be read or changed by its group: chmod 600 {name}"
