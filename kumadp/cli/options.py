"""Click options made from the settings, so that each option is written once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kumadp.errors import UsageError
from kumadp.settings.model import LOG, options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kumadp.settings.option import Command, Option

WIDTH = 110
_TYPED = "kumadp.typed"
_BEFORE = "kumadp.before"
_COMMAND_LINE = "kumadp.command-line"
# Narrow enough for the longest variable beside it on 80 columns: a name that is broken over two lines is not found.
_FIRST_COLUMN = 22


class GroupedCommand(click.Command):
    """Shows its options under headings, knows flags by the name typed, takes those that came before the command."""

    chosen: tuple[Option, ...] = ()
    takes_command = False
    """Whether the command line of another program may follow, after ``--``."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """As click has them, and the command line that may follow."""
        return [*super().collect_usage_pieces(ctx), *(["[-- CMD ARG...]"] if self.takes_command else ())]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options by group, then what no flag sets, then the rest."""
        groups = {option.field: option.group for option in self.chosen}
        by_group: dict[str, list[tuple[str, str]]] = {group: [] for group in groups.values()}
        rest: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                by_group.get(groups.get(parameter.name or "", ""), rest).append(record)
        by_group["Set by variable or settings file only"] = [
            (", ".join(option.variables), option.help_text) for option in self.chosen if not option.flags
        ]
        by_group["Other"] = rest
        for group, records in by_group.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records, col_max=_FIRST_COLUMN)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, noting which of its names each option was given by."""
        if self.takes_command and "--" in args:
            end = args.index("--")
            args, ctx.meta[_COMMAND_LINE] = args[:end], tuple(args[end + 1 :])
            if not ctx.meta[_COMMAND_LINE]:
                raise UsageError("nothing comes after --", "the application's command line, or leave -- out")
        args = _as_pflag(self.chosen, args)
        ctx.meta[_TYPED] = _names_typed(self.chosen, args)
        rest = super().parse_args(ctx, args)
        for field, (name, value) in ctx.meta.get(_BEFORE, {}).items():
            if field in ctx.params and ctx.params[field] is None:
                ctx.params[field] = value
                ctx.meta[_TYPED][field] = name
        return rest


def command_with_options(
    command: Command, name: str = "", *, takes_command: bool = False
) -> Callable[[Callable[..., Any]], GroupedCommand]:
    """A decorator that makes a click command, by default ``command``, with all options of ``command``.

    Each value reaches the function as the text the user typed (a tuple for what may be repeated), None when it was not
    given. ``--flag`` alone means true for booleans, and ``--flag=false`` works as with kuma-dp.
    """

    def decorate(function: Callable[..., Any]) -> GroupedCommand:
        chosen = options_of(command)
        for option in reversed(chosen):
            if option.flags:
                function = click_option(option)(function)
        made = click.command(name or command, cls=GroupedCommand, context_settings={"max_content_width": WIDTH})(
            function
        )
        made.chosen = chosen
        made.takes_command = takes_command
        return made

    return decorate


def typed_names() -> Mapping[str, str]:
    """The name by which each option of the running command was given, by field."""
    found: Mapping[str, str] = click.get_current_context().meta.get(_TYPED, {})
    return found


def command_line() -> tuple[str, ...]:
    """What came after ``--``; empty where nothing did."""
    found: tuple[str, ...] = click.get_current_context().meta.get(_COMMAND_LINE, ())
    return found


def log_options() -> tuple[Option, ...]:
    """What kuma-dp takes before the command too: its persistent flags."""
    return tuple(option for option in options_of("run") if option.group == LOG)


def remember_before(ctx: click.Context, flags: Mapping[str, object]) -> None:
    """Keep options given before the command for the command that follows."""
    names = {option.field: option.name for option in log_options()}
    ctx.meta[_BEFORE] = {field: (names[field], value) for field, value in flags.items() if value is not None}


def click_option(option: Option) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The click option of a setting that has flags."""
    repeated = option.kind in {"texts", "pairs"}
    extra: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if option.kind == "boolean" else {}
    return click.option(
        *option.flags,
        option.field,
        type=str,
        default=None,
        multiple=repeated,
        metavar=option.placeholder,
        help=option.help_text,
        **extra,
    )


def _as_pflag(chosen: Sequence[Option], args: Sequence[str]) -> list[str]:
    """``-d=file`` is ``-d file`` to kuma-dp (pflag), and a file named ``=file`` to click."""
    short = {name for option in chosen for name in option.flags if len(name) == 2}
    end = args.index("--") if "--" in args else len(args)
    return [
        argument[:2] + argument[3:] if place < end and argument[:2] in short and argument[2:3] == "=" else argument
        for place, argument in enumerate(args)
    ]


def _names_typed(chosen: Sequence[Option], args: Sequence[str]) -> dict[str, str]:
    found = {}
    for argument in args:
        if argument == "--":
            break
        name = argument.partition("=")[0] if argument.startswith("--") else argument[:2]
        found.update({option.field: name for option in chosen if name in option.flags})
    return found
