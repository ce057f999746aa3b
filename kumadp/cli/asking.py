"""Asking a kumadp that runs on this host to do something, over its control socket."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from kumadp.errors import CommandRefused, UsageError
from kumadp.lifecycle.control import ask, find_control_sockets, socket_name
from kumadp.settings.values import BadValue, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.decorators import FC


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


def the_sockets(name: str) -> list[Path]:
    """The control socket of the data plane of that name, or of all that run here; raises CommandRefused."""
    found = find_control_sockets(os.environ)
    running = ", ".join(path.stem for path in found)
    if name:
        found = [path for path in found if path.name == socket_name(name)]
    if not found:
        what = f"no kumadp of the name {name}" if name else "no kumadp"
        raise CommandRefused(
            f"{what} runs here, as far as this user may see" + (f"; running: {running}" if running else "")
        )
    return found


def the_socket(name: str) -> Path:
    """The control socket of the data plane of that name, or of the only one that runs here; raises CommandRefused."""
    found = the_sockets(name)
    if len(found) > 1:
        raise CommandRefused(f"several run here: {', '.join(path.stem for path in found)}", "say which with --name")
    return found[0]


def order(path: Path, what: str, timeout: float, query: str = "") -> dict[str, Any]:
    """Have it do ``what``, with a query of a URL; its answer.

    Raises CommandRefused with its reason, or where it does not answer in time.
    """
    target = f"/{what}?{query}" if query else f"/{what}"
    try:
        code, answer = ask(path, "POST", target, timeout)
    except OSError as error:
        raise CommandRefused(f"{path.stem}: {what}: no answer: {error}") from None
    if code == 404:
        raise CommandRefused(f"{path.stem}: {what}: the kumadp that runs does not know it")
    if code != 200:
        raise CommandRefused(f"{path.stem}: {what}: {answer.get('why') or f'answered with {code}'}")
    return answer
