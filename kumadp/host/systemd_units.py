"""The files of an installation under systemd: units, the user, samples, settings; written, compared, removed."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.errors import WorkDirError
from kumadp.host.private_file import make_folders, write_private

if TYPE_CHECKING:
    from collections.abc import Iterable

UNITS = ("kumadp.service", "kumadp@.service")
USERS = "kumadp.sysusers"
SAMPLES = ("kumadp.yaml", "dataplane.yaml")
USER = "kumadp"
SETTINGS = Path("/etc/kumadp")
_UNIT_FOLDER = Path("/etc/systemd/system")
_USERS_FILE = Path("/etc/sysusers.d/kumadp.conf")
# Where a package has its files instead, by folder.
_PACKAGED = {_UNIT_FOLDER: Path("/lib/systemd/system"), _USERS_FILE.parent: Path("/usr/lib/sysusers.d")}
# Folders that the shipped units hide (ProtectHome, PrivateTmp).
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108
# The program as the shipped units name it.
_PROGRAM = "/usr/bin/kumadp"


class InstalledFile(Struct, frozen=True):
    """A file of the installation. One that the operator owns and edits (``operator_owned``) is written only once."""

    path: Path
    content: bytes
    mode: int = 0o644
    operator_owned: bool = False


def shipped(folder: str, name: str) -> bytes:
    """Return a file that ships with kumadp in ``systemd`` or ``configs``. Raises WorkDirError if it is missing."""
    package = Path(__file__).resolve().parent.parent.parent
    for place in (package, package / "share" / "kumadp", Path(sys.prefix) / "share" / "kumadp"):
        if (path := place / folder / name).is_file():
            return path.read_bytes()
    raise WorkDirError(f"{folder}/{name} is not there", "install kumadp again")


def unit_of(name: str) -> str:
    """Return the unit of the data plane ``name``; an empty name is the only data plane of a host."""
    return f"kumadp@{name}.service" if name else UNITS[0]


def settings_file(name: str) -> Path:
    """Return the path of that unit's settings file."""
    return SETTINGS / f"{name or 'kumadp'}.yaml"


def drop_in_file(name: str) -> Path:
    """Return the path of that unit's drop-in, which `kumadp migrate` writes."""
    return _UNIT_FOLDER / f"{unit_of(name)}.d" / "migrate.conf"


def is_hidden(path: Path | str) -> bool:
    """Return whether the shipped units cannot see a path."""
    return any(Path(path).is_relative_to(folder) for folder in HIDDEN)


def base_files(program: str) -> list[InstalledFile]:
    """Return the files that every data plane of the host needs; ``program`` is the absolute path of this kumadp."""
    files = [
        InstalledFile(_UNIT_FOLDER / name, shipped("systemd", name).replace(_PROGRAM.encode(), program.encode()))
        for name in UNITS
    ]
    files.append(InstalledFile(_USERS_FILE, shipped("systemd", USERS)))
    return files + [InstalledFile(SETTINGS / f"{name}.sample", shipped("configs", name)) for name in SAMPLES]


def differs(file: InstalledFile, root: Path) -> bool | None:
    """Return whether the file on disk has other content; None if there is no such file."""
    try:
        return _below(root, file.path).read_bytes() != file.content
    except FileNotFoundError:
        return None


def packaged(file: InstalledFile, root: Path) -> Path | None:
    """Return where the Debian package has installed a file with this content, None if it has not."""
    folder = _PACKAGED.get(file.path.parent)
    if folder is None:
        return None
    with contextlib.suppress(FileNotFoundError):
        if _below(root, folder / file.path.name).read_bytes() == file.content:
            return folder / file.path.name
    return None


def write(file: InstalledFile, root: Path) -> None:
    """Write the file, with its folder; raises WorkDirError."""
    path = _below(root, file.path)
    try:
        make_folders(path.parent, 0o755)
        # On some distributions the folder of units is a link.
        write_private(path.parent.resolve() / path.name, file.content)
        path.chmod(file.mode)
    except OSError as error:
        raise WorkDirError(f"{path} cannot be written: {error.strerror or error}", "run it as root") from None


def remove(paths: Iterable[Path], root: Path) -> list[Path]:
    """Remove these files; return those that existed. Raises WorkDirError."""
    removed = []
    for path in paths:
        try:
            _below(root, path).unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise WorkDirError(f"{path} cannot be removed: {error.strerror or error}", "run it as root") from None
        removed.append(path)
    return removed


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
