"""The control plane is replaced by another version on the same port, under load: KUMA_CP first, then KUMA_CP_NEXT.

The store is in memory, so that the new one takes no token of the old one: it is rotated as part of the upgrade.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.poll import poll
from tests.support.rig import NODE, SOON
from tests.support.upgrade import open_upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Daemon
    from tests.support.upgrade import UpgradeRig

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp]

RATE = 100.0


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[UpgradeRig]:
    with open_upgrade(mtls=getattr(request, "param", False)) as ready:
        yield ready


def load_ports(rig: UpgradeRig) -> tuple[int, ...]:
    """The inbound takes load of strangers only without mutual TLS."""
    return () if rig.mtls else (rig.ports.inbound,)


def identity(rig: UpgradeRig, daemon: Daemon) -> tuple[int, int, int]:
    """What stays: kumadp and Envoy by their process ids, and no restart."""
    return daemon.pid, rig.the_envoy().pid, rig.restarts(daemon)


@pytest.mark.parametrize("rig", [False, True], ids=["plain", "mtls"], indirect=True)
def test_a_running_envoy_is_carried_over(rig: UpgradeRig) -> None:
    with rig.up() as daemon:
        before = identity(rig, daemon)
        with rig.load(rate=RATE, also=load_ports(rig)):
            rig.replace_plane()
            rig.wait_registered(daemon)
            rig.wait_traffic()
            poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning", deadline=SOON)
        assert identity(rig, daemon) == before
        assert rig.plane.rejected(NODE) == 0
