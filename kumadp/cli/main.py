"""The command group. Commands are imported when they are named, so that each start pays only for its own."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import os
import signal
import sys
from typing import NoReturn

import click

from kumadp import __version__
from kumadp.cli.options import WIDTH, click_option, log_options, remember_before
from kumadp.errors import ExitCode, KumadpError, UsageError, host_error
from kumadp.host import early_signals as early
from kumadp.host.reexec import interim_responder as meanwhile
from kumadp.host.standard_streams import fill_standard_descriptors

COMMANDS: dict[str, str] = {
    "run": "Run a data plane: Envoy, DNS, virtual probes, until it is told to stop.",
    "wait": "Wait until a data plane on this host is ready, and say what it waits for.",
    "status": "Say what a data plane here does: ready or why not, what runs, what died.",
    "doctor": "Check what a data plane needs here, before it runs and while it does.",
    "reload": "Have a data plane here take its configuration anew, without losing a request.",
    "reexec": "Have a kumadp here become the version that is installed now, without losing a request.",
    "sweep": "End what a killed kumadp left running here, where no next one is to adopt it.",
    "install": "Install kumadp as a service of this host, with its user and settings (--systemd).",
    "uninstall": "Take that away again.",
    "log-level": "Change what a data plane here logs, Envoy too, while it runs.",
    "validate": "Check Dataplane, ZoneIngress and ZoneEgress files.",
    "demo": "Show the main job: a real Envoy in front of a small workload.",
    "version": "Print versions.",
}


# Commands that are packages, whose modules can also be run by themselves without importing click.
_MODULES = {"demo": "demo.command"}


class LazyGroup(click.Group):
    """Knows its commands by name; imports ``kumadp.cli.<name>`` when one is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the order a reader wants them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; ends with a suggestion when there is none of that name."""
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:
                return None
            near = difflib.get_close_matches(cmd_name, COMMANDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(COMMANDS)}"
            raise UsageError(f"no command {cmd_name!r}", hint)
        if cmd_name != "run":
            early.restore_signal_handlers()
        function = cmd_name.replace("-", "_")
        module = importlib.import_module(f"kumadp.cli.{_MODULES.get(cmd_name, function)}")
        command = getattr(module, function)
        assert isinstance(command, click.Command)  # noqa: S101
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _with_log_options(group: LazyGroup) -> LazyGroup:
    """kuma-dp's log flags are those of the program: ``kuma-dp --log-level=debug run`` is in use."""
    for option in log_options():
        click_option(option)(group)
    return group


@_with_log_options
@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)
@click.version_option(__version__, message="%(version)s")
@click.pass_context
def cli(ctx: click.Context, /, **before: object) -> None:
    """Sidecar supervisor for Kuma data planes; a drop-in for kuma-dp.

    Exit codes: 0 clean stop, 64 command line, 65 Dataplane, 69 control plane away, 70 Envoy ended for good, 71 port or
    process, 72 no Envoy, 73 admin exposed, 74 forced by a third signal, 75 not ready, 76 unsafe bootstrap,
    77 control plane refused, 78 settings, 79 a running kumadp
    refused, or none runs.
    """
    remember_before(ctx, before)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(ExitCode.USAGE)


def main() -> None:
    """Entry point of the console scripts: the only place that ends the process with a failure's exit code."""
    fill_standard_descriptors()
    if "run" in sys.argv[1:] and meanwhile.VARIABLE not in os.environ:
        early.hold_early_signals()
    meanwhile.begin(os.environ)
    try:
        code = cli.main(standalone_mode=False)
    except KumadpError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        click.echo(f"Error: {error.format_message().rstrip('.')}{hint}", err=True)
        sys.exit(ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        _end_as_interrupted()
    except OSError as error:
        # Standard output may be open for reading alone.
        reason = host_error(error) or ("" if error.errno != errno.EBADF else str(error.strerror))
        if not reason:
            raise
        # At a normal end Python would write once more what standard output did not take.
        with contextlib.suppress(OSError):
            click.echo(
                f"Error: {reason if error.filename else f'standard output cannot be written: {reason}'}", err=True
            )
        os._exit(ExitCode.OS)
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _end_as_interrupted() -> NoReturn:
    """Die of SIGINT, as the shell expects: `kumadp wait && start` must not start what was not waited for."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("unreachable")


def print_error(error: KumadpError) -> None:
    """Print a failure on stderr: one line, or one line a problem."""
    for problem in getattr(error, "problems", (error,)):
        click.echo(f"Error: {problem}", err=True)
