"""``kumadp status``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from kumadp.cli.remote import all_running, reason
from kumadp.cli.status_page import page, summary
from kumadp.daemon.control import ask_status
from kumadp.errors import CommandRefused, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LOOKS_EACH = 0.5
# For an answer of a busy host (seconds).
_PATIENCE = 5.0
# What changes without anything having happened.
_PASSES = {
    *("log", "silence", "lines", "sent", "destinations", "spent", "counters", "metrics"),
    *("descriptors", "connections"),
    # Of dynamic configuration: how often it was asked for, and how long that took.
    *("asked", "seconds"),
}
# What JSON lets pass, and a terminal takes for more than text, or cannot be encoded.
_CONTROL = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# DEC private modes (xterm's ctlseqs): another screen, no cursor; each line and what is below it is cleared.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


@click.command()
@click.option("--name", default="", help="Name of the data plane; without it, every one that runs here.")
@click.option("-o", "--output", type=click.Choice(["human", "json"]), default="human", show_default=True)
@click.option("-w", "--watch", is_flag=True, help="Stay, and show each change, until Ctrl-C.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of --output json and end.")
def status(name: str, output: str, watch: bool, schema: bool) -> int:
    """Say what a data plane on this host does: ready or why not, what runs, what died, which configuration.

    Several without --name are one line each. --output json is one object a line and data plane.

    Exit code 0 when ready, 75 when one is not, 79 when none runs.
    """
    # A reader that has seen enough ends this as it ends any filter.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if schema:
        from kumadp.daemon.status_schema import status_schema

        click.echo(json.dumps(status_schema(), indent=2))
        return ExitCode.OK
    if watch:
        return _watch(name, as_json=output == "json")
    silent: list[str] = []
    found = _ask(name, silent)
    click.echo("\n".join(_lines(found, as_json=output == "json", color=_colors())))
    for line in silent:
        click.echo(line, err=True)
    return ExitCode.WAIT_TIMEOUT if silent else _code(found)


def _ask(name: str, silent: list[str] | None = None) -> list[dict[str, Any]]:
    """The status of each, and in ``silent`` which do not answer; raises CommandRefused where none does.

    One that has ended since the search is left out.
    """
    found, silent, gone = [], silent if silent is not None else [], False
    for one in all_running(name):
        try:
            found.append(ask_status(one.path, _PATIENCE, one.uid))
        except (FileNotFoundError, ConnectionRefusedError):
            gone = True
        except OSError as error:
            silent.append(f"{one.name}: its control socket does not answer: {reason(error)}")
    if not found and silent:
        raise CommandRefused("; ".join(silent))
    if not found and gone:
        raise CommandRefused("no kumadp runs here any more: it has just ended")
    return found


def _code(found: Sequence[dict[str, Any]]) -> int:
    return ExitCode.OK if all(one.get("ready") for one in found) else ExitCode.WAIT_TIMEOUT


def _lines(found: Sequence[dict[str, Any]], *, as_json: bool, color: bool) -> list[str]:
    now = time.time()
    if as_json:
        return [_CONTROL.sub(_escaped, json.dumps(one, ensure_ascii=False)) for one in found]
    if len(found) == 1:
        return page(found[0], now, color=color)
    lines = [summary(one, now, color=color) for one in found]
    return [*lines, "", "kumadp status --name NAME says more"]


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _colors() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _watch(name: str, *, as_json: bool) -> int:
    """Until Ctrl-C, which is how one ends it: no failure."""
    with contextlib.suppress(KeyboardInterrupt):
        if sys.stdout.isatty() and not as_json:
            _watch_screen(name)
        else:
            _watch_pipe(name, as_json=as_json)
    return ExitCode.OK


def _watch_pipe(name: str, *, as_json: bool) -> None:
    """A block for each change; ended by whatever ends the data plane."""
    before: list[dict[str, Any]] = []
    while True:
        found = _ask(name)
        if not _same(found, before):
            before = found
            lines = _lines(found, as_json=as_json, color=False)
            click.echo("\n".join(lines if as_json else [*lines, ""]))
            sys.stdout.flush()
        time.sleep(_LOOKS_EACH)


def _same(one: Any, other: Any) -> bool:
    """Whether nothing has happened between two statuses."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(key in _PASSES or _same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        # Times that are worked out from another clock at each answer.
        return abs(one - other) < 1
    return bool(one == other)


def _watch_screen(name: str) -> None:
    last: list[str] = []
    with _other_screen():
        shown = ""
        while True:
            try:
                last = _lines(_ask(name), as_json=False, color=_colors())
            except CommandRefused as error:
                last = [f"{error}; waiting for it"]
            size = shutil.get_terminal_size()
            drawn = "".join(f"{_cut(line, size.columns)}{_CLEAR_LINE}\r\n" for line in last[: size.lines - 1])
            if drawn != shown:
                # In one write, over what is there: a screen that is cleared first flickers.
                sys.stdout.write(_HOME + drawn + _CLEAR_BELOW)
                sys.stdout.flush()
                shown = drawn
            time.sleep(_LOOKS_EACH)


@contextlib.contextmanager
def _other_screen() -> Iterator[None]:
    """Draw on the terminal's second screen; the first one and the cursor are back afterwards, however this ends."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, previous)


def _cut(line: str, columns: int) -> str:
    """As much of a line as fits; colours take no room."""
    plain = click.unstyle(line)
    if len(plain) <= columns:
        return line
    return plain[: columns - 1] + "…"
