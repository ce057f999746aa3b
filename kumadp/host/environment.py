"""Environment variables: those that describe the host, and those that children get."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Addressed to this process alone; a child that had them would notify systemd in our name (sd_notify(3)).
_OWN_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "CREDENTIALS_DIRECTORY")


def on_kubernetes(environ: Mapping[str, str]) -> bool:
    """Return whether this is a pod: by KUBERNETES_SERVICE_HOST, or Kuma's injector's POD_NAME and POD_NAMESPACE."""
    return bool(environ.get("KUBERNETES_SERVICE_HOST") or (environ.get("POD_NAME") and environ.get("POD_NAMESPACE")))


# Docker and Podman create these in every container (the second one since Podman 1.0).
_CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")
# Linux, include/linux/proc_ns.h: the inode of the first PID namespace; every other one belongs to a container.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
# There when systemd is the init of this host (sd_booted(3)), an LXC or nspawn host that is used as a VM among them.
_SYSTEMD = "/run/systemd/system"


def container_sign(environ: Mapping[str, str], *, pid: int, namespace: int, exists: Callable[[str], bool]) -> str:
    """Return the evidence that this is a container, in which no child can outlive kumadp; empty on a host or VM.

    ``namespace`` is the inode of our PID namespace, 0 if unknown; ``exists`` tests for a file. A systemd unit counts as
    on a VM, unless Docker or Podman created the container: when such a container ends, all its processes end.
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
        return "a separate PID namespace"
    return ""


def find_container_sign(environ: Mapping[str, str]) -> str:
    """Return the `container_sign` of this process."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        namespace = 0
    return container_sign(environ, pid=os.getpid(), namespace=namespace, exists=os.path.exists)


def resolve_on_parent_death(setting: str, sign: str) -> Literal["kill", "keep"]:
    """Return what ``--on-parent-death`` means here; ``sign`` is the `container_sign`, empty on a host or VM."""
    if setting == "auto":
        return "kill" if sign else "keep"
    return "keep" if setting == "keep" else "kill"


def child_environment(environ: Mapping[str, str], secret_variables: frozenset[str]) -> dict[str, str]:
    """Return a copy without secrets and without the variables that are for this process alone."""
    return {
        name: value
        for name, value in environ.items()
        if name not in secret_variables and name not in _OWN_VARIABLES and not name.startswith("KUMADP_")
    }
