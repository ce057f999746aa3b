"""Envoy's command line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# What would undo the guard, or is ours to decide. Envoy merges --config-yaml over the file: the admin could be moved.
REFUSED: dict[str, str] = {
    "--config-path": "the bootstrap is kumadp's",
    "--config-yaml": "it would be merged over the guarded bootstrap",
    "--admin-address-path": "the admin's address is kumadp's",
    "--mode": "Envoy must serve",
    "--base-id": "hot restart is kumadp's",
    "--base-id-path": "hot restart is kumadp's",
    "--use-dynamic-base-id": "hot restart is kumadp's",
    "--restart-epoch": "hot restart is kumadp's",
    "--disable-hot-restart": "it is set already",
    "--parent-shutdown-time-s": "hot restart is kumadp's",
    "--drain-time-s": "it comes from --drain-time",
    "--drain-strategy": "it is set already",
    "--log-path": "the output goes through kumadp's log",
    "--log-level": "use --envoy-log-level",
    "--component-log-level": "use --envoy-component-log-level",
    "--concurrency": "use --concurrency of kumadp",
    "--version": "Envoy must serve",
    "--help": "Envoy must serve",
    "--hot-restart-version": "Envoy must serve",
    "--socket-path": "hot restart is kumadp's",
    "--socket-mode": "hot restart is kumadp's",
    "--skip-hot-restart-on-no-parent": "hot restart is kumadp's",
    "--skip-hot-restart-parent-stats": "hot restart is kumadp's",
    "--cpuset-threads": "it is set already, unless --concurrency of kumadp is",
    "--": "Envoy would not read what follows",
}
_SHORT = {"-c": "--config-path", "-l": "--log-level", "-h": "--help"}


def check_extra(extra: Sequence[str]) -> list[Problem]:
    """What is wrong with arguments that a user adds to Envoy's."""
    problems = []
    for argument in extra:
        if not argument.startswith("-"):
            continue
        # Envoy's parser takes a name and its value in one argument too, with a space between (TCLAP, seen with 1.40).
        name = re.split("[= ]", argument, maxsplit=1)[0]
        full = _SHORT.get(name[:2], name) if not name.startswith("--") else name
        refused = [known for known in REFUSED if known == full or (len(full) > 3 and known.startswith(full))]
        if refused:
            problems.append(Problem("--envoy-arg", f"{name} is not allowed", REFUSED[refused[0]]))
    return problems


def envoy_argv(
    binary: Path,
    config_path: Path,
    *,
    drain_time: float,
    log_level: str,
    component_log_level: str,
    concurrency: int,
    extra: Sequence[str] = (),
) -> tuple[str, ...]:
    """The command line as kuma-dp builds it (Kuma 2.8 and 2.14), then ``extra``. ``drain_time`` in seconds."""
    argv = [
        str(binary),
        "--config-path",
        str(config_path),
        "--drain-time-s",
        str(int(drain_time)),
        "--drain-strategy",
        "immediate",
        "--disable-hot-restart",
        "--log-level",
        log_level,
    ]
    if component_log_level:
        argv += ["--component-log-level", component_log_level]
    argv += ["--concurrency", str(concurrency)] if concurrency > 0 else ["--cpuset-threads"]
    return (*argv, *extra)
