"""How Envoy is launched by the settings: its command line, its restarts, and a description to be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.envoy.argv import envoy_argv, envoy_level
from kumadp.host.environment import on_kubernetes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kumadp.bootstrap.prepare import Prepared
    from kumadp.core.context import Context
    from kumadp.settings.model import Settings

RESTART_BUDGET = 5
CONFIGURED_BY = "configured by "


def launch_argv(settings: Settings, prepared: Prepared, binary: Path) -> tuple[str, ...]:
    """Return Envoy's command line for this bootstrap."""
    return envoy_argv(
        binary,
        prepared.config_path,
        drain_time=settings.drain_time,
        log_level=envoy_level(settings),
        component_log_level=settings.envoy_component_log_level,
        concurrency=settings.concurrency,
        extra=settings.envoy_args,
    )


def configured_by(context: Context) -> str:
    """Return how Envoy gets its configuration: no reload, and no adoption, changes that for an Envoy that runs."""
    return CONFIGURED_BY + ("files" if context.standalone else f"xds-relay={context.settings.xds_relay}")


def launch_description(context: Context, prepared: Prepared, binary: Path) -> tuple[str, ...]:
    """Return how Envoy is launched, without its bootstrap, and with what shows an upgraded binary. May block."""
    argv = launch_argv(context.settings, prepared, binary)
    return (described(binary), configured_by(context), *(part for part in argv[1:] if part != argv[2]))


def described(binary: Path) -> str:
    """Return the path of a program with what differs once another one is installed there. May block.

    Not its inode: a package that brings the same program again does not have Envoy replaced.
    """
    file = binary.stat()
    return f"{binary} {file.st_size} {file.st_mtime_ns}"


def restart_budget(settings: Settings, environ: Mapping[str, str]) -> int:
    """Return how often Envoy is restarted in the window: the setting, else 0 on Kubernetes (as kuma-dp), else 5."""
    if settings.envoy_restart_budget is not None:
        return settings.envoy_restart_budget
    return 0 if on_kubernetes(environ) else RESTART_BUDGET
