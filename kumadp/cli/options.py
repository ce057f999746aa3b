"""Click options generated from the settings, so that each option is declared once."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from kumadp.errors import UsageError
from kumadp.settings.model import LOG, options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from click.shell_completion import CompletionItem

    from kumadp.settings.option import Command, Option

WIDTH = 110
_TYPED = "kumadp.typed"
_LOG_FLAGS = "kumadp.log-flags"
_COMMAND_LINE = "kumadp.command-line"
# Leaves enough room on 80 columns for the longest variable: nobody finds a name that is split over two lines.
_FIRST_COLUMN = 22


class GroupedCommand(click.Command):
    """A command that groups its options in the help, and records by which of its names each flag was given."""

    chosen: tuple[Option, ...] = ()
    takes_command = False
    """Whether the command line of another program may follow after ``--``."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the usage as click does, with the command line that may follow."""
        return [*super().collect_usage_pieces(ctx), *(["[-- CMD ARG...]"] if self.takes_command else ())]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group, then options without a flag, then the others."""
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
        """Parse as click does, and record by which of its names each option was given."""
        if self.takes_command and "--" in args:
            end = args.index("--")
            args, ctx.meta[_COMMAND_LINE] = args[:end], tuple(args[end + 1 :])
            if not ctx.meta[_COMMAND_LINE]:
                raise UsageError("nothing follows --", "add the application's command line, or remove --")
        args = _as_pflag(self.chosen, args)
        ctx.meta[_TYPED] = _names_typed(self.chosen, args)
        rest = super().parse_args(ctx, args)
        for field, (name, value) in ctx.meta.get(_LOG_FLAGS, {}).items():
            if field in ctx.params and ctx.params[field] is None:
                ctx.params[field] = value
                ctx.meta[_TYPED][field] = name
        return rest


def command_with_options(
    command: Command, name: str = "", *, takes_command: bool = False
) -> Callable[[Callable[..., Any]], GroupedCommand]:
    """Return a decorator that makes a click command with all options of ``command``; ``name`` is by default the same.

    The function gets each value as the text that the user typed (a tuple for options that may be repeated), None if it
    was not given. ``--flag`` alone means true for booleans, and ``--flag=false`` works as with kuma-dp.
    """

    def decorate(function: Callable[..., Any]) -> GroupedCommand:
        chosen = options_of(command)
        for option in reversed(chosen):
            if option.flags:
                function = click_option(option, name or command)(function)
        decorator = click.command(name or command, cls=GroupedCommand, context_settings={"max_content_width": WIDTH})
        result = decorator(function)
        result.chosen = chosen
        result.takes_command = takes_command
        return result

    return decorate


def typed_names() -> Mapping[str, str]:
    """Return by field the name by which each option of the current command was given."""
    names: Mapping[str, str] = click.get_current_context().meta.get(_TYPED, {})
    return names


def command_line() -> tuple[str, ...]:
    """Return the arguments after ``--``; empty if there are none."""
    arguments: tuple[str, ...] = click.get_current_context().meta.get(_COMMAND_LINE, ())
    return arguments


def log_options() -> tuple[Option, ...]:
    """Return the options that kuma-dp also accepts in front of the command: its persistent flags."""
    return tuple(option for option in options_of("run") if option.group == LOG)


def keep_log_flags(ctx: click.Context, flags: Mapping[str, object]) -> None:
    """Keep options that were given in front of the command, for that command."""
    names = {option.field: option.name for option in log_options()}
    ctx.meta[_LOG_FLAGS] = {field: (names[field], value) for field, value in flags.items() if value is not None}


def click_option(option: Option, command: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the click option of a setting that has flags, for this command."""
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
        shell_complete=functools.partial(_complete, option, command),
        **extra,
    )


def _complete(
    option: Option, command: str, context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return what completes the value of an option at the prompt."""
    from click.shell_completion import CompletionItem

    from kumadp.cli.completion import names_of_running

    if option.choices:
        return [CompletionItem(choice) for choice in option.choices if choice.startswith(incomplete)]
    if option.kind == "boolean":
        return [CompletionItem(value) for value in ("true", "false") if value.startswith(incomplete)]
    if option.field == "name" and command != "run":
        return names_of_running(context, parameter, incomplete)
    return [CompletionItem(incomplete, type="file")] if option.metavar == "PATH" else []


def _as_pflag(chosen: Sequence[Option], args: Sequence[str]) -> list[str]:
    """Convert ``-d=file`` to ``-dfile``: kuma-dp (pflag) reads ``file``, click a file named ``=file``."""
    short = {name for option in chosen for name in option.flags if len(name) == 2}
    end = args.index("--") if "--" in args else len(args)
    return [
        argument[:2] + argument[3:] if index < end and argument[:2] in short and argument[2:3] == "=" else argument
        for index, argument in enumerate(args)
    ]


def _names_typed(chosen: Sequence[Option], args: Sequence[str]) -> dict[str, str]:
    typed = {}
    for argument in args:
        if argument == "--":
            break
        name = argument.partition("=")[0] if argument.startswith("--") else argument[:2]
        typed.update({option.field: name for option in chosen if name in option.flags})
    return typed
