"""kumadp's own metrics as they come over the control socket of one that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kumadp.host.net.socket_paths import control_socket_path
from kumadp.host.socket_names import kuma_socket, metrics
from tests.support.daemon import get
from tests.support.poll import poll
from tests.support.prometheus import lint
from tests.support.rig import NAME, SOON, Rig
from tests.support.unix_http import UnixConnection

if TYPE_CHECKING:
    from tests.support.daemon import Daemon

pytestmark = pytest.mark.process


def scrape(daemon: Daemon) -> tuple[str, bytes]:
    connection = UnixConnection(control_socket_path(NAME, daemon.environment), 10)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.headers["content-type"], answer.read()
    finally:
        connection.close()


def value(daemon: Daemon, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(scrape(daemon)[1].decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


def test_what_happens_is_counted(rig: Rig) -> None:
    endpoint = {"inboundPort": rig.ports.inbound, "inboundPath": "/healthz", "path": "/app/healthz"}
    rig.dataplane["probes"] = {"port": rig.ports.probes, "endpoints": [endpoint]}
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        kind, text = scrape(daemon)
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        assert lint(text) == ""
        assert value(daemon, "kumadp_ready") == 1
        assert value(daemon, "kumadp_relay_connected") == 1
        assert value(daemon, "kumadp_bootstrap_attempts_total") == 1
        assert value(daemon, "kumadp_bootstrap_answers_total") == 1
        assert value(daemon, "kumadp_child_restarts_total", child="envoy", reason="signal") == 0
        assert (value(daemon, "kumadp_process_open_fds") or 0) > 10
        assert (value(daemon, "kumadp_event_loop_tasks") or 0) > 3
        assert get(rig.ports.probes, "/app/healthz")[0] == 200
        assert get(rig.ports.probes, "/no/such")[0] == 404
        assert value(daemon, "kumadp_probe_answers_total", kind="virtual", code="2xx") == 1
        assert value(daemon, "kumadp_probe_answers_total", kind="virtual", code="4xx") == 1
        rig.kill_envoy(daemon)
        assert value(daemon, "kumadp_child_restarts_total", child="envoy", reason="signal") == 1
        assert value(daemon, "kumadp_child_state", child="envoy", state="RUNNING") == 1
        poll(lambda: value(daemon, "kumadp_event_loop_lag_seconds_count"), what="the loop looked at", deadline=SOON)
        rig.plane.kill()
        poll(lambda: value(daemon, "kumadp_relay_connected") == 0, what="the relay alone", deadline=SOON)
        assert value(daemon, "kumadp_ready") == 1


def test_they_are_part_of_what_prometheus_scrapes(rig: Rig) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        connection = UnixConnection(kuma_socket(rig.work, metrics(NAME, "default")), 20)
        try:
            connection.request("GET", "/")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        assert "envoy_server_live" in text
        names = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines()}
        assert {"kumadp_ready", "kumadp_relay_connected", "kumadp_process_open_fds"} <= names
