"""The environment we run in and the one our children get."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# What systemd and we say to this process alone; a child that saw it would answer for us (sd_notify(3)).
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "CREDENTIALS_DIRECTORY")


def on_kubernetes(environ: Mapping[str, str]) -> bool:
    """Whether this is a pod: Kubernetes sets KUBERNETES_SERVICE_HOST, Kuma's injector POD_NAME and POD_NAMESPACE."""
    return bool(environ.get("KUBERNETES_SERVICE_HOST") or (environ.get("POD_NAME") and environ.get("POD_NAMESPACE")))


# Docker and Podman leave these in every container (the second one since Podman 1.0).
_CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")
# Linux, include/linux/proc_ns.h: the inode of the first PID namespace; every other one belongs to a container.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
# There when systemd is the init of this host (sd_booted(3)), an LXC or nspawn host that is used as a VM among them.
_SYSTEMD = "/run/systemd/system"


def container_sign(environ: Mapping[str, str], *, pid: int, namespace: int, exists: Callable[[str], bool]) -> str:
    """What shows that this is a container, where nothing outlives kumadp in peace; empty on a host or VM.

    ``namespace`` is the inode of our PID namespace, 0 when unknown; ``exists`` says whether a file is there. A unit of
    systemd is on a VM, unless Docker or Podman made the place: the end of such a container is the end of all in it.
    """
    if on_kubernetes(environ):
        return "Kubernetes"
    for path in _CONTAINER_FILES:
        if exists(path):
            return path
    if kind := environ.get("container"):  # set by Podman, systemd-nspawn and LXC for the first process
        return f"container={kind}"
    if pid == 1:
        return "process 1"
    if namespace not in {0, _FIRST_PID_NAMESPACE} and not exists(_SYSTEMD):
        return "a PID namespace of its own"
    return ""


def find_container_sign(environ: Mapping[str, str]) -> str:
    """`container_sign` of this process."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        namespace = 0
    return container_sign(environ, pid=os.getpid(), namespace=namespace, exists=os.path.exists)


def resolve_on_parent_death(setting: str, sign: str) -> Literal["kill", "keep"]:
    """What ``--on-parent-death`` means here; ``sign`` is that of a container, empty on a host or VM."""
    if setting == "auto":
        return "kill" if sign else "keep"
    return "keep" if setting == "keep" else "kill"


def child_environment(environ: Mapping[str, str], secret_variables: frozenset[str]) -> dict[str, str]:
    """A copy without secrets and without what is meant for this process alone."""
    return {
        name: value
        for name, value in environ.items()
        if name not in secret_variables and name not in _OURS and not name.startswith("KUMADP_")
    }
