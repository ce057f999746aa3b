"""kumadp's own metrics, derived from its status at each scrape: nothing is counted twice, nothing runs between scrapes.

Imported with the first scrape: prometheus_client takes 35 ms and 1.5 MB.
"""

from __future__ import annotations

import platform
from collections import Counter
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

from kumadp.metrics.loop_lag import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from kumadp.metrics.loop_lag import LoopLag

    Snapshot = Mapping[str, Any]
    # Returns the families of another part, such as DNS.
    FamilySource = Callable[[], Iterable[Metric]]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PHASES = ("STARTING", "READY", "DRAINING", "STOPPING", "STOPPED")
RELAY_STATES = ("connecting", "open", "backoff", "held-closed")
PROBES = {"virtual probes": "virtual", "application probe proxy": "application"}
_DISCOVERY = ("Listener", "Cluster", "ClusterLoadAssignment", "RouteConfiguration", "Secret", "Runtime")


class OwnMetrics:
    """``snapshot`` returns the status (`kumadp.daemon.status_schema`); ``states`` and ``causes`` are those of children.

    `exposition` is called on the event loop, and measures the loop's ``lag`` for a moment afterwards.
    """

    def __init__(
        self, snapshot: Callable[[], Snapshot], lag: LoopLag, *, states: Iterable[str], causes: Iterable[str]
    ) -> None:
        self._lag = lag
        self._registry = CollectorRegistry()
        self._collector = _Collector(snapshot, lag, tuple(states), tuple(causes))
        self._registry.register(self._collector)
        # kumadp_process_..., since the merged exposition may have the process_... metrics of an application.
        ProcessCollector(namespace="kumadp", registry=self._registry)

    def add(self, families: FamilySource) -> None:
        """Include the families of another part."""
        self._collector.family_sources.append(families)

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format 0.0.4 (`CONTENT_TYPE`)."""
        text: bytes = generate_latest(self._registry)
        self._lag.measure()
        return text


class _Collector(Collector):
    def __init__(
        self, snapshot: Callable[[], Snapshot], lag: LoopLag, states: tuple[str, ...], causes: tuple[str, ...]
    ) -> None:
        self._snapshot = snapshot
        self._lag = lag
        self._states = states
        self._causes = causes
        self.family_sources: list[FamilySource] = []

    def describe(self) -> list[Metric]:
        # Without descriptions the registry does not call `collect` at registration.
        return []

    def collect(self) -> Iterator[Metric]:
        now = self._snapshot()
        yield from self._instance(now)
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
        for families in self.family_sources:
            yield from families()
        yield self._loop_lag()
        yield _gauge("event_loop_tasks", "Number of tasks of the event loop.", self._lag.tasks())

    def _instance(self, now: Snapshot) -> Iterator[Metric]:
        versions = {str(name): str(version) for name, version in (now.get("versions") or {}).items() if version}
        labels = {**versions, "version": now["version"], "mode": now["mode"], "python": platform.python_version()}
        labels.pop("kumadp", None)
        yield InfoMetricFamily("kumadp_build", "Versions of kumadp, its children and Python.", labels)
        yield _gauge(
            "start_timestamp_seconds", "When kumadp was started; a re-execution does not count.", now["started"]
        )
        yield _gauge("ready", "Whether /ready answers 200.", float(now["ready"]))
        yield _one_hot("phase", "Phase of kumadp.", "phase", PHASES, now["phase"])
        spent = CounterMetricFamily("kumadp_phase_seconds", "Time in each phase.", labels=["phase"])
        for phase in PHASES:
            spent.add_metric([phase], (now.get("spent") or {}).get(phase, 0.0))
        yield spent
        yield _gauge("concerns", "Number of warnings; traffic flows nevertheless.", len(now["concerns"]))
        yield _gauge("fatal_parts", "Number of components that failed permanently.", len(now["fatal"]))
        count = (now.get("reexec") or {}).get("count", 0)
        yield _counter("reexecutions", "Number of re-executions of kumadp in this process.", count)
        if (epoch := now.get("epoch")) is not None:
            yield _gauge("envoy_epoch", "Epoch of the Envoy that serves.", epoch)

    def _children(self, children: Mapping[str, Any]) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "kumadp_child_state", "State of a child: 1 for the current one.", labels=["child", "state"]
        )
        started = GaugeMetricFamily(
            "kumadp_child_start_timestamp_seconds", "When a child's process was started.", labels=["child"]
        )
        restarts = CounterMetricFamily(
            "kumadp_child_restarts", "Ends of a child after which it was restarted.", labels=["child", "reason"]
        )
        for name, child in children.items():
            for state_name in self._states:
                state.add_metric([name, state_name], float(child["state"] == state_name))
            if child.get("started"):
                started.add_metric([name], child["started"])
            for cause in self._causes:
                restarts.add_metric([name, cause.replace(" ", "_")], (child.get("causes") or {}).get(cause, 0))
        yield from (state, started, restarts)

    def _loop_lag(self) -> Metric:
        lag, cumulative, buckets = self._lag, 0, []
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), lag.counts, strict=True):
            cumulative += count
            buckets.append((bound, cumulative))
        histogram = HistogramMetricFamily(
            "kumadp_event_loop_lag_seconds", "Lateness of timers of the event loop, ten of them after each scrape."
        )
        histogram.add_metric([], buckets, lag.total)
        return histogram


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"kumadp_{name}", text, value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"kumadp_{name}", text, value)


def _one_hot(name: str, text: str, label: str, values: Iterable[str], current: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"kumadp_{name}", f"{text} 1 for the current one, 0 for the others.", labels=[label])
    for value in values:
        family.add_metric([value], float(value == current))
    return family


def _bootstrap(now: Snapshot) -> Iterator[Metric]:
    counters = now.get("counters", {}).get("bootstrap")
    if counters is not None:
        attempts, answers = counters.get("attempts", 0), counters.get("answered", 0)
        yield _counter("bootstrap_attempts", "Requests for the bootstrap.", attempts)
        yield _counter("bootstrap_answers", "Bootstraps received in response.", answers)
    if now["mode"] == "standalone":
        return
    stale = now.get("stale_since")
    yield _gauge(
        "configuration_stale", "Whether the configuration of an earlier run is in use.", float(stale is not None)
    )
    if stale is not None:
        yield _gauge(
            "configuration_stale_timestamp_seconds", "When the control plane last confirmed that configuration.", stale
        )
    changed = float(bool(now.get("restart_required")))
    yield _gauge("bootstrap_changed", "Whether the bootstrap has changed since Envoy was started with it.", changed)
    if (expires := now.get("token_expires")) is not None:
        yield _gauge("token_expiry_timestamp_seconds", "When the data plane token expires.", expires)


def _relay(relay: Mapping[str, Any]) -> Iterator[Metric]:
    yield _one_hot("relay_state", "State of the stream to the control plane.", "state", RELAY_STATES, relay["state"])
    yield _gauge("relay_connected", "Whether there is a stream to the control plane.", float(relay["state"] == "open"))
    yield _gauge("relay_state_timestamp_seconds", "When the stream entered its current state.", relay["since"])
    yield _gauge("relay_silence_seconds", "How long a first request has had no response.", relay["silence"])
    if (received := relay.get("received")) is not None:
        yield _gauge("configuration_received_timestamp_seconds", "When the last configuration arrived.", received)
    changed = GaugeMetricFamily(
        "kumadp_configuration_timestamp_seconds",
        "When the control plane last sent resources of a type.",
        labels=["type"],
    )
    pending = GaugeMetricFamily(
        "kumadp_configuration_pending",
        "Whether Envoy has not accepted the last resources of a type yet.",
        labels=["type"],
    )
    rejected = CounterMetricFamily("kumadp_configuration_rejections", "Responses that Envoy rejected.", labels=["type"])
    for view in relay["types"]:
        name = _discovery(view["type"])
        if view["changed"] is not None:
            changed.add_metric([name], view["changed"])
        pending.add_metric([name], float(view["accepted"] != view["latest"]))
        rejected.add_metric([name], view["rejected"])
    withheld = GaugeMetricFamily(
        "kumadp_configuration_withheld_resources",
        "Resources that Envoy rejected and is not given again.",
        labels=["type"],
    )
    numbers: Counter[str] = Counter()
    for view in relay["types"]:
        numbers[_discovery(view["type"])] += view["withheld_resources"]
    for name, number in numbers.items():
        withheld.add_metric([name], number)
    yield from (changed, pending, rejected, withheld)


def _discovery(type_url: str) -> str:
    name = type_url.rpartition(".")[2]
    return name if name in _DISCOVERY else "other"


def _connections(servers: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    open_connections = GaugeMetricFamily("kumadp_connections", "Connections to a server of kumadp.", labels=["server"])
    turned_away = CounterMetricFamily(
        "kumadp_connections_turned_away",
        "Connections that were refused, or closed in favour of others.",
        labels=["server", "how"],
    )
    bad_requests = CounterMetricFamily("kumadp_bad_requests", "Requests that are malformed.", labels=["server"])
    for name, server in servers.items():
        open_connections.add_metric([name], server["open"])
        for how in ("refused", "displaced"):
            turned_away.add_metric([name, how], server[how])
        bad_requests.add_metric([name], server["bad_requests"])
    yield from (open_connections, turned_away, bad_requests)


def _probes(counters: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    answers = CounterMetricFamily("kumadp_probe_answers", "Responses to probes.", labels=["kind", "code"])
    for name, kind in PROBES.items():
        if name in counters:
            for code in ("2xx", "3xx", "4xx", "5xx"):
                answers.add_metric([kind, code], counters[name].get(code, 0))
    yield answers


def _access_logs(logs: Mapping[str, Any]) -> Iterator[Metric]:
    yield _counter("access_log_lines", "Lines that Envoy wrote for TCP destinations.", logs["lines"])
    yield _counter("access_log_malformed_lines", "Malformed lines.", logs["malformed"])
    yield _counter("access_log_sent_lines", "Lines that were sent.", logs["sent"])
    yield _counter("access_log_dropped_lines", "Lines that were dropped because the queue was full.", logs["dropped"])
    yield _counter("access_log_behind", "Number of times that the FIFO was full, so that Envoy waited.", logs["behind"])
    up = GaugeMetricFamily(
        "kumadp_access_log_destination_connected",
        "Whether there is a connection to the destination.",
        labels=["destination"],
    )
    waiting = GaugeMetricFamily(
        "kumadp_access_log_waiting_lines", "Lines that are not sent yet.", labels=["destination"]
    )
    # At most 32 at once, by their limit.
    for address, destination in logs["destinations"].items():
        up.add_metric([address], float(destination["connected_since"] is not None))
        waiting.add_metric([address], destination["waiting"])
    yield from (up, waiting)


def _otel(push: Mapping[str, Any], pipe: Mapping[str, Any]) -> Iterator[Metric]:
    if push:
        pushes = CounterMetricFamily(
            "kumadp_otel_pushes",
            "Pushes of metrics to a socket, by result.",
            labels=["to", "result"],
        )
        for path, target in push.items():
            to = path.rpartition("/")[2]
            pushes.add_metric([to, "pushed"], target["pushed"])
            pushes.add_metric([to, "failed"], target["failed"])
        yield pushes
    if pipe:
        messages = CounterMetricFamily(
            "kumadp_otel_pipe_messages", "Messages for a backend, by result.", labels=["backend", "signal", "result"]
        )
        for backend in pipe.values():
            for signal, counts in backend["signals"].items():
                for result in ("sent", "failed", "refused"):
                    messages.add_metric([backend["name"], signal, result], counts[result])
        yield messages


def _dynconf(paths: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    requests = SummaryMetricFamily(
        "kumadp_dynconf_request_duration_seconds", "Requests for dynamic configuration.", labels=["path"]
    )
    failures = CounterMetricFamily(
        "kumadp_dynconf_failures",
        "Requests without a usable response, and responses that were not applied.",
        labels=["path"],
    )
    changes = CounterMetricFamily("kumadp_dynconf_changes", "Changes that were applied.", labels=["path"])
    apply_seconds = GaugeMetricFamily("kumadp_dynconf_apply_seconds", "Duration of the last change.", labels=["path"])
    for path, status in paths.items():
        requests.add_metric([path], status["asked"], status["seconds"])
        failures.add_metric([path], status["failed"])
        changes.add_metric([path], status["changes"])
        apply_seconds.add_metric([path], status["took"])
    yield from (requests, failures, changes, apply_seconds)
