"""``kumadp upgrade-check``."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

import click
from msgspec.structs import asdict

from kumadp.cli.completion import files as complete_files
from kumadp.cli.options import command_with_options, typed_names
from kumadp.cli.terminal import has_colors
from kumadp.errors import BinaryNotFound, ExitCode, SettingsError, on_one_line
from kumadp.resources.kuma_versions import ALL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kumadp.migrate.upgrade import UpgradeFinding
    from kumadp.settings.model import Settings
    from kumadp.settings.resolve import Resolved

_COLORS = {"refused": "red", "needed": "yellow", "ignored": "yellow"}


@command_with_options("run", "upgrade-check")
@click.argument("files", nargs=-1, shell_complete=complete_files)
@click.option("--to", "version", type=click.Choice(ALL), default=ALL[-1], show_default=True, help="Version of Kuma.")
@click.option("-o", "--output", type=click.Choice(["human", "json"]), default="human", show_default=True)
def upgrade_check(files: tuple[str, ...], version: str, output: str, **flags: object) -> int:
    """Compare settings and Dataplanes with a Kuma version to come: what it refuses, ignores, and needs.

    Settings are given by the options of run, such as --config FILE; without any, and without FILES, those of the kumadp
    that runs here are used. FILES are more Dataplanes, ZoneIngresses and ZoneEgresses. Rules for these are those of
    kumadp validate --kuma. No control plane is queried.

    Exit code 0 if nothing is refused, otherwise 1.
    """
    from kumadp.migrate import upgrade

    resolved = _resolved(flags, files)
    settings = resolved.settings if resolved is not None else None
    resources = upgrade.load_for(version, settings, files)
    findings: list[UpgradeFinding] = []
    if resolved is not None:
        findings += upgrade.of_settings(resolved.settings, resolved.origin, version)
        findings += upgrade.of_envoy(_envoy_version(resolved.settings), version)
    for resource in resources:
        findings += upgrade.of_resource(resource)
    findings += upgrade.of_mesh(version)
    refused = sum(finding.effect == "refused" for finding in findings)
    if output == "json":
        body = {"kuma": version, "ok": not refused, "findings": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(body, indent=2, ensure_ascii=False))
    else:
        _print(findings, version, color=has_colors())
    return ExitCode.BUG if refused else ExitCode.OK


def _resolved(flags: dict[str, object], files: tuple[str, ...]) -> Resolved | None:
    """Return the settings: given, or of the kumadp that runs; None if only files are to be compared.

    Raises KumadpError.
    """
    from kumadp.cli.doctor import options_of_running
    from kumadp.cli.run import read_settings_file
    from kumadp.settings.resolve import config_file, resolve

    typed, environ = dict(typed_names()), dict(os.environ)
    if not typed or set(typed) == {"name"}:
        running = options_of_running(str(flags.get("name") or ""))
        if running is None and files:
            return None
        if running is not None:
            flags, typed, environ = running[0], running[1], dict(running[2])
    config = config_file(flags, environ)
    text = read_settings_file(config) if config else None
    try:
        return resolve("run", flags, environ, text, config, typed)
    except SettingsError:
        # Settings without a Dataplane are compared too: its file is given here.
        if not files:
            raise
        return resolve("run", {**flags, "name": "x", "mesh": "x"}, environ, text, config, typed)


def _envoy_version(settings: Settings) -> str:
    """Return the version of the Envoy that these settings choose; empty if it cannot be run."""
    from kumadp.envoy.binary import find_envoy
    from kumadp.envoy.version import envoy_version

    try:
        return asyncio.run(envoy_version(find_envoy(settings.binary_path), dict(os.environ))).version
    except BinaryNotFound:
        return ""


def _print(findings: Sequence[UpgradeFinding], version: str, *, color: bool) -> None:
    for finding in findings:
        state = f"{finding.effect:<8}"
        painted = click.style(state, fg=_COLORS[finding.effect]) if color else state
        click.echo(f"{painted} {on_one_line(finding.where)}")
        click.echo(f"{'':<8} -> {on_one_line(finding.text)}")
    counts = [finding.effect for finding in findings]
    parts = [f"{counts.count(effect)} {effect}" for effect in ("refused", "ignored", "needed")]
    click.echo(f"{'' if not findings else chr(10)}with Kuma {version}: {', '.join(parts)}")
