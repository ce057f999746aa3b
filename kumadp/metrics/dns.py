"""What the embedded resolver counts, under the names that kuma-dp (2.13, 2.14) has for it, and what it has no name for.

Two of kuma-dp's names are against Prometheus' rules; who has dashboards on them finds them. Its summaries have no
quantiles here: how many, and how long altogether.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily, UntypedMetricFamily

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

# RFC 1035, 3.2.2 and 4.1.1; RFC 3596, 2.1.
_A, _AAAA = 1, 28
_CODES = {0: "noerror", 2: "servfail", 3: "nxdomain"}


class Counted(Protocol):
    """What is counted, as `kumadp.dns.counters` says."""

    quick_a: int
    quick_aaaa: int
    quick_seconds: float
    local: Counter[int]
    upstream: Counter[int]
    codes: Counter[int]
    asked: int
    failed: int
    asked_seconds: float
    refused: int
    loops: int
    dropped: int


def families(counted: Counted, entries: int, labels: Mapping[str, str]) -> Iterator[Metric]:
    """Of a resolver with so many names; ``labels`` are those of the control plane, on each sample."""
    names, values = list(labels), [str(value) for value in labels.values()]
    local, upstream = _by_type(counted.local), _by_type(counted.upstream)
    local["A"] += counted.quick_a
    local["AAAA"] += counted.quick_aaaa
    queries = CounterMetricFamily(
        "kuma_dp_dns_queries", "Queries that were answered.", labels=["qtype", "source", *names]
    )
    for source, found in (("local", local), ("upstream", upstream)):
        for kind, number in found.items():
            queries.add_metric([kind, source, *values], number)
    yield queries
    codes = dict.fromkeys((*_CODES.values(), "other"), 0)
    codes["noerror"] = counted.quick_a + counted.quick_aaaa
    for code, number in counted.codes.items():
        codes[_CODES.get(code, "other")] += number
    told = CounterMetricFamily("kuma_dp_dns_response_codes", "Answers by their code.", labels=["rcode", *names])
    for name, number in codes.items():
        told.add_metric([name, *values], number)
    yield told
    whole = counted.quick_seconds + counted.asked_seconds
    answered = sum(local.values()) + sum(upstream.values())
    for name, text, count, seconds in (
        ("request", "Time that queries took.", answered, whole),
        ("upstream_request", "Time that questions to other servers took.", counted.asked, counted.asked_seconds),
    ):
        took = SummaryMetricFamily(f"kuma_dp_dns_{name}_duration_seconds", text, labels=names)
        took.add_metric(values, count, seconds)
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


def _by_type(counted: Counter[int]) -> dict[str, int]:
    found = {"A": counted[_A], "AAAA": counted[_AAAA]}
    return {**found, "other": counted.total() - sum(found.values())}
