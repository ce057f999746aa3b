"""Pieces that wait to be pushed, and options without secrets in their text."""

from __future__ import annotations

import zlib

from kumadp.exposition.reader import Family, Piece
from kumadp.otel.export_types import CompressedPiece, ExportOptions


def test_a_compressed_piece_is_restored() -> None:
    piece = Piece(Family(b"a"), b'a{x="1"} 1\n' * 1000)
    compressed = CompressedPiece("envoy", piece.family, zlib.compress(piece.samples, 1))
    assert len(compressed.compressed) * 10 < len(piece.samples)
    assert compressed.piece == piece


def test_headers_are_not_printed() -> None:
    assert "secret" not in repr(ExportOptions("web", {"api-key": "secret"}))
