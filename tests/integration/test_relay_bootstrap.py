"""The control plane would now send another bootstrap: the change is reported, or applied, as configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ExitCode
from tests.support.command import kumadp
from tests.support.poll import poll
from tests.support.rig import NAME, Rig

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.xds.plane import XdsControlPlane
    from tests.support.xds.resources import Tree

pytestmark = [pytest.mark.process, pytest.mark.linger(0.0)]

OFTEN = "--bootstrap-check-interval=500ms"


def flush_every(interval: str) -> Callable[[Tree], None]:
    def edit(bootstrap: Tree) -> None:
        bootstrap["statsFlushInterval"] = interval

    return edit


def test_a_changed_bootstrap_is_reported_until_applied_or_reverted(rig: Rig, plane: XdsControlPlane) -> None:
    plane.edit = flush_every("5s")
    with rig.run(OFTEN) as daemon:
        rig.wait_ready(daemon)
        envoy = daemon.envoy()
        plane.edit = flush_every("7s")
        changes = poll(lambda: rig.status(daemon).get("restart_required"), what="a restart required")
        assert changes == ['statsFlushInterval: changed from "5s" to "7s"']
        assert any("a restart is required" in warning for warning in rig.status(daemon)["concerns"])
        # Another spelling of what Envoy has is nothing.
        plane.edit = flush_every("5.000s")
        poll(lambda: "restart_required" not in rig.status(daemon), what="nothing required any more")
        plane.edit = flush_every("7s")
        poll(lambda: rig.status(daemon).get("restart_required"), what="a restart required again")
        assert envoy.is_running()
        assert kumadp("reload", f"--name={NAME}", environment=daemon.environment).returncode == ExitCode.OK
        status = rig.status(daemon)
        assert (status["epoch"], status.get("restart_required"), status["concerns"]) == (1, None, [])
        assert '"stats_flush_interval": "7s"' in daemon.get_admin("/config_dump")[1]


def test_a_changed_bootstrap_can_be_applied_automatically(rig: Rig, plane: XdsControlPlane) -> None:
    plane.edit = flush_every("5s")
    with rig.run(OFTEN, "--on-bootstrap-change=reload") as daemon:
        rig.wait_ready(daemon)
        plane.edit = flush_every("7s")
        poll(lambda: rig.status(daemon)["epoch"] == 1, what="the next epoch")
        poll(lambda: "restart_required" not in rig.status(daemon), what="nothing required any more")
        assert '"stats_flush_interval": "7s"' in daemon.get_admin("/config_dump")[1]
        assert rig.serves()


@pytest.mark.parametrize("relay", ["on", "off"])
def test_delta_is_not_announced_and_logged_once(rig: Rig, relay: str) -> None:
    variant = {"KUMA_DATAPLANE_RUNTIME_ENVOY_XDS_TRANSPORT_PROTOCOL_VARIANT": "DELTA_GRPC"}
    with rig.run(f"--xds-relay={relay}", environment=variant) as daemon:
        daemon.wait_ready()
        rig.wait_traffic()
        warnings = [line for line in daemon.output().splitlines() if "DELTA_GRPC" in line or "PROTOCOL_VARIANT" in line]
        (line,) = [line for line in warnings if "settings: " not in line]
        assert "DELTA_GRPC is not announced" in line
        assert '"DELTA_GRPC"' not in daemon.get_admin("/config_dump")[1]


def test_without_the_relay_no_reload_is_done(rig: Rig) -> None:
    with rig.run("--xds-relay=off") as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        refused = kumadp("reload", f"--name={NAME}", environment=daemon.environment)
        assert refused.returncode == ExitCode.REFUSED
        assert "hot restart is off" in refused.stderr
        assert envoy.is_running()
        rig.wait_traffic()
