"""Metrics of the embedded resolver under the names of kuma-dp (2.13, 2.14), and one that kuma-dp does not have.

Two of kuma-dp's names violate Prometheus' naming rules; they are the same here for the sake of dashboards. Durations
are histograms as in 2.14; earlier they were summaries without quantiles, with the same `_sum` and `_count`.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, UntypedMetricFamily

from kumadp.metrics.labels import label_name

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

# RFC 1035, 3.2.2 and 4.1.1; RFC 3596, 2.1.
_A, _AAAA = 1, 28
_CODES = {0: "noerror", 2: "servfail", 3: "nxdomain"}
# Upper bounds of histogram buckets in seconds, as in kuma-dp: of durations, and of the wait for the first names.
_DURATION_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WAIT_BOUNDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_RESERVED_LABELS = {"qtype", "source", "rcode", "reason", "le"}


class ResolverCounters(Protocol):
    """The counters, documented in `kumadp.dns.resolver.counters`."""

    fast_a: int
    fast_aaaa: int
    fast_seconds: float
    slow_bursts: list[int]
    local: Counter[int]
    upstream: Counter[int]
    codes: Counter[int]
    forwarded: int
    failed: int
    forward_seconds: float
    forward_durations: list[int]
    refused: int
    loops: int
    dropped: int
    ready_after: float | None


def families(counters: ResolverCounters, entries: int, labels: Mapping[str, str]) -> Iterator[Metric]:
    """Return the families of a resolver with ``entries`` names; each sample has the control plane's ``labels``."""
    constant = {
        label_name(name): str(value) for name, value in labels.items() if label_name(name) not in _RESERVED_LABELS
    }
    names, values = list(constant), list(constant.values())
    local, upstream = _by_type(counters.local), _by_type(counters.upstream)
    local["A"] += counters.fast_a
    local["AAAA"] += counters.fast_aaaa
    queries = CounterMetricFamily(
        "kuma_dp_dns_queries", "Queries that were answered.", labels=["qtype", "source", *names]
    )
    for source, by_type in (("local", local), ("upstream", upstream)):
        for kind, number in by_type.items():
            queries.add_metric([kind, source, *values], number)
    yield queries
    codes = dict.fromkeys((*_CODES.values(), "other"), 0)
    codes["noerror"] = counters.fast_a + counters.fast_aaaa
    for code, number in counters.codes.items():
        codes[_CODES.get(code, "other")] += number
    codes_family = CounterMetricFamily(
        "kuma_dp_dns_response_codes", "Answers by response code.", labels=["rcode", *names]
    )
    for name, number in codes.items():
        codes_family.add_metric([name, *values], number)
    yield codes_family
    # In a slow burst one query was slow, and the others were fast.
    durations = [
        forwarded + slow for forwarded, slow in zip(counters.forward_durations, counters.slow_bursts, strict=True)
    ]
    durations[0] += max(0, sum(local.values()) + counters.refused + counters.loops - sum(counters.slow_bursts))
    waits = [0] * (len(_WAIT_BOUNDS) + 1)
    if counters.ready_after is not None:
        waits[bisect_left(_WAIT_BOUNDS, counters.ready_after)] = 1
    for name, text, bounds, counts, seconds in (
        (
            "request_duration",
            "Duration of queries.",
            _DURATION_BOUNDS,
            durations,
            counters.fast_seconds + counters.forward_seconds,
        ),
        (
            "upstream_request_duration",
            "Duration of forwarded queries.",
            _DURATION_BOUNDS,
            counters.forward_durations,
            counters.forward_seconds,
        ),
        ("config_ready_wait", "Time until the first names arrived.", _WAIT_BOUNDS, waits, counters.ready_after or 0.0),
    ):
        histogram = HistogramMetricFamily(f"kuma_dp_dns_{name}_seconds", text, labels=names)
        histogram.add_metric(values, _buckets(bounds, counts), seconds)
        yield histogram
    failures = UntypedMetricFamily(
        "kuma_dp_dns_upstream_request_failure_count", "Forwarded queries without a usable answer.", labels=names
    )
    failures.add_metric(values, counters.failed)
    yield failures
    entries_family = GaugeMetricFamily("kuma_dp_dns_entries_total", "Names in the table.", labels=names)
    entries_family.add_metric(values, entries)
    yield entries_family
    unanswered = CounterMetricFamily(
        "kumadp_dns_unanswered",
        "Queries that were not answered, and packets that are not queries.",
        labels=["reason", *names],
    )
    for reason, number in (("busy", counters.refused), ("loop", counters.loops), ("malformed", counters.dropped)):
        unanswered.add_metric([reason, *values], number)
    yield unanswered


def _buckets(bounds: Sequence[float], counts: Iterable[int]) -> list[tuple[str, float]]:
    """Return cumulative buckets, as in Prometheus, from counts per bucket."""
    return list(zip((*map(str, bounds), "+Inf"), accumulate(counts), strict=True))


def _by_type(counters: Counter[int]) -> dict[str, int]:
    by_type = {"A": counters[_A], "AAAA": counters[_AAAA]}
    return {**by_type, "other": counters.total() - sum(by_type.values())}
