"""What /proc has of another process (proc(5)); each function raises OSError if it cannot be read."""

from __future__ import annotations

import os
import re
from pathlib import Path

_UNIT = re.compile(r"/([^/]+\.service)(?:/|$)")


def command_line(pid: int) -> list[str]:
    """Return the program and its arguments; empty for a thread of the kernel or a zombie."""
    return [os.fsdecode(word) for word in _file(pid, "cmdline").read_bytes().split(b"\0")[:-1]]


def environment(pid: int) -> dict[str, str]:
    """Return the environment that the process was started with."""
    pairs = (os.fsdecode(pair).partition("=") for pair in _file(pid, "environ").read_bytes().split(b"\0"))
    return {name: value for name, _, value in pairs if name}


def status_fields(pid: int) -> dict[str, list[str]]:
    """Return the values of each field of its status: of Uid and Gid the real, effective, saved and file system's."""
    lines = _file(pid, "status").read_text(errors="replace").splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}


def services(pid: int) -> list[str]:
    """Return the services of systemd in the path of its cgroup, the outermost first."""
    return _UNIT.findall(os.fsdecode(_file(pid, "cgroup").read_bytes()))


def _file(pid: int, name: str) -> Path:
    return Path(f"/proc/{pid}/{name}")
