"""``kumadp log-level``."""

from __future__ import annotations

from urllib.parse import urlencode

import click

from kumadp.cli.remote import order, said, the_running
from kumadp.errors import UsageError


@click.command("log-level")
@click.argument("levels", nargs=-1, metavar="[LEVEL] [COMPONENT=LEVEL]...")
@click.option("--name", default="", help="Name of the data plane, where several run here.")
@click.option("--reset", is_flag=True, help="Back to what the settings say.")
def log_level(levels: tuple[str, ...], name: str, reset: bool) -> None:
    """Change what a data plane on this host logs, Envoy too, until it is restarted or --reset.

    LEVEL is trace, debug, info, warning, error, critical or off, for kumadp and Envoy. COMPONENT is a part of kumadp
    (relay, daemon), envoy, or one of Envoy's loggers (envoy.upstream). Reloads and restarts of Envoy keep it.

    Exit code 0 when done, 79 when not, with the reason.
    """
    if reset is bool(levels):
        raise UsageError("a level, or --reset", "kumadp log-level debug")
    asked: dict[str, str] = {"reset": ""} if reset else {}
    for text in levels:
        component, given, level = text.rpartition("=")
        asked[component if given else "level"] = level
    running = the_running(name)
    click.echo(f"{running.name}: {said(order(running, 'log-level', 10, urlencode(asked)))}")
