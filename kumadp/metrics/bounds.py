"""Bounds of histograms and quantiles in the form of kuma-dp, so that a migration continues the same series.

kuma-dp parses the exposition of Envoy (and, by a MeshMetric policy, of applications), and writes it with Go's expfmt
(Kuma 2.8 to 2.14): ``le="1800000"`` becomes ``le="1.8e+06"``.
"""

from __future__ import annotations

import functools
import math
from decimal import Decimal

from kumadp.exposition.reader import Piece

_LABELS = {b"histogram": b'le="', b"gaugehistogram": b'le="', b"summary": b'quantile="'}
_LABEL_STARTS = (b"{", b",", b" ", b"\t")
_MAX_LENGTH = 64
# From this power of ten on Go's shortest form has an exponent (strconv: precision 6).
_LEAST_EXPONENT = 6


def with_go_bounds(piece: Piece) -> Piece:
    """Return the piece with its bounds or quantiles in Go's form; text that is not a number is unchanged."""
    family, samples = piece
    label = _LABELS.get(family.kind)
    if label is None:
        return piece
    first, *parts = samples.split(label)
    changed = False
    preceding = first
    for index, part in enumerate(parts):
        text = part[: part.find(b'"')]
        written = go_float(text) if len(text) <= _MAX_LENGTH else text
        # Otherwise this is the end of another label's name (a quote in a value is escaped).
        if written != text and preceding[-1:] in _LABEL_STARTS:
            parts[index] = written + part[len(text) :]
            changed = True
        preceding = part
    return Piece(family, label.join((first, *parts))) if changed else piece


@functools.lru_cache(1024)
def go_float(text: bytes) -> bytes:
    """Return a number as Go's strconv.FormatFloat(f, 'g', -1, 64) writes it, Inf and NaN as expfmt does.

    Text that is not a number is returned unchanged.
    """
    try:
        number = float(text)
    except ValueError:
        return text
    if math.isnan(number):
        return b"NaN"
    if math.isinf(number):
        return b"+Inf" if number > 0 else b"-Inf"
    if number == 0:
        return b"0"
    sign, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    assert isinstance(exponent, int)  # noqa: S101
    figures = "".join(map(str, digits))
    power = len(figures) - 1 + exponent
    if power < -4 or power >= _LEAST_EXPONENT:
        mantissa = figures[0] + (f".{figures[1:]}" if figures[1:] else "")
        written = f"{mantissa}e{'-' if power < 0 else '+'}{abs(power):02d}"
    elif exponent >= 0:
        written = figures + "0" * exponent
    elif power >= 0:
        written = f"{figures[: power + 1]}.{figures[power + 1 :]}"
    else:
        written = "0." + "0" * (-power - 1) + figures
    return (("-" if sign else "") + written).encode()
