"""What the embedded resolver counts, under the names that kuma-dp (2.13, 2.14) has for it, and what it has no name for.

Two of kuma-dp's names are against Prometheus' rules; who has dashboards on them finds them. Times are histograms, as
from 2.14 on; before they were summaries without quantiles, which have the same `_sum` and `_count`.
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
# Upper ends of times in seconds, as kuma-dp has them: what `Counted` is sorted by, and for the wait.
_TOOK = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WAITED = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_OWN = {"qtype", "source", "rcode", "reason", "le"}


class Counted(Protocol):
    """What is counted, as `kumadp.dns.resolver.counters` says."""

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


def families(counted: Counted, entries: int, labels: Mapping[str, str]) -> Iterator[Metric]:
    """Of a resolver with so many names; ``labels`` are those of the control plane, on each sample."""
    constant = {label_name(name): str(value) for name, value in labels.items() if label_name(name) not in _OWN}
    names, values = list(constant), list(constant.values())
    local, upstream = _by_type(counted.local), _by_type(counted.upstream)
    local["A"] += counted.fast_a
    local["AAAA"] += counted.fast_aaaa
    queries = CounterMetricFamily(
        "kuma_dp_dns_queries", "Queries that were answered.", labels=["qtype", "source", *names]
    )
    for source, found in (("local", local), ("upstream", upstream)):
        for kind, number in found.items():
            queries.add_metric([kind, source, *values], number)
    yield queries
    codes = dict.fromkeys((*_CODES.values(), "other"), 0)
    codes["noerror"] = counted.fast_a + counted.fast_aaaa
    for code, number in counted.codes.items():
        codes[_CODES.get(code, "other")] += number
    told = CounterMetricFamily("kuma_dp_dns_response_codes", "Answers by their code.", labels=["rcode", *names])
    for name, number in codes.items():
        told.add_metric([name, *values], number)
    yield told
    # Of a burst that took long one query did, and the others were quick.
    all_of_them = [one + slow for one, slow in zip(counted.forward_durations, counted.slow_bursts, strict=True)]
    all_of_them[0] += max(0, sum(local.values()) + counted.refused + counted.loops - sum(counted.slow_bursts))
    waits = [0] * (len(_WAITED) + 1)
    if counted.ready_after is not None:
        waits[bisect_left(_WAITED, counted.ready_after)] = 1
    for name, text, bounds, counts, seconds in (
        (
            "request_duration",
            "Time that queries took.",
            _TOOK,
            all_of_them,
            counted.fast_seconds + counted.forward_seconds,
        ),
        (
            "upstream_request_duration",
            "Time that other servers took.",
            _TOOK,
            counted.forward_durations,
            counted.forward_seconds,
        ),
        ("config_ready_wait", "Time until the first names came.", _WAITED, waits, counted.ready_after or 0.0),
    ):
        took = HistogramMetricFamily(f"kuma_dp_dns_{name}_seconds", text, labels=names)
        took.add_metric(values, _buckets(bounds, counts), seconds)
        yield took
    failures = UntypedMetricFamily(
        "kuma_dp_dns_upstream_request_failure_count", "Questions without a usable answer.", labels=names
    )
    failures.add_metric(values, counted.failed)
    yield failures
    known = GaugeMetricFamily("kuma_dp_dns_entries_total", "Names in the table.", labels=names)
    known.add_metric(values, entries)
    yield known
    lost = CounterMetricFamily(
        "kumadp_dns_unanswered", "Queries that were given up, and what was none.", labels=["reason", *names]
    )
    for reason, number in (("busy", counted.refused), ("loop", counted.loops), ("malformed", counted.dropped)):
        lost.add_metric([reason, *values], number)
    yield lost


def _buckets(bounds: Sequence[float], counts: Iterable[int]) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus has them, of one count a bucket."""
    return list(zip((*map(str, bounds), "+Inf"), accumulate(counts), strict=True))


def _by_type(counted: Counter[int]) -> dict[str, int]:
    found = {"A": counted[_A], "AAAA": counted[_AAAA]}
    return {**found, "other": counted.total() - sum(found.values())}
