"""The environment we run in and the one our children get."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# What systemd and we say to this process alone; a child that saw it would answer for us (sd_notify(3)).
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "CREDENTIALS_DIRECTORY")


def on_kubernetes(environ: Mapping[str, str]) -> bool:
    """Whether this is a pod: Kubernetes sets KUBERNETES_SERVICE_HOST, Kuma's injector POD_NAME and POD_NAMESPACE."""
    return bool(environ.get("KUBERNETES_SERVICE_HOST") or (environ.get("POD_NAME") and environ.get("POD_NAMESPACE")))


def child_environment(environ: Mapping[str, str], secret_variables: frozenset[str]) -> dict[str, str]:
    """A copy without secrets and without what is meant for this process alone."""
    return {
        name: value
        for name, value in environ.items()
        if name not in secret_variables and name not in _OURS and not name.startswith("KUMADP_")
    }
