"""The man pages kumadp(1) and kumadp.yaml(5), made from commands and options: ``python -m kumadp.cli.man_pages``.

Written in the macros of man(7), which groff and mandoc read.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kumadp import __version__
from kumadp.cli.main import COMMANDS, cli
from kumadp.errors import EXIT_CODE_MEANING
from kumadp.settings.model import options, options_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kumadp.settings.option import Option

_ABOUT = "sidecar supervisor for Kuma data planes, a drop-in replacement for kuma-dp"
_SIGNALS = (
    (
        "SIGTERM, SIGINT",
        "drain for at most --drain-time, then stop; a second one ends the drain, a third one exits at once",
    ),
    ("SIGUSR2", "drain inbound and keep running (kumadp drain)"),
    ("SIGHUP", "reload (kumadp reload)"),
    ("SIGUSR1", "re-execute (kumadp reexec)"),
)
_FILES = (
    ("/etc/kumadp/NAME.yaml", "settings of the unit kumadp@NAME, see kumadp.yaml(5); kumadp.yaml for the unit kumadp"),
    ("/etc/kumadp/NAME.env", "variables of that unit"),
    ("/run/kumadp/NAME", "work directory: bootstrap, sockets, state.json"),
    ("/var/lib/kumadp/NAME", "state directory: last good configuration, crash records"),
)


def pages() -> dict[str, str]:
    """Return each page by the name of its file."""
    return {"kumadp.1": _end(_program()), "kumadp.yaml.5": _end(_settings())}


def _end(lines: Iterator[str]) -> str:
    return "\n".join(lines) + "\n"


def _program() -> Iterator[str]:
    yield _heading("KUMADP", 1)
    yield from _section("NAME", [_text(f"kumadp - {_ABOUT}")])
    yield from _section("SYNOPSIS", [".B kumadp", _text("COMMAND [OPTIONS]")])
    about = inspect.cleandoc(cli.help or "").split("\n\n")[0]
    yield from _section("DESCRIPTION", [_text(about)])
    yield ".SH COMMANDS"
    for name in COMMANDS:
        yield from _command(name)
    yield ".SH OPTIONS OF RUN"
    yield _text("Precedence: flag, variable, settings file (--config), default. (reload): applied by a reload.")
    for group, of in _grouped(options_of("run")):
        yield f".SS {_text(group)}"
        for option in of:
            names = [*(f"{flag} {option.placeholder}" for flag in option.flags), *option.variables]
            yield from _entry(", ".join(names), f"{option.meaning} Default: {option.default_text}.{option.reload_mark}")
    yield ".SH SIGNALS"
    for name, effect in _SIGNALS:
        yield from _entry(name, effect)
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODE_MEANING.items():
        yield from _entry(str(int(code)), meaning.replace("`", ""))
    yield ".SH FILES"
    for name, content in _FILES:
        yield from _entry(name, content)
    yield from _section("SEE ALSO", [_text("kumadp.yaml(5), systemctl(1), /usr/share/doc/kumadp/README.md")])


def _command(name: str) -> Iterator[str]:
    """Yield a command: its usage, its help, and those of its options that are not options of run."""
    context = click.Context(cli, info_name="kumadp")
    command = cli.get_command(context, name)
    assert command is not None  # noqa: S101 - it is one of the list
    with click.Context(command, parent=context, info_name=name) as inner:
        yield f".SS kumadp {_text(name)}"
        yield ".nf"
        yield _text(" ".join(("kumadp", name, *command.collect_usage_pieces(inner))))
        yield ".fi"
        for paragraph in inspect.cleandoc(command.help or COMMANDS[name]).split("\n\n"):
            yield ".PP"
            yield _text(paragraph)
        if name == "run":
            return
        of_run = {option.field for option in options_of("run")} if name in {"doctor", "upgrade-check"} else set()
        for parameter in command.get_params(inner):
            record = parameter.get_help_record(inner)
            if record is not None and record[0] != "-h, --help" and parameter.name not in of_run:
                yield from _entry(*record)


def _settings() -> Iterator[str]:
    yield _heading("KUMADP.YAML", 5)
    yield from _section("NAME", [_text("kumadp.yaml - settings of kumadp run --config FILE")])
    yield from _section(
        "DESCRIPTION",
        [
            _text(
                "A YAML file of nested mappings; a.b below is the key b in the mapping a. Every key may be missing. "
                "Precedence: flag, then variable, then this file, then the default. Durations are written as in Go "
                "(1m30s, 500ms), lists as YAML lists or a,b. A key that is not known is an error. With (reload) a "
                "changed value is applied by a reload; all others need a restart."
            )
        ],
    )
    for group, of in _grouped(option for option in options() if option.key):
        yield f".SH {_text(group.upper())}"
        for option in of:
            same = ", ".join((*option.flags, *option.variables))
            text = f"{option.meaning} Default: {option.default_text}.{option.reload_mark}"
            yield from _entry(f"{option.key} ({option.kind})", text)
            yield ".br"
            yield _text(f"The same: {same}")
    example = "controlPlane:\n  url: https://localhost:5678\n  caCertFile: /etc/kumadp/ca.crt\ndataplaneRuntime:\n"
    example += "  resourcePath: /etc/kumadp/web-dataplane.yaml\n  tokenPath: /etc/kumadp/web.token"
    yield from _section("EXAMPLE", [".nf", _text(example, keep=True), ".fi"])
    yield from _section("SEE ALSO", [_text("kumadp(1); /usr/share/doc/kumadp/examples/kumadp.yaml has every key")])


def _grouped(chosen: Iterator[Option] | tuple[Option, ...]) -> Iterator[tuple[str, list[Option]]]:
    groups: dict[str, list[Option]] = {}
    for option in chosen:
        groups.setdefault(option.group, []).append(option)
    yield from groups.items()


def _heading(title: str, section: int) -> str:
    # Neither hyphens nor stretched lines: names are copied from here.
    return f'.TH {title} {section} "" "kumadp {__version__}" "kumadp"\n.nh\n.ad l'


def _section(title: str, lines: list[str]) -> Iterator[str]:
    yield f".SH {title}"
    yield from lines


def _entry(term: str, text: str) -> Iterator[str]:
    yield ".TP"
    yield f".B {_text(term)}"
    yield _text(text)


def _text(text: str, *, keep: bool = False) -> str:
    """Return a text as roff: on one line unless ``keep``, without characters that it would interpret."""
    if not keep:
        text = " ".join(text.replace("\b", "").split())
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", escaped)


def main(arguments: list[str]) -> None:
    """Write the pages into the folder that is the only argument."""
    for name, text in pages().items():
        Path(arguments[0], name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
