"""What `kumadp run` does in place of running when it is tried by the kumadp that it is to replace."""

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

# Of an extra, which need not be installed: the part that wants them says so by itself (kumadp.otel.offer).
_OF_EXTRAS = frozenset({"kumadp.otel.exporter", "kumadp.otel.metric_mapper"})
# What our modules import only when they need it.
_LATE = ("aiohttp.web", "grpclib.client", "grpclib.server", "psutil")


def import_all() -> None:
    """Import all that a run needs; raises HandoverFailed."""
    found = pkgutil.walk_packages(kumadp.__path__, "kumadp.")
    ours = [module.name for module in found if not module.name.startswith(("kumadp.cli.", "kumadp.__main__"))]
    for name in (*(name for name in ours if name not in _OF_EXTRAS), *_LATE):
        try:
            importlib.import_module(name)
        except Exception as error:
            raise HandoverFailed(f"{name} cannot be imported: {type(error).__name__}: {error}") from None


def pass_check(environ: Mapping[str, str]) -> None:
    """Import all that a run needs, decode what is handed over, print the version.

    Raises HandoverFailed, and WorkDirError if the work directory cannot be written as the new program would.
    """
    import_all()
    from kumadp.daemon.adoption import decode_left
    from kumadp.host.work_dir import check_free_space

    left = decode_left(read(int(environ.get(VARIABLE, "-1"))))
    check_free_space(Path(left.work.path))
    click.echo(f"kumadp {kumadp.__version__}")
