"""``kumadp reload``."""

from __future__ import annotations

import click

from kumadp.cli.remote import message_of, only_running, request_options, send_command


@click.command()
@request_options("15m")
def reload(name: str, timeout: float) -> None:
    """Reload the configuration of a data plane on this host, without losing a request.

    kumadp reads settings and Dataplane again, fetches the bootstrap, starts a new Envoy next to the old one and hands
    the sockets over; the old Envoy finishes its requests. Unlike SIGHUP, this command waits for the result.

    Exit code 0 if it is done; otherwise 79, with the reason, and the old Envoy keeps serving.
    """
    running = only_running(name)
    click.echo(f"{running.name}: {message_of(send_command(running, 'reload', timeout))}")
