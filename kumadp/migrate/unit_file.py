"""A kuma-dp as a unit of systemd starts it (systemd.unit(5), systemd.service(5), systemd.exec(5))."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp import yamltext
from kumadp.errors import CommandRefused, on_one_line
from kumadp.migrate.source import KumaDp

if TYPE_CHECKING:
    from collections.abc import Iterator

# In the order in which systemd uses them (systemd.unit(5)).
FOLDERS = (
    Path("/etc/systemd/system"),
    Path("/run/systemd/system"),
    Path("/usr/local/lib/systemd/system"),
    Path("/usr/lib/systemd/system"),
    Path("/lib/systemd/system"),
)
_BOUNDS = yamltext.Bounds(size=1 << 20, depth=1)
_PREFIXES = "@-:+!|"
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
Setting = tuple[str, str]


def unit(name: str) -> KumaDp:
    """Return the kuma-dp of a unit, by its path or its name; with its drop-ins. Raises CommandRefused."""
    path = _path(name)
    files = [path, *_drop_ins(path)]
    specifiers = _specifiers(path.name)
    settings = [setting for file in files for setting in _service(_read(file), specifiers)]
    command = _last(settings, "ExecStart")
    if not command:
        raise CommandRefused(f"{path} starts nothing: it has no ExecStart in [Service]")
    environ, problems = _environment(settings)
    program, *arguments = _words(command, environ)
    if Path(program).name != "kuma-dp" or "run" not in arguments:
        raise CommandRefused(f"{path} does not start `kuma-dp run`: {on_one_line(program)}", "give the unit of kuma-dp")
    user = _last(settings, "User") or "root"
    if _last(settings, "DynamicUser").lower() in {"yes", "true", "1", "on"}:
        user = ""
    return KumaDp(
        f"unit {path}",
        tuple(arguments),
        environ,
        Path(_last(settings, "WorkingDirectory").lstrip("-").replace("~", "/") or "/"),
        user,
        _last(settings, "Group") or user,
        program,
        path.name,
        problems=tuple(problems),
    )


def _path(name: str) -> Path:
    path = Path(name)
    if "/" not in name and not path.exists():
        path = next((folder / name for folder in FOLDERS if (folder / name).exists()), path)
    if not path.is_file():
        raise CommandRefused(f"{name}: no such unit", "give the path of its file")
    return path.absolute()


def _drop_ins(path: Path) -> list[Path]:
    folders = [folder / f"{path.name}.d" for folder in (*reversed(FOLDERS), path.parent)]
    found = {file.name: file for folder in folders for file in folder.glob("*.conf")}
    return [found[name] for name in sorted(found)]


def _read(path: Path) -> str:
    try:
        return yamltext.read(str(path), _BOUNDS)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise CommandRefused(f"{path}: {reason}", "run this as root") from None


def _specifiers(name: str) -> dict[str, str]:
    base = name.removesuffix(".service")
    prefix, _, instance = base.partition("@")
    return {"%%": "%", "%i": instance, "%I": instance, "%p": prefix, "%N": base, "%n": name}


def _service(text: str, specifiers: dict[str, str]) -> Iterator[Setting]:
    """Yield the settings of [Service] in their order: continued lines as one, without comments."""
    section, pending = "", ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith(("#", ";")) or not (line or pending):
            continue
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        line, pending = pending, ""
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line:
            key, _, value = line.partition("=")
            yield key.strip(), re.sub(r"%.", lambda found: specifiers.get(found[0], found[0]), value.strip())


def _values(settings: list[Setting], key: str) -> list[str]:
    """Return the values of a setting that may be repeated; an empty one clears those before it."""
    values: list[str] = []
    for name, value in settings:
        if name == key:
            values = [*values, value] if value else []
    return values


def _last(settings: list[Setting], key: str) -> str:
    return next(reversed(_values(settings, key)), "")


def _environment(settings: list[Setting]) -> tuple[dict[str, str], list[str]]:
    environ: dict[str, str] = {}
    problems = []
    for value in _values(settings, "Environment"):
        try:
            environ.update(_assignments(shlex.split(value)))
        except ValueError as error:
            problems.append(f"Environment= cannot be read: {error}")
    for value in _values(settings, "EnvironmentFile"):
        path = Path(value.lstrip("-"))
        try:
            lines = [line.strip() for line in _read(path).splitlines()]
        except CommandRefused:
            if not value.startswith("-") or path.exists():
                problems.append(f"EnvironmentFile {path} cannot be read: run this as root, where it is")
            continue
        for line in lines:
            if line and not line.startswith(("#", ";")):
                with contextlib.suppress(ValueError):
                    name, _, text = line.partition("=")
                    environ[name.strip()] = " ".join(shlex.split(text))
    return environ, problems


def _assignments(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words if "=" in word)


def _words(command: str, environ: dict[str, str]) -> list[str]:
    try:
        words = shlex.split(command.lstrip(_PREFIXES))
    except ValueError as error:
        raise CommandRefused(f"ExecStart cannot be read: {error}") from None
    expanded: list[str] = []
    for word in words:
        if whole := re.fullmatch(r"\$(\w+)", word):
            # Alone it becomes several words (systemd.service(5), "Command lines").
            expanded += environ.get(whole[1], "").split()
        else:
            expanded.append(_VARIABLE.sub(lambda found: environ.get(found[1] or found[2], ""), word))
    return expanded or [""]
