"""Brings expositions into OpenTelemetry's metrics, as the official SDK has them.

gauge: gauge. counter: monotonic cumulative sum. histogram: histogram, with the count of each bucket. summary: gauge
with an attribute ``quantile``, and ``_count`` and ``_sum`` as sums. Others are left out (Kuma 2.14).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from kumadp.exposition.names import has_quoted, parsed, unquoted
from kumadp.exposition.reader import SAMPLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.sdk.resources import Resource

    from kumadp.exposition.reader import Piece

# Data points of one message: far below the 4 MB that a gRPC server takes, and little memory at once.
BATCH = 1000
# What counts and times of a message may be.
_LARGEST = 1 << 62
# Histograms that are open at once, before those that are whole are taken.
_OPEN = BATCH // 20
_LABEL = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+=[ \t]*+"((?:[^"\\]|\\.)*+)"')
_ESCAPED = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n", '"': '"', "\\": "\\"}
_SCOPE = "otel_scope_"
_SCOPE_FIELDS = (_SCOPE + "name", _SCOPE + "version", _SCOPE + "schema_url")


class Said(NamedTuple):
    """A piece in the text format, and who says it: the name of the scope."""

    scope: str
    piece: Piece


# Scope and attributes of a histogram.
_Key = tuple[InstrumentationScope, str]


@dataclass(slots=True)
class _Series:
    """What is known of one histogram."""

    attributes: dict[str, str]
    scope: InstrumentationScope
    at: int
    buckets: list[tuple[float, float]] = field(default_factory=list)
    sum: float | None = None
    count: float | None = None

    @property
    def whole(self) -> bool:
        return self.sum is not None and self.count is not None and any(math.isinf(bound) for bound, _ in self.buckets)

    def point(self) -> HistogramDataPoint | None:
        """None where there is no sum or no count: then it is no histogram."""
        if self.sum is None or self.count is None or not self.count < _LARGEST:
            return None
        self.buckets.sort()
        bounds = [bound for bound, _ in self.buckets if not math.isinf(bound)]
        counts, before = [], 0.0
        for total in [*(total for bound, total in self.buckets if not math.isinf(bound)), self.count]:
            # Read while it is counted, a bucket may be ahead of the next one.
            counts.append(max(0, int(min(total, self.count) - before)) if math.isfinite(total) else 0)
            before = max(before, total) if math.isfinite(total) else before
        nothing: Any = None
        # The least and the greatest value are not known.
        return HistogramDataPoint(
            self.attributes, 0, self.at, sum(counts), self.sum, counts, bounds, min=nothing, max=nothing
        )


class Mapper:
    """Takes pieces, each family's one after another, and gives messages of at most twice `BATCH` points.

    ``now`` in nanoseconds since 1970 is the time of samples without one. ``skipped`` counts samples without meaning.
    """

    def __init__(self, resource: Resource, now: int) -> None:
        self._resource = resource
        self._now = now
        self._metrics: dict[InstrumentationScope, list[Metric]] = {}
        self._size = 0
        self._patience = _OPEN
        self.skipped = 0

    def messages(self, said: Iterable[Said]) -> Iterator[MetricsData]:
        """All of it."""
        family: object = None
        open_series: dict[_Key, _Series] = {}
        last: Said | None = None
        for one in said:
            if one.piece.family is not family:
                self._close(last, open_series, all_of_them=True)
                family = one.piece.family
                self._patience = _OPEN
            kind = one.piece.family.kind
            lines = one.piece.samples.splitlines()
            for at in range(0, len(lines), BATCH):
                part = lines[at : at + BATCH]
                if kind in {b"gauge", b"counter", b"summary"}:
                    self._numbers(one, part)
                elif kind == b"histogram":
                    last = one
                    self._histograms(one, part, open_series)
                    if len(open_series) >= self._patience:
                        self._close(last, open_series, all_of_them=False)
                        # Those that stay are not looked at again each time.
                        self._patience = max(_OPEN, 2 * len(open_series))
                if self._size >= BATCH:
                    yield from self._message()
        self._close(last, open_series, all_of_them=True)
        yield from self._message()

    def _samples(self, lines: Iterable[bytes]) -> Iterator[tuple[str, list[tuple[str, str]], float, int]]:
        """Name, labels, value, time in nanoseconds."""
        for line in lines:
            match = SAMPLE.match(line)
            if match is None:
                self.skipped += 1
                continue
            series, value, at, _ = match.groups()
            if has_quoted(series):
                name, labels = parsed(series)
            else:
                name, _, text = series.decode(errors="replace").partition("{")
                name, labels = name.strip(), _LABEL.findall(text)
            yield name, labels, float(value), self._time(at)

    def _time(self, at: bytes | None) -> int:
        """Milliseconds as nanoseconds; now, if there are none or more than a message can hold."""
        milliseconds = float(at) if at is not None else math.nan
        return round(milliseconds * 1000) * 1000 if 0 <= milliseconds < _LARGEST / 10**6 else self._now

    def _numbers(self, one: Said, lines: Iterable[bytes]) -> None:
        family = one.piece.family
        points: dict[tuple[str, InstrumentationScope], list[NumberDataPoint]] = {}
        for name, labels, value, at in self._samples(lines):
            attributes, scope = _attributes(labels, one.scope)
            points.setdefault((name, scope), []).append(NumberDataPoint(attributes, 0, at, value))
        for (name, scope), found in points.items():
            # Of a summary, quantiles come and go; how many and how much only grow.
            grows = family.kind == b"counter" or (family.kind == b"summary" and name != unquoted(family.name))
            data = Sum(found, AggregationTemporality.CUMULATIVE, is_monotonic=True) if grows else Gauge(found)
            self._add(one, scope, name, data, len(found))

    def _histograms(self, one: Said, lines: Iterable[bytes], series: dict[_Key, _Series]) -> None:
        base = unquoted(one.piece.family.name)
        for name, labels, value, at in self._samples(lines):
            attributes, scope = _attributes(labels, one.scope)
            bound = attributes.pop("le", None) if name == base + "_bucket" else None
            key = scope, repr(sorted(attributes.items()))
            found = series.get(key)
            if found is None:
                found = series[key] = _Series(attributes, scope, at)
            if bound is not None:
                found.buckets.append((float(bound), value))
            elif name == base + "_sum":
                found.sum = value
            elif name == base + "_count":
                found.count = value
            else:
                self.skipped += 1

    def _close(self, last: Said | None, series: dict[_Key, _Series], *, all_of_them: bool) -> None:
        """Take those that are whole, but for the last one, which may go on."""
        if last is None or not series:
            return
        names = list(series) if all_of_them else [name for name in list(series)[:-1] if series[name].whole]
        points: dict[InstrumentationScope, list[HistogramDataPoint]] = {}
        for name in names:
            closed = series.pop(name)
            point = closed.point()
            if point is None:
                self.skipped += 1
            else:
                points.setdefault(closed.scope, []).append(point)
        for scope, found in points.items():
            data = Histogram(found, AggregationTemporality.CUMULATIVE)
            size = sum(len(point.bucket_counts) for point in found)
            self._add(last, scope, unquoted(last.piece.family.name), data, size)

    def _add(self, one: Said, scope: InstrumentationScope, name: str, data: Any, size: int) -> None:
        headers = one.piece.family.headers
        text = headers.get(b"HELP", b"").decode(errors="replace")
        unit = headers.get(b"UNIT", b"").decode(errors="replace")
        self._metrics.setdefault(scope, []).append(Metric(name, text, unit, data))
        self._size += size

    def _message(self) -> Iterator[MetricsData]:
        metrics, self._metrics, self._size = self._metrics, {}, 0
        if metrics:
            scopes = [ScopeMetrics(scope, found, schema_url="") for scope, found in metrics.items()]
            yield MetricsData([ResourceMetrics(self._resource, scopes, schema_url="")])


def _attributes(labels: Iterable[tuple[str, str]], scope: str) -> tuple[dict[str, str], InstrumentationScope]:
    """Labels; those of OpenTelemetry's exporter for Prometheus are the scope of the sample, and its attributes.

    Source: OpenTelemetry's "Prometheus and OpenMetrics compatibility", and kuma-dp 2.13 (extractScope).
    """
    found: dict[str, str] = {}
    told: dict[str, str] = {}
    for label, value in labels:
        if "\\" in value:
            value = _ESCAPED.sub(lambda match: _UNESCAPED.get(match[1], match[0]), value)
        (told if label.startswith(_SCOPE) else found)[label] = value
    if not told:
        return found, InstrumentationScope(scope)
    name, version, schema = (told.pop(label, None) for label in _SCOPE_FIELDS)
    more = {label.removeprefix(_SCOPE): value for label, value in told.items()}
    return found, InstrumentationScope(scope if name is None else name, version, schema, more)
