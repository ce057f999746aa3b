"""``kumadp logs``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from kumadp.cli.log_lines import LineFilter, of_file, of_journal
from kumadp.cli.remote import name_option, only_running, reason
from kumadp.cli.terminal import has_colors
from kumadp.daemon.control_client import query_status
from kumadp.errors import CommandRefused, on_one_line
from kumadp.host import proc_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kumadp.cli.log_lines import LogLine

_TIMEOUT = 5.0
# Interval at which a file is looked at (seconds).
_INTERVAL = 0.25
_LONGEST = 1 << 20
_COLORS = {"error": "red", "critical": "red", "warning": "yellow"}


@click.command("logs")
@click.argument("words", nargs=-1, metavar="[LEVEL] [COMPONENT[=LEVEL]]...")
@name_option()
@click.option("-f", "--follow", is_flag=True, help="Keep printing what is logged, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="How many lines at first.")
def logs(words: tuple[str, ...], name: str, follow: bool, lines: int) -> None:
    """Print the log of a data plane on this host, from systemd's journal or its file, also Envoy's and CoreDNS's lines.

    LEVEL shows lines of at least this level: error, warning, info or debug. COMPONENT=LEVEL sets another one for
    envoy, one of Envoy's loggers (envoy.upstream), coredns, kumadp, or a part of it (relay); COMPONENT alone shows only
    this one. For example: kumadp logs -f warning envoy.upstream=debug.

    Exit code 79 if none runs, or if its log goes to a pipe or a terminal, where it cannot be read again.
    """
    chosen = LineFilter(words)
    running = only_running(name)
    try:
        status = query_status(running.path, _TIMEOUT, running.uid)
    except OSError as error:
        raise CommandRefused(f"{running.name}: its control socket does not answer: {reason(error)}") from None
    output = str(status.get("log", {}).get("output", ""))
    if output == "journal":
        found = _journal(running.pid, follow, lines)
    elif output.startswith("/"):
        found = _file(Path(output), follow, lines)
    else:
        path = _stderr(running.pid)
        if path is None:
            hint = "podman logs, or run it with --log-output-path=FILE"
            raise CommandRefused(f"{running.name}: its log goes to a pipe or a terminal", hint)
        found = _file(path, follow, lines)
    color = has_colors()
    try:
        for line in found:
            if chosen.shows(line):
                _print(line, color=color)
    except KeyboardInterrupt:
        return


def _print(line: LogLine, *, color: bool) -> None:
    # What a child logs may hold anything.
    text = "\n".join(map(on_one_line, str(line).split("\n")))
    click.echo(click.style(text, fg=_COLORS[line.level]) if color and line.level in _COLORS else text)
    sys.stdout.flush()


def _stderr(pid: int) -> Path | None:
    """Return the file that standard error of a process is written to; None if it is none."""
    try:
        path = Path(f"/proc/{pid}/fd/2").readlink()
    except OSError:
        return None
    return path if path.is_file() else None


def _journal(pid: int, follow: bool, lines: int) -> Iterator[LogLine]:
    try:
        units = proc_files.services(pid)
    except OSError:
        units = []
    match = f"--unit={units[-1]}" if units else f"_PID={pid}"
    command = [
        "journalctl",
        "--output=json",
        f"--lines={lines}",
        "--no-pager",
        match,
        *(["--follow"] if follow else []),
    ]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace")
    except OSError as error:
        raise CommandRefused(f"journalctl cannot be run: {error.strerror}", "it is part of systemd") from None
    with process:
        for text in process.stdout or ():
            if (line := of_journal(text)) is not None:
                yield line
    if process.returncode:
        raise CommandRefused(f"journalctl failed with exit code {process.returncode}", "see above; run this as root")


def _file(path: Path, follow: bool, lines: int) -> Iterator[LogLine]:
    """Yield the last lines of a file, and with ``follow`` all that come, also after a rotation."""
    first = True
    while True:
        try:
            with path.open(errors="replace") as file:
                inode = os.fstat(file.fileno()).st_ino
                if first:
                    yield from map(of_file, _last_lines(file, lines))
                first = False
                pending = ""
                while follow:
                    if text := file.readline(_LONGEST):
                        pending += text
                        if pending.endswith("\n") or len(pending) >= _LONGEST:
                            yield of_file(pending.rstrip("\n"))
                            pending = ""
                        continue
                    if _is_replaced(path, inode, file.tell()):
                        break
                    time.sleep(_INTERVAL)
        except FileNotFoundError:
            if first:
                _refuse(path, "no such file")
            time.sleep(_INTERVAL)
        except OSError as error:
            _refuse(path, str(error.strerror))
        if not follow:
            return


def _refuse(path: Path, reason: str) -> NoReturn:
    raise CommandRefused(f"{path}: {reason}", "run this as the user of kumadp, or as root") from None


def _last_lines(file: Iterator[str], lines: int) -> Iterator[str]:
    yield from (line.rstrip("\n") for line in deque(file, lines))


def _is_replaced(path: Path, inode: int, read: int) -> bool:
    """Return whether another file has the name now, or this one was cut."""
    try:
        status = path.stat()
    except OSError:
        return True
    return status.st_ino != inode or status.st_size < read
