"""kumadp's own metrics: made of a status, in good form, and bounded."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kumadp.core.phases import Phase
from kumadp.core.status import Status
from kumadp.metrics.lag import LoopLag
from kumadp.metrics.own import PHASES, Own
from kumadp.metrics.own_page import Measuring
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
    """A status with everything in it."""
    made = Status("web", "control plane", "default")
    made.move(Phase.READY, "up")
    envoy = ChildReport("envoy", ChildState.RUNNING, 1, NOW, 2, "died", "", NOW, NOW, {"signal": 2, "asked": 1})
    made.note_child(envoy)
    made.note_child(ChildReport("coredns", ChildState.BACKOFF, None, NOW, 1, "died", "", None, NOW, {"exit": 1}))
    made.counters["bootstrap"].update(attempts=3, answered=1)
    made.counters["virtual probes"].update({"2xx": 7, "5xx": 1})
    made.facts |= {
        "versions": {"envoy": "1.40.0", "coredns": ""},
        "epoch": 1,
        "token_expires": NOW + 3600,
        "stale_since": NOW - 60,
        "reexec": {"count": 4},
    }
    view: dict[str, Any] = {"type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "accepted": "1"}
    view |= {"latest": "2", "open": True, "names": None, "rejected": 5, "withheld": False, "changed": NOW}
    destination = {"connected_since": None, "waiting": 3, "sent": 0, "dropped": 2}
    path = {"asked": 9, "seconds": 0.5, "failed": 1, "changes": 2, "took": 0.01}
    return {
        **made.snapshot(),
        "relay": {"state": "open", "since": NOW, "silence": 12.5, "received": NOW, "types": [view]},
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
    own = Own(lambda: snapshot, _Still(), states=[state.name for state in ChildState], causes=CAUSES)
    return own.exposition()


class _Still(LoopLag):
    def look(self) -> None:
        pass


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name.removeprefix("kumadp_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_all_of_a_status() -> None:
    found = samples(exposition(status()))

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    assert value("ready") == 1
    assert value("phase", phase="READY") == 1
    assert value("phase", phase="STARTING") == 0
    assert value("child_state", child="envoy", state="RUNNING") == 1
    assert value("child_state", child="coredns", state="BACKOFF") == 1
    assert value("child_restarts_total", child="envoy", reason="signal") == 2
    assert value("child_restarts_total", child="envoy", reason="asked") == 1
    # There from the start, so that the first one can be seen as an increase.
    assert value("child_restarts_total", child="envoy", reason="out_of_memory") == 0
    assert value("bootstrap_attempts_total") == 3
    assert value("bootstrap_answers_total") == 1
    assert value("relay_connected") == 1
    assert value("relay_silence_seconds") == 12.5
    assert value("configuration_timestamp_seconds", type="Cluster") == NOW
    assert value("configuration_pending", type="Cluster") == 1
    assert value("configuration_rejections_total", type="Cluster") == 5
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
    assert value("process_open_fds") > 3
    assert ("build_info", (("envoy", "1.40.0"),)) not in found
    assert any(name == "build_info" and ("envoy", "1.40.0") in labels for name, labels in found)


def test_every_name_is_ours_and_prometheus_finds_no_fault() -> None:
    text = exposition(status())
    names = {line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE")}
    assert all(name.startswith("kumadp_") for name in names)
    assert lint(text) == ""


def test_a_start_and_a_mesh_of_files_have_less() -> None:
    made = Status("web", "standalone", "default")
    found = samples(exposition(made.snapshot()))
    assert found["ready", ()] == 0
    assert not any(name.startswith(("relay", "token", "configuration", "dynconf", "access")) for name, _ in found)


def test_a_token_without_end_has_no_expiry() -> None:
    found = samples(exposition({**status(), "token_expires": None}))
    assert ("token_expiry_timestamp_seconds", ()) not in found


def test_unknown_types_share_a_label() -> None:
    told = status()
    view = told["relay"]["types"][0]
    told["relay"]["types"] = [{**view, "type": f"type.googleapis.com/of.no.Kind{number}"} for number in range(50)]
    found = samples(exposition(told))
    assert [labels for name, labels in found if name == "configuration_pending"] == [(("type", "other"),)]


def test_time_in_phases() -> None:
    made = Status("web", "standalone", "default")
    spent = made.spent()
    assert set(spent) == set(Phase)
    assert [phase.value for phase in Phase] == list(PHASES)
    begun = time.monotonic()
    while made.spent()[Phase.STARTING] <= spent[Phase.STARTING]:
        assert time.monotonic() - begun < 5
    made.move(Phase.READY, "up")
    first = made.spent()[Phase.STARTING]
    made.move(Phase.STARTING, "Envoy died")
    assert made.spent()[Phase.STARTING] >= first > 0


@on_both_loops
async def test_the_loop_is_looked_at_for_a_moment_after_a_scrape() -> None:
    lag = LoopLag()
    lag.look()
    lag.look()

    async def looked() -> bool:
        return sum(lag.counts) == 10

    await poll_async(looked, what="ten looks")
    assert lag._left == 0
    lag.look()
    await asyncio.sleep(0)
    # A callback that takes its time.
    time.sleep(0.2)  # noqa: ASYNC251

    async def late() -> bool:
        return sum(lag.counts) == 20

    await poll_async(late, what="ten more")
    assert lag.total >= 0.1
    assert sum(lag.counts[6:]) >= 1


@on_both_loops
async def test_parts_may_add_families() -> None:
    from prometheus_client.core import GaugeMetricFamily

    measuring = Measuring(status)
    measuring.add(lambda: [GaugeMetricFamily("kuma_dp_dns_entries_total", "Names.", 5)])
    body, kind = await measuring.page()
    assert b"\nkuma_dp_dns_entries_total 5.0\n" in body
    assert kind.startswith("text/plain; version=0.0.4")
    measuring.add(lambda: [GaugeMetricFamily("kuma_dp_dns_more", "More.", 1)])
    assert b"kuma_dp_dns_more" in measuring.own()
    measuring.count_dns(lambda: (Counters(), 42, {"mesh": "default"}))
    assert b'kuma_dp_dns_queries_total{mesh="default",qtype="A",source="local"} 11.0' in measuring.own()


@pytest.mark.parametrize("state", [state.name for state in ChildState])
def test_children_are_in_one_state(state: str) -> None:
    told = status()
    told["children"]["envoy"]["state"] = state
    found = samples(exposition(told))
    states = {
        dict(labels)["state"]: value
        for (name, labels), value in found.items()
        if name == "child_state" and ("child", "envoy") in labels
    }
    assert [known for known, value in states.items() if value] == [state]
