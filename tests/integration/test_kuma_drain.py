"""What a real control plane (KUMA_CP) holds of a data plane that is drained and stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.command import kumadp
from tests.support.daemon import Daemon, get
from tests.support.kuma_control_plane import get_json, is_healthy
from tests.support.poll import poll
from tests.support.rig import NAME
from tests.support.service_probe import PROBE

if TYPE_CHECKING:
    from tests.support.rig import Rig

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp]


def drain(daemon: Daemon, *arguments: str) -> None:
    environment = {"XDG_RUNTIME_DIR": daemon.environment["XDG_RUNTIME_DIR"]}
    done = kumadp("drain", *arguments, environment=environment, deadline=60)
    assert done.returncode == 0, done.stderr


def inbounds(_name: str) -> Any:
    return (get_json(f"/meshes/default/dataplanes/{_name}") or {}).get("networking", {}).get("inbound")


@pytest.mark.parametrize("probe", [True, False], ids=["probe", "no probe"])
def test_other_data_planes_send_nothing_to_one_that_drains(kuma_rig: Rig, probe: bool) -> None:
    """Kuma checks Envoy's admin by HDS: if it is drained, every inbound is not ready."""
    if probe:
        kuma_rig.dataplane["networking"]["inbound"][0]["serviceProbe"] = PROBE
    with kuma_rig.run() as daemon:
        kuma_rig.wait_ready(daemon)
        poll(lambda: is_healthy(NAME) is not False, what="a healthy inbound", deadline=30)
        before = inbounds(NAME)
        drain(daemon, "--all")
        poll(lambda: is_healthy(NAME) is False, what="an inbound that is not ready", deadline=30)
        assert get(kuma_rig.ports.inbound) == (200, kuma_rig.app.name)
        drain(daemon, "--undo")
        poll(lambda: is_healthy(NAME) is not False, what="an inbound that is ready again", deadline=30)
        kuma_rig.wait_traffic()
        assert [one["port"] for one in inbounds(NAME)] == [one["port"] for one in before]
