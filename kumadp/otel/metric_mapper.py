"""Maps expositions to OpenTelemetry's metrics, as types of the official SDK.

gauge: gauge. counter: monotonic cumulative sum. histogram: histogram, with the count of each bucket. summary: gauge
with an attribute ``quantile``, and ``_count`` and ``_sum`` as sums. Other types are dropped (Kuma 2.14).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct, field
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
    from collections.abc import Iterable, Iterator, Mapping

    from opentelemetry.sdk.resources import Resource

    from kumadp.exposition.reader import Piece

# Data points of one message: far below the 4 MB that a gRPC server accepts, and little memory at a time.
BATCH = 1000
# Upper bound of counts and times in a message.
_LARGEST = 1 << 62
# Number of incomplete histograms after which the complete ones are emitted.
_MAX_OPEN = BATCH // 20
_LABEL = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+=[ \t]*+"((?:[^"\\]|\\.)*+)"')
_ESCAPED = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n", '"': '"', "\\": "\\"}
_SCOPE = "otel_scope_"
_SCOPE_FIELDS = (_SCOPE + "name", _SCOPE + "version", _SCOPE + "schema_url")


class ScopedPiece(NamedTuple):
    """A piece in the text format, and the name of its scope."""

    scope: str
    piece: Piece


# Scope and attributes of a histogram, as its key.
_Key = tuple[InstrumentationScope, str]


class _Histogram(Struct):
    """The samples of one histogram that are read so far."""

    attributes: dict[str, str]
    scope: InstrumentationScope
    at: int
    buckets: list[tuple[float, float]] = field(default_factory=list)
    sum: float | None = None
    count: float | None = None

    @property
    def complete(self) -> bool:
        return self.sum is not None and self.count is not None and any(math.isinf(bound) for bound, _ in self.buckets)

    def point(self) -> HistogramDataPoint | None:
        """Return the data point; None if sum or count is missing or not valid."""
        if self.sum is None or self.count is None or not self.count < _LARGEST:
            return None
        self.buckets.sort()
        bounds = [bound for bound, _ in self.buckets if not math.isinf(bound)]
        counts, previous = [], 0.0
        for total in [*(total for bound, total in self.buckets if not math.isinf(bound)), self.count]:
            # A bucket may exceed the next one if it was read between two increments.
            counts.append(max(0, int(min(total, self.count) - previous)) if math.isfinite(total) else 0)
            previous = max(previous, total) if math.isfinite(total) else previous
        # An exposition has no minimum and maximum.
        nothing: Any = None
        return HistogramDataPoint(
            self.attributes, 0, self.at, sum(counts), self.sum, counts, bounds, min=nothing, max=nothing
        )


class MetricMapper:
    """Maps pieces, those of a family in a row, to messages of at most twice `BATCH` points.

    ``now`` in nanoseconds since 1970 is the time of samples without one. ``skipped`` counts unusable samples.
    ``attribute_names`` are names of attributes by those of labels, where they differ: ``kuma.proxy_role`` in place of
    ``kuma_proxy_role``, as in the control plane's policy (kuma-dp 2.13 to 3.0).
    """

    def __init__(self, resource: Resource, now: int, attribute_names: Mapping[str, str]) -> None:
        self._resource = resource
        self._attribute_names = attribute_names
        self._now = now
        self._metrics: dict[InstrumentationScope, list[Metric]] = {}
        self._size = 0
        self._open_limit = _MAX_OPEN
        self.skipped = 0

    def messages(self, pieces: Iterable[ScopedPiece]) -> Iterator[MetricsData]:
        """Return the messages for all pieces."""
        family: object = None
        open_histograms: dict[_Key, _Histogram] = {}
        last: ScopedPiece | None = None
        for scoped in pieces:
            if scoped.piece.family is not family:
                self._close(last, open_histograms, incomplete=True)
                family = scoped.piece.family
                self._open_limit = _MAX_OPEN
            kind = scoped.piece.family.kind
            lines = scoped.piece.samples.splitlines()
            for at in range(0, len(lines), BATCH):
                part = lines[at : at + BATCH]
                if kind in {b"gauge", b"counter", b"summary"}:
                    self._numbers(scoped, part)
                elif kind == b"histogram":
                    last = scoped
                    self._histograms(scoped, part, open_histograms)
                    if len(open_histograms) >= self._open_limit:
                        self._close(last, open_histograms, incomplete=False)
                        # Do not inspect the incomplete ones again after each part.
                        self._open_limit = max(_MAX_OPEN, 2 * len(open_histograms))
                if self._size >= BATCH:
                    yield from self._message()
        self._close(last, open_histograms, incomplete=True)
        yield from self._message()

    def _samples(self, lines: Iterable[bytes]) -> Iterator[tuple[str, list[tuple[str, str]], float, int]]:
        """Parse lines to name, labels, value, and time in nanoseconds."""
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

    def _renamed(self, labels: list[tuple[str, str]]) -> list[tuple[str, str]]:
        names = self._attribute_names
        return [(names.get(label, label), value) for label, value in labels] if names else labels

    def _time(self, at: bytes | None) -> int:
        """Convert milliseconds to nanoseconds; now, if there is no time or it exceeds what a message can hold."""
        milliseconds = float(at) if at is not None else math.nan
        return round(milliseconds * 1000) * 1000 if 0 <= milliseconds < _LARGEST / 10**6 else self._now

    def _numbers(self, scoped: ScopedPiece, lines: Iterable[bytes]) -> None:
        family = scoped.piece.family
        points: dict[tuple[str, InstrumentationScope], list[NumberDataPoint]] = {}
        for name, labels, value, at in self._samples(lines):
            attributes, scope = _attributes(self._renamed(labels), scoped.scope)
            points.setdefault((name, scope), []).append(NumberDataPoint(attributes, 0, at, value))
        for (name, scope), data_points in points.items():
            # A summary's quantiles rise and fall; its count and sum only grow.
            is_monotonic = family.kind == b"counter" or (family.kind == b"summary" and name != unquoted(family.name))
            data = (
                Sum(data_points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
                if is_monotonic
                else Gauge(data_points)
            )
            self._add(scoped, scope, name, data, len(data_points))

    def _histograms(self, scoped: ScopedPiece, lines: Iterable[bytes], histograms: dict[_Key, _Histogram]) -> None:
        base = unquoted(scoped.piece.family.name)
        for name, labels, value, at in self._samples(lines):
            attributes, scope = _attributes(self._renamed(labels), scoped.scope)
            bound = attributes.pop("le", None) if name == base + "_bucket" else None
            key = scope, repr(sorted(attributes.items()))
            histogram = histograms.get(key)
            if histogram is None:
                histogram = histograms[key] = _Histogram(attributes, scope, at)
            if bound is not None:
                histogram.buckets.append((float(bound), value))
            elif name == base + "_sum":
                histogram.sum = value
            elif name == base + "_count":
                histogram.count = value
            else:
                self.skipped += 1

    def _close(self, last: ScopedPiece | None, histograms: dict[_Key, _Histogram], *, incomplete: bool) -> None:
        """Emit the complete histograms but the last one, which may continue; with ``incomplete`` emit all."""
        if last is None or not histograms:
            return
        keys = list(histograms) if incomplete else [key for key in list(histograms)[:-1] if histograms[key].complete]
        points: dict[InstrumentationScope, list[HistogramDataPoint]] = {}
        for key in keys:
            closed = histograms.pop(key)
            point = closed.point()
            if point is None:
                self.skipped += 1
            else:
                points.setdefault(closed.scope, []).append(point)
        for scope, data_points in points.items():
            data = Histogram(data_points, AggregationTemporality.CUMULATIVE)
            size = sum(len(point.bucket_counts) for point in data_points)
            self._add(last, scope, unquoted(last.piece.family.name), data, size)

    def _add(self, scoped: ScopedPiece, scope: InstrumentationScope, name: str, data: Any, size: int) -> None:
        headers = scoped.piece.family.headers
        text = headers.get(b"HELP", b"").decode(errors="replace")
        unit = headers.get(b"UNIT", b"").decode(errors="replace")
        self._metrics.setdefault(scope, []).append(Metric(name, text, unit, data))
        self._size += size

    def _message(self) -> Iterator[MetricsData]:
        metrics, self._metrics, self._size = self._metrics, {}, 0
        if metrics:
            scopes = [ScopeMetrics(scope, scope_metrics, schema_url="") for scope, scope_metrics in metrics.items()]
            yield MetricsData([ResourceMetrics(self._resource, scopes, schema_url="")])


def _attributes(labels: Iterable[tuple[str, str]], scope: str) -> tuple[dict[str, str], InstrumentationScope]:
    """Split labels into attributes and scope: OpenTelemetry's exporter for Prometheus writes the scope as labels.

    Sources: OpenTelemetry's "Prometheus and OpenMetrics compatibility", and kuma-dp 2.13 (extractScope).
    """
    attributes: dict[str, str] = {}
    scope_labels: dict[str, str] = {}
    for label, value in labels:
        if "\\" in value:
            value = _ESCAPED.sub(lambda match: _UNESCAPED.get(match[1], match[0]), value)
        (scope_labels if label.startswith(_SCOPE) else attributes)[label] = value
    if not scope_labels:
        return attributes, InstrumentationScope(scope)
    name, version, schema = (scope_labels.pop(label, None) for label in _SCOPE_FIELDS)
    more = {label.removeprefix(_SCOPE): value for label, value in scope_labels.items()}
    return attributes, InstrumentationScope(scope if name is None else name, version, schema, more)
