"""A kuma-dp as a service of a compose file (the Compose Specification: services)."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from kumadp import yamltext
from kumadp.errors import CommandRefused, on_one_line
from kumadp.migrate.source import KumaDp

_BOUNDS = yamltext.Bounds(size=1 << 20, depth=50)
_NAME = "kuma-dp"


def service(name: str, chosen: str = "") -> KumaDp:
    """Return the kuma-dp of a compose file: of the service ``chosen``, or of the only one that has one.

    Raises CommandRefused.
    """
    path = Path(name).absolute()
    services = _services(path)
    found = {key: value for key, value in services.items() if _is_kuma_dp(value)}
    if chosen and chosen not in found:
        raise CommandRefused(f"{path}: no service {on_one_line(chosen)} that runs kuma-dp", _listed(found))
    if not chosen and len(found) != 1:
        many = "several services run kuma-dp" if found else "no service runs kuma-dp"
        raise CommandRefused(f"{path}: {many}", f"choose one with --service: {_listed(found)}" if found else "")
    key = chosen or next(iter(found))
    entry = found[key]
    words = _command(entry)
    problems: list[str] = []
    environ = _environment(entry, path.parent, problems)
    start = next((index for index, word in enumerate(words) if Path(word).name == _NAME), -1)
    return KumaDp(
        f"service {on_one_line(key)} of {path}",
        tuple(words[start + 1 :]),
        environ,
        Path(str(entry.get("working_dir") or "/")),
        str(entry.get("user") or ""),
        problems=tuple(problems),
        service=key,
    )


def _services(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tree: Any = yamltext.load(yamltext.read(str(path), _BOUNDS), _BOUNDS)
    except UnicodeDecodeError:
        raise CommandRefused(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise CommandRefused(f"{path}: {error.strerror}", "give a unit or a compose file") from None
    except (yaml.YAMLError, ValueError) as error:
        raise CommandRefused(f"{path}: not YAML: {yamltext.reason(error)}", "give a unit or a compose file") from None
    services = tree.get("services") if isinstance(tree, dict) else None
    if not isinstance(services, dict):
        raise CommandRefused(f"{path}: no compose file: it has no services")
    return {str(key): value for key, value in services.items() if isinstance(value, dict)}


def _is_kuma_dp(entry: dict[str, Any]) -> bool:
    image = str(entry.get("image") or "").rpartition("/")[2].partition(":")[0]
    words = _command(entry)
    return image == _NAME or _NAME in {Path(word).name for word in words}


def _listed(found: dict[str, dict[str, Any]]) -> str:
    return ", ".join(map(on_one_line, found)) or "none runs it"


def _command(entry: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for key in ("entrypoint", "command"):
        value = entry.get(key)
        if isinstance(value, str):
            try:
                words += shlex.split(value)
            except ValueError:
                words += value.split()
        elif isinstance(value, list):
            words += map(str, value)
    return words


def _environment(entry: dict[str, Any], folder: Path, problems: list[str]) -> dict[str, str]:
    environ: dict[str, str] = {}
    files = entry.get("env_file") or ()
    for file in files if isinstance(files, list) else [files]:
        if not file:
            continue
        name = str(file.get("path", "")) if isinstance(file, dict) else str(file)
        try:
            lines = yamltext.read(str(folder / name), _BOUNDS).splitlines()
        except (OSError, UnicodeDecodeError):
            problems.append(f"env_file {name} cannot be read")
            continue
        environ |= dict(line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
    given = entry.get("environment") or {}
    if isinstance(given, dict):
        environ |= {str(name): "" if value is None else _text(value) for name, value in given.items()}
    elif isinstance(given, list):
        environ |= dict(str(pair).split("=", 1) for pair in given if "=" in str(pair))
    for name, value in environ.items():
        if name.startswith("KUMA_") and "${" in value:
            problems.append(
                f"{name} is set from a variable of the shell that runs compose: its value is not known here"
            )
    return environ


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
