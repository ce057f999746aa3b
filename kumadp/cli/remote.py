"""Requests of commands to the kumadp that runs on this host, over its control socket."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from kumadp.cli.completion import names_of_running
from kumadp.daemon.control_client import send_request
from kumadp.daemon.instances import find
from kumadp.errors import CommandRefused, UsageError, on_one_line
from kumadp.settings.values import BadValue, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from click.decorators import FC

    from kumadp.daemon.instances import Running, Search


def request_options(timeout: str) -> Callable[[FC], FC]:
    """Return a decorator that adds ``--name`` and ``--timeout`` (passed on in seconds; ``timeout`` is the default)."""

    def decorate(function: FC) -> FC:
        function = click.option(
            "--timeout",
            default=timeout,
            show_default=True,
            metavar="DURATION",
            callback=seconds,
            help="Maximum time to wait.",
        )(function)
        return name_option()(function)

    return decorate


def name_option(about: str = "Name of the data plane, if several run here.") -> Callable[[FC], FC]:
    """Return a decorator that adds ``--name``, completed with the names of those that run here."""
    return click.option("--name", default="", shell_complete=names_of_running, help=about)


def seconds(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    """Parse a duration in Go's syntax to seconds; raises UsageError."""
    try:
        return parse_duration(value)
    except BadValue as error:
        raise UsageError(f"--timeout: {value!r} {error}") from None


def all_running(name: str) -> list[Running]:
    """Return the data planes of that name (the nearest), or all that run here; raises CommandRefused if none does."""
    return _chosen(find(os.environ), name)


def _chosen(search: Search, name: str) -> list[Running]:
    chosen = search.nearest(name) if name else search.running
    if not chosen:
        what = f"no kumadp named {on_one_line(name)}" if name else "no kumadp"
        running = ", ".join(instance.name for instance in search.running)
        raise CommandRefused(
            f"{what} runs here that this user can see" + (f"; running: {running}" if running else "") + search.notes()
        )
    return chosen


def only_running(name: str) -> Running:
    """Return the data plane of that name, or the only one that runs here; raises CommandRefused.

    Of several data planes of this user, those in a directory where control sockets go by default are preferred. A data
    plane of another user has to be named if there is any other, even if that one cannot be queried; of several with one
    name, this user's is preferred. If more than one is left, none is queried.
    """
    search = find(os.environ)
    instances = _chosen(search, name)
    ours = [instance for instance in instances if instance.uid == os.geteuid()]
    preferred = instances if not ours or (not name and len(ours) < len(instances)) else ours
    if len(preferred) > 1 and preferred == ours:
        preferred = [instance for instance in ours if not instance.listed] or ours
    if len(preferred) == 1 and (name or not search.others or preferred == ours):
        return preferred[0]
    if name:
        places = ", ".join(on_one_line(str(instance.path)) for instance in preferred)
        raise CommandRefused(f"several data planes of that name run here: {places}", "run this as the user of one")
    names = ", ".join(instance.name for instance in preferred)
    raise CommandRefused(f"several data planes run here: {names}{search.notes()}", "choose one with --name")


def send_command(running: Running, command: str, timeout: float, query: str = "") -> dict[str, Any]:
    """Send ``command`` to a running kumadp, with the query of a URL, and return its answer.

    Waits at most ``timeout`` seconds. Raises CommandRefused with the reason that it gives, or if it does not answer.
    """
    target = f"/{command}?{query}" if query else f"/{command}"
    try:
        code, answer = send_request(running.path, "POST", target, timeout, running.uid)
    except OSError as error:
        raise CommandRefused(f"{running.name}: {command}: no answer: {reason(error)}") from None
    if code == 404:
        raise CommandRefused(f"{running.name}: {command}: the running kumadp does not support it")
    if code != 200:
        refusal = on_one_line(str(answer.get("why") or f"answered with {code}"))
        raise CommandRefused(f"{running.name}: {command}: {refusal}")
    return answer


def message_of(answer: Mapping[str, Any]) -> str:
    """Return the message of an answer to a command, on one line."""
    return on_one_line(str(answer.get("said", "done")))


def reason(error: OSError) -> str:
    """Return why there is no answer, without the number of the error."""
    return on_one_line(error.strerror or str(error) or type(error).__name__)
