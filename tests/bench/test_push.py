"""One push of 94,000 lines to an OpenTelemetry backend: processor time, peak memory, and how long others wait."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.bench import test_metrics
from tests.bench.test_metrics import EXTRA, memory, running
from tests.bench.test_start import note, processor_time
from tests.support.collector import grpc_collector
from tests.support.poll import poll

if TYPE_CHECKING:
    from tests.support.collector import Collector

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.timeout(600)]

ROUNDS = 3
# Sends requests until its input ends; prints the time of each answer (ms).
CLIENT = """
import http.client, json, select, sys, time
waits = []
while not select.select([sys.stdin], [], [], 0.02)[0]:
    since = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    connection.request("GET", "/ready")
    assert connection.getresponse().status == 200
    waits.append((time.monotonic() - since) * 1000)
print(json.dumps(waits))
"""
PERIOD = 12.0


def policy(socket: Path) -> str:
    backend = {"type": "OpenTelemetry", "openTelemetry": {"endpoint": str(socket), "refreshInterval": f"{PERIOD:g}s"}}
    sidecar: dict[str, Any] = {"profiles": {"appendProfiles": [{"name": "All"}]}, "includeUnused": True}
    metrics = {"applications": None, "backends": [backend], "sidecar": sidecar, "extraLabels": EXTRA}
    return json.dumps({"observability": {"metrics": metrics}})


def whole(collector: Collector) -> int:
    """Rounds that came whole: kumadp's word on its sources is the last of each."""
    return len(collector.points("kumadp_scrape_source_skipped_families")) // len(
        {attributes["source"] for _, _, attributes, _ in collector.points("kumadp_scrape_source_skipped_families")}
        or {""}
    )


def test_one_push_of_94000_lines(table: list[tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="kp") as folder:
        socket = Path(folder) / "otel.sock"
        monkeypatch.setattr(test_metrics, "POLICY", policy(socket))
        with grpc_collector(f"unix:{socket}") as (collector, _), running([sys.executable, "-m", "kumadp"]) as started:
            pid, _, ports = started
            without = memory(pid, "VmRSS")
            # The first one imports what it needs.
            poll(lambda: whole(collector), what="a push", deadline=60)
            note(table, "more memory once it has pushed", "MB", [memory(pid, "VmRSS") - without])
            seconds, more, points, waits = [], [], [], []
            for _ in range(ROUNDS):
                # In a separate process: the collector keeps this one busy.
                prober = subprocess.Popen(
                    [sys.executable, "-c", CLIENT, str(ports.readiness)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
                collector.exports.clear()
                Path(f"/proc/{pid}/clear_refs").write_text("5")
                before, since = memory(pid, "VmRSS"), processor_time(pid)
                while not whole(collector):
                    time.sleep(0.5)
                seconds.append(processor_time(pid) - since)
                waits += json.loads(prober.communicate(b"")[0])
                more.append(memory(pid, "VmHWM") - before)
                points.append(sum(export.message.ByteSize() for export in collector.exports) / 1e6)
            note(table, "protobuf of a push", "MB", points)
            note(table, "processor time of a push", "s", seconds)
            note(table, "more memory at its peak", "MB", more)
            waits.sort()
            note(table, "/ready during the push, median", "ms", [waits[len(waits) // 2]])
            note(table, "/ready during the push, 99 of 100 within", "ms", [waits[len(waits) * 99 // 100]])
            note(table, "/ready during the push, the slowest", "ms", [waits[-1]])
