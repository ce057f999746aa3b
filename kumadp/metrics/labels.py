"""Labels that a MeshMetric policy adds to every sample (Kuma 2.8 to 2.14)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.exposition.reader import Piece, split_lines

if TYPE_CHECKING:
    from collections.abc import Mapping


class Labels:
    """Adds labels to every sample, and replaces existing labels of the same names (Kuma 2.8 to 2.14)."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        named = {label_name(name).encode(): _escaped(value) for name, value in sorted(labels.items())}
        self._text = b",".join(b'%b="%b"' % (name, value) for name, value in named.items())
        self._begin = [name + b'="' for name in named]
        names = b"|".join(re.escape(name) for name in named)
        self._clash = re.compile(rb"(?<=[{,])(?:" + names + rb')="(?:[^"\\\n]|\\[^\n])*+",?') if named else None

    def add(self, piece: Piece) -> Piece:
        """Return the piece with the labels."""
        family, samples = piece
        return Piece(family, self._add(samples)) if self._clash is not None and samples else piece

    def _add(self, lines: bytes) -> bytes:
        assert self._clash is not None  # noqa: S101
        if any(begin in lines for begin in self._begin):
            lines = self._clash.sub(b"", lines)
        count = lines.count(b"\n")
        if lines.count(b"{") == 0:
            return _BARE.sub(rb"\1{" + self._text.replace(b"\\", b"\\\\") + rb"} ", lines)
        if lines.count(b'"} ') == count == lines.count(b"}"):
            return lines.replace(b'"} ', b'",' + self._text + b"} ")
        return b"".join(self._line(line) for line in split_lines(lines))

    def _line(self, line: bytes) -> bytes:
        match = _SERIES_OF_LINE.match(line)
        if match is None:
            return line
        name, labels = match[1], match[2]
        inside = labels[1:-1].strip(b" \t,") if labels else b""
        return (
            name + b"{" + (inside + b"," if inside else b"") + self._text + b"} " + line[match.end() :].lstrip(b" \t")
        )


_BARE = re.compile(rb"^([^{ \t\n]+)[ \t]+", re.M)
_SERIES_OF_LINE = re.compile(rb'([^{ \t\n]*)[ \t]*(\{(?:[^"}\n]*+"(?:[^"\\\n]|\\[^\n])*+")*+[^"}\n]*+\})?')


def label_name(name: str) -> str:
    """Return the name as OpenTelemetry's exporter for Prometheus writes it: invalid characters become underscores."""
    text = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    return f"_{text}" if text[:1].isdigit() else text


def _escaped(value: str) -> bytes:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n").encode()
