"""``kumadp install`` and ``kumadp uninstall``."""

from __future__ import annotations

import grp
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kumadp.errors import CommandRefused, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from click.decorators import FC

    from kumadp.host.systemd_units import InstalledFile

# Characters that a unit's name may contain without escapes (systemd.unit(5)); the name is also used for a file.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _place_options(function: FC) -> FC:
    dry = "Print what would be done, and do nothing."
    function = click.option("--dry-run", is_flag=True, help=dry)(function)
    root = "Root of another file system (an image that is being built): only files are installed."
    function = click.option("--root", default="/", metavar="PATH", help=root)(function)
    name = "Name of the data plane, for the unit kumadp@NAME. Default: the unit kumadp, for the only one."
    function = click.option("--name", default="", callback=_checked_name, help=name)(function)
    systemd = "Use systemd. Required: no other service manager is supported."
    return click.option("--systemd", is_flag=True, help=systemd)(function)


def _checked_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    return checked_name(value)


def checked_name(value: str) -> str:
    """Return a name that can be part of a unit's name; raises UsageError for another."""
    if value and not _NAME.fullmatch(value):
        raise UsageError(f"--name: {value!r} cannot be part of a unit's name", "letters, digits, dot, dash, underscore")
    return value


def _file_option(name: str, about: str) -> Callable[[FC], FC]:
    return click.option(name, default="", metavar="PATH", help=about)


@click.command()
@_place_options
@click.option("--cp-address", default="", metavar="URL", help="Address of the control plane, written to the settings.")
@_file_option("--ca-cert-file", "CA of the control plane, written to the settings.")
@_file_option("--dataplane-file", "The Dataplane, written to the settings.")
@_file_option("--dataplane-token-file", "Its token, written to the settings.")
@click.option("--standalone", default="", metavar="PATH", help="Dataplane file or directory, without a control plane.")
def install(systemd: bool, name: str, root: str, dry_run: bool, **settings: str) -> None:
    """Install this kumadp as a service of the host: units, user, samples, settings.

    Nothing is started; the next step is printed. Running it again updates the units. Existing settings are never
    overwritten.
    """
    from kumadp.host.systemd_units import unit_of

    _require_systemd(systemd)
    files = (value for key, value in settings.items() if key != "cp_address")
    missing = [f"{file}: no such file" for file in files if _is_missing(file)]
    if missing:
        raise CommandRefused("; ".join(missing), "give paths that exist")
    install_files([_settings(name, settings)], Path(root), dry_run=dry_run)
    for value in settings.values():
        _warn(value)
    click.echo(f"next: systemctl enable --now {unit_of(name)}")


def install_files(files: Sequence[InstalledFile], root: Path, *, dry_run: bool = False, err: bool = False) -> None:
    """Install units, user and samples, and these files; nothing is started.

    Prints each file, on standard error with ``err``. Raises CommandRefused, WorkDirError.
    """
    from kumadp.host.systemd_units import base_files, is_hidden

    program = _program()
    changed = [_put(file, root, dry_run, err) for file in (*base_files(program), *files)]
    # Without its Python, which may be one of pyenv, it would not start either.
    if hidden := next((path for path in (program, sys.base_prefix) if is_hidden(path)), ""):
        hint = "install kumadp elsewhere: its Debian package, or a virtual environment in /opt"
        click.echo(f"warning: the unit cannot see {hidden}: {hint}", err=True)
    if root == Path("/") and not dry_run:
        _make_user()
        if any(changed) and Path("/run/systemd/system").is_dir():
            subprocess.run(["systemctl", "daemon-reload"], check=True)


@click.command()
@_place_options
@click.option("--purge", is_flag=True, help="Remove the settings too.")
def uninstall(systemd: bool, name: str, root: str, dry_run: bool, purge: bool) -> None:
    """Remove the files of `kumadp install`: of one data plane with --name, of all without. Settings are kept.

    Running services are stopped first, with their drain.
    """
    from kumadp.host.systemd_units import SETTINGS, base_files, drop_in_file, remove, settings_file, unit_of

    _require_systemd(systemd)
    tree = Path(root)
    paths = [] if name else [file.path for file in base_files(_program())]
    drop_ins = [drop_in_file(name)] if name else [drop_in_file(""), *_drop_ins(tree)]
    paths += [path for path in drop_ins if (tree / path.relative_to("/")).exists()]
    if purge:
        settings = (tree / SETTINGS.relative_to("/")).glob("*.yaml")
        paths += [settings_file(name)] if name else [SETTINGS / path.name for path in sorted(settings)]
    if dry_run:
        for path in paths:
            click.echo(f"would remove {path}")
        return
    live = root == "/" and Path("/run/systemd/system").is_dir()
    if live:
        _stop([unit_of(name)] if name else [unit_of(""), "kumadp@*.service"])
    for path in remove(paths, tree):
        click.echo(f"removed {path}")
    if live:
        subprocess.run(["systemctl", "daemon-reload"], check=True)


