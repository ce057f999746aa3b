"""``kumadp reload``."""

from __future__ import annotations

import click

from kumadp.cli.remote import asking_options, order, said, the_running


@click.command()
@asking_options("2m")
def reload(name: str, timeout: float) -> None:
    """Have a data plane on this host take its configuration anew, without losing a request.

    A new Envoy takes over from the one that runs, and that one is let finish. Returns when it is done, as SIGHUP does
    not. Exit code 0 when done, 79 when not, with the reason: then the old one serves on.
    """
    running = the_running(name)
    click.echo(f"{running.name}: {said(order(running, 'reload', timeout))}")
