"""``kumadp doctor``."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from msgspec.structs import asdict

from kumadp.cli.options import command_with_options, typed_names
from kumadp.cli.terminal import has_colors
from kumadp.errors import ExitCode, KumadpError, SettingsError, UsageError, on_one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kumadp.doctor.report import CheckResult, DoctorCheck, Finding
    from kumadp.doctor.subject import Subject

    # Flags, the names that were typed for them, and the environment.
    GivenOptions = tuple[dict[str, object], dict[str, str], Mapping[str, str]]

_COLORS = {"ok": "green", "warning": "yellow", "failed": "red"}
_LABEL = 14
# Deadline of checks that run a program, such as Envoy's validation (seconds).
_PROGRAM_DEADLINE = 40.0


@command_with_options("run", "doctor")
@click.option("-o", "--output", type=click.Choice(["human", "json"]), default="human", show_default=True)
def doctor(output: str, **flags: object) -> NoReturn:
    """Check the requirements of a data plane on this host, with the same options as run, and the running one.

    Without options, those from the command line of the running kumadp are used, if there is only one; with --name alone
    those of the kumadp with that name. root then becomes the user who runs it. Nothing is changed, and nothing is
    registered at a control plane. Each line is ok, warning, failed or skipped, with a hint.

    Exit code 0 if no check failed, otherwise 1.
    """
    logging.getLogger("kumadp").addHandler(logging.NullHandler())
    logging.getLogger("kumadp").propagate = False
    from kumadp.cli.run import end
    from kumadp.doctor.report import run_checks

    # Not closed: that would wait for threads that query a silent name server.
    findings = asyncio.Runner().run(run_checks(_checks(flags, dict(typed_names()))))
    failed = sum(finding.state == "failed" for finding in findings)
    warnings = sum(finding.state == "warning" for finding in findings)
    if output == "json":
        body = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(body, indent=2, ensure_ascii=False))
    else:
        for line in _lines(findings, color=has_colors()):
            click.echo(line)
        click.echo(f"\n{failed} failed, {warnings} warning{'' if warnings == 1 else 's'}")
    sys.stdout.flush()
    end(ExitCode.BUG if failed else ExitCode.OK)


def _lines(findings: Sequence[Finding], *, color: bool) -> list[str]:
    lines, previous = [], ""
    for finding in findings:
        label = "" if finding.check == previous else finding.check
        previous = finding.check
        state = f"{finding.state:<8}"
        painted = click.style(state, fg=_COLORS[finding.state]) if color and finding.state in _COLORS else state
        lines.append(f"{painted} {label:<{_LABEL}} {finding.text}")
        if finding.hint:
            lines.append(f"{'':<8} {'':<{_LABEL}} -> {finding.hint}")
    return lines


def _checks(flags: dict[str, object], typed: dict[str, str]) -> list[DoctorCheck]:
    from kumadp.doctor import control_plane, files, host, programs
    from kumadp.doctor.report import DoctorCheck, failed_with, ok, skipped

    subject = None
    try:
        subject, origin = _subject(flags, typed)
        settings = ok(f"all options are valid{origin}")
    except KumadpError as error:
        settings = failed_with(error)

    def of(name: str, check: Any, deadline: float = 10.0) -> DoctorCheck:
        if subject is None:
            return DoctorCheck(name, functools.partial(_with, skipped("the settings failed")))
        return DoctorCheck(name, functools.partial(check, subject), deadline)

    async def running(subject: Subject) -> list[CheckResult]:
        return programs.running(subject)

    work_dirs = (Path(subject.settings.work_dir),) if subject is not None and subject.settings.work_dir else ()
    return [
        DoctorCheck("settings", functools.partial(_with, settings)),
        of("envoy", programs.envoy, _PROGRAM_DEADLINE),
        of("coredns", programs.coredns, _PROGRAM_DEADLINE),
        of("bootstrap", programs.bootstrap, _PROGRAM_DEADLINE),
        of("ports", programs.ports),
        of("control plane", control_plane.control_plane, 20.0),
        of("token", files.token),
        of("files", files.modes),
        DoctorCheck("cgroup", host.cgroup),
        DoctorCheck("resolv.conf", host.resolv_conf),
        DoctorCheck("leftovers", functools.partial(host.leftovers, os.environ, work_dirs)),
        DoctorCheck("process 1", host.process_1),
        DoctorCheck("systemd", functools.partial(host.systemd, subject.name if subject is not None else "")),
        of("running", running),
    ]


async def _with(results: list[CheckResult]) -> list[CheckResult]:
    return results


def _subject(flags: dict[str, object], typed: dict[str, str]) -> tuple[Subject, str]:
    """Return the data plane to check, and a text for the origin of its options, which may be empty.

    Raises KumadpError.
    """
    from kumadp.cli.run import checked, read_settings_file, read_transparent_files
    from kumadp.doctor.subject import Subject
    from kumadp.host.net.unix_http import user_name
    from kumadp.settings.resolve import config_file, resolve

    environ: Mapping[str, str] = os.environ
    statuses, origin = _statuses(), ""
    running: list[dict[str, Any]] = []
    if not typed or set(typed) == {"name"}:
        running = _chosen(statuses, flags["name"] if typed else None)
    if len(running) == 1:
        is_another = running[0]["uid"] != os.geteuid()
        if (options := _options_as_its_user(running[0])) is not None:
            flags, typed, environ = options
            origin = f", by the command line of pid {running[0]['pid']}"
            origin += f", as {user_name(running[0]['uid'])}" if is_another else ""
    config = config_file(flags, environ)
    text = read_settings_file(config) if config else None
    try:
        resolved = resolve("run", flags, environ, text, config, typed)
    except SettingsError:
        if len(running) < 2:
            raise
        raise _several(running) from None
    settings, resource, mesh = checked(resolved.settings)
    transparent = read_transparent_files(settings)
    name = resource.name if resource is not None else settings.name
    status = next((status for status in statuses if status.get("name") == name), {})
    return Subject(settings, resource, mesh, transparent, environ, status, resolved.origin), origin


def options_of_running(name: str) -> GivenOptions | None:
    """Return the options of the kumadp with that name, or of the only one; None if none runs.

    root then becomes the user who runs it, and the directory is its own. Raises UsageError if several run.
    """
    running = _chosen(_statuses(), name or None)
    if len(running) > 1:
        raise _several(running)
    return _options_as_its_user(running[0]) if running else None


def _chosen(statuses: list[dict[str, Any]], name: object) -> list[dict[str, Any]]:
    """Return the data planes of that name (None: all); those that only the kernel lists if there are no others."""
    matching = [status for status in statuses if name is None or status["name"] == name]
    return [status for status in matching if not status["listed"]] or matching


def _several(running: list[dict[str, Any]]) -> UsageError:
    names = ", ".join(on_one_line(str(status["name"])) for status in running)
    return UsageError(f"several data planes run here: {names}", "choose one with --name, or give the options of run")


def _options_as_its_user(status: dict[str, Any]) -> GivenOptions | None:
    """Return the options of this kumadp, and become the user who runs it; None if they cannot be read."""
    options = _options_of(status["pid"])
    if options is not None and status["uid"] != os.geteuid():
        _become(status["uid"], status["pid"])
    return options


def _statuses() -> list[dict[str, Any]]:
    """Return the status of each data plane that runs here and answers."""
    from kumadp.daemon.control_client import query_status
    from kumadp.daemon.instances import find

    statuses = []
    for instance in find(os.environ).running:
        # The pid as the kernel reports it: its files in /proc are read next.
        process = {"pid": instance.pid, "uid": instance.uid, "listed": instance.listed}
        with contextlib.suppress(OSError):
            statuses.append({**query_status(instance.path, uid=instance.uid), **process})
    return statuses


def _become(uid: int, pid: int) -> None:
    """Become the user of that process: root must not run programs or read files that another user chooses.

    Raises UsageError if its groups cannot be read.
    """
    from kumadp.cli.reexec_check import import_all
    from kumadp.host import proc_files

    try:
        fields = proc_files.status_fields(pid)
        group, groups = int(fields["Gid"][1]), [int(number) for number in fields["Groups"]]
    except (OSError, LookupError, ValueError):
        raise UsageError(f"pid {pid} has ended", "give doctor the options of run") from None
    # That user may not be allowed to read the directory of root's Python.
    import_all()
    os.setgroups(groups)
    os.setgid(group)
    os.setuid(uid)


def _options_of(pid: int) -> GivenOptions | None:
    """Return the options of the kumadp with that pid; None if they cannot be read.

    Changes to its directory, so that relative paths mean the same. Raises UsageError if it read a file from standard
    input, which nobody can read again.
    """
    from kumadp.cli.run import run
    from kumadp.host import proc_files

    try:
        words, environ = proc_files.command_line(pid), proc_files.environment(pid)
        cwd = Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None
    if "run" not in words:
        return None
    context = run.make_context("run", words[words.index("run") + 1 :], resilient_parsing=False)
    with context:
        typed = dict(typed_names())
    if any("-" in (value if isinstance(value, tuple) else (value,)) for value in context.params.values()):
        raise UsageError(
            f"pid {pid} has read a file from standard input", "give doctor the options of run, and the file"
        )
    os.chdir(cwd)
    return dict(context.params), typed, environ
