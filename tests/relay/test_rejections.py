"""What the status shows of withheld resources."""

from __future__ import annotations

from kumadp.relay.rejections import MOST_SHOWN, Rejections
from tests.relay.harness import CLUSTER, LISTENER, Bench, any_of, one


def test_all_are_counted_and_some_are_shown() -> None:
    bench = Bench()
    bench.serving()
    names = [f"bad-{number}" for number in range(MOST_SHOWN + 9)]
    bench.respond(CLUSTER, "v2", one("1"), *map(any_of, names))
    bench.nack(1, CLUSTER, " ".join(names))
    bench.respond(LISTENER, "v2", one("1"), any_of("bad", "kri_mtp_default_zone_ns_slow_"))
    bench.ack(1, CLUSTER)
    bench.nack(1, LISTENER, "bad: it is bad")
    rejections = Rejections(bench.machine.withheld, bench.machine.retries.at)
    shown, numbers = rejections.status(0.0)
    assert len(shown) == MOST_SHOWN
    assert numbers == {CLUSTER: len(names), LISTENER: 1}
    bench.respond(CLUSTER, "v3", one("1"))
    bench.ack(1, CLUSTER)
    ([listener], numbers) = rejections.status(0.0)
    assert (listener["name"], listener["policies"]) == ("bad", ["kri_mtp_default_zone_ns_slow_"])
    assert numbers == {LISTENER: 1}
