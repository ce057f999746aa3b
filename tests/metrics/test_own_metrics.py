"""kumadp's own metrics: derived from a status, valid for promtool, and bounded."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kumadp.core.phases import Phase
from kumadp.core.status import Status
from kumadp.metrics.loop_lag import LoopLag
from kumadp.metrics.own_metrics import PHASES, OwnMetrics
from kumadp.metrics.own_page import OwnMetricsPage
from kumadp.process.restart_policy import ChildState
from kumadp.process.supervisor import CAUSES, ChildReport
from tests.metrics.test_dns import Counters
from tests.support.event_loops import on_both_loops
from tests.support.poll import poll_async
from tests.support.prometheus import lint

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = 1_800_000_000.0


def status() -> dict[str, Any]:
    """A status with all sections."""
    instance = Status("web", "control plane", "default")
    instance.move(Phase.READY, "up")
    envoy = ChildReport("envoy", ChildState.RUNNING, 1, NOW, 2, "died", "", NOW, NOW, {"signal": 2, "asked": 1})
    instance.note_child(envoy)
    instance.note_child(ChildReport("coredns", ChildState.BACKOFF, None, NOW, 1, "died", "", None, NOW, {"exit": 1}))
    instance.counters["bootstrap"].update(attempts=3, answered=1)
    instance.counters["virtual probes"].update({"2xx": 7, "5xx": 1})
    instance.facts |= {
        "versions": {"envoy": "1.40.0", "coredns": ""},
        "epoch": 1,
        "token_expires": NOW + 3600,
        "stale_since": NOW - 60,
        "reexec": {"count": 4},
    }
    view: dict[str, Any] = {"type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "accepted": "1"}
    view |= {"latest": "2", "open": True, "names": None, "rejected": 5, "withheld": True, "changed": NOW}
    view |= {"withheld_resources": 120}
    destination = {"connected_since": None, "waiting": 3, "sent": 0, "dropped": 2}
    path = {"asked": 9, "seconds": 0.5, "failed": 1, "changes": 2, "took": 0.01}
    return {
        **instance.snapshot(),
        "relay": {"state": "open", "since": NOW, "silence": 12.5, "received": NOW, "withheld": [], "types": [view]},
        "access_logs": {
            "lines": 10,
            "malformed": 1,
            "sent": 5,
            "dropped": 2,
            "behind": 0,
            "destinations": {"127.0.0.1:514": destination},
        },
        "dynconf": {"paths": {"/meshmetric": path}},
        "otel": {
            "push": {"/run/kuma-otel-c.sock": {"pushed": 8, "failed": 3}},
            "pipe": {"kuma-otel-c.sock": {"name": "c", "signals": {"logs": {"sent": 9, "failed": 2, "refused": 1}}}},
        },
        "log": {"dropped": 6},
        "connections": {"virtual probes": {"open": 3, "most": 256, "displaced": 9, "refused": 1, "bad_requests": 4}},
    }


def exposition(snapshot: Mapping[str, Any]) -> bytes:
    own = OwnMetrics(lambda: snapshot, _NoLag(), states=[state.name for state in ChildState], causes=CAUSES)
    return own.exposition()


class _NoLag(LoopLag):
    def tasks(self) -> int:
        return 12

    def measure(self) -> None:
        pass


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name.removeprefix("kumadp_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_a_complete_status() -> None:
    values = samples(exposition(status()))

    def value(name: str, **labels: str) -> float:
        return values[name, tuple(sorted(labels.items()))]

    assert value("ready") == 1
    assert value("phase", phase="READY") == 1
    assert value("phase", phase="STARTING") == 0
    assert value("child_state", child="envoy", state="RUNNING") == 1
    assert value("child_state", child="coredns", state="BACKOFF") == 1
    assert value("child_restarts_total", child="envoy", reason="signal") == 2
    assert value("child_restarts_total", child="envoy", reason="asked") == 1
    # Present from the start, so that the first restart is an increase.
    assert value("child_restarts_total", child="envoy", reason="out_of_memory") == 0
    assert value("bootstrap_attempts_total") == 3
    assert value("bootstrap_answers_total") == 1
    assert value("relay_connected") == 1
    assert value("relay_silence_seconds") == 12.5
    assert value("configuration_timestamp_seconds", type="Cluster") == NOW
    assert value("configuration_pending", type="Cluster") == 1
    assert value("configuration_rejections_total", type="Cluster") == 5
    assert value("configuration_withheld_resources", type="Cluster") == 120
    assert value("configuration_stale") == 1
    assert value("token_expiry_timestamp_seconds") == NOW + 3600
    assert value("probe_answers_total", kind="virtual", code="2xx") == 7
    assert value("access_log_lines_total") == 10
    assert value("access_log_dropped_lines_total") == 2
    assert value("access_log_waiting_lines", destination="127.0.0.1:514") == 3
    assert value("dynconf_request_duration_seconds_sum", path="/meshmetric") == 0.5
    assert value("dynconf_request_duration_seconds_count", path="/meshmetric") == 9
    assert value("dynconf_failures_total", path="/meshmetric") == 1
    assert value("otel_pushes_total", to="kuma-otel-c.sock", result="failed") == 3
    assert value("otel_pipe_messages_total", backend="c", signal="logs", result="sent") == 9
    assert value("otel_pipe_messages_total", backend="c", signal="logs", result="refused") == 1
    assert value("log_lines_dropped_total") == 6
    assert value("connections", server="virtual probes") == 3
    assert value("connections_turned_away_total", server="virtual probes", how="displaced") == 9
    assert value("bad_requests_total", server="virtual probes") == 4
    assert value("reexecutions_total") == 4
    assert value("envoy_epoch") == 1
    assert value("event_loop_tasks") == 12
    assert value("process_open_fds") > 3
    assert ("build_info", (("envoy", "1.40.0"),)) not in values
    assert any(name == "build_info" and ("envoy", "1.40.0") in labels for name, labels in values)


def test_names_have_the_prefix_and_pass_promtool() -> None:
    text = exposition(status())
    names = {line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE")}
    assert all(name.startswith("kumadp_") for name in names)
    assert lint(text) == ""


def test_a_standalone_status_at_the_start() -> None:
    instance = Status("web", "standalone", "default")
    values = samples(exposition(instance.snapshot()))
    assert values["ready", ()] == 0
    assert not any(name.startswith(("relay", "token", "configuration", "dynconf", "access")) for name, _ in values)


def test_a_token_that_never_expires_has_no_metric() -> None:
    values = samples(exposition({**status(), "token_expires": None}))
    assert ("token_expiry_timestamp_seconds", ()) not in values


def test_unknown_types_share_a_label() -> None:
    changed = status()
    view = changed["relay"]["types"][0]
    changed["relay"]["types"] = [{**view, "type": f"type.googleapis.com/of.no.Kind{number}"} for number in range(50)]
    values = samples(exposition(changed))
    assert [labels for name, labels in values if name == "configuration_pending"] == [(("type", "other"),)]


def test_time_in_phases() -> None:
    instance = Status("web", "standalone", "default")
    spent = instance.spent()
    assert set(spent) == set(Phase)
    assert [phase.value for phase in Phase] == list(PHASES)
    begun = time.monotonic()
    while instance.spent()[Phase.STARTING] <= spent[Phase.STARTING]:
        assert time.monotonic() - begun < 5
    instance.move(Phase.READY, "up")
    first = instance.spent()[Phase.STARTING]
    instance.move(Phase.STARTING, "Envoy died")
    assert instance.spent()[Phase.STARTING] >= first > 0


@on_both_loops
async def test_the_lag_of_the_loop_is_measured_after_a_scrape() -> None:
    lag = LoopLag()
    lag.measure()
    lag.measure()

    async def measured() -> bool:
        return sum(lag.counts) == 10

    await poll_async(measured, what="ten timers")
    assert lag._pending_timers == 0
    lag.measure()
    await asyncio.sleep(0)
    # A callback that blocks the loop.
    time.sleep(0.2)  # noqa: ASYNC251

    async def measured_again() -> bool:
        return sum(lag.counts) == 20

    await poll_async(measured_again, what="ten more timers")
    assert lag.total >= 0.1
    assert sum(lag.counts[6:]) >= 1


@on_both_loops
async def test_other_parts_may_add_families() -> None:
    from prometheus_client.core import GaugeMetricFamily

    measuring = OwnMetricsPage(status)
    measuring.add(lambda: [GaugeMetricFamily("kuma_dp_dns_entries_total", "Names.", 5)])
    body, kind = await measuring.page()
    assert b"\nkuma_dp_dns_entries_total 5.0\n" in body
    assert kind.startswith("text/plain; version=0.0.4")
    measuring.add(lambda: [GaugeMetricFamily("kuma_dp_dns_more", "More.", 1)])
    assert b"kuma_dp_dns_more" in measuring.own()
    measuring.count_dns(lambda: (Counters(), 42, {"mesh": "default"}))
    assert b'kuma_dp_dns_queries_total{mesh="default",qtype="A",source="local"} 11.0' in measuring.own()


@pytest.mark.parametrize("state", [state.name for state in ChildState])
def test_a_child_is_in_one_state(state: str) -> None:
    changed = status()
    changed["children"]["envoy"]["state"] = state
    values = samples(exposition(changed))
    states = {
        dict(labels)["state"]: value
        for (name, labels), value in values.items()
        if name == "child_state" and ("child", "envoy") in labels
    }
    assert [name for name, value in states.items() if value] == [state]
