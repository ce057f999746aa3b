"""kumadp's own metrics, made of its status when somebody asks: nothing is counted twice, nothing costs at rest.

Imported late, with the first scrape: prometheus_client takes 35 ms and 1.5 MB.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector, CollectorRegistry

from kumadp.metrics.lag import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from kumadp.metrics.lag import LoopLag

    Snapshot = Mapping[str, Any]
    # Families of others, as those of DNS.
    More = Callable[[], Iterable[Metric]]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PHASES = ("STARTING", "READY", "DRAINING", "STOPPING", "STOPPED")
RELAY_STATES = ("connecting", "open", "backoff", "held-closed")
PROBES = {"virtual probes": "virtual", "application probe proxy": "application"}
_DISCOVERY = ("Listener", "Cluster", "ClusterLoadAssignment", "RouteConfiguration", "Secret", "Runtime")


class Own:
    """``snapshot`` is the status (`kumadp.daemon.status_schema`); ``states`` and ``causes`` are those of children.

    To be asked on the event loop: `exposition` has ``lag`` look at the loop for a moment afterwards.
    """

    def __init__(
        self, snapshot: Callable[[], Snapshot], lag: LoopLag, *, states: Iterable[str], causes: Iterable[str]
    ) -> None:
        self._lag = lag
        self._registry = CollectorRegistry()
        self._collector = _Collector(snapshot, lag, tuple(states), tuple(causes))
        self._registry.register(self._collector)
        # kumadp_process_: an application's own process_ stands beside it in what is merged.
        ProcessCollector(namespace="kumadp", registry=self._registry)

    def add(self, more: More) -> None:
        """Ask this part for families too."""
        self._collector.more.append(more)

    def exposition(self) -> bytes:
        """In Prometheus' text format 0.0.4, as `CONTENT_TYPE` says."""
        text: bytes = generate_latest(self._registry)
        self._lag.look()
        return text


class _Collector(Collector):
    def __init__(
        self, snapshot: Callable[[], Snapshot], lag: LoopLag, states: tuple[str, ...], causes: tuple[str, ...]
    ) -> None:
        self._snapshot = snapshot
        self._lag = lag
        self._states = states
        self._causes = causes
        self.more: list[More] = []

    def describe(self) -> list[Metric]:
        # Nothing to ask for at registration, and no family is another's.
        return []

    def collect(self) -> Iterator[Metric]:
        now = self._snapshot()
        yield from self._whole(now)
        yield from self._children(now.get("children", {}))
        yield from _bootstrap(now)
        if relay := now.get("relay"):
            yield from _relay(relay)
        yield from _probes(now.get("counters", {}))
        if logs := now.get("access_logs"):
            yield from _access_logs(logs)
        if otel := now.get("otel"):
            yield from _otel(otel["push"], otel["pipe"])
        if dynconf := now.get("dynconf"):
            yield from _dynconf(dynconf["paths"])
        if log := now.get("log"):
            yield _counter("log_lines_dropped", "Log lines lost because the output was stuck.", log.get("dropped", 0))
        yield from _connections(now.get("connections", {}))
        for more in self.more:
            yield from more()
        yield self._lateness()

    def _whole(self, now: Snapshot) -> Iterator[Metric]:
        versions = {str(name): str(version) for name, version in (now.get("versions") or {}).items() if version}
        labels = {**versions, "version": now["version"], "mode": now["mode"], "python": platform.python_version()}
        labels.pop("kumadp", None)
        yield InfoMetricFamily("kumadp_build", "Versions of what runs.", labels)
        yield _gauge("start_timestamp_seconds", "When kumadp was started; a re-execution is no start.", now["started"])
        yield _gauge("ready", "Whether /ready answers 200.", float(now["ready"]))
        yield _one_hot("phase", "Phase of kumadp.", "phase", PHASES, now["phase"])
        spent = CounterMetricFamily("kumadp_phase_seconds", "Time in each phase.", labels=["phase"])
        for phase in PHASES:
            spent.add_metric([phase], (now.get("spent") or {}).get(phase, 0.0))
        yield spent
        yield _gauge("concerns", "What is wrong although traffic flows.", len(now["concerns"]))
        yield _gauge("fatal_parts", "Parts that are gone for good.", len(now["fatal"]))
        count = (now.get("reexec") or {}).get("count", 0)
        yield _counter("reexecutions", "How often kumadp was re-executed in this process.", count)
        if (epoch := now.get("epoch")) is not None:
            yield _gauge("envoy_epoch", "Epoch of the Envoy that serves.", epoch)

    def _children(self, children: Mapping[str, Any]) -> Iterator[Metric]:
        state = GaugeMetricFamily("kumadp_child_state", "State of a child, 1 for the one.", labels=["child", "state"])
        started = GaugeMetricFamily(
            "kumadp_child_start_timestamp_seconds", "When a child's process was started.", labels=["child"]
        )
        restarts = CounterMetricFamily(
            "kumadp_child_restarts", "Ends of a child after which it was started again.", labels=["child", "reason"]
        )
        for name, child in children.items():
            for known in self._states:
                state.add_metric([name, known], float(child["state"] == known))
            if child.get("started"):
                started.add_metric([name], child["started"])
            for cause in self._causes:
                restarts.add_metric([name, cause.replace(" ", "_")], (child.get("causes") or {}).get(cause, 0))
        yield from (state, started, restarts)

    def _lateness(self) -> Metric:
        lag, seen, buckets = self._lag, 0, []
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), lag.counts, strict=True):
            seen += count
            buckets.append((bound, seen))
        found = HistogramMetricFamily(
            "kumadp_event_loop_lag_seconds", "How late timers of the event loop came, ten of them after each scrape."
        )
        found.add_metric([], buckets, lag.total)
        return found


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"kumadp_{name}", text, value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"kumadp_{name}", text, value)


