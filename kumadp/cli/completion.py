"""``kumadp completion``, and what is completed besides commands and options: names of running data planes."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import click

from kumadp.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SHELLS = ("bash", "zsh", "fish")
_PROGRAM = "kumadp"


def names_of_running(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of the data planes that run here and begin so; nothing is sent to them."""
    from click.shell_completion import CompletionItem

    from kumadp.daemon.instances import find

    with contextlib.suppress(OSError):
        names = dict.fromkeys(instance.name for instance in find(os.environ).running)
        return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]
    return []


def files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Have the shell complete the names of files."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def script(shell: str, group: click.Command) -> str:
    """Return the completion script of a shell, for the commands of ``group``."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - click has these three
    return str(found(group, {}, _PROGRAM, f"_{_PROGRAM.upper()}_COMPLETE").source())


@click.command()
@click.argument("shell", default="", type=click.Choice(["", *SHELLS]), metavar="[bash|zsh|fish]")
def completion(shell: str) -> None:
    """Print the completion script of a shell, by default of $SHELL: for commands, options, values, and data planes.

    bash: kumadp completion bash >/etc/bash_completion.d/kumadp (or source it); zsh: into a file _kumadp in a folder of
    $fpath; fish: into ~/.config/fish/completions/kumadp.fish. The Debian package has all three.
    """
    chosen = shell or os.environ.get("SHELL", "").rpartition("/")[2]
    if chosen not in SHELLS:
        raise UsageError(f"no completion for the shell {chosen or '(SHELL is not set)'}", "bash, zsh or fish")
    click.echo(script(chosen, click.get_current_context().find_root().command))
