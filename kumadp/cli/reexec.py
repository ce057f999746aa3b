"""``kumadp reexec``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from kumadp.cli.remote import only_running, request_options, send_command
from kumadp.daemon.control_client import query_status
from kumadp.errors import CommandRefused, on_one_line
from kumadp.settings.values import write_duration

if TYPE_CHECKING:
    from kumadp.daemon.instances import Running

_PAUSE = 0.05


@click.command()
@request_options("2m")
def reexec(name: str, timeout: float) -> None:
    """Replace a kumadp that runs on this host by the installed version, without losing a request.

    The pid, the sockets, Envoy and CoreDNS stay; Envoy only reconnects its stream to kumadp. The new program is tested
    first: if it does not start, nothing changes. Unlike SIGUSR1, this command waits for the result.

    Exit code 0 if it is done; otherwise 79, with the reason.
    """
    running = only_running(name)
    end = time.monotonic() + timeout
    count = send_command(running, "reexec", timeout).get("count")
    previous = count if isinstance(count, int) else 0
    while True:
        status = _status(running, end - time.monotonic())
        reexec = status.get("reexec", {})
        if reexec.get("count", 0) > previous:
            version = on_one_line(str(status["version"]))
            click.echo(f"{running.name}: kumadp {version} is running (pid {status['pid']})")
            return
        if reexec.get("failed"):
            raise CommandRefused(f"{running.name}: reexec: {on_one_line(reexec['failed'])}")
        if time.monotonic() > end:
            raise CommandRefused(f"{running.name}: reexec: not done within {write_duration(timeout)}")
        time.sleep(_PAUSE)


def _status(running: Running, timeout: float) -> dict[str, Any]:
    """Return its status; {} if it does not answer, as while the program is being replaced."""
    try:
        return query_status(running.path, max(timeout, _PAUSE), running.uid)
    except OSError:
        return {}
