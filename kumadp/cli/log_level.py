"""``kumadp log-level``."""

from __future__ import annotations

from urllib.parse import urlencode

import click

from kumadp.cli.remote import message_of, name_option, only_running, send_command
from kumadp.errors import UsageError


@click.command("log-level")
@click.argument("levels", nargs=-1, metavar="[LEVEL] [COMPONENT=LEVEL]...")
@name_option()
@click.option("--reset", is_flag=True, help="Restore the levels of the settings.")
def log_level(levels: tuple[str, ...], name: str, reset: bool) -> None:
    """Change the log levels of a data plane on this host, including Envoy, until it is restarted or --reset is given.

    LEVEL is trace, debug, info, warning, error, critical or off, for kumadp and Envoy. COMPONENT is a part of kumadp
    (relay, daemon), envoy, or one of Envoy's loggers (envoy.upstream). Reloads and restarts of Envoy keep the levels.

    Exit code 0 if it is done; otherwise 79, with the reason.
    """
    if reset is bool(levels):
        raise UsageError("give levels, or --reset", "kumadp log-level debug")
    query: dict[str, str] = {"reset": ""} if reset else {}
    for text in levels:
        component, equals, level = text.rpartition("=")
        query[component if equals else "level"] = level
    running = only_running(name)
    click.echo(f"{running.name}: {message_of(send_command(running, 'log-level', 10, urlencode(query)))}")
