"""Types that the push and the exporter share; the exporter itself is imported with the first push only."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from kumadp.exposition.reader import Piece

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.exposition.reader import Family


class ExportFailed(Exception):
    """The collector did not accept all metrics of a push; the text is the reason."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How exporters send: ``service`` names the data plane, ``timeout`` is that of one message (seconds).

    ``attribute_names`` are names of attributes by those of labels, where they differ.
    """

    service: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    gzip: bool = False
    timeout: float = 10.0
    attribute_names: Mapping[str, str] = field(default_factory=dict)


class CompressedPiece(NamedTuple):
    """A piece that waits to be pushed, compressed: exposition text shrinks to a tenth."""

    scope: str
    family: Family
    compressed: bytes

    @property
    def piece(self) -> Piece:
        """The piece, decompressed."""
        return Piece(self.family, zlib.decompress(self.compressed))