def _drop_ins(tree: Path) -> list[Path]:
    """Return the drop-ins of `kumadp migrate`, of all data planes."""
    from kumadp.host.systemd_units import drop_in_file

    pattern = drop_in_file("*").relative_to("/")
    return [Path("/") / path.relative_to(tree) for path in sorted(tree.glob(str(pattern)))]


def _stop(units: list[str]) -> None:
    """Stop units and disable them, so that no boot starts them; ``units`` may be patterns."""
    subprocess.run(["systemctl", "stop", *units], check=False)
    folder = Path("/etc/systemd/system/multi-user.target.wants")
    enabled = sorted({path.name for unit in units for path in folder.glob(unit)})
    if enabled:
        subprocess.run(["systemctl", "disable", "--quiet", *enabled], check=False)


def _require_systemd(systemd: bool) -> None:
    if not systemd:
        raise UsageError("--systemd is required: no other service manager is supported")


def _is_missing(value: str) -> bool:
    return bool(value) and not Path(value).exists()


def _program() -> str:
    """Return the absolute path of this kumadp; raises CommandRefused."""
    program = shutil.which(sys.argv[0])
    if program is None:
        raise CommandRefused(f"{sys.argv[0]} is not a program that a unit could start", "call kumadp by its path")
    return str(Path(program).absolute())


def _settings(name: str, given: dict[str, str]) -> InstalledFile:
    from kumadp.host.systemd_units import InstalledFile, settings_file

    return InstalledFile(settings_file(name), _settings_text(given).encode(), 0o640, operator_owned=True)


def _settings_text(given: dict[str, str]) -> str:
    """Return the settings file for the given options, with absolute paths."""
    import yaml

    keys = {
        "cp_address": "controlPlane.url",
        "ca_cert_file": "controlPlane.caCertFile",
        "dataplane_file": "dataplaneRuntime.resourcePath",
        "dataplane_token_file": "dataplaneRuntime.tokenPath",
        "standalone": "standalone.path",
    }
    tree: dict[str, dict[str, str]] = {}
    for option, key in keys.items():
        if value := given[option]:
            section, setting = key.split(".")
            text = value if option == "cp_address" else str(Path(value).absolute())
            tree.setdefault(section, {})[setting] = text
    head = "# Settings of kumadp; /etc/kumadp/kumadp.yaml.sample has all of them.\n"
    return head + (yaml.safe_dump(tree, sort_keys=False) if tree else "")


def _put(file: InstalledFile, root: Path, dry_run: bool, err: bool) -> bool:
    """Write a file that is missing or differs, and print that; return whether it was (or would be) written."""
    from kumadp.host.systemd_units import differs, packaged, write

    is_different = differs(file, root)
    if is_different is None and (place := packaged(file, root)) is not None:
        # A copy of it in /etc would hide what an upgrade of the package brings.
        click.echo(f"unchanged {place}", err=err)
        return False
    if is_different is False:
        click.echo(f"unchanged {file.path}", err=err)
        return False
    if is_different and file.operator_owned:
        click.echo(f"kept {file.path}, which differs from what would be written now", err=err)
        return False
    if not dry_run:
        write(file, root)
    click.echo(f"{'would write' if dry_run else 'wrote'} {file.path}", err=err)
    return True


def _make_user() -> None:
    """Create the user of the units, and let it read the settings; raises CommandRefused."""
    from kumadp.host.systemd_units import SETTINGS, USER

    try:
        subprocess.run(["systemd-sysusers", "kumadp.conf"], check=True, capture_output=True, text=True)
        group = grp.getgrnam(USER).gr_gid
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        hint = f"create it: useradd -r {USER}"
        raise CommandRefused(f"user {USER} cannot be created: {reason.strip()}", hint) from None
    SETTINGS.chmod(0o750)
    os.chown(SETTINGS, 0, group)
    for path in SETTINGS.iterdir():
        # Settings, and what `kumadp migrate` writes beside them; files of the operator keep their groups.
        if path.suffix == ".yaml" or (path.suffix in {".env", ".token"} and path.stat().st_mode & 0o777 == 0o640):
            os.chown(path, -1, group)


def _warn(value: str) -> None:
    """Print a warning about a file that the unit cannot read."""
    from kumadp.host.systemd_units import is_hidden

    if not value.strip() or "://" in value:
        return
    path = Path(value).absolute()
    if is_hidden(path):
        click.echo(f"warning: the unit cannot see {path}: move it, for example to /etc/kumadp", err=True)
    elif not path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        click.echo(f"warning: user kumadp cannot read {path}: chgrp kumadp {path} && chmod 640 {path}", err=True)
