"""``kumadp drain``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from kumadp.cli.remote import message_of, only_running, request_options, send_command
from kumadp.errors import UsageError, WaitTimeout

if TYPE_CHECKING:
    from kumadp.daemon.instances import Running

# Interval at which --wait queries (seconds).
_INTERVAL = 0.5
_TIMEOUT = 10.0
_CLEAR_LINE = "\x1b[K"


@click.command()
@click.option("--all", "everything", is_flag=True, help="Not only inbound: what a stop does, without stopping.")
@click.option("--undo", is_flag=True, help="Undo a drain: accept requests again.")
@click.option("--wait", is_flag=True, help="Wait until no connection is left, and print how many are.")
@request_options("5m")
def drain(everything: bool, undo: bool, wait: bool, name: str, timeout: float) -> None:
    """Drain a data plane on this host that keeps running, for example before maintenance of its application.

    Without options inbound drains, as SIGUSR2 does: clients of inbound listeners are to disconnect, outbound is served
    as before, and a later stop waits for nothing. With --all Envoy fails its health checks as at a stop: /ready answers
    503, and clients of both directions are to disconnect. What comes nevertheless is served.

    --undo takes it back: after --all at once, after a drain of inbound by a new Envoy, without losing a request.

    --wait ends when the workload has no connection any more, inbound, or with --all in either direction. --timeout
    limits it.

    Exit code 0 if it is done, 75 if connections were left after --timeout; otherwise 79, with the reason.
    """
    if undo and (everything or wait):
        raise UsageError("--undo takes neither --all nor --wait", "kumadp drain --help")
    running = only_running(name)
    what = "undrain" if undo else "drain-all" if everything else "drain-inbound"
    answer = send_command(running, what, timeout if undo else _TIMEOUT)
    click.echo(f"{running.name}: {message_of(answer)}")
    if wait:
        _wait(running, timeout, ("inbound", "outbound") if everything else ("inbound",))


def _wait(running: Running, timeout: float, directions: tuple[str, ...]) -> None:
    """Wait until no connection of these directions is left; raises WaitTimeout."""
    until, shown = time.monotonic() + timeout, ""
    on_terminal = sys.stdout.isatty()
    while True:
        counts = send_command(running, "connections", _TIMEOUT)
        left = {direction: int(counts.get(direction, 0)) for direction in directions}
        text = f"{running.name}: {_connections(left)} left"
        if text != shown:
            click.echo(f"\r{text}{_CLEAR_LINE}" if on_terminal else text, nl=not on_terminal)
            sys.stdout.flush()
            shown = text
        if not any(left.values()):
            break
        if time.monotonic() > until:
            if on_terminal:
                click.echo()
            raise WaitTimeout(f"{text} after {timeout:g} s", "wait longer with --timeout, or see kumadp status")
        time.sleep(_INTERVAL)
    if on_terminal:
        click.echo()


def _connections(left: dict[str, int]) -> str:
    """Return ``3 inbound connections``, or ``1 inbound and 2 outbound connections``."""
    counts = " and ".join(f"{count or 'no'} {direction}" for direction, count in left.items())
    return f"{counts} connection{'' if sum(left.values()) == 1 else 's'}"
