"""The resolver's counters under kuma-dp's names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from prometheus_client import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from kumadp.metrics.dns import families

LABELS = {"mesh": "default", "kuma_io_zone": "east"}


@dataclass
class Counters:
    quick_a: int = 10
    quick_aaaa: int = 2
    quick_seconds: float = 0.5
    local: Counter[int] = field(default_factory=lambda: Counter({1: 1, 16: 3}))
    upstream: Counter[int] = field(default_factory=lambda: Counter({28: 4, 33: 5}))
    codes: Counter[int] = field(default_factory=lambda: Counter({0: 7, 3: 4, 2: 1, 5: 1}))
    asked: int = 9
    failed: int = 1
    asked_seconds: float = 1.5
    refused: int = 6
    loops: int = 7
    dropped: int = 8


def lines() -> set[str]:
    class One(Collector):
        def collect(self):  # type: ignore[no-untyped-def]
            return families(Counters(), 42, LABELS)

    registry = CollectorRegistry()
    registry.register(One())
    text: bytes = generate_latest(registry)
    return set(text.decode().splitlines())


def test_names_and_values() -> None:
    told, labels = lines(), 'kuma_io_zone="east",mesh="default"'

    def there(name: str, value: float, *, first: str = "") -> bool:
        # In the order of the labels' names.
        pairs = sorted([*labels.split(","), *filter(None, first.split(","))])
        return any(
            line.startswith(f"{name}{{")
            and sorted(line.split("{")[1].split("}")[0].split(",")) == pairs
            and float(line.rsplit(" ", 1)[1]) == value
            for line in told
        )

    assert there("kuma_dp_dns_queries_total", 11, first='qtype="A",source="local"')
    assert there("kuma_dp_dns_queries_total", 2, first='qtype="AAAA",source="local"')
    assert there("kuma_dp_dns_queries_total", 3, first='qtype="other",source="local"')
    assert there("kuma_dp_dns_queries_total", 4, first='qtype="AAAA",source="upstream"')
    assert there("kuma_dp_dns_queries_total", 5, first='qtype="other",source="upstream"')
    assert there("kuma_dp_dns_response_codes_total", 19, first='rcode="noerror"')
    assert there("kuma_dp_dns_response_codes_total", 4, first='rcode="nxdomain"')
    assert there("kuma_dp_dns_response_codes_total", 1, first='rcode="servfail"')
    assert there("kuma_dp_dns_response_codes_total", 1, first='rcode="other"')
    assert there("kuma_dp_dns_entries_total", 42)
    assert there("kuma_dp_dns_upstream_request_failure_count", 1)
    assert there("kuma_dp_dns_upstream_request_duration_seconds_count", 9)
    assert there("kuma_dp_dns_upstream_request_duration_seconds_sum", 1.5)
    assert there("kuma_dp_dns_request_duration_seconds_count", 25)
    assert there("kuma_dp_dns_request_duration_seconds_sum", 2.0)
    assert there("kumadp_dns_unanswered_total", 6, first='reason="busy"')
    assert "# TYPE kuma_dp_dns_queries_total counter" in told
    assert "# TYPE kuma_dp_dns_entries_total gauge" in told
