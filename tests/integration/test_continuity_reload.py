"""A reload under load: no request fails, readiness does not flicker, the mesh sees nothing."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.control_planes import on_both_control_planes
from tests.support.poll import poll
from tests.support.rig import NODE, SOON
from tests.support.xds.journal import What
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from tests.support.loaded_rig import LoadedRig
    from tests.support.xds.journal import Report

pytestmark = pytest.mark.process


@pytest.mark.contract("a reload under load: no request lost, mutual TLS too")
@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
@pytest.mark.parametrize("how", ["signal", "command"])
@on_both_control_planes
def test_no_request_is_lost(loaded_rig: LoadedRig, how: str, mtls: bool) -> None:
    if mtls:
        loaded_rig.plane.use_mtls()
    loaded_rig.with_probes()
    with loaded_rig.up() as daemon:
        stream = poll(lambda: loaded_rig.plane.stream(NODE), what="the stream", deadline=SOON)
        with loaded_rig.load():
            for epoch in (1, 2):
                old = loaded_rig.the_envoy()
                if how == "signal":
                    daemon.process.send_signal(signal.SIGHUP)
                    poll(lambda: loaded_rig.epoch(daemon) == epoch, what="the next epoch", deadline=SOON)  # noqa: B023
                else:
                    assert f"epoch {epoch} serves" in loaded_rig.reload(daemon)
                poll(lambda: not old.is_running(), what="the end of the old epoch")  # noqa: B023
                loaded_rig.the_envoy()
        assert loaded_rig.plane.stream(NODE) == stream
        assert loaded_rig.plane.rejected(NODE) == 0
        assert loaded_rig.plane.registered == [NODE]
        assert loaded_rig.restarts(daemon) == 0
        status = loaded_rig.status(daemon)
        assert (status["phase"], status["concerns"], status["reasons"]) == ("READY", [], [])
        if isinstance(loaded_rig.plane, XdsControlPlane):
            journal = loaded_rig.plane.journal
            assert len(journal.events(What.OPENED)) == 1
            assert all(all(report.healthy.values()) for report in _after_first_health(journal.reports()))
        poll(lambda: len(list(loaded_rig.work.glob("bootstrap*"))) == 1, what="one bootstrap")
        assert (loaded_rig.work / "bootstrap.2.yaml").exists()
        daemon.terminate()
        assert daemon.wait() == 0
    assert loaded_rig.leftovers() == []


def _after_first_health(reports: list[Report]) -> list[Report]:
    """What was reported from the first time on that all was well."""
    well = next(number for number, report in enumerate(reports) if all(report.healthy.values()))
    return reports[well:]
