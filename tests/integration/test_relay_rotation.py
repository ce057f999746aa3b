"""Token, CA and control plane change under a running data plane: nothing is lost, the next attempt takes the new."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.support.daemon import workload
from tests.support.poll import poll
from tests.support.rig import NODE, Rig, open_rig
from tests.support.xds.journal import What
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.linger(0.0)]


def test_a_rotated_token_is_used_by_the_next_attempt(rig: Rig, plane: XdsControlPlane) -> None:
    tokens: list[str] = []

    def take(token: str) -> str:
        tokens.append(token)
        return ""

    plane.faults.refuse_token = take
    old, new = plane.token(), plane.token() + "-new"
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        rig.token.write_text(new)
        rig.kill_envoy(daemon)
        assert len(plane.journal.events(What.OPENED)) == 1
        # The health stream of the next Envoy goes with what the connection was made with.
        poll(lambda: len(plane.journal.events(What.HDS_OPENED)) == 2, what="the health stream")
        assert set(tokens) == {old}
        plane.reset_streams()
        poll(lambda: len(plane.journal.events(What.ADMITTED)) == 2, what="another stream")
        assert tokens[-1] == new
        assert rig.restarts(daemon) == 1
        assert rig.serves()


def test_a_token_file_that_is_missing_for_a_moment(rig: Rig, plane: XdsControlPlane) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        token = rig.token.read_text()
        rig.token.unlink()
        plane.reset_streams()
        warning = rig.wait_warning(daemon, str(rig.token))
        assert "control plane: " in warning
        assert rig.relay(daemon)["refusal"] == "auth"
        assert rig.serves()
        rig.token.write_text(token)
        rig.wait_state(daemon, "open")
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning")


def test_a_changed_ca_is_used_by_the_next_attempt(rig: Rig, plane: XdsControlPlane) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        plane.renew_certificate(trustme.CA())
        assert rig.serves()
        assert len(plane.journal.events(What.OPENED)) == 1
        plane.drop_connections()
        rig.wait_warning(daemon, "its certificate is not accepted")
        assert rig.relay(daemon)["refusal"] == "auth"
        rig.kill_envoy(daemon)
        plane.write_ca(rig.ca)
        rig.wait_state(daemon, "open")
        poll(lambda: rig.settled(daemon), what="everything acknowledged again")
        assert rig.status(daemon)["concerns"] == []


def test_several_control_planes(tmp_path: Path) -> None:
    with (
        XdsControlPlane() as first,
        XdsControlPlane() as second,
        workload("backend") as app,
    ):
        for plane in (first, second):
            plane.faults.linger = 0.0
        rig = Rig(tmp_path, first, app)
        rig.ca.write_text(first.ca + second.ca)
        first.gone()
        with rig.run(f"--cp-address={first.url},{second.url}") as daemon:
            rig.wait_ready(daemon)
            assert rig.relay(daemon)["address"] == f"localhost:{second.port}"
            assert second.registered == [NODE]
            first.back()
            second.gone()
            poll(lambda: first.registered == [NODE], what="the Dataplane at the other control plane")
            poll(lambda: rig.relay(daemon)["address"] == f"localhost:{first.port}", what="its address")
            poll(lambda: rig.settled(daemon), what="everything acknowledged")
            rig.kill_envoy(daemon)
            second.back()
            first.gone()
            poll(lambda: second.registered == [NODE], what="the Dataplane at the first one again")
            rig.kill_envoy(daemon)
            assert rig.status(daemon)["concerns"] == []


@pytest.mark.parametrize("version", ["2.13.5", "2.8.8"])
def test_without_the_relay_envoy_connects_directly(tmp_path: Path, version: str) -> None:
    with XdsControlPlane(version=version) as plane, open_rig(tmp_path, plane) as rig:
        plane.faults.linger = 0.5
        with rig.run("--xds-relay=off") as daemon:
            daemon.wait_ready()
            rig.wait_traffic()
            status = rig.status(daemon)
            assert "relay" not in status
            assert not (rig.work / "relay.sock").exists()
            written = json.loads((rig.work / "bootstrap.yaml").read_text())
            ads = written["dynamicResources"]["adsConfig"]["grpcServices"][0]
            assert ads["initialMetadata"] == [{"key": "authorization", "value": plane.token()}]
            assert not list(rig.state.glob("*")) or not rig.state.exists()
            rig.kill_envoy(daemon)
            assert len(plane.journal.events(What.OPENED)) >= 2
            assert plane.token() not in daemon.output()
