"""A reload under load: no request fails, readiness does not flicker, the mesh sees nothing."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.control_planes import KINDS
from tests.support.loaded_rig import LoadedRig, loaded_rig
from tests.support.poll import poll
from tests.support.rig import NODE, SOON
from tests.support.xds.journal import What
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.xds.journal import Report

pytestmark = pytest.mark.process


@pytest.fixture(params=KINDS)
def at(request: pytest.FixtureRequest) -> Iterator[LoadedRig]:
    with loaded_rig(request.param) as made:
        yield made


@pytest.fixture
def plane() -> Iterator[XdsControlPlane]:
    with XdsControlPlane() as made:
        yield made


@pytest.fixture
def alone(plane: XdsControlPlane) -> Iterator[LoadedRig]:
    with loaded_rig(plane) as made:
        yield made


@pytest.mark.contract("a reload under load: no request lost, mutual TLS too")
@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
@pytest.mark.parametrize("how", ["signal", "command"])
def test_no_request_is_lost(at: LoadedRig, how: str, mtls: bool) -> None:
    if mtls:
        at.plane.use_mtls()
    at.with_probes()
    with at.up() as daemon:
        stream = poll(lambda: at.plane.stream(NODE), what="the stream", deadline=SOON)
        with at.load():
            for epoch in (1, 2):
                old = at.the_envoy()
                if how == "signal":
                    daemon.process.send_signal(signal.SIGHUP)
                    poll(lambda: at.epoch(daemon) == epoch, what="the next epoch", deadline=SOON)  # noqa: B023
                else:
                    assert f"epoch {epoch} serves" in at.reload(daemon)
                poll(lambda: not old.is_running(), what="the end of the old epoch")  # noqa: B023
                at.the_envoy()
        assert at.plane.stream(NODE) == stream
        assert at.plane.rejected(NODE) == 0
        assert at.plane.registered == [NODE]
        assert at.restarts(daemon) == 0
        status = at.status(daemon)
        assert (status["phase"], status["concerns"], status["reasons"]) == ("READY", [], [])
        if isinstance(at.plane, XdsControlPlane):
            journal = at.plane.journal
            assert len(journal.events(What.OPENED)) == 1
            assert all(all(report.healthy.values()) for report in _after_first_health(journal.reports()))
        poll(lambda: len(list(at.work.glob("bootstrap*"))) == 1, what="one bootstrap")
        assert (at.work / "bootstrap.2.yaml").exists()
        daemon.terminate()
        assert daemon.wait() == 0
    assert at.leftovers() == []


def _after_first_health(reports: list[Report]) -> list[Report]:
    """What was reported from the first time on that all was well."""
    well = next(number for number, report in enumerate(reports) if all(report.healthy.values()))
    return reports[well:]
