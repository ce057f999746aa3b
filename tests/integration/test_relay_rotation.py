"""Token, CA and control plane change under a running data plane: nothing is lost, the next attempt takes the new."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.support.daemon import workload
from tests.support.poll import poll
from tests.support.rig import NODE, Rig, rig
from tests.support.xds.journal import What
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


@pytest.fixture
def plane() -> Iterator[XdsControlPlane]:
    with XdsControlPlane() as made:
        made.faults.linger = 0.0
        yield made


@pytest.fixture
def alone(tmp_path: Path, plane: XdsControlPlane) -> Iterator[Rig]:
    with rig(tmp_path, plane) as made:
        yield made


def test_a_rotated_token_breaks_nothing_and_is_taken_next(alone: Rig, plane: XdsControlPlane) -> None:
    tokens: list[str] = []

    def take(token: str) -> str:
        tokens.append(token)
        return ""

    plane.faults.refuse_token = take
    old, new = plane.token(), plane.token() + "-new"
    with alone.run() as daemon:
        alone.wait_ready(daemon)
        alone.token.write_text(new)
        alone.kill_envoy(daemon)
        assert len(plane.journal.events(What.OPENED)) == 1
        # The health stream of the next Envoy goes with what the connection was made with.
        poll(lambda: len(plane.journal.events(What.HDS_OPENED)) == 2, what="the health stream")
        assert set(tokens) == {old}
        plane.reset_streams()
        poll(lambda: len(plane.journal.events(What.ADMITTED)) == 2, what="another stream")
        assert tokens[-1] == new
        assert alone.restarts(daemon) == 1
        assert alone.serves()


def test_a_token_file_that_is_gone_for_a_moment(alone: Rig, plane: XdsControlPlane) -> None:
    with alone.run() as daemon:
        alone.wait_ready(daemon)
        token = alone.token.read_text()
        alone.token.unlink()
        plane.reset_streams()
        told = alone.wait_concern(daemon, str(alone.token))
        assert "control plane: " in told
        assert alone.relay(daemon)["refusal"] == "auth"
        assert alone.serves()
        alone.token.write_text(token)
        alone.wait_state(daemon, "open")
        poll(lambda: alone.status(daemon)["concerns"] == [], what="no concern any more")


def test_another_ca_is_taken_by_the_next_attempt(alone: Rig, plane: XdsControlPlane) -> None:
    with alone.run() as daemon:
        alone.wait_ready(daemon)
        plane.renew_certificate(trustme.CA())
        assert alone.serves()
        assert len(plane.journal.events(What.OPENED)) == 1
        plane.drop_connections()
        alone.wait_concern(daemon, "its certificate is not accepted")
        assert alone.relay(daemon)["refusal"] == "auth"
        alone.kill_envoy(daemon)
        plane.write_ca(alone.ca)
        alone.wait_state(daemon, "open")
        poll(lambda: alone.settled(daemon), what="everything taken again")
        assert alone.status(daemon)["concerns"] == []


def test_several_control_planes(tmp_path: Path) -> None:
    with (
        XdsControlPlane() as first,
        XdsControlPlane() as second,
        workload("backend") as app,
    ):
        for plane in (first, second):
            plane.faults.linger = 0.0
        at = Rig(tmp_path, first, app)
        at.ca.write_text(first.ca + second.ca)
        first.gone()
        with at.run(f"--cp-address={first.url},{second.url}") as daemon:
            at.wait_ready(daemon)
            assert at.relay(daemon)["address"] == f"localhost:{second.port}"
            assert second.registered == [NODE]
            first.back()
            second.gone()
            poll(lambda: first.registered == [NODE], what="the Dataplane at the other control plane")
            poll(lambda: at.relay(daemon)["address"] == f"localhost:{first.port}", what="its address")
            poll(lambda: at.settled(daemon), what="everything taken")
            at.kill_envoy(daemon)
            second.back()
            first.gone()
            poll(lambda: second.registered == [NODE], what="the Dataplane at the first one again")
            at.kill_envoy(daemon)
            assert at.status(daemon)["concerns"] == []


@pytest.mark.parametrize("version", ["2.13.5", "2.8.8"])
def test_without_the_relay_envoy_asks_by_itself(tmp_path: Path, version: str) -> None:
    with XdsControlPlane(version=version) as plane, rig(tmp_path, plane) as at:
        plane.faults.linger = 0.5
        with at.run("--xds-relay=off") as daemon:
            daemon.wait_ready()
            at.wait_traffic()
            status = at.status(daemon)
            assert "relay" not in status
            assert not (at.work / "relay.sock").exists()
            written = json.loads((at.work / "bootstrap.yaml").read_text())
            ads = written["dynamicResources"]["adsConfig"]["grpcServices"][0]
            assert ads["initialMetadata"] == [{"key": "authorization", "value": plane.token()}]
            assert not list(at.state.glob("*")) or not at.state.exists()
            at.kill_envoy(daemon)
            assert len(plane.journal.events(What.OPENED)) >= 2
            assert plane.token() not in daemon.output()
