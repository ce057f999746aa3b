"""An hour of change with traffic: a new configuration each second, kills of Envoy, reloads, re-executions, tokens.

KUMADP_SOAK_MINUTES is another length; KUMADP_SOAK_STORE=1 stores figures and chart for tests/README.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kumadp.errors import ExitCode
from kumadp.host.net.socket_paths import control_socket_path
from tests.soak.samples import growth_per_day, measure, rise
from tests.support.access_log_policy import log_to
from tests.support.charts import Series, line_chart
from tests.support.fault_load import RATES
from tests.support.faults import open_fault_rig
from tests.support.log_sink import Sink
from tests.support.poll import poll
from tests.support.rig import NAME, NODE
from tests.support.unix_http import UnixConnection
from tests.support.xds.resources import CLUSTER, LISTENER, http_listener, static_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.soak.samples import Point
    from tests.support.daemon import Daemon
    from tests.support.faults import FaultRig
    from tests.support.xds.mesh import Mesh

MINUTES = float(os.environ.get("KUMADP_SOAK_MINUTES", "60"))
pytestmark = [pytest.mark.process, pytest.mark.soak, pytest.mark.timeout(MINUTES * 60 + 600)]

# Seconds between two of each.
CHANGE, SAMPLE, KILL, RELOAD, REEXEC, TOKEN = 1.0, 5.0, 60.0, 45.0, 120.0, 75.0
# Samples of the first minutes are left out: caches are filled, libraries are imported at their first use.
WARM = 300.0
LONGEST_OUTAGE = 0.5
# How much more may be in use in the last third of the run than in the first (numbers, MiB).
MOST = {"descriptors": 1, "sockets": 1, "threads": 1, "tasks": 1, "memory": 2.0, "envoys": 0, "shared memory": 0}
# Clusters and listeners at a time that come and go.
EXTRA = 20
ADDRESS, PORTS = "127.64.0.1", 20_000
# Envoy writes its log every ten seconds at the latest (its --file-flush-interval-msec); what a kill takes is not ours.
UNWRITTEN = 10.0
LOGGED_EACH_SECOND = RATES["inbound"] + RATES["outbound"] + RATES["probes"]
DATA = Path(__file__).parents[1] / "data" / "soak"


@dataclass
class Course:
    """What was done how often, and what was in use."""

    begun: float = field(default_factory=time.monotonic)
    done: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[Point]] = field(default_factory=dict)

    @property
    def at(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begun

    def warm(self, name: str) -> list[Point]:
        """Return the samples of the time after the first minutes, at most a quarter of the run."""
        since = min(WARM, MINUTES * 15)
        return [point for point in self.samples[name] if point[0] >= since]


def own_metrics(daemon: Daemon) -> dict[str, float]:
    """Return kumadp's own metrics without labels."""
    connection = UnixConnection(control_socket_path(NAME, daemon.environment), 30)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def sample(rig: FaultRig, daemon: Daemon, course: Course) -> None:
    """Add a sample; none while the control socket does not answer."""
    with contextlib.suppress(OSError):
        metrics = own_metrics(daemon)
        values = measure(daemon.pid) | {
            "tasks": metrics["kumadp_event_loop_tasks"],
            "envoys": len(rig.envoys()),
            "shared memory": len(rig.shared_memory()),
        }
        for name, value in values.items():
            course.samples.setdefault(name, []).append((course.at, value))


@contextlib.contextmanager
def changing(mesh: Mesh, application: int, course: Course) -> Iterator[None]:
    """Change the configuration each second: a cluster with a listener comes, and the oldest such pair goes."""
    over = threading.Event()

    def change() -> None:
        while not over.wait(CHANGE):
            turn = course.done["changes"]
            name, port = f"extra-{turn}", PORTS + turn % (2 * EXTRA)
            mesh.put(CLUSTER, static_cluster(name, "127.0.0.1", application))
            listener = http_listener(f"outbound:{ADDRESS}:{port}", ADDRESS, port, name, "OUTBOUND")
            mesh.put(LISTENER, listener | {"bindToPort": False})
            if turn >= EXTRA:
                mesh.remove(LISTENER, f"outbound:{ADDRESS}:{PORTS + (turn - EXTRA) % (2 * EXTRA)}")
                mesh.remove(CLUSTER, f"extra-{turn - EXTRA}")
            course.done["changes"] += 1

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(change)
        try:
            yield
        finally:
            over.set()
            running.result()


