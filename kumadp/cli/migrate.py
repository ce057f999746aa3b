"""``kumadp migrate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kumadp.cli.completion import files
from kumadp.cli.terminal import has_colors
from kumadp.errors import CommandRefused, ExitCode, KumadpError, UsageError

if TYPE_CHECKING:
    from kumadp.doctor.subject import Subject
    from kumadp.migrate.plan import MigrationPlan
    from kumadp.migrate.source import KumaDp


@click.command()
@click.argument("path", default="", shell_complete=files)
@click.option("--pid", type=int, help="The kuma-dp with this pid. Default: the only one that runs here.")
@click.option("--service", default="", help="The service of a compose file, if several run kuma-dp.")
@click.option("--name", default="", help="Name for the unit kumadp@NAME. Default: that of the Dataplane.")
@click.option("--format", "form", type=click.Choice(["human", "json"]), default="human", show_default=True)
@click.option("--apply", is_flag=True, help="Install unit and settings beside those of kuma-dp, and start nothing.")
@click.option("--root", default="/", metavar="PATH", help="With --apply: root of another file system (an image).")
def migrate(path: str, pid: int | None, service: str, name: str, form: str, apply: bool, root: str) -> int:
    """Show what changes if kumadp takes the place of a kuma-dp: of one that runs here, or of PATH.

    PATH is a unit of systemd (its file or its name) or a compose file. Printed are each option with what becomes of it
    (understood, mapped, ignored, in the way), the settings file and the unit that do the same, ports and users that
    clash, what the control plane sees, and how to switch over. Tokens are never printed.

    Nothing is changed without --apply, which installs the unit beside the old one; the switch-over is the operator's.

    Exit code 0 if nothing is in the way, otherwise 1; 79 if there is no kuma-dp, or --apply is refused.
    """
    from kumadp.migrate.report import as_json, lines

    source = _source(path, pid, service)
    plan = _plan(source, name)
    if form == "json":
        click.echo(json.dumps(as_json(plan), indent=2, ensure_ascii=False))
    else:
        for line in lines(plan, color=has_colors()):
            click.echo(line)
    if apply:
        _apply(plan, Path(root), quiet=form == "json")
    return ExitCode.BUG if plan.in_the_way else ExitCode.OK


def _source(path: str, pid: int | None, service: str) -> KumaDp:
    if path and pid is not None:
        raise UsageError("give PATH or --pid, not both", "kumadp migrate --help")
    if path.endswith((".yaml", ".yml")):
        from kumadp.migrate import compose_file

        return compose_file.service(path, service)
    if path:
        from kumadp.migrate import unit_file

        return unit_file.unit(path)
    from kumadp.migrate import processes

    if pid is not None:
        return processes.process(pid)
    pids = processes.running()
    if not pids:
        hint = "give a unit or a compose file: kumadp migrate PATH"
        raise CommandRefused("no kuma-dp runs here that this user can see", hint)
    if len(pids) > 1:
        raise CommandRefused(f"several kuma-dp run here: pids {', '.join(map(str, pids))}", "choose one with --pid")
    return processes.process(pids[0])


def _plan(source: KumaDp, name: str) -> MigrationPlan:
    from kumadp.cli.install import checked_name
    from kumadp.daemon.ports import check_plan
    from kumadp.dns.plan import chosen_coredns, plan_dns
    from kumadp.doctor.programs import addresses
    from kumadp.migrate.plan import (
        clashes,
        judge_all,
        make_plan,
        problems_of,
        read_back,
        seen_by_control_plane,
        settings_text,
        unit_name,
    )
    from kumadp.migrate.processes import shares_network

    judged = judge_all(source, name)
    subject, problems = None, []
    text = settings_text(judged, source.origin)
    if not source.service:
        try:
            subject = _subject(source, text)
        except KumadpError as error:
            problems = problems_of(error)
    if not name and subject is not None:
        name = unit_name(subject.name)
        judged = judge_all(source, name)
    plan = make_plan(source, checked_name(name), judged, subject)
    plan.problems += problems or [str(problem) for problem in read_back(text, Path("settings"))]
    if subject is None:
        return plan
    try:
        dns = plan_dns(subject.settings, chosen_coredns(subject.settings), subject.transparent)
        own, envoy = addresses(subject, dns)
        check_plan(own, envoy, subject.resource)
        if source.pids and not shares_network(source.pids[0]):
            plan.problems.append("kuma-dp has another network namespace: run kumadp migrate in it (nsenter --net)")
        else:
            plan.clashes = clashes([*own, *envoy], source.pids)
    except KumadpError as error:
        plan.problems += problems_of(error)
    plan.control_plane = seen_by_control_plane(plan, subject)
    return plan


def _subject(source: KumaDp, text: str) -> Subject:
    """Return the data plane as kumadp would run it with these settings; raises KumadpError."""
    from kumadp.cli.run import checked, read_transparent_files
    from kumadp.doctor.subject import Subject
    from kumadp.settings.resolve import resolve

    resolved = resolve("run", {}, {}, text, "settings")
    settings, resource, mesh = checked(resolved.settings)
    transparent = read_transparent_files(settings)
    return Subject(settings, resource, mesh, transparent, source.environ, {}, resolved.origin)


def _apply(plan: MigrationPlan, root: Path, *, quiet: bool) -> None:
    """Install the files; raises CommandRefused if something is in the way, or the host does not let it."""
    from kumadp.cli.install import install_files
    from kumadp.host.systemd_units import InstalledFile

    if plan.source.service:
        raise CommandRefused("a compose file is changed by hand", "only units of systemd are installed")
    if plan.in_the_way:
        raise CommandRefused(f"--apply: {plan.in_the_way} in the way, nothing was installed", "see above")
    files = [InstalledFile(file.path, file.text.encode(), file.mode, operator_owned=True) for file in plan.files]
    click.echo("", err=quiet)
    install_files(files, root, err=quiet)
