"""``kumadp sweep``."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from kumadp.cli.remote import seconds
from kumadp.errors import UsageError


@click.command()
@click.option("--name", default="", help="Name of the data plane; its work directory is /run/kumadp/NAME.")
@click.option(
    "--work-dir", default="", metavar="PATH", help="Work directory; else $RUNTIME_DIRECTORY, or that of --name."
)
@click.option("--unit", default="", metavar="UNIT", help="Do nothing where systemd is to start this unit again.")
@click.option(
    "--timeout",
    default="5s",
    show_default=True,
    metavar="DURATION",
    callback=seconds,
    help="How long processes may take to end.",
)
def sweep(name: str, work_dir: str, unit: str, timeout: float) -> None:
    """End what a killed kumadp left running on this host, and take its files away.

    A killed kumadp leaves its Envoy and CoreDNS to the next one (--on-parent-death=keep). Where no next one is to come,
    this ends them. What a living kumadp has is left alone (exit code 71). With --unit it is the unit's ExecStopPost.
    """
    from kumadp.daemon.sweep import is_over
    from kumadp.daemon.sweep import sweep as sweep_directory

    directory = _directory(name, work_dir)
    if unit and not is_over(os.environ.get("SERVICE_RESULT", ""), unit, os.environ):
        click.echo(f"{unit} is to be started again: what runs is left to it")
        return
    if not directory.is_dir():
        click.echo(f"{directory}: nothing there")
        return
    _become_owner(directory)
    said = asyncio.run(sweep_directory(directory, timeout))
    click.echo(f"{directory}: {'ended ' + ', '.join(said) if said else 'nothing was left running'}")


def _directory(name: str, work_dir: str) -> Path:
    if work_dir:
        return Path(work_dir)
    if runtime := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(runtime.split(":")[0])
    if not name or name in {".", ".."} or "/" in name:
        raise UsageError("say which: --name or --work-dir")
    return Path("/run/kumadp") / name


def _become_owner(directory: Path) -> None:
    """Root goes on as who the directory belongs to, whose processes these are; nobody else can."""
    found = directory.stat()
    if os.geteuid() == 0 and found.st_uid != 0:
        os.setgroups([])
        os.setgid(found.st_gid)
        os.setuid(found.st_uid)
