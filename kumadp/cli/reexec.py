"""``kumadp reexec``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from kumadp.cli.remote import asking_options, order, the_running
from kumadp.daemon.control import ask_status
from kumadp.errors import CommandRefused, on_one_line
from kumadp.settings.values import write_duration

if TYPE_CHECKING:
    from kumadp.daemon.instances import Running

_PAUSE = 0.05


@click.command()
@asking_options("2m")
def reexec(name: str, timeout: float) -> None:
    """Have a kumadp on this host become the version that is installed now, without losing a request.

    Its pid, Envoy and CoreDNS and its sockets stay; Envoy does not notice but for its stream to kumadp. The new program
    is tried first: one that does not start changes nothing. Returns when it is done, as SIGUSR1 does not. Exit code 0
    when done, 79 when not, with the reason.
    """
    running = the_running(name)
    end = time.monotonic() + timeout
    count = order(running, "reexec", timeout).get("count")
    before = count if isinstance(count, int) else 0
    while True:
        status = _status(running, end - time.monotonic())
        told = status.get("reexec", {})
        if told.get("count", 0) > before:
            version = on_one_line(str(status["version"]))
            click.echo(f"{running.name}: kumadp {version} has taken over (pid {status['pid']})")
            return
        if told.get("failed"):
            raise CommandRefused(f"{running.name}: reexec: {on_one_line(told['failed'])}")
        if time.monotonic() > end:
            raise CommandRefused(f"{running.name}: reexec: not done within {write_duration(timeout)}")
        time.sleep(_PAUSE)


def _status(running: Running, left: float) -> dict[str, Any]:
    """Its status; {} while one program is gone and the next does not answer yet."""
    try:
        return ask_status(running.path, max(left, _PAUSE), running.uid)
    except OSError:
        return {}
