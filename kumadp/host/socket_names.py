"""Names of the sockets in the work directory that control planes also compute."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from kumadp.errors import WorkDirError

# Kuma (2.8 to 2.14) cuts here, before ".sock", so that every name fits into the 108 bytes of sockaddr_un.
LONGEST = 98

READINESS = "kuma-readiness-reporter"
ADMIN = "kuma-envoy-admin"
DYNAMIC_CONFIGURATION = "kuma-mesh-metric-config"
# The name of a backend follows.
OTEL = "kuma-otel-"


def access_log(name: str, mesh: str) -> str:
    """Return the base name of the FIFO that Envoy writes access logs to."""
    return f"kuma-al-{name}-{mesh}"


def metrics(name: str, mesh: str) -> str:
    """Return the base name of the socket that Envoy's Prometheus listener forwards to."""
    return f"kuma-mh-{name}-{mesh}"


def kuma_socket(folder: Path, base: str) -> Path:
    """Return the path at which Kuma, data plane and control plane, expects the socket ``base``."""
    return Path(os.fsdecode(os.fsencode(folder / base)[:LONGEST] + b".sock"))


def check_names(folder: Path, name: str, mesh: str) -> None:
    """Raise WorkDirError if ``folder`` is so long that two sockets of one data plane would have the same path.

    A name that is cut and still unique is right: the control plane cuts it in the same way.
    """
    seen: dict[Path, str] = {}
    for base in (access_log(name, mesh), metrics(name, mesh), DYNAMIC_CONFIGURATION, OTEL, ADMIN, READINESS):
        path = kuma_socket(folder, base)
        if path in seen:
            raise WorkDirError(
                f"{folder} is too long: the sockets {seen[path]} and {base} there would both be {path.name}, as Kuma"
                f" cuts them at {LONGEST} bytes",
                f"choose a directory of at most {_longest_folder()} bytes with --work-dir",
            )
        seen[path] = base


def _longest_folder() -> int:
    # Two names share at most "kuma-m" (kuma-me.., kuma-mh..); a slash comes before it.
    return LONGEST - len("/kuma-me")


def remove_stale(folder: Path) -> None:
    """Remove sockets with Kuma's names on which no process listens any more. May block.

    Only for a folder that no other data plane uses, since one that has just bound its socket does not listen yet.
    """
    for path in folder.glob("kuma-*.sock"):
        try:
            if stat.S_ISSOCK(path.lstat().st_mode) and _is_dead(path):
                path.unlink(missing_ok=True)
        except OSError:
            continue


def _is_dead(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED
