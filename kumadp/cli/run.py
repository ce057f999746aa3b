"""``kumadp run``: settings and resources are read and checked, then the run loop takes over."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kumadp.cli.options import add_options
from kumadp.errors import Problem, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.host.logs import LogOutput
    from kumadp.resources.load import Resource
    from kumadp.settings.model import Settings


@click.command(context_settings={"max_content_width": 100})
@add_options("run")
def run(**flags: object) -> int:
    """Run a data plane until it is told to stop.

    With a control plane (--cp-address) kumadp fetches Envoy's bootstrap and runs Envoy and CoreDNS, as kuma-dp does.
    With --standalone PATH it needs none: PATH is a Dataplane file or a folder of them.

    SIGTERM or SIGINT drains and stops, a second one cuts the drain short, a third ends at once. SIGUSR2 drains inbound
    and stays.
    """
    from kumadp.settings.resolve import resolve

    config = flags.get("config")
    text = _read_settings_file(str(config)) if config else None
    resolved = resolve("run", flags, os.environ, text, str(config or ""))
    return launch(resolved.settings, resolved.warnings, os.environ)


def launch(settings: Settings, warnings: tuple[str, ...], environ: Mapping[str, str]) -> int:
    """Check everything that can be checked, then run; returns the exit code. Raises KumadpError before the loop runs."""
    from kumadp.host.logs import setup_logging
    from kumadp.host.names import set_process_name
    from kumadp.host.secrets import register
    from kumadp.lifecycle.assemble import run_daemon
    from kumadp.settings.display import display

    resource = _load_resource(settings)
    if settings.token:
        register(settings.token)
    logs: LogOutput = setup_logging(
        level=settings.log_level,
        fmt=settings.log_format,
        output_path=settings.log_output_path,
        max_files=settings.log_max_retained_files,
        max_size_mb=settings.log_max_size,
        max_age_days=settings.log_max_age,
    )
    set_process_name("kuma-dp")
    try:
        work = run_daemon(settings, resource, environ, warnings, display(settings))
        with asyncio.Runner(loop_factory=_loop_factory(settings.use_uvloop)) as runner:
            return runner.run(work)
    finally:
        logs.close()


def _loop_factory(wanted: bool) -> type[asyncio.AbstractEventLoop] | None:
    if wanted:
        try:
            import uvloop
        except ImportError:
            return None
        return uvloop.Loop  # type: ignore[no-any-return]
    return None


def _load_resource(settings: Settings) -> Resource | None:
    """The resource given to us; None where the control plane has it, or the standalone folder does."""
    from kumadp.resources.load import load_resource, load_resource_file

    if settings.dataplane:
        return load_resource(settings.dataplane, "--dataplane", variables=settings.dataplane_vars)
    if settings.dataplane_file:
        path = settings.dataplane_file
        return load_resource_file(path if path == "-" else Path(path), variables=settings.dataplane_vars)
    return None


def _read_settings_file(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise SettingsError([Problem("--config", f"{name}: {reason}", "name a YAML file that can be read")]) from None
