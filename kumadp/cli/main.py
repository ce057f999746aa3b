"""The command group. Commands are imported when they are named, so that each start pays only for its own."""

from __future__ import annotations

import importlib
import sys

import click

from kumadp import __version__
from kumadp.errors import ExitCode, KumadpError, ResourceError, SettingsError

COMMANDS: dict[str, str] = {
    "run": "Run a data plane: Envoy, DNS, virtual probes, until it is told to stop.",
    "wait": "Wait until a data plane on this host is ready, and say what it waits for.",
    "validate": "Check Dataplane, ZoneIngress and ZoneEgress files.",
    "demo": "Show the main job: a real Envoy in front of a small workload.",
    "version": "Print versions.",
}


class LazyGroup(click.Group):
    """Knows its commands by name; imports ``kumadp.cli.<name>`` when one is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the order a reader wants them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command, imported now; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"kumadp.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Sidecar supervisor for Kuma data planes; a drop-in for kuma-dp.

    Exit codes: 0 clean stop, 64 command line, 65 Dataplane, 69 control plane away, 70 Envoy ended for good, 71 port or
    process, 72 no Envoy, 73 admin exposed, 74 forced by a third signal, 75 not ready in time, 76 unsafe bootstrap,
    77 control plane refused, 78 settings.
    """


def main() -> None:
    """Entry point of the console scripts: the only place that ends the process with a failure's exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except KumadpError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        sys.exit(ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(ExitCode.OK)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(ExitCode.OK)
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def print_error(error: KumadpError) -> None:
    """Print a failure on stderr: one line, or one line a problem."""
    if isinstance(error, SettingsError | ResourceError):
        for problem in error.problems:
            click.echo(f"Error: {problem}", err=True)
    else:
        click.echo(f"Error: {error}", err=True)
