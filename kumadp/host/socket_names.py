"""Names of the sockets in the work directory that control planes know."""

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
    """Base of the FIFO that Envoy writes access logs to."""
    return f"kuma-al-{name}-{mesh}"


def metrics(name: str, mesh: str) -> str:
    """Base of the socket that Envoy's Prometheus listener leads to."""
    return f"kuma-mh-{name}-{mesh}"


def kuma_socket(folder: Path, base: str) -> Path:
    """Where Kuma, on both sides, expects the socket ``base``."""
    return Path(os.fsdecode(os.fsencode(folder / base)[:LONGEST] + b".sock"))


def check_names(folder: Path, name: str, mesh: str) -> None:
    """Raise WorkDirError where ``folder`` is so long that two sockets of one data plane would be the same.

    A name that is cut and still its own is right: the control plane cuts it alike.
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
    # kuma-me and kuma-mh is what two names have in common at most; a slash before it.
    return LONGEST - len("/kuma-me")


def remove_stale(folder: Path) -> None:
    """Remove sockets of Kuma's names on which nobody listens any more. May block.

    Only for a folder that no other data plane uses, as one that has just bound its socket does not listen yet.
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
