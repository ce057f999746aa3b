"""The relay between a real Envoy and the test control plane."""

from __future__ import annotations

import logging
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import trustme

from kumadp.errors import WorkDirError
from kumadp.host.net.serve import bind_unix
from tests.support.daemon import get
from tests.support.event_loops import LOOPS
from tests.support.poll import poll
from tests.support.relay_stage import NODE, RelayStage, stage
from tests.support.xds.faults import Garbage
from tests.support.xds.journal import Kind, What
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER, SECRET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Workload

pytestmark = pytest.mark.process


@pytest.fixture(params=LOOPS)
def at(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RelayStage]:
    with stage(tmp_path, LOOPS[request.param]) as made:
        yield made


def test_the_control_plane_is_queried_before_envoy_runs(at: RelayStage) -> None:
    relay = at.relay()
    poll(lambda: relay.status["state"] == "open", what="an open stream")
    journal = at.plane.journal
    poll(lambda: len(journal.responses()) == 2, what="both first answers")
    assert [entry.type_url for entry in journal.requests()] == [CLUSTER, LISTENER]
    assert [entry.has_node for entry in journal.requests()] == [True, False]
    assert journal.requests(kind=Kind.ACK) == []
    envoy = at.envoy(relay)
    envoy.wait_live()
    at.wait_traffic()
    relay.wait_accepted(CLUSTER, ENDPOINTS, LISTENER)
    assert set(relay.accepted) == {CLUSTER, ENDPOINTS, LISTENER}
    assert len(journal.events(What.OPENED)) == 1
    assert journal.requests(kind=Kind.NACK) == []
    assert at.plane.token() not in envoy.dump()


def test_an_envoy_that_dies_is_served_from_memory_and_the_mesh_sees_nothing(at: RelayStage) -> None:
    relay = at.relay()
    at.envoy(relay).wait_live()
    at.wait_traffic()
    poll(lambda: len(at.plane.journal.requests(kind=Kind.ACK)) == 3, what="all answers at the control plane")
    seen = len(at.plane.journal.requests())
    at.envoys[0].die()
    again = at.envoy(relay, 1)
    again.wait_live()
    at.wait_traffic()
    assert len(at.plane.journal.events(What.OPENED)) == 1
    assert at.plane.registered == [NODE]
    assert len(at.plane.journal.requests()) == seen


