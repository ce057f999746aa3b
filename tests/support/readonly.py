"""A mount namespace in which everything is read-only but the folders that are named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.needs import need_netns

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.daemon import Daemon

# Makes a tmpfs at each FOLDER=SIZE, remounts the rest read-only but KEPT mounts, and becomes the command.
_SCRIPT = """
import os, subprocess, sys
end = sys.argv.index("--")
rest, folders, command = sys.argv[1], sys.argv[2:end], sys.argv[end + 1:]
mount = lambda *how: subprocess.run(["mount", *how], check=True)
mount("--make-rprivate", "/")
for folder in folders:
    path, _, size = folder.partition("=")
    if size:
        mount("-t", "tmpfs", "-o", f"mode=0700,size={size}", "tmpfs", path)
kept = {folder.partition("=")[0] for folder in folders}
mounts = {line.split()[4] for line in open("/proc/self/mountinfo")}
for path in sorted(mounts, key=len, reverse=True):
    if rest == "ro" and path not in kept and not path.startswith(("/proc", "/sys", "/dev/pts", "/dev/mqueue")):
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=False, capture_output=True)
os.execvp(command[0], command)
"""


def read_only_but(*folders: str) -> tuple[str, ...]:
    """What to put before a command: ``PATH=SIZE`` is a tmpfs of that size, ``PATH`` a mount that stays as it is."""
    need_netns()
    return ("unshare", "--mount", sys.executable, "-c", _SCRIPT, "ro", *folders, "--")


def small_disk(folder: Path, size: str) -> tuple[str, ...]:
    """What to put before a command: it sees a tmpfs of that size there, and the rest of the host as it is."""
    need_netns()
    return ("unshare", "--mount", sys.executable, "-c", _SCRIPT, "rw", f"{folder}={size}", "--")


def over(path: str, file: Path) -> tuple[str, ...]:
    """What to put before a command: it sees ``file`` at ``path``, and the rest of the host as it is."""
    need_netns()
    script = 'mount --make-rprivate / && mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh", str(file), path)


def inside(
    pid: int, *command: str, environment: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in the mount namespace of a process."""
    return subprocess.run(
        [shutil.which("nsenter") or "nsenter", f"--target={pid}", "--mount", *command],
        env=dict(environment), capture_output=True, text=True, timeout=60, check=False, cwd=cwd,
    )  # fmt: skip


def fill(daemon: Daemon, folder: Path) -> None:
    """Leave no byte free in the file system of this folder, as that data plane sees it."""
    done = inside(daemon.pid, "dd", "if=/dev/zero", f"of={folder}/filler", "bs=1k", environment=dict(os.environ))
    assert "No space left" in done.stderr


def free(daemon: Daemon, folder: Path) -> None:
    """Remove what `fill` has written."""
    assert inside(daemon.pid, "rm", f"{folder}/filler", environment=dict(os.environ)).returncode == 0


def make_read_only(daemon: Daemon, folder: Path) -> None:
    """As a file system whose disk fails: what is open for writing stays so."""
    for how in (("--bind", str(folder), str(folder)), ("-o", "remount,bind,ro", str(folder))):
        done = inside(daemon.pid, "mount", *how, environment=dict(os.environ))
        assert done.returncode == 0, done.stderr
