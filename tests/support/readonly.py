"""A mount namespace in which everything is read-only but the folders that are named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.needs import need_netns

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

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


def inside(
    pid: int, *command: str, environment: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in the mount namespace of a process."""
    return subprocess.run(
        [shutil.which("nsenter") or "nsenter", f"--target={pid}", "--mount", *command],
        env=dict(environment), capture_output=True, text=True, timeout=60, check=False, cwd=cwd,
    )  # fmt: skip