def test_envoy_starts_while_the_control_plane_is_gone(at: RelayStage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    relay = at.relay()
    at.envoy(relay).wait_live()
    relay.wait_accepted(CLUSTER, ENDPOINTS, LISTENER)
    at.plane.kill()
    at.envoys[0].die()
    again = at.envoy(relay, 1)
    again.wait_live()
    at.wait_traffic()
    before = again.stats("cluster_manager.cluster_modified")
    poll(lambda: relay.status["refusal"] == "unreachable", what="the refusal")
    at.plane.start()
    poll(lambda: relay.status["state"] == "open", what="the stream again")
    poll(lambda: at.plane.journal.events(What.REGISTERED)[1:], what="the Dataplane again")
    versions = {kind: at.plane.version_of(NODE, kind) for kind in (CLUSTER, ENDPOINTS, LISTENER)}
    poll(lambda: {view["type"]: view["accepted"] for view in relay.status["types"]} == versions, what="all taken again")
    assert again.stats("cluster_manager.cluster_modified") == before
    assert "Traceback" not in caplog.text
    assert len([entry for entry in caplog.records if entry.name.startswith("kumadp")]) < 8


def test_envoy_finds_a_relay_that_was_away(at: RelayStage) -> None:
    relay = at.relay()
    envoy = at.envoy(relay)
    envoy.wait_live()
    at.plane.faults.linger = 0.5
    memory = at.stop(relay)
    assert not at.path.exists()
    poll(lambda: at.plane.streams() == [], what="the end of the stream at the control plane")
    assert at.serves()
    again = at.relay(snapshot=memory)
    envoy.belongs_to(again)
    again.wait_accepted(CLUSTER, ENDPOINTS, LISTENER)
    poll(lambda: again.status["state"] == "open", what="the stream again")
    assert at.serves()


def test_secrets_reach_envoy_and_stay_in_memory(at: RelayStage) -> None:
    mesh = at.plane.mesh(NODE)
    mesh.use_mtls(trustme.CA(), "web.mesh")
    mesh.inbound(at.ports.inbound, at.app.port)
    mesh.outbound(at.ports.outbound, "backend", ("127.0.0.1", at.ports.inbound))
    relay = at.relay()
    at.envoy(relay).wait_live()
    at.wait_traffic()
    relay.wait_accepted(CLUSTER, ENDPOINTS, LISTENER, SECRET)
    at.plane.gone()
    at.envoys[0].die()
    at.envoy(relay, 1).wait_live()
    at.wait_traffic()
    assert "PRIVATE KEY" not in str(relay.status)


def test_secrets_that_are_not_there_hold_up_nothing_but_what_needs_them(at: RelayStage) -> None:
    mesh = at.plane.mesh(NODE)
    mesh.inbound(at.ports.inbound, at.app.port)
    mesh.outbound(at.ports.probes, "plain", ("127.0.0.1", at.app.port))
    mesh.use_mtls(trustme.CA(), "web.mesh")
    mesh.outbound(at.ports.outbound, "backend", ("127.0.0.1", at.ports.inbound))
    at.plane.faults.linger = 0.0
    relay = at.relay()
    at.envoy(relay).wait_live()
    relay.wait_accepted(CLUSTER, ENDPOINTS, LISTENER, SECRET)
    at.envoys[0].die()
    memory = at.stop(relay)
    at.plane.gone()
    kept = msgspec.structs.replace(memory, types=tuple(one for one in memory.types if one.type_url != SECRET))
    again = at.relay(snapshot=kept, withhold_secrets=True)
    at.envoy(again, 1).wait_live(deadline=10.0)
    assert get(at.ports.probes) == (200, "backend")
    assert get(at.ports.outbound)[0] == 503
    at.plane.back()
    mesh.inbound(at.ports.inbound, at.app.port)
    at.wait_traffic()
    assert at.plane.journal.requests(SECRET, Kind.NACK) == []


def test_an_update_that_envoy_rejects_is_logged_and_not_sent_to_the_next(
    at: RelayStage, caplog: pytest.LogCaptureFixture
) -> None:
    relay = at.relay()
    at.envoy(relay).wait_live()
    at.wait_traffic()
    relay.wait_accepted(CLUSTER, ENDPOINTS, LISTENER)
    at.plane.mesh(NODE).break_cluster("backend")
    nack = poll(lambda: at.plane.journal.requests(CLUSTER, Kind.NACK), what="the rejection")[0]
    assert "ring" in nack.error.lower()
    poll(lambda: "rejected by Envoy" in caplog.text, what="a line in the log")
    at.envoys[0].die()
    at.envoy(relay, 1).wait_live()
    at.wait_traffic()


def test_without_an_envoy_the_stream_is_given_up_and_taken_again(
    at: RelayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kumadp.relay.relay.HOLD", 0.5)
    at.plane.faults.linger = 0.1
    relay = at.relay()
    at.envoy(relay).wait_live()
    at.envoys[0].die()
    poll(lambda: relay.status["state"] == "held-closed", what="the stream given up")
    poll(lambda: at.plane.registered == [], what="the Dataplane out of the mesh")
    at.envoy(relay, 1).wait_live()
    at.wait_traffic()
    poll(lambda: at.plane.registered == [NODE], what="the Dataplane in the mesh")


def test_a_silent_control_plane_is_logged(
    at: RelayStage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kumadp.relay.unanswered.SILENCE", 0.3)
    at.plane.faults.silent = True
    relay = at.relay()
    poll(lambda: relay.status["silence"] > 0.3, what="silence in the status")
    poll(lambda: "has not answered for 0 s: Cluster, Listener" in caplog.text, what="silence in the log")
    assert relay.status["state"] == "connecting"
    at.plane.faults.silent = False
    at.plane.wake()
    poll(lambda: relay.status["state"] == "open" and relay.status["silence"] == 0, what="an answer")


def test_the_socket_is_ours_alone(at: RelayStage) -> None:
    at.path.touch()
    relay = at.relay()
    mode = at.path.stat()
    assert stat.S_ISSOCK(mode.st_mode)
    assert stat.S_IMODE(mode.st_mode) == 0o600
    with pytest.raises(WorkDirError, match="running"):
        bind_unix(at.path)
    at.stop(relay)
    with socket.socket(socket.AF_UNIX) as client:
        assert client.connect_ex(str(at.path)) != 0


STRANGER = """
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(10)
    client.connect(sys.argv[1])
    assert client.recv(100) == b""
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_turned_away(at: RelayStage, caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory() as folder:
        at.path = Path(folder) / "xds.sock"
        at.relay()
        # As if both guards of the file system had failed.
        Path(folder).chmod(0o755)
        at.path.chmod(0o666)
        subprocess.run([sys.executable, "-c", STRANGER, at.path], check=True, timeout=30)
        poll(lambda: "rejected a connection of user 65534" in caplog.text, what="a line in the log")


def test_health_reports_pass_and_are_held_back(at: RelayStage) -> None:
    relay = at.relay()
    envoy = at.envoy(relay)
    envoy.wait_live()
    journal = at.plane.journal
    poll(lambda: journal.reports(), what="a report", deadline=40)
    relay.call(relay.relay.hold_health, True)
    last = len(poll(lambda: journal.reports(), what="a report"))
    count = len(envoy.stats("hds_delegate"))
    assert count
    sent = envoy.stats("hds_delegate.responses")["hds_delegate.responses"]
    poll(lambda: envoy.stats("hds_delegate.responses")["hds_delegate.responses"] > sent + 2, what="reports by Envoy")
    assert len(journal.reports()) <= last + 1
    relay.call(relay.relay.hold_health, False)
    poll(lambda: len(journal.reports()) > last + 1, what="reports again")
    opened = len(journal.events(What.HDS_OPENED))
    at.plane.faults.linger = 0.0
    at.plane.gone()
    at.plane.back()
    poll(lambda: len(journal.events(What.HDS_OPENED)) > opened, what="the health stream again")
    held = len(journal.reports())
    poll(lambda: len(journal.reports()) > held, what="reports on it")
    assert envoy.stats("hds_delegate.errors")["hds_delegate.errors"] == 0


def test_what_envoy_has_not_checked_yet_is_not_reported_after_a_change(at: RelayStage, app: Workload) -> None:
    """As at an upgrade to Kuma 3.0: another check, and Envoy reports before it has the answer."""
    envoy = at.envoy(at.relay())
    envoy.wait_live()
    journal, mesh = at.plane.journal, at.plane.mesh(NODE)
    mesh.check_health(0, app.port, interval=3.0)
    poll(lambda: any(f"localhost:{app.port}" in report.healthy for report in journal.reports()), what="a report")
    sent = envoy.stats("hds_delegate.responses")["hds_delegate.responses"]
    (check,) = mesh.specifier["clusterHealthChecks"]
    slow = {"timeout": "60s", "interval": "1s", "healthyThreshold": 1, "unhealthyThreshold": 1}
    slow_check = check | {"clusterName": "slow", "healthChecks": [slow | {"httpHealthCheck": {"path": "/slow"}}]}
    mesh.specifier = mesh.specifier | {"clusterHealthChecks": [slow_check]}
    mesh.apply()
    poll(app.entered.is_set, what="the check")
    poll(lambda: envoy.stats("hds_delegate.responses")["hds_delegate.responses"] > sent, what="a report by Envoy")
    app.release.set()
    poll(lambda: any(report.healthy.get("slow") for report in journal.reports()), what="a report of the check")
    assert all(report.healthy.get("slow", True) for report in journal.reports())


def test_status_is_json_and_holds_times(at: RelayStage) -> None:
    relay = at.relay()
    at.envoy(relay).wait_live()
    relay.wait_accepted(CLUSTER, ENDPOINTS, LISTENER)
    found = relay.status
    assert found["address"] == f"localhost:{at.plane.xds_port}"
    assert found["connected_since"] == found["since"] > 1.6e9
    assert [view["type"] for view in found["types"]] == [CLUSTER, ENDPOINTS, LISTENER]
    assert all(view["changed"] > 1.6e9 and view["rejected"] == 0 for view in found["types"])
    assert get(at.ports.inbound) == (200, "backend")


@pytest.mark.parametrize("garbage", Garbage)
def test_garbage_from_the_control_plane_harms_nobody(
    at: RelayStage, garbage: Garbage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What looks like the beginning of a large frame is found out by pings only.
    monkeypatch.setattr("kumadp.relay.upstream.PING", (0.5, 0.5))
    at.plane.faults.linger = 0.0
    at.plane.faults.nack_delay = 0.1
    relay = at.relay()
    at.envoy(relay).wait_live()
    at.wait_traffic()
    relay.wait_accepted(CLUSTER, ENDPOINTS, LISTENER)
    before = len(at.plane.journal.responses())
    at.plane.faults.garbage = garbage
    at.plane.renew_versions(NODE)
    poll(lambda: len(at.plane.journal.responses()) > before, what="garbage sent")
    assert at.serves()
    at.plane.faults.garbage = None
    at.plane.reset_streams()
    at.plane.renew_versions(NODE)
    newest = at.plane.version_of
    poll(
        lambda: (
            {view["type"]: view["accepted"] for view in relay.status["types"]}
            == {kind: newest(NODE, kind) for kind in (CLUSTER, ENDPOINTS, LISTENER)}
        ),
        what="what is good taken again",
        deadline=40,
    )
    assert at.serves()
    assert "Traceback" not in caplog.text
