"""A real Prometheus on a running kumadp: the dashboard's queries have data, and alerts fire when they should."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from kumadp.host.net.socket_paths import control_socket_path
from tests.metrics.test_alerts import ALERTS
from tests.support.access_log_policy import log_to
from tests.support.daemon import get
from tests.support.dynconf import SOCKET, dynconf_listener, with_etags
from tests.support.log_sink import Sink
from tests.support.poll import poll
from tests.support.prometheus import need_prometheus, scraped
from tests.support.rig import NAME, NODE, SOON
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import LISTENER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Daemon
    from tests.support.prometheus import Prometheus
    from tests.support.rig import Rig

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

DASHBOARD = ALERTS.parent / "grafana-dashboard.json"
# Only where all is not well, and so for the second test.
NOT_WHEN_WELL = ("kumadp_access_log_destination_connected{} == 0",)


@pytest.fixture(autouse=True)
def _prometheus() -> None:
    need_prometheus()


@contextlib.contextmanager
def watched(rig: Rig, daemon: Daemon, rules: Path | None = None) -> Iterator[Prometheus]:
    with scraped(rig.folder, control_socket_path(NAME, daemon.environment), rules) as prometheus:
        yield prometheus


def dashboard() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return tree


def queries() -> list[str]:
    """As Grafana sends them."""
    expressions = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [
        expression.replace('{instance=~"$instance"}', "{}").replace("$__rate_interval", "10s")
        for expression in expressions
    ]


def write_token(rig: Rig, seconds: float) -> None:
    """A token that ends so soon."""
    parts = (b'{"alg":"RS256"}', json.dumps({"exp": int(time.time() + seconds)}).encode(), b"none")
    rig.token.write_text(".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts))


def quick_alerts(folder: Path) -> Path:
    """The alerts, but none waits, so that a test need not."""
    alerts = yaml.safe_load(ALERTS.read_text())
    for rule in alerts["groups"][0]["rules"]:
        rule.pop("for", None)
        if rule["alert"] == "KumadpControlPlaneSilent":
            assert "> 30" in rule["expr"]
            rule["expr"] = rule["expr"].replace("> 30", "> 1")
    path = folder / "alerts.json"
    path.write_text(json.dumps(alerts))
    return path


def test_the_dashboard_is_in_order() -> None:
    tree = dashboard()
    assert len({panel["id"] for panel in tree["panels"]}) == len(tree["panels"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in tree["panels"]]
    assert len(set(places)) == len(places)
    used = set(re.findall(r"\$\{?([a-z]+)", json.dumps(tree["panels"])))
    assert used == {variable["name"] for variable in tree["templating"]["list"]}


def test_each_query_of_the_dashboard_has_data(rig: Rig) -> None:
    endpoint = {"inboundPort": rig.ports.inbound, "inboundPath": "/healthz", "path": "/app/healthz"}
    rig.dataplane["probes"] = {"port": rig.ports.probes, "endpoints": [endpoint]}
    write_token(rig, 30 * 86_400)
    flags = ("--envoy-arg=--file-flush-interval-msec", "--envoy-arg=100", "--dns-mode=embedded")
    with Sink() as sink, rig.run(*flags, dns=True) as daemon:
        rig.wait_traffic()
        assert isinstance(rig.plane, XdsControlPlane)
        mesh = rig.plane.mesh(NODE)
        names = dynconf_listener(rig.work / SOCKET, with_etags({"/dns": '{"records":[],"ttl":30}'}))
        mesh.put(LISTENER, {name: value for name, value in names.items() if name != "@type"})
        rig.wait_ready(daemon)
        log_to(mesh, rig.work, NAME, sink.address)
        poll(lambda: get(rig.ports.inbound, "/x")[0] and sink.lines, what="a line of access log", deadline=SOON)
        with watched(rig, daemon) as prometheus:
            expected = [query for query in queries() if query not in NOT_WHEN_WELL]
            assert len(expected) > 25
            empty = expected

            def answered() -> bool:
                nonlocal empty
                empty = [query for query in empty if not prometheus.query(query)]
                return not empty

            with contextlib.suppress(AssertionError):
                poll(answered, what="data", deadline=SOON)
            assert empty == []
            instances = prometheus.query('kumadp_ready{instance=~".*"}')
            assert [query["value"][1] for query in instances] == ["1"]
            # Well, and so nothing fires: not at the start either.
            assert prometheus.query("kumadp_concerns")[0]["value"][1] == "0"


def test_a_token_that_ends(rig: Rig) -> None:
    write_token(rig, 1000)
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        with watched(rig, daemon, quick_alerts(rig.folder)) as prometheus:
            poll(
                lambda: set(prometheus.firing()) == {"KumadpTokenExpiresSoon"},
                what="the expiry of the token",
                deadline=SOON,
            )
            write_token(rig, 60)
            daemon.process.send_signal(signal.SIGHUP)
            ending = {"KumadpTokenExpiresSoon", "KumadpTokenExpiring"}
            poll(lambda: ending <= set(prometheus.firing()), what="the near expiry", deadline=SOON)
            write_token(rig, 30 * 86_400)
            daemon.process.send_signal(signal.SIGHUP)
            poll(lambda: not ending & set(prometheus.firing()), what="no warning", deadline=SOON)


def test_alerts_fire_on_what_they_are_for(rig: Rig) -> None:
    with rig.run("--envoy-restart-budget=20") as daemon:
        rig.wait_ready(daemon)
        assert isinstance(rig.plane, XdsControlPlane)
        dead = "127.0.0.1:1"
        with watched(rig, daemon, quick_alerts(rig.folder)) as prometheus:
            assert prometheus.firing() == {}
            for _ in range(3):
                rig.kill_envoy(daemon)
            poll(lambda: "KumadpEnvoyRestarting" in prometheus.firing(), what="restarts seen", deadline=SOON)
            assert prometheus.firing()["KumadpEnvoyRestarting"]["severity"] == "critical"
            assert set(prometheus.firing()) <= {"KumadpEnvoyRestarting", "KumadpNotReady"}
            log_to(rig.plane.mesh(NODE), rig.work, NAME, dead)

            def without_connection() -> bool:
                get(rig.ports.inbound, "/x")
                return bool(prometheus.query(NOT_WHEN_WELL[0]))

            poll(without_connection, what="a destination without a connection", deadline=SOON)
            rig.plane.faults.silent = True
            rig.plane.kill()
            poll(lambda: "KumadpControlPlaneAway" in prometheus.firing(), what="it away", deadline=SOON)
            rig.plane.start()
            poll(lambda: "KumadpControlPlaneSilent" in prometheus.firing(), what="it silent", deadline=SOON)
            rig.plane.faults.silent = False
            rig.plane.wake()
            with contextlib.suppress(AssertionError):
                poll(lambda: set(prometheus.firing()) == {"KumadpEnvoyRestarting"}, what="all well", deadline=SOON)
            assert set(prometheus.firing()) == {"KumadpEnvoyRestarting"}
