"""Envoy's command line."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kumadp.settings.model import Settings

# Arguments that would undo the admin guard, or that kumadp sets itself. Envoy merges --config-yaml over the file, which
# could move the admin.
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
    """Return a Problem for each argument of the user that kumadp does not pass on to Envoy."""
    problems = []
    for argument in extra:
        if not argument.startswith("-"):
            continue
        # Envoy's parser takes a name and its value in one argument too, with a space between (TCLAP, seen with 1.40).
        name = re.split("[= ]", argument, maxsplit=1)[0]
        full = _SHORT.get(name[:2], name) if not name.startswith("--") else name
        refused = [option for option in REFUSED if option == full or (len(full) > 3 and option.startswith(full))]
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
    """Return the command line as kuma-dp builds it (Kuma 2.8 and 2.14), then ``extra``. ``drain_time`` in seconds."""
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


class EpochArguments(Struct, frozen=True):
    """Hot restart arguments of an epoch.

    ``base_id`` None: epoch 0, whose base id Envoy chooses and writes to ``base_id_file``. ``parent_shutdown`` is in
    seconds from LIVE. ``concurrency`` is the number of workers, None: as in the command line.
    """

    number: int
    base_id: int | None
    base_id_file: Path
    sockets: Path
    parent_shutdown: float
    concurrency: int | None = None


def epoch_argv(argv: Sequence[str], epoch: EpochArguments) -> tuple[str, ...]:
    """Return the command line of `envoy_argv` with hot restart in place of ``--disable-hot-restart``.

    Envoy docs, hot restart: a dynamic base id is for epoch 0 alone. The sockets are files that only the owner may use;
    by default they are abstract, and any process of the host may connect. Statistics of the parent are not copied: the
    new epoch's main thread would wait for the old one's every five seconds.
    """
    if epoch.base_id is None:
        which: tuple[str, ...] = ("--use-dynamic-base-id", "--base-id-path", str(epoch.base_id_file))
    else:
        which = ("--base-id", str(epoch.base_id), "--restart-epoch", str(epoch.number))
    argv_of_epoch: list[str] = []
    for argument in argv:
        if argument == "--disable-hot-restart":
            argv_of_epoch += [*which, "--socket-path", str(epoch.sockets), "--socket-mode", "600"]
            argv_of_epoch += ["--parent-shutdown-time-s", str(math.ceil(epoch.parent_shutdown))]
            argv_of_epoch += ["--skip-hot-restart-parent-stats"]
        elif argument == "--cpuset-threads" and epoch.concurrency is not None:
            argv_of_epoch += ["--concurrency", str(epoch.concurrency)]
        else:
            argv_of_epoch.append(argument)
    return tuple(argv_of_epoch)


def workers_of(argv: Sequence[str]) -> int | None:
    """Return the number of workers in a command line, None if Envoy counts the processors."""
    return int(argv[argv.index("--concurrency") + 1]) if "--concurrency" in argv else None


def envoy_level(settings: Settings) -> str:
    """Return the log level that Envoy is started with."""
    level = settings.envoy_log_level or settings.log_level
    return "warning" if level == "warn" else level
