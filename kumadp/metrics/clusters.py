"""Merger of clusters in Envoy's metrics, for scrapes without a policy (Kuma 2.8 to 2.14).

Kuma splits a service into clusters whose names end in a hash, and Envoy has separate metrics for each. The merger cuts
the hash, sums equal series of a family, and adds a label to the series of mesh traffic.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from kumadp.exposition.reader import SAMPLE, SLICE, Piece, split_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kumadp.exposition.reader import Family

_CLUSTER_LABEL, _HTTP_LABEL = b'envoy_cluster_name="', b'envoy_http_conn_manager_prefix="'
_MARK = b',kuma_io_mesh_traffic="true"} '
_END = b'"} '
# Kuma's own clusters and connection managers, whose traffic is not that of the mesh.
_INTERNAL_CLUSTERS = (
    b"ads_cluster",
    b"access_log_sink",
    b"system_ads",
    b"system_access_log_sink",
    b"kuma_envoy_admin",
    b"kuma_metrics_hijacker",
)
_INTERNAL_PREFIXES = (b"admin", b"kuma_envoy_admin", b"kuma_metrics_prometheus")
_VALUE = rb'((?:[^"\\\n]|\\[^\n])*+)"'
_HASH = re.compile(rb'-[0-9a-fA-F]{16}"')
_HASHED = re.compile(rb'([{,]envoy_cluster_name="[^"\\\n]*?)-[0-9a-fA-F]{16}"')
_ENDS_HASHED = re.compile(rb'[{,]envoy_cluster_name="[^"\\\n]*+(?<=-[0-9a-fA-F]{16})"')


class ClusterMerger:
    """Accepts the pieces of an exposition and returns the merged ones, in their order.

    A family of clusters is buffered until its end. A family in which a sample has no cluster is dropped and counted in
    ``skipped``; kuma-dp then drops the whole exposition.
    """

    def __init__(self) -> None:
        self._family: Family | None = None
        self._kind = b""
        self._buffered: list[bytes] = []
        self.skipped = 0

    def take(self, piece: Piece) -> Iterator[Piece]:
        """Accept a piece; return the pieces that are complete."""
        family, samples = piece
        if family is not self._family:
            yield from self.end()
            self._family = family
            # The first sample decides on the kind of the family.
            first = samples[: samples.find(b"\n") + 1]
            self._kind = next((label for label in (_CLUSTER_LABEL, _HTTP_LABEL) if _has(first, label)), b"")
        if self._kind == _CLUSTER_LABEL:
            self._buffered.append(samples)
        elif self._kind == _HTTP_LABEL:
            yield Piece(family, _mark(samples, _HTTP_LABEL, _INTERNAL_PREFIXES))
        else:
            yield piece

    def end(self) -> Iterator[Piece]:
        """Return the buffered pieces at the end of the exposition."""
        family, buffered, self._family, self._buffered = self._family, self._buffered, None, []
        if family is None or not buffered:
            return
        if any(not _all_have(samples, _CLUSTER_LABEL) for samples in buffered):
            self.skipped += 1
            return
        buffered.reverse()
        if any(_HASH.search(samples) for samples in buffered):
            yield from (Piece(family, lines) for lines in _mark_all(_summed(buffered)))
            return
        while buffered:
            yield Piece(family, _mark(buffered.pop(), _CLUSTER_LABEL, _INTERNAL_CLUSTERS))


def _has(line: bytes, label: bytes) -> bool:
    return b"{" + label in line or b"," + label in line


def _all_have(lines: bytes, label: bytes) -> bool:
    return lines.count(b"{" + label) + lines.count(b"," + label) == lines.count(b"\n") or all(
        _has(line, label) for line in split_lines(lines)
    )


def _mark_all(parts: Iterable[bytes]) -> Iterator[bytes]:
    return (_mark(part, _CLUSTER_LABEL, _INTERNAL_CLUSTERS) for part in parts)


def _mark(lines: bytes, label: bytes, internal: tuple[bytes, ...]) -> bytes:
    """Append the label of mesh traffic to lines with ``label``, unless its value is one of ``internal``."""
    if lines.count(_END) == lines.count(b"\n") and _all_have(lines, label):
        marked = lines.replace(_END, b'"' + _MARK)
        for value in internal:
            if label + value + b'"' in marked:
                pattern = rb"([{,]" + re.escape(label + value) + rb'"[^\n]*+)\n'
                marked = re.sub(pattern, lambda match: match[1].replace(_MARK, b"} ") + b"\n", marked)
        return marked
    return b"".join(_mark_line(line, label, internal) for line in split_lines(lines))


def _mark_line(line: bytes, label: bytes, internal: tuple[bytes, ...]) -> bytes:
    match = re.search(rb"[{,]" + re.escape(label) + _VALUE, line)
    end = line.rfind(b"}")
    if match is None or match[1] in internal or end < match.end():
        return line
    return line[:end].rstrip(b" \t,") + _MARK + line[end + 1 :].lstrip(b" \t")


def _summed(buffered: list[bytes]) -> Iterator[bytes]:
    """Sum equal series; return them in slices. ``buffered`` is emptied from its end."""
    values: dict[bytes, bytes] = {}
    sums: dict[bytes, float] = {}
    while buffered:
        for whole in split_lines(_without_hashes(buffered.pop())):
            line = whole.removesuffix(b"\n")
            series, _, value = line.rpartition(b" ")
            if series[-1:] != b"}":
                # A timestamp, which a sum does not have, or unusual spaces.
                series, value = _split(line)
            if series in values:
                sums[series] = _number(value) + (sums[series] if series in sums else _number(values[series]))
            else:
                values[series] = value
        # An empty piece, so that the caller can give the event loop a turn.
        yield b""
    size, lines = 0, []
    for series, value in values.items():
        lines.append(b"%b %b\n" % (series, _text(sums[series]) if series in sums else value))
        size += len(lines[-1])
        if size > SLICE:
            yield b"".join(lines)
            size, lines = 0, []
    yield b"".join(lines)


def _without_hashes(lines: bytes) -> bytes:
    """Cut the hashes at the end of names of clusters."""
    cut, count = _HASH.subn(b'"', lines)
    # A replacement without groups is several times as fast, and right if there are such hashes nowhere else.
    return cut if count == len(_ENDS_HASHED.findall(lines)) else _HASHED.sub(rb'\1"', lines)


def _split(line: bytes) -> tuple[bytes, bytes]:
    match = SAMPLE.match(line)
    return (match[1], match[2]) if match is not None else (line, b"0")


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _text(number: float) -> bytes:
    """Return a number as both formats write it."""
    if math.isfinite(number):
        return b"%d" % number if number.is_integer() and abs(number) < 1e15 else repr(number).encode()
    return b"NaN" if math.isnan(number) else b"+Inf" if number > 0 else b"-Inf"
