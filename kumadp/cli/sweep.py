"""``kumadp sweep``."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from kumadp.cli.remote import name_option, seconds
from kumadp.errors import UsageError


@click.command()
@name_option("Name of the data plane; its work directory is /run/kumadp/NAME.")
@click.option(
    "--work-dir", default="", metavar="PATH", help="Work directory. Default: $RUNTIME_DIRECTORY, or that of --name."
)
@click.option("--unit", default="", metavar="UNIT", help="Do nothing if systemd is going to restart this unit.")
@click.option(
    "--timeout",
    default="5s",
    show_default=True,
    metavar="DURATION",
    callback=seconds,
    help="Maximum time for processes to exit.",
)
def sweep(name: str, work_dir: str, unit: str, timeout: float) -> None:
    """Stop the processes that a killed kumadp left running on this host, and remove its files.

    A killed kumadp leaves Envoy and CoreDNS running for the next one to adopt (--on-parent-death=keep). If there is no
    next one, this command stops them. Processes of a running kumadp are never touched (exit code 71). With --unit it
    serves as the unit's ExecStopPost.
    """
    from kumadp.daemon.sweep import is_over
    from kumadp.daemon.sweep import sweep as sweep_directory

    directory = _directory(name, work_dir)
    if unit and not is_over(os.environ.get("SERVICE_RESULT", ""), unit, os.environ):
        click.echo(f"{unit} will be restarted: running processes are kept for it")
        return
    if not directory.is_dir():
        click.echo(f"{directory}: no such directory")
        return
    _become_owner(directory)
    stopped = asyncio.run(sweep_directory(directory, timeout))
    click.echo(f"{directory}: {'stopped ' + ', '.join(stopped) if stopped else 'nothing was left running'}")


def _directory(name: str, work_dir: str) -> Path:
    if work_dir:
        return Path(work_dir)
    if runtime := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(runtime.split(":")[0])
    if not name or name in {".", ".."} or "/" in name:
        raise UsageError("--name or --work-dir is required")
    return Path("/run/kumadp") / name


def _become_owner(directory: Path) -> None:
    """Become the owner of the directory and of the processes, if this is root: nobody else can."""
    status = directory.stat()
    if os.geteuid() == 0 and status.st_uid != 0:
        os.setgroups([])
        os.setgid(status.st_gid)
        os.setuid(status.st_uid)
