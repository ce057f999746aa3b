"""The command group. Each command is imported only when it is used, to keep start-up short."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from kumadp import __version__
from kumadp.cli.options import WIDTH, click_option, keep_log_flags, log_options
from kumadp.errors import ExitCode, KumadpError, UsageError, host_error
from kumadp.host import early_signals as early
from kumadp.host.garbage import collect_rarely
from kumadp.host.reexec import interim_responder
from kumadp.host.standard_streams import fill_standard_descriptors

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS: dict[str, str] = {
    "run": "Run a data plane: Envoy, DNS and virtual probes.",
    "wait": "Wait until a data plane on this host is ready, and log what it waits for.",
    "status": "Print the status of the data planes on this host.",
    "logs": "Print or follow the log of a data plane, with the lines of Envoy and CoreDNS, by level and component.",
    "doctor": "Check the requirements of a data plane on this host, and the running one.",
    "reload": "Reload the configuration of a data plane without losing a request.",
    "reexec": "Replace a running kumadp by the installed version without losing a request.",
    "drain": "Drain a data plane that keeps running, wait until nobody is connected, or undo it.",
    "sweep": "Stop processes that a killed kumadp left running on this host.",
    "install": "Install kumadp as a service of this host, with its user and settings (--systemd).",
    "uninstall": "Remove that service.",
    "migrate": "Show what changes if kumadp takes the place of a kuma-dp, and install it beside that one.",
    "log-level": "Change the log levels of a running data plane, including Envoy.",
    "upgrade-check": "Compare settings and Dataplanes with a Kuma version to come.",
    "validate": "Check Dataplane, ZoneIngress and ZoneEgress files.",
    "demo": "Run a demo: a real Envoy in front of a small workload.",
    "completion": "Print the completion script of a shell.",
    "version": "Print versions.",
}


_NAMES_A_COMMAND = re.compile(rf"kumadp ({'|'.join(COMMANDS)})\b")

# Commands whose modules have other names: a package, and one beside the set-up of logs.
_MODULES = {"demo": "demo.command", "logs": "follow_logs"}

# Commands that print a report: if the reader of the pipe ends, they end silently, as any filter does.
_FILTERS = frozenset({"doctor", "logs", "migrate", "status", "upgrade-check", "validate"})


class LazyGroup(click.Group):
    """A group that lists its commands without importing them, and imports ``kumadp.cli.<name>`` when one is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names, the most used first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command; raises UsageError with a suggestion if there is none of that name."""
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:
                return None
            import difflib

            similar = difflib.get_close_matches(cmd_name, COMMANDS, 1)
            hint = f"did you mean {similar[0]}?" if similar else f"one of {', '.join(COMMANDS)}"
            raise UsageError(f"no command {cmd_name!r}", hint)
        if cmd_name != "run":
            early.restore_signal_handlers()
        function = cmd_name.replace("-", "_")
        module = importlib.import_module(f"kumadp.cli.{_MODULES.get(cmd_name, function)}")
        command = getattr(module, function)
        assert isinstance(command, click.Command)  # noqa: S101
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands without importing them, and the options in front of them."""
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=about) for name, about in COMMANDS.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _with_log_options(group: LazyGroup) -> LazyGroup:
    """Accept the log flags in front of the command too, as kuma-dp does: ``kuma-dp --log-level=debug run``."""
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
def cli(ctx: click.Context, /, **log_flags: object) -> None:
    """Sidecar supervisor for Kuma data planes; a drop-in replacement for kuma-dp.

    Exit codes: 0 clean stop, 64 command line, 65 Dataplane, 69 control plane unreachable, 70 Envoy failed permanently,
    71 port or process, 72 no Envoy, 73 admin exposed, 74 forced by a third signal, 75 not ready, 76 unsafe bootstrap,
    77 rejected by the control plane, 78 settings, 79 refused by the running kumadp, or none is running.
    """
    keep_log_flags(ctx, log_flags)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(ExitCode.USAGE)
    if ctx.invoked_subcommand in _FILTERS:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def main() -> None:
    """Entry point of the console scripts, and the only place that exits with the exit code of a failure."""
    fill_standard_descriptors()
    if "run" in sys.argv[1:]:
        collect_rarely()
        if interim_responder.VARIABLE not in os.environ:
            early.hold_early_signals()
    interim_responder.start(os.environ)
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
        # Standard output may be open for reading only.
        reason = host_error(error) or ("" if error.errno != errno.EBADF else str(error.strerror))
        if not reason:
            raise
        # At a normal exit Python would try again to write the buffer that standard output has rejected.
        with contextlib.suppress(OSError):
            click.echo(
                f"Error: {reason if error.filename else f'standard output cannot be written: {reason}'}", err=True
            )
        os._exit(ExitCode.OS)
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _end_as_interrupted() -> NoReturn:
    """Die of SIGINT, as the shell expects: after Ctrl-C, `kumadp wait && start` must not start anything."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("unreachable")


def print_error(error: KumadpError) -> None:
    """Print a failure on stderr: one line, or one line for each problem; on a terminal, which command shows more."""
    texts = [str(problem) for problem in getattr(error, "problems", (error,))]
    for text in texts:
        click.echo(f"Error: {text}", err=True)
    if sys.stderr is not None and sys.stderr.isatty() and not any(map(_NAMES_A_COMMAND.search, texts)):
        command = next((word for word in sys.argv[1:] if word in COMMANDS), "")
        click.echo(f"See: {error.more.format(command=command).replace('  ', ' ')}", err=True)