def timetable(rig: FaultRig, daemon: Daemon, course: Course) -> dict[str, tuple[float, Callable[[], object]]]:
    """Return what is done at which interval (seconds)."""
    return {
        "samples": (SAMPLE, lambda: sample(rig, daemon, course)),
        "kills of Envoy": (KILL, lambda: rig.kill_envoy(daemon)),
        "reloads": (RELOAD, lambda: rig.reload(daemon)),
        "re-executions": (REEXEC, lambda: poll(lambda: rig.try_reexec(daemon), what="a re-execution", deadline=60)),
        "tokens": (TOKEN, rig.renew_token),
    }


def live(rig: FaultRig, daemon: Daemon, course: Course) -> None:
    """Follow the timetable until the time is over."""
    work = timetable(rig, daemon, course)
    due = {what: every for what, (every, _) in work.items()}
    while course.at < MINUTES * 60:
        what = min(due, key=lambda name: due[name])
        time.sleep(max(0.0, due[what] - course.at))
        work[what][1]()
        course.done[what] += 1
        # A turn that a slow one displaced is left out.
        due[what] = max(due[what] + work[what][0], course.at)


def test_nothing_grows(capsys: pytest.CaptureFixture[str]) -> None:
    course = Course()
    with open_fault_rig(mtls=False) as rig, contextlib.ExitStack() as stack:
        sink = Sink()
        stack.callback(sink.stop)
        with rig.up() as daemon:
            log_to(rig.plane.mesh(NODE), rig.work, NAME, sink.address)
            rig.fault_load.begin(rig.traffic)
            course.begun = time.monotonic()
            try:
                with changing(rig.plane.mesh(NODE), rig.app.port, course):
                    live(rig, daemon, course)
            finally:
                traffic = rig.fault_load.end()
            rig.wait_ready(daemon)
            # All of it passes the inbound.
            answered = sum(traffic[kind].sent - traffic[kind].lost for kind in ("inbound", "outbound", "probes"))
            logs = own_metrics(daemon)
            dropped = logs["kumadp_access_log_dropped_lines_total"]
            daemon.terminate()
            assert daemon.wait() == ExitCode.OK, daemon.output()
        assert rig.leftovers() == []
    missing = answered - len(sink.lines) - dropped
    report: dict[str, Any] = {
        "minutes": round(course.at / 60, 1),
        "done": dict(course.done),
        "traffic": {kind: {"sent": of.sent, "lost": of.lost, "outage": of.outage} for kind, of in traffic.items()},
        "failures": {kind: of.failures for kind, of in traffic.items() if of.failures},
        "access log lines": {"sent": len(sink.lines), "dropped": dropped, "not written by a killed Envoy": missing},
        "growth": {
            name: {
                "first": points[0][1],
                "last": points[-1][1],
                "rise": round(rise(course.warm(name)), 3),
                "in 24 h": round(growth_per_day(course.warm(name)), 2),
            }
            for name, points in course.samples.items()
        },
    }
    with capsys.disabled():
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    store(report, course)
    assert {name: of for name, of in report["growth"].items() if of["rise"] > MOST[name]} == {}, report
    for kind in ("inbound", "outbound"):
        assert traffic[kind].outage <= LONGEST_OUTAGE, report
    assert missing <= course.done["kills of Envoy"] * UNWRITTEN * LOGGED_EACH_SECOND, report


def store(report: dict[str, Any], course: Course) -> None:
    """Write figures and chart, if the run is to do so."""
    if not os.environ.get("KUMADP_SOAK_STORE"):
        return
    DATA.mkdir(exist_ok=True)
    (DATA / "soak.json").write_text(json.dumps(report, indent=1) + "\n")
    series = [
        Series(label, [(at / 60, value) for at, value in course.samples[name]])
        for name, label in (("memory", "memory (MiB)"), ("descriptors", "descriptors"), ("tasks", "tasks"))
    ]
    title = f"{report['minutes']} minutes: Envoy killed each minute, reloads, re-executions, a change each second"
    (DATA / "soak.svg").write_text(line_chart(title, series, x="minutes", y="in use"))
