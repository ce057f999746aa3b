"""The bootstrap as it was fetched, kept for the next kumadp: in the work directory, and over a re-execution."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec

from kumadp.bootstrap.prepare import Aggregated, Fetched
from kumadp.decoding import Undecodable, decode_json
from kumadp.host.private_file import read_private, write_json
from kumadp.host.work_dir import SOURCE_FILE

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("kumadp.controlplane")

_LARGEST = 32 << 20  # bytes


class Source(msgspec.Struct, frozen=True):
    """A bootstrap as the control plane made it, without the token; ``at`` in seconds since 1970."""

    tree: dict[str, Any]
    corefile_template: str | None
    at: float
    address: str = ""
    aggregate: tuple[Aggregated, ...] = ()
    dataplane: str = ""

    @classmethod
    def of(cls, fetched: Fetched) -> Source:
        """Return what of a bootstrap may be kept."""
        from kumadp.bootstrap.secrets import without_token

        return cls(
            without_token(fetched.tree),
            fetched.corefile_template,
            fetched.at,
            fetched.address,
            fetched.aggregate,
            fetched.dataplane,
        )

    def fetched(self) -> Fetched:
        """Return it as it was fetched, but for the token."""
        return Fetched(self.tree, self.corefile_template, self.at, "", self.address, self.aggregate, self.dataplane)


def write_source(directory: Path, fetched: Fetched) -> None:
    """Keep the bootstrap for the next kumadp, 0600, without the token; a failure costs a warning. May block."""
    try:
        write_json(directory / SOURCE_FILE, Source.of(fetched))
    except OSError as error:
        log.warning("%s cannot be written: %s", directory / SOURCE_FILE, error.strerror)


def read_source(directory: Path) -> Fetched | None:
    """Return the bootstrap that was kept there, None if there is none or none that can be used. May block."""
    try:
        return decode_json(read_private(directory / SOURCE_FILE, _LARGEST), Source).fetched()
    except FileNotFoundError:
        return None
    except (OSError, Undecodable) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        log.warning(
            "%s is ignored: %s; the bootstrap is requested from the control plane", directory / SOURCE_FILE, reason
        )
        return None
