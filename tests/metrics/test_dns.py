"""The resolver's counters under kuma-dp's names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from prometheus_client import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from kumadp.dns.resolver.counters import BOUNDS
from kumadp.dns.resolver.counters import Counters as Resolvers
from kumadp.metrics.dns import ResolverCounters, families

LABELS = {"mesh": "default", "kuma_io_zone": "east"}


@dataclass
class Counters:
    fast_a: int = 10
    fast_aaaa: int = 2
    fast_seconds: float = 0.5
    slow_bursts: list[int] = field(default_factory=lambda: [0, 2, *[0] * 10])
    local: Counter[int] = field(default_factory=lambda: Counter({1: 1, 16: 3}))
    upstream: Counter[int] = field(default_factory=lambda: Counter({28: 4, 33: 5}))
    codes: Counter[int] = field(default_factory=lambda: Counter({0: 7, 3: 4, 2: 1, 5: 1}))
    forwarded: int = 9
    failed: int = 1
    forward_seconds: float = 1.5
    forward_durations: list[int] = field(default_factory=lambda: [3, 0, 4, *[0] * 8, 1])
    refused: int = 6
    loops: int = 7
    dropped: int = 8
    ready_after: float | None = 0.7


def lines(counters: ResolverCounters | None = None, labels: dict[str, str] = LABELS) -> set[str]:
    class Families(Collector):
        def collect(self):  # type: ignore[no-untyped-def]
            return families(counters or Counters(), 42, labels)

    registry = CollectorRegistry()
    registry.register(Families())
    text: bytes = generate_latest(registry)
    return set(text.decode().splitlines())


def test_names_and_values() -> None:
    exposition, labels = lines(), 'kuma_io_zone="east",mesh="default"'

    def has(name: str, value: float, *, first: str = "") -> bool:
        # In the order of the labels' names.
        pairs = sorted([*labels.split(","), *filter(None, first.split(","))])
        return any(
            line.startswith(f"{name}{{")
            and sorted(line.split("{")[1].split("}")[0].split(",")) == pairs
            and float(line.rsplit(" ", 1)[1]) == value
            for line in exposition
        )

    assert has("kuma_dp_dns_queries_total", 11, first='qtype="A",source="local"')
    assert has("kuma_dp_dns_queries_total", 2, first='qtype="AAAA",source="local"')
    assert has("kuma_dp_dns_queries_total", 3, first='qtype="other",source="local"')
    assert has("kuma_dp_dns_queries_total", 4, first='qtype="AAAA",source="upstream"')
    assert has("kuma_dp_dns_queries_total", 5, first='qtype="other",source="upstream"')
    assert has("kuma_dp_dns_response_codes_total", 19, first='rcode="noerror"')
    assert has("kuma_dp_dns_response_codes_total", 4, first='rcode="nxdomain"')
    assert has("kuma_dp_dns_response_codes_total", 1, first='rcode="servfail"')
    assert has("kuma_dp_dns_response_codes_total", 1, first='rcode="other"')
    assert has("kuma_dp_dns_entries_total", 42)
    assert has("kuma_dp_dns_upstream_request_failure_count", 1)
    assert has("kuma_dp_dns_upstream_request_duration_seconds_count", 8)
    upstream = "kuma_dp_dns_upstream_request_duration_seconds_bucket"
    for bound, number in (("0.005", 3), ("0.01", 3), ("0.025", 7), ("10.0", 7), ("+Inf", 8)):
        assert has(upstream, number, first=f'le="{bound}"')
    assert has("kuma_dp_dns_upstream_request_duration_seconds_sum", 1.5)
    # 16 of our own, 6 refused, 7 loops, 8 forwarded; two of the first were slow.
    assert has("kuma_dp_dns_request_duration_seconds_count", 37)
    assert has("kuma_dp_dns_request_duration_seconds_bucket", 30, first='le="0.005"')
    assert has("kuma_dp_dns_request_duration_seconds_bucket", 32, first='le="0.01"')
    assert has("kuma_dp_dns_config_ready_wait_seconds_bucket", 0, first='le="0.5"')
    assert has("kuma_dp_dns_config_ready_wait_seconds_bucket", 1, first='le="1.0"')
    assert has("kuma_dp_dns_config_ready_wait_seconds_sum", 0.7)
    assert has("kuma_dp_dns_request_duration_seconds_sum", 2.0)
    assert has("kumadp_dns_unanswered_total", 6, first='reason="busy"')
    assert "# TYPE kuma_dp_dns_queries_total counter" in exposition
    assert "# TYPE kuma_dp_dns_entries_total gauge" in exposition


def test_the_counters_of_the_resolver() -> None:
    counters = Resolvers(fast_a=1, fast_seconds=0.3, ready_after=31.0)
    counters.note_slow(0.3)
    counters.note_forwarded(BOUNDS[0])
    counters.note_forwarded(11.0)
    exposition = lines(counters, {})
    assert 'kuma_dp_dns_request_duration_seconds_bucket{le="0.005"} 1.0' in exposition
    assert 'kuma_dp_dns_request_duration_seconds_bucket{le="0.25"} 1.0' in exposition
    assert 'kuma_dp_dns_request_duration_seconds_bucket{le="0.5"} 2.0' in exposition
    assert "kuma_dp_dns_request_duration_seconds_count 3.0" in exposition
    assert "kuma_dp_dns_upstream_request_duration_seconds_sum 11.005" in exposition
    assert 'kuma_dp_dns_config_ready_wait_seconds_bucket{le="30.0"} 0.0' in exposition
    assert "kuma_dp_dns_config_ready_wait_seconds_count 1.0" in exposition


def test_invalid_and_reserved_labels() -> None:
    exposition = lines(labels={"k8s.kuma.io/namespace": "web", "le": "1", "qtype": "x"})
    assert 'kuma_dp_dns_entries_total{k8s_kuma_io_namespace="web"} 42.0' in exposition


def test_no_names_yet() -> None:
    assert "kuma_dp_dns_config_ready_wait_seconds_count 0.0" in lines(Resolvers(), {})
