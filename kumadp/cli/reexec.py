"""``kumadp reexec``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from kumadp.cli.asking import asking_options, order, the_socket
from kumadp.errors import CommandRefused
from kumadp.lifecycle.control import ask_status
from kumadp.settings.values import write_duration

if TYPE_CHECKING:
    from pathlib import Path

_PAUSE = 0.05


@click.command()
@asking_options("2m")
def reexec(name: str, timeout: float) -> None:
    """Have a kumadp on this host become the version that is installed now, without losing a request.

    Its pid, Envoy and CoreDNS and its sockets stay; Envoy does not notice but for its stream to kumadp. The new program
    is tried first: one that does not start changes nothing. Returns when it is done, as SIGUSR1 does not. Exit code 0
    when done, 79 when not, with the reason.
    """
    path = the_socket(name)
    end = time.monotonic() + timeout
    before = order(path, "reexec", timeout)
    while True:
        status = _status(path, end - time.monotonic())
        told = status.get("reexec", {})
        if told.get("count", 0) > before.get("count", 0):
            click.echo(f"{path.stem}: kumadp {status.get('version')} has taken over (pid {status.get('pid')})")
            return
        if told.get("failed"):
            raise CommandRefused(f"{path.stem}: reexec: {told['failed']}")
        if time.monotonic() > end:
            raise CommandRefused(f"{path.stem}: reexec: not done within {write_duration(timeout)}")
        time.sleep(_PAUSE)


def _status(path: Path, left: float) -> dict[str, Any]:
    """Its status; {} while one program is gone and the next does not answer yet."""
    try:
        return ask_status(path, max(left, _PAUSE))
    except OSError:
        return {}
