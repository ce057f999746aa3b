"""The check of `kumadp run` that the running kumadp makes of the program that is to replace it."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

import kumadp
from kumadp.errors import HandoverFailed
from kumadp.host.reexec.handover import read
from kumadp.host.reexec.interim_responder import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

# Modules of an extra, which need not be installed: kumadp.otel handles their absence.
_OF_EXTRAS = frozenset({"kumadp.otel.exporter", "kumadp.otel.metric_mapper"})
# Modules that ours import only when they need them.
_LATE = ("aiohttp.web", "grpclib.client", "grpclib.server", "psutil")


def import_all() -> None:
    """Import all modules that a run needs; raises HandoverFailed."""
    modules = pkgutil.walk_packages(kumadp.__path__, "kumadp.")
    ours = [module.name for module in modules if not module.name.startswith(("kumadp.cli.", "kumadp.__main__"))]
    for name in (*(name for name in ours if name not in _OF_EXTRAS), *_LATE):
        try:
            importlib.import_module(name)
        except Exception as error:
            raise HandoverFailed(f"{name} cannot be imported: {type(error).__name__}: {error}") from None


def pass_check(environ: Mapping[str, str]) -> None:
    """Import all modules that a run needs, decode the handover, and print the version.

    Raises HandoverFailed, and WorkDirError if the new program could not write to the work directory.
    """
    import_all()
    from kumadp.core.part import section_types
    from kumadp.daemon.reexec import check_sections
    from kumadp.host.work_dir import check_free_space

    section = check_sections(read(int(environ.get(VARIABLE, "-1"))), section_types())
    check_free_space(Path(section.work.path))
    click.echo(f"kumadp {kumadp.__version__}")
