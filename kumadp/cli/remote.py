"""Asking a kumadp that runs on this host to do something, over its control socket."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from kumadp.daemon.control import ask
from kumadp.daemon.instances import find
from kumadp.errors import CommandRefused, UsageError, on_one_line
from kumadp.settings.values import BadValue, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from click.decorators import FC

    from kumadp.daemon.instances import Running, Search


def asking_options(timeout: str) -> Callable[[FC], FC]:
    """``--name`` and ``--timeout``, by default ``timeout``, given on as text and seconds."""

    def decorate(function: FC) -> FC:
        function = click.option(
            "--timeout",
            default=timeout,
            show_default=True,
            metavar="DURATION",
            callback=seconds,
            help="How long to wait.",
        )(function)
        return click.option("--name", default="", help="Name of the data plane, where several run here.")(function)

    return decorate


def seconds(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    """A duration in Go's syntax, in seconds; raises UsageError."""
    try:
        return parse_duration(value)
    except BadValue as error:
        raise UsageError(f"--timeout: {value!r} {error}") from None


def all_running(name: str) -> list[Running]:
    """The data plane of that name (the nearest), or all that run here; raises CommandRefused where there is none."""
    return _chosen(find(os.environ), name)


def _chosen(search: Search, name: str) -> list[Running]:
    found = search.nearest(name) if name else search.running
    if not found:
        what = f"no kumadp of the name {on_one_line(name)}" if name else "no kumadp"
        running = ", ".join(one.name for one in search.running)
        raise CommandRefused(
            f"{what} runs here, as far as this user may see"
            + (f"; running: {running}" if running else "")
            + search.notes()
        )
    return found


def the_running(name: str) -> Running:
    """The data plane of that name, or the only one that runs here; raises CommandRefused.

    Of several of this user's the one in a folder where its sockets go by default is meant. One that another user runs
    has to be named where there is any other, even if that one cannot be queried; of several with one name this user's
    is meant. Otherwise none is queried.
    """
    search = find(os.environ)
    found = _chosen(search, name)
    ours = [one for one in found if one.uid == os.geteuid()]
    meant = found if not ours or (not name and len(ours) < len(found)) else ours
    if len(meant) > 1 and meant == ours:
        meant = [one for one in ours if not one.listed] or ours
    if len(meant) == 1 and (name or not search.others or meant == ours):
        return meant[0]
    if name:
        places = ", ".join(on_one_line(str(one.path)) for one in meant)
        raise CommandRefused(f"several of that name run here: {places}", "ask as the user of one")
    raise CommandRefused(
        f"several run here: {', '.join(one.name for one in meant)}{search.notes()}", "say which with --name"
    )


def order(running: Running, what: str, timeout: float, query: str = "") -> dict[str, Any]:
    """Have it do ``what``, with a query of a URL; its answer.

    Raises CommandRefused with its reason, or where it does not answer in time.
    """
    target = f"/{what}?{query}" if query else f"/{what}"
    try:
        code, answer = ask(running.path, "POST", target, timeout, running.uid)
    except OSError as error:
        raise CommandRefused(f"{running.name}: {what}: no answer: {reason(error)}") from None
    if code == 404:
        raise CommandRefused(f"{running.name}: {what}: the kumadp that runs does not know it")
    if code != 200:
        why = on_one_line(str(answer.get("why") or f"answered with {code}"))
        raise CommandRefused(f"{running.name}: {what}: {why}")
    return answer


def said(answer: Mapping[str, Any]) -> str:
    """What an answer says to people, in one line."""
    return on_one_line(str(answer.get("said", "done")))


def reason(error: OSError) -> str:
    """Why there is no answer, without the number of the error."""
    return on_one_line(error.strerror or str(error) or type(error).__name__)
