"""Click options made from the settings, so that each option is written once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kumadp.settings.model import options_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.settings.option import Option


class GroupedCommand(click.Command):
    """Shows its options under headings."""

    groups: dict[str, str]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options by group, then the rest."""
        by_group: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                by_group.setdefault(self.groups.get(parameter.name or "", "Other"), []).append(record)
        for group, records in by_group.items():
            with formatter.section(group):
                formatter.write_dl(records)


def command_with_options(command: str) -> Callable[[Callable[..., Any]], GroupedCommand]:
    """A decorator that makes a click command with all options of ``command``.

    Each value reaches the function as the text the user typed (a tuple for what may be repeated), None when it was not
    given. ``--flag`` alone means true for booleans, and ``--flag=false`` works as with kuma-dp.
    """

    def decorate(function: Callable[..., Any]) -> GroupedCommand:
        chosen = options_of(command)
        for option in reversed(chosen):
            if option.flags:
                function = _click_option(option)(function)
        made = click.command(command, cls=GroupedCommand, context_settings={"max_content_width": 110})(function)
        made.groups = {option.field: option.group for option in chosen}
        variables = [option for option in chosen if not option.flags]
        if variables:
            made.epilog = "\b\nSet by variable or settings file only:\n" + "\n".join(
                f"  {option.variables[0]}: {option.help}{'' if option.effective else ' (accepted; no effect yet)'}"
                f" (default: {option.default_text})"
                for option in variables
            )
        return made

    return decorate


def _click_option(option: Option) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    repeated = option.kind in {"texts", "pairs"}
    extra: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if option.kind == "boolean" else {}
    return click.option(
        *option.flags,
        option.field,
        type=str,
        default=None,
        multiple=repeated,
        metavar=option.kind.upper(),
        help=option.help_text,
        **extra,
    )
