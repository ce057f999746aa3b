"""The kuma-dp processes of this host, by what /proc has of them."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from kumadp import yamltext
from kumadp.bootstrap.fields import get
from kumadp.errors import CommandRefused
from kumadp.host import proc_files
from kumadp.migrate.source import KumaDp

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC = Path("/proc")
_NAME = "kuma-dp"
_BOOTSTRAP = yamltext.Bounds(size=16 << 20, depth=100)


def running() -> list[int]:
    """Return the pids of all kuma-dp here that this user may see; a kumadp, which has the same name, is none."""
    return sorted(pid for pid in map(int, filter(str.isdecimal, os.listdir(PROC))) if _is_kuma_dp(pid))  # noqa: PTH208


def _is_kuma_dp(pid: int) -> bool:
    words, program = _words(pid), _link(pid, "exe")
    if not words or "run" not in words[1:]:
        return False
    # kumadp has the name kuma-dp too, and is run by Python.
    interpreted = Path(program).name.startswith("python") or Path(words[0]).name.startswith("python")
    return not interpreted and _NAME in {Path(program.removesuffix(" (deleted)")).name, Path(words[0]).name}


def process(pid: int) -> KumaDp:
    """Return the kuma-dp with this pid; raises CommandRefused if it is none, or another user's."""
    words = _words(pid)
    if not words:
        raise CommandRefused(f"no process has the pid {pid}", "kumadp migrate, without --pid, finds them")
    if not _is_kuma_dp(pid):
        raise CommandRefused(f"pid {pid} is no kuma-dp: {Path(words[0]).name}")
    try:
        environ = proc_files.environment(pid)
        folder = (PROC / str(pid) / "cwd").readlink()
        status = proc_files.status_fields(pid)
    except OSError as error:
        raise CommandRefused(f"pid {pid} cannot be read: {error.strerror}", "run this as root") from None
    unit = _unit(pid)
    below = _below(pid)
    return KumaDp(
        f"pid {pid}" + (f", unit {unit}" if unit else ""),
        tuple(words[1:]),
        environ,
        folder,
        _user(int(status["Uid"][1])),
        _group(int(status["Gid"][1])),
        _link(pid, "exe") or words[0],
        unit,
        _version(below),
        (pid, *below),
        tuple(_problems(pid)),
    )


def _problems(pid: int) -> Iterator[str]:
    root, ours = PROC / str(pid) / "root", Path("/")
    with contextlib.suppress(OSError):
        if (root.stat().st_dev, root.stat().st_ino) != (ours.stat().st_dev, ours.stat().st_ino):
            yield "it runs in a container: replace its image (systemd/README.md), or give its compose file"


def shares_network(pid: int) -> bool:
    """Return whether a process has this one's network namespace, so that its ports are seen from here."""
    try:
        return (PROC / str(pid) / "ns/net").stat().st_ino == (PROC / "self/ns/net").stat().st_ino
    except OSError:
        return False


def _words(pid: int) -> list[str]:
    try:
        return proc_files.command_line(pid)
    except OSError:
        return []


def _link(pid: int, name: str) -> str:
    try:
        return str((PROC / str(pid) / name).readlink())
    except OSError:
        return ""


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _unit(pid: int) -> str:
    """Return the service that the process belongs to, by its cgroup; empty if there is none."""
    try:
        found = proc_files.services(pid)
    except OSError:
        return ""
    # A user's own services are below user@1000.service.
    return "" if not found or found[0].startswith("user@") else found[-1]


def _below(pid: int) -> tuple[int, ...]:
    try:
        return tuple(child.pid for child in psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return ()


def _version(pids: tuple[int, ...]) -> str:
    """Return kuma-dp's version by the bootstrap of its Envoy; empty if it cannot be read."""
    for pid in pids:
        words = _words(pid)
        if "--config-path" not in words[:-1]:
            continue
        path = f"{PROC}/{pid}/root{words[words.index('--config-path') + 1]}"
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
            tree: Any = yamltext.load(yamltext.read(path, _BOOTSTRAP), _BOOTSTRAP)
            version = get(tree, "node", "metadata", "version", "kumaDp", "version")
            # A program that was not built by a release has none.
            return version if isinstance(version, str) and version != "unknown" else ""
    return ""