def _one_hot(name: str, text: str, label: str, known: Iterable[str], found: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"kumadp_{name}", f"{text} 1 for the one, 0 for the others.", labels=[label])
    for one in known:
        family.add_metric([one], float(one == found))
    return family


def _bootstrap(now: Snapshot) -> Iterator[Metric]:
    counted = now.get("counters", {}).get("bootstrap")
    if counted is not None:
        attempts, answers = counted.get("attempts", 0), counted.get("answered", 0)
        yield _counter("bootstrap_attempts", "Requests for the bootstrap.", attempts)
        yield _counter("bootstrap_answers", "Bootstraps that came of them.", answers)
    if now["mode"] == "standalone":
        return
    stale = now.get("stale_since")
    yield _gauge("configuration_stale", "Whether a configuration of an earlier run serves.", float(stale is not None))
    if stale is not None:
        yield _gauge("configuration_stale_timestamp_seconds", "When the control plane last stood by it.", stale)
    changed = float(bool(now.get("restart_required")))
    yield _gauge("bootstrap_changed", "Whether the bootstrap has changed and Envoy has not taken it yet.", changed)
    if (expires := now.get("token_expires")) is not None:
        yield _gauge("token_expiry_timestamp_seconds", "When the data plane token ends.", expires)


def _relay(relay: Mapping[str, Any]) -> Iterator[Metric]:
    yield _one_hot("relay_state", "The stream to the control plane.", "state", RELAY_STATES, relay["state"])
    yield _gauge("relay_connected", "Whether there is a stream to the control plane.", float(relay["state"] == "open"))
    yield _gauge("relay_state_timestamp_seconds", "When the stream came into its state.", relay["since"])
    yield _gauge("relay_silence_seconds", "How long a first question has gone unanswered.", relay["silence"])
    if (received := relay.get("received")) is not None:
        yield _gauge("configuration_received_timestamp_seconds", "When the last configuration came.", received)
    changed = GaugeMetricFamily(
        "kumadp_configuration_timestamp_seconds", "When the control plane sent the last of a type.", labels=["type"]
    )
    pending = GaugeMetricFamily(
        "kumadp_configuration_pending", "Whether Envoy lacks the last of a type.", labels=["type"]
    )
    rejected = CounterMetricFamily("kumadp_configuration_rejections", "Responses that Envoy rejected.", labels=["type"])
    for view in relay["types"]:
        name = view["type"].rpartition(".")[2]
        name = name if name in _DISCOVERY else "other"
        if view["changed"] is not None:
            changed.add_metric([name], view["changed"])
        pending.add_metric([name], float(view["accepted"] != view["latest"]))
        rejected.add_metric([name], view["rejected"])
    yield from (changed, pending, rejected)


