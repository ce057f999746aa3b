"""One change in a mesh of 1,000 services: bytes that Envoy gets, processor time of Envoy and of the relay.

Each side is measured by itself, with the same changes; the test control plane behaves as Kuma does.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.bench.large_mesh import SERVICES, LargeMesh
from tests.bench.test_relay import Process
from tests.bench.test_start import note, processor_time
from tests.support.poll import poll
from tests.support.relay_stage import NODE, RelayStage, stage
from tests.support.xds.envoy import DirectEnvoy, bootstrap_request, fetch_bootstrap
from tests.support.xds.journal import Kind
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.xds.plane import XdsControlPlane

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.timeout(900)]

ROUNDS = int(os.environ.get("KUMADP_BENCH_ROUNDS", "5"))
# With Kuma's tags of statistics Envoy needs some 12 ms more for each new or changed cluster and listener, by any way.
TAGS = "KUMADP_BENCH_TAGS" in os.environ
KB = 1e3
# A process is at rest if it uses less processor time (seconds) than this in a window.
WINDOW, RESTING = 0.15, 0.0005


@dataclass(frozen=True)
class Side:
    """Where Envoy gets its configuration: from a relay, or from the control plane itself.

    ``version`` is that of the control plane: 3.0 speaks delta, and sends all endpoints again when a cluster changes;
    2.14 only those of that cluster, if it speaks ``delta``.
    """

    name: str
    version: str = "2.14.3"
    delta: bool = False
    relay: bool = False


@dataclass(frozen=True)
class Change:
    """What changes; nothing: all is sent again with new versions, which delta does not do."""

    name: str
    types: tuple[str, ...]

    @property
    def answered(self) -> frozenset[str]:
        """Types whose responses are awaited: endpoints are sent again after each change of a cluster."""
        if not self.types:
            return frozenset({CLUSTER, ENDPOINTS, LISTENER})
        return frozenset({*self.types, *((ENDPOINTS,) if CLUSTER in self.types else ())})


SIDES = (
    Side("Envoy alone, SOTW"),
    Side("Envoy alone, delta of 3.0", version="3.0", delta=True),
    # What Envoy would get from a relay that sends it only what changed.
    Side("Envoy alone, delta of 2.14", delta=True),
    Side("relay, SOTW", relay=True),
    Side("relay, delta of 3.0", version="3.0", delta=True, relay=True),
    Side("relay, delta of 2.14", delta=True, relay=True),
)
CHANGES = (
    Change("a cluster and its endpoints", (CLUSTER, ENDPOINTS)),
    Change("a cluster", (CLUSTER,)),
    Change("a listener", (LISTENER,)),
    Change("endpoints of a service", (ENDPOINTS,)),
    Change("everything again, unchanged", ()),
)


class Measured:
    """An Envoy that runs with 1,000 services, and the relay that serves it, if any."""

    def __init__(self, at: RelayStage, side: Side) -> None:
        self._plane: XdsControlPlane = at.plane
        self._plane.faults.linger = 0.0
        self._mesh = LargeMesh(self._plane.mesh(NODE))
        options = ("--without-lag", *(("--delta",) if side.delta else ()))
        self._relay = Process(at, "uvloop", *options) if side.relay else None
        bootstrap = at.bootstrap
        if not side.relay:
            features = ("feature-delta-grpc",) if side.delta else ()
            request = bootstrap_request(self._plane, NODE.partition(".")[2], at.dataplane, at.folder, *features)
            bootstrap = fetch_bootstrap(self._plane, request)
        [service] = bootstrap["dynamicResources"]["adsConfig"]["grpcServices"]
        self._received = f"cluster.{service['envoyGrpc']['clusterName']}.upstream_cx_rx_bytes_total"
        # Otherwise it is part of what is measured: with so many clusters it takes milliseconds.
        bootstrap["statsFlushInterval"] = "299s"
        if not TAGS:
            bootstrap.pop("statsConfig", None)
        self._envoy = DirectEnvoy(at.folder, bootstrap)
        self._envoy.start()
        since = time.monotonic()
        self._envoy.wait_live(300)
        poll(lambda: self._answered(since, frozenset({CLUSTER, ENDPOINTS, LISTENER})), what="answers", deadline=60)

    def _answered(self, since: float, types: frozenset[str]) -> float:
        """Return the seconds from the first response to the last answer; 0 until all are answered."""
        responses = self._plane.journal.responses(since=since)
        requests = self._plane.journal.requests(since=since)
        assert all(request.kind is not Kind.NACK for request in requests), [request.error for request in requests]
        acks = {request.nonce: request.at for request in requests if request.kind is Kind.ACK}
        if not types <= {response.type_url for response in responses}:
            return 0.0
        if any(response.nonce not in acks for response in responses):
            return 0.0
        return max(acks.values()) - responses[0].at

    def _processor_times(self) -> tuple[float, float]:
        assert self._envoy.process is not None
        return (
            processor_time(self._envoy.process.pid),
            processor_time(self._relay.pid) if self._relay is not None else 0.0,
        )

    def _at_rest(self) -> tuple[float, float]:
        """Return the processor times of Envoy and the relay (seconds) once they do nothing any more."""

        def rest() -> tuple[float, float] | None:
            before = self._processor_times()
            time.sleep(WINDOW)
            now = self._processor_times()
            return now if max(map(float.__sub__, now, before)) < RESTING else None

        return poll(rest, what="Envoy and the relay at rest", deadline=60)

    def _bytes(self) -> int:
        return int(self._envoy.stats(self._received)[self._received])

    def run(self, change: Change, table: list[tuple[str, str, str]], what: str) -> None:
        """Make a change again and again; note the figures."""
        envoy, relay, waits = [], [], []
        received = self._bytes()
        for _ in range(ROUNDS):
            before, since = self._at_rest(), time.monotonic()
            if change.types:
                self._mesh.change(*change.types)
            else:
                self._plane.renew_versions(NODE)
            waits.append(poll(functools.partial(self._answered, since, change.answered), what="answers") * 1000)
            after = self._at_rest()
            envoy.append((after[0] - before[0]) * 1000)
            relay.append((after[1] - before[1]) * 1000)
        note(table, f"{what}: to Envoy", "KB", [(self._bytes() - received) / ROUNDS / KB])
        note(table, f"{what}: processor time of Envoy", "ms", envoy)
        if self._relay is not None:
            note(table, f"{what}: processor time of the relay", "ms", relay)
        note(table, f"{what}: answered after", "ms", waits)

    def close(self) -> None:
        """End both."""
        self._envoy.close()
        if self._relay is not None:
            self._relay.close()


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name)
def test_one_change(tmp_path: Path, table: list[tuple[str, str, str]], side: Side) -> None:
    with stage(tmp_path, tls=side.relay, version=side.version) as at:
        measured = Measured(at, side)
        try:
            table.append((f"{side.name}, {SERVICES} services", "", ""))
            for change in CHANGES[: -1 if side.delta else None]:
                measured.run(change, table, f"  {change.name}")
        finally:
            measured.close()
