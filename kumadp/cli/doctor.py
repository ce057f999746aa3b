"""``kumadp doctor``."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from kumadp.cli.options import command_with_options, typed_names
from kumadp.errors import ExitCode, KumadpError, SettingsError, UsageError, on_one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kumadp.doctor.report import Check, Finding, Told
    from kumadp.doctor.subject import Subject

_COLORS = {"ok": "green", "warning": "yellow", "failed": "red"}
_LABEL = 14
# What does something else where nothing runs yet: Envoy is asked for its version, and validates.
_PATIENT = 40.0


@command_with_options("run", "doctor")
@click.option("-o", "--output", type=click.Choice(["human", "json"]), default="human", show_default=True)
def doctor(output: str, **flags: object) -> NoReturn:
    """Check what a data plane needs on this host, with the same options as run, and what one that runs says.

    Without options those of the kumadp that runs here are taken, by its command line, where there is just one; with
    --name alone those of the one of that name, and root looks as the user who runs it. Nothing is changed, and nothing
    is registered at a control plane. Each line is ok, warning, failed or skipped, with a hint.

    Exit code 0 when nothing has failed, 1 when something has.
    """
    # A reader that has seen enough ends this as it ends any filter.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    logging.getLogger("kumadp").addHandler(logging.NullHandler())
    logging.getLogger("kumadp").propagate = False
    from kumadp.cli.run import end
    from kumadp.doctor.report import run_checks

    # Not closed: that would wait for each thread that a silent name server holds.
    findings = asyncio.Runner().run(run_checks(_checks(flags, dict(typed_names()))))
    failed = sum(finding.state == "failed" for finding in findings)
    warnings = sum(finding.state == "warning" for finding in findings)
    if output == "json":
        body = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(body, indent=2, ensure_ascii=False))
    else:
        for line in _lines(findings, color=sys.stdout.isatty() and not os.environ.get("NO_COLOR")):
            click.echo(line)
        click.echo(f"\n{failed} failed, {warnings} warning{'' if warnings == 1 else 's'}")
    sys.stdout.flush()
    end(ExitCode.BUG if failed else ExitCode.OK)


def _lines(findings: Sequence[Finding], *, color: bool) -> list[str]:
    lines, before = [], ""
    for finding in findings:
        label = "" if finding.check == before else finding.check
        before = finding.check
        state = f"{finding.state:<8}"
        painted = click.style(state, fg=_COLORS[finding.state]) if color and finding.state in _COLORS else state
        lines.append(f"{painted} {label:<{_LABEL}} {finding.text}")
        if finding.hint:
            lines.append(f"{'':<8} {'':<{_LABEL}} -> {finding.hint}")
    return lines


def _checks(flags: dict[str, object], typed: dict[str, str]) -> list[Check]:
    from kumadp.doctor import control_plane, files, host, programs
    from kumadp.doctor.report import Check, failed_with, ok, skipped

    settings, subject = ok("all that is given can be used"), None
    try:
        subject, whence = _subject(flags, typed)
        settings = ok(f"all that is given can be used{whence}")
    except KumadpError as error:
        settings = failed_with(error)

    def of(name: str, look: Any, deadline: float = 10.0) -> Check:
        if subject is None:
            return Check(name, functools.partial(_known, skipped("settings first")))
        return Check(name, functools.partial(look, subject), deadline)

    async def running(subject: Subject) -> list[Told]:
        return programs.running(subject)

    work_dirs = (Path(subject.settings.work_dir),) if subject is not None and subject.settings.work_dir else ()
    return [
        Check("settings", functools.partial(_known, settings)),
        of("envoy", programs.envoy, _PATIENT),
        of("coredns", programs.coredns, _PATIENT),
        of("bootstrap", programs.bootstrap, _PATIENT),
        of("ports", programs.ports),
        of("control plane", control_plane.control_plane, 20.0),
        of("token", files.token),
        of("files", files.modes),
        Check("cgroup", host.cgroup),
        Check("resolv.conf", host.resolv_conf),
        Check("leftovers", functools.partial(host.leftovers, os.environ, work_dirs)),
        Check("process 1", host.process_1),
        Check("systemd", functools.partial(host.systemd, subject.name if subject is not None else "")),
        of("running", running),
    ]


async def _known(told: list[Told]) -> list[Told]:
    return told


def _subject(flags: dict[str, object], typed: dict[str, str]) -> tuple[Subject, str]:
    """Whom to look at, and where its options come from, in words; raises KumadpError."""
    from kumadp.cli.run import checked, read_settings_file, read_transparent_files
    from kumadp.doctor.subject import Subject
    from kumadp.host.net.unix_http import user_name
    from kumadp.settings.resolve import config_file, resolve

    environ: Mapping[str, str] = os.environ
    statuses, whence = _statuses(), ""
    meant = []
    if not typed or set(typed) == {"name"}:
        named = [one for one in statuses if not typed or one["name"] == flags["name"]]
        meant = [one for one in named if not one["listed"]] or named
    if len(meant) == 1 and (found := _options_of(meant[0]["pid"])) is not None:
        flags, typed, environ = found
        whence = f", by the command line of pid {meant[0]['pid']}"
        if meant[0]["uid"] != os.geteuid():
            _become(meant[0]["uid"], meant[0]["pid"])
            whence += f", as {user_name(meant[0]['uid'])}"
    config = config_file(flags, environ)
    text = read_settings_file(config) if config else None
    try:
        resolved = resolve("run", flags, environ, text, config, typed)
    except SettingsError:
        if len(meant) < 2:
            raise
        names = ", ".join(on_one_line(str(one["name"])) for one in meant)
        raise UsageError(f"several run here: {names}", "say which with --name, or give the options of run") from None
    settings, resource, mesh = checked(resolved.settings)
    transparent = read_transparent_files(settings)
    name = resource.name if resource is not None else settings.name
    status = next((status for status in statuses if status.get("name") == name), {})
    return Subject(settings, resource, mesh, transparent, environ, status), whence


def _statuses() -> list[dict[str, Any]]:
    """What runs here says of itself."""
    from kumadp.daemon.control import ask_status
    from kumadp.daemon.instances import find

    found = []
    for one in find(os.environ).running:
        try:
            # The kernel's word on the pid: its files in /proc are read next.
            found.append({**ask_status(one.path, uid=one.uid), "pid": one.pid, "uid": one.uid, "listed": one.listed})
        except OSError:
            continue
    return found


def _become(uid: int, pid: int) -> None:
    """Go on as the user of that process: root runs no program and reads no file that another user names.

    Raises UsageError where its groups cannot be read.
    """
    from kumadp.cli.reexec_check import import_all

    try:
        lines = (Path("/proc") / str(pid) / "status").read_text(errors="replace").splitlines()
        fields = {name: values.split() for name, _, values in (line.partition(":") for line in lines)}
        group, groups = int(fields["Gid"][1]), [int(number) for number in fields["Groups"]]
    except (OSError, LookupError, ValueError):
        raise UsageError(f"pid {pid} has ended", "give doctor the options of run") from None
    # Where root's Python is that user may not read it.
    import_all()
    os.setgroups(groups)
    os.setgid(group)
    os.setuid(uid)


def _options_of(pid: int) -> tuple[dict[str, object], dict[str, str], Mapping[str, str]] | None:
    """Flags as they were typed for the kumadp of that pid, and its environment; None where they cannot be had.

    Its own directory becomes ours, so that relative paths mean the same. Raises UsageError where it was given something
    on standard input, which nobody can read again.
    """
    from kumadp.cli.run import run

    place = Path("/proc") / str(pid)
    try:
        words = [os.fsdecode(word) for word in (place / "cmdline").read_bytes().split(b"\0")[:-1]]
        pairs = [os.fsdecode(pair).partition("=") for pair in (place / "environ").read_bytes().split(b"\0") if pair]
        cwd = (place / "cwd").readlink()
    except OSError:
        return None
    if "run" not in words:
        return None
    context = run.make_context("run", words[words.index("run") + 1 :], resilient_parsing=False)
    with context:
        typed = dict(typed_names())
    if any("-" in (value if isinstance(value, tuple) else (value,)) for value in context.params.values()):
        raise UsageError(
            f"pid {pid} was given a file on standard input", "give doctor the options of run, and the file"
        )
    os.chdir(cwd)
    return dict(context.params), typed, {name: value for name, _, value in pairs}