def _connections(servers: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    held = GaugeMetricFamily("kumadp_connections", "Connections to a server of kumadp.", labels=["server"])
    turned = CounterMetricFamily(
        "kumadp_connections_turned_away",
        "Connections that were refused or closed for others.",
        labels=["server", "how"],
    )
    bad = CounterMetricFamily("kumadp_bad_requests", "Requests that could not be understood.", labels=["server"])
    for name, server in servers.items():
        held.add_metric([name], server["open"])
        for how in ("refused", "displaced"):
            turned.add_metric([name, how], server[how])
        bad.add_metric([name], server["bad_requests"])
    yield from (held, turned, bad)


def _probes(counters: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    answers = CounterMetricFamily("kumadp_probe_answers", "Answers to probes.", labels=["kind", "code"])
    for name, kind in PROBES.items():
        if name in counters:
            for code in ("2xx", "3xx", "4xx", "5xx"):
                answers.add_metric([kind, code], counters[name].get(code, 0))
    yield answers


def _access_logs(logs: Mapping[str, Any]) -> Iterator[Metric]:
    yield _counter("access_log_lines", "Lines that Envoy wrote for TCP destinations.", logs["lines"])
    yield _counter("access_log_malformed_lines", "Those that could not be understood.", logs["malformed"])
    yield _counter("access_log_sent_lines", "Those that were sent.", logs["sent"])
    yield _counter("access_log_dropped_lines", "Those that there was no room for.", logs["dropped"])
    yield _counter("access_log_behind", "How often the FIFO was found full, and Envoy waited.", logs["behind"])
    up = GaugeMetricFamily(
        "kumadp_access_log_destination_connected", "Whether there is a connection.", labels=["destination"]
    )
    waiting = GaugeMetricFamily(
        "kumadp_access_log_waiting_lines", "Lines that are not sent yet.", labels=["destination"]
    )
    # At most 32 at once, by their limit.
    for address, one in logs["destinations"].items():
        up.add_metric([address], float(one["connected_since"] is not None))
        waiting.add_metric([address], one["waiting"])
    yield from (up, waiting)


def _otel(push: Mapping[str, Any], pipe: Mapping[str, Any]) -> Iterator[Metric]:
    if push:
        rounds = CounterMetricFamily(
            "kumadp_otel_pushes",
            "Rounds of metrics pushed to a socket, and those that failed.",
            labels=["to", "result"],
        )
        for path, one in push.items():
            to = path.rpartition("/")[2]
            rounds.add_metric([to, "pushed"], one["pushed"])
            rounds.add_metric([to, "failed"], one["failed"])
        yield rounds
    if pipe:
        messages = CounterMetricFamily(
            "kumadp_otel_pipe_messages", "Messages for a backend.", labels=["backend", "signal", "result"]
        )
        for backend in pipe.values():
            for signal, line in backend["signals"].items():
                for result in ("sent", "failed", "refused"):
                    messages.add_metric([backend["name"], signal, result], line[result])
        yield messages


def _dynconf(paths: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    requests = SummaryMetricFamily(
        "kumadp_dynconf_request_duration_seconds", "Questions for dynamic configuration.", labels=["path"]
    )
    failures = CounterMetricFamily(
        "kumadp_dynconf_failures", "Questions without a usable answer, and answers not applied.", labels=["path"]
    )
    changes = CounterMetricFamily("kumadp_dynconf_changes", "Configurations that were applied.", labels=["path"])
    took = GaugeMetricFamily("kumadp_dynconf_apply_seconds", "How long the last one took.", labels=["path"])
    for path, told in paths.items():
        requests.add_metric([path], told["asked"], told["seconds"])
        failures.add_metric([path], told["failed"])
        changes.add_metric([path], told["changes"])
        took.add_metric([path], told["took"])
    yield from (requests, failures, changes, took)
