"""``kumadp status``."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from kumadp.cli.remote import all_running, name_option, reason
from kumadp.cli.status_page import page, summary, totals
from kumadp.cli.terminal import has_colors
from kumadp.daemon.control_client import query_status
from kumadp.errors import CommandRefused, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Interval at which --watch queries (seconds).
_WATCH_INTERVAL = 0.5
# Long enough for an answer on a busy host (seconds).
_TIMEOUT = 5.0
# Fields that change all the time, so that --watch ignores them.
_NOT_EVENTS = {
    *("log", "silence", "lines", "sent", "destinations", "spent", "counters", "metrics"),
    *("descriptors", "connections"),
    # Of dynamic configuration: number and duration of its requests.
    *("asked", "seconds"),
}
# Valid in JSON, but a terminal interprets it, or it cannot be encoded.
_CONTROL = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# DEC private modes (xterm's ctlseqs): alternate screen, no cursor; clear to the end of the line or of the screen.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


@click.command()
@name_option("Name of the data plane. Default: all that run here.")
@click.option("-o", "--output", type=click.Choice(["human", "json"]), default="human", show_default=True)
@click.option("-w", "--watch", is_flag=True, help="Keep running and print each change, until Ctrl-C.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of --output json and exit.")
def status(name: str, output: str, watch: bool, schema: bool) -> int:
    """Print the status of the data planes on this host: readiness, processes, last exits, configuration.

    Several data planes are printed in one line each, without --name. --output json prints one object per line and data
    plane.

    Exit code 0 if all are ready, 75 if one is not, 79 if none runs.
    """
    if schema:
        from kumadp.daemon.status_schema import status_schema

        click.echo(json.dumps(status_schema(), indent=2))
        return ExitCode.OK
    if watch:
        return _watch(name, as_json=output == "json")
    silent: list[str] = []
    statuses = _query(name, silent)
    click.echo("\n".join(_lines(statuses, as_json=output == "json", color=has_colors())))
    for line in silent:
        click.echo(line, err=True)
    return ExitCode.WAIT_TIMEOUT if silent else _code(statuses)


def _query(name: str, silent: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the status of each data plane; raises CommandRefused if none answers.

    Appends to ``silent`` a line for each that does not answer. One that has ended since the search is left out.
    """
    statuses, silent, ended = [], silent if silent is not None else [], False
    for instance in all_running(name):
        try:
            statuses.append(query_status(instance.path, _TIMEOUT, instance.uid))
        except (FileNotFoundError, ConnectionRefusedError):
            ended = True
        except OSError as error:
            silent.append(f"{instance.name}: its control socket does not answer: {reason(error)}")
    if not statuses and silent:
        raise CommandRefused("; ".join(silent))
    if not statuses and ended:
        raise CommandRefused("no kumadp runs here any more: it has just ended")
    return statuses


def _code(statuses: Sequence[dict[str, Any]]) -> int:
    return ExitCode.OK if all(status.get("ready") for status in statuses) else ExitCode.WAIT_TIMEOUT


def _lines(statuses: Sequence[dict[str, Any]], *, as_json: bool, color: bool) -> list[str]:
    now = time.time()
    if as_json:
        return [_CONTROL.sub(_escaped, json.dumps(status, ensure_ascii=False)) for status in statuses]
    if len(statuses) == 1:
        return page(statuses[0], now, color=color)
    lines = [summary(status, now, color=color) for status in statuses]
    return [*lines, "", totals(statuses), "for details: kumadp status --name NAME"]


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _watch(name: str, *, as_json: bool) -> int:
    """Print changes until Ctrl-C, which is not a failure."""
    with contextlib.suppress(KeyboardInterrupt):
        if sys.stdout.isatty() and not as_json:
            _watch_screen(name)
        else:
            _watch_pipe(name, as_json=as_json)
    return ExitCode.OK


def _watch_pipe(name: str, *, as_json: bool) -> None:
    """Print a block for each change; raises CommandRefused when the last data plane has ended."""
    previous: list[dict[str, Any]] = []
    while True:
        statuses = _query(name)
        if not _same(statuses, previous):
            previous = statuses
            lines = _lines(statuses, as_json=as_json, color=False)
            click.echo("\n".join(lines if as_json else [*lines, ""]))
            sys.stdout.flush()
        time.sleep(_WATCH_INTERVAL)


def _same(one: Any, other: Any) -> bool:
    """Return whether two statuses are equal but for fields that change all the time."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(key in _NOT_EVENTS or _same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        # Times are converted from another clock at each answer.
        return abs(one - other) < 1
    return bool(one == other)


def _watch_screen(name: str) -> None:
    last: list[str] = []
    with _other_screen():
        shown = ""
        while True:
            try:
                last = _lines(_query(name), as_json=False, color=has_colors())
            except CommandRefused as error:
                last = [f"{error}; waiting for one"]
            size = shutil.get_terminal_size()
            drawn = "".join(f"{_cut(line, size.columns)}{_CLEAR_LINE}\r\n" for line in last[: size.lines - 1])
            if drawn != shown:
                # One write over the old text: clearing the screen first would flicker.
                sys.stdout.write(_HOME + drawn + _CLEAR_BELOW)
                sys.stdout.flush()
                shown = drawn
            time.sleep(_WATCH_INTERVAL)


@contextlib.contextmanager
def _other_screen() -> Iterator[None]:
    """Switch to the terminal's alternate screen, and back to the first one with its cursor, however this ends."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, previous)


def _cut(line: str, columns: int) -> str:
    """Cut a line to ``columns`` visible characters; one that is too long loses its colours."""
    plain = click.unstyle(line)
    if len(plain) <= columns:
        return line
    return plain[: columns - 1] + "…"
