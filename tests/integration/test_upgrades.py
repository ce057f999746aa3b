"""The control plane is replaced by another version on the same port, under load: KUMA_CP first, then KUMA_CP_NEXT.

The store is in memory, so that the new one takes no token of the old one: it is rotated as part of the upgrade.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import workload
from tests.support.kuma_control_plane import is_healthy
from tests.support.kuma_resources import access_log
from tests.support.poll import poll
from tests.support.rig import NAME, NODE, SOON
from tests.support.service_probe import PROBE, back_after_an_outage, wait_health
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


with_and_without_mtls = pytest.mark.parametrize("rig", [False, True], ids=["plain", "mtls"], indirect=True)


@with_and_without_mtls
def test_a_running_envoy_is_carried_there_and_back(rig: UpgradeRig) -> None:
    with rig.up() as daemon:
        before = identity(rig, daemon)
        for binary in (rig.versions.new, rig.versions.old):
            with rig.load(rate=RATE, also=load_ports(rig)):
                rig.replace_plane(binary)
                rig.renew_token()
                rig.wait_registered(daemon)
                poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning", deadline=SOON)
            assert identity(rig, daemon) == before
            assert rig.plane.rejected(NODE) == 0
        assert rig.serves()


@with_and_without_mtls
@pytest.mark.parametrize("order", ["token first", "CA first"])
def test_token_and_ca_are_renewed_in_either_order(rig: UpgradeRig, order: str) -> None:
    def renew_ca() -> None:
        rig.plane.write_ca(rig.ca)

    steps = [rig.renew_token, renew_ca] if order == "token first" else [renew_ca, rig.renew_token]
    with rig.up() as daemon:
        before = identity(rig, daemon)
        with rig.load(rate=RATE, also=load_ports(rig)):
            rig.replace_plane(rig.versions.new, rig.folder / "kuma-cp-next")
            for step in steps:
                poll(lambda: rig.relay(daemon)["refusal"] == "auth", what="a rejection", deadline=SOON)
                step()
            rig.wait_registered(daemon)
        assert identity(rig, daemon) == before


@with_and_without_mtls
def test_envoy_is_replaced_during_the_change(rig: UpgradeRig) -> None:
    """A reload while there is no control plane, and one as soon as there is the next: by hot restart."""
    with rig.up() as daemon, rig.load(rate=RATE, also=load_ports(rig)):
        rig.kuma.close()
        rig.run_command(daemon, "reload")
        rig.start_plane(rig.versions.new)
        epoch = rig.epoch(daemon)
        rig.renew_token()
        rig.reload(daemon)
        assert rig.epoch(daemon) > epoch
        rig.wait_registered(daemon)
        rig.the_envoy()
        assert rig.restarts(daemon) == 0


@with_and_without_mtls
def test_listeners_change_under_a_kumadp_that_follows(rig: UpgradeRig) -> None:
    """It knows the sockets of an Envoy that began with the former version (SO_REUSEPORT), and of the one after it."""
    log = {"type": "File", "file": {"path": "/dev/null"}}
    with rig.up() as daemon:
        with rig.load(rate=RATE, also=load_ports(rig)):
            rig.replace_plane(rig.versions.new)
            rig.renew_token()
            rig.wait_registered(daemon)
            rig.reexec(daemon)
            # It reloads, since the bootstrap is another one.
            rig.wait_registered(daemon)
            rig.kuma.put_resource(access_log(log, by_rules=not rig.kuma.by_tags))
            poll(lambda: "/dev/null" in daemon.get_admin("/config_dump")[1], what="the log", deadline=SOON)
            poll(lambda: rig.settled(daemon), what="everything acknowledged", deadline=SOON)
        assert rig.plane.rejected(NODE) == 0
        assert rig.status(daemon)["relay"]["withheld"] == []
        assert rig.restarts(daemon) == 0


@with_and_without_mtls
def test_health_of_the_application_across_the_change(rig: UpgradeRig) -> None:
    with workload("backend") as app:
        rig.dataplane["networking"]["inbound"][0] |= {"servicePort": app.port, "serviceProbe": PROBE}
        with rig.up() as daemon:
            wait_health(healthy=True, what="a healthy inbound")
            rig.replace_plane(rig.versions.new)
            rig.renew_token()
            rig.wait_registered(daemon)
            assert is_healthy(NAME) is not False
            with back_after_an_outage(app):
                rig.wait_traffic()


def test_what_the_next_version_rejects_leaves_what_runs(rig: UpgradeRig) -> None:
    """Outbounds by tags end with 3.0: the field and the file are named, and a Dataplane that suits both is taken."""
    suited, rig.dataplane = rig.dataplane, rig.tagged
    with rig.up() as daemon:
        before = identity(rig, daemon)
        with rig.load(rate=RATE, also=load_ports(rig)):
            rig.replace_plane(rig.versions.new)
            if rig.kuma.by_tags:
                pytest.skip("the next version takes outbounds by tags: set KUMA_CP_NEXT to one of Kuma 3.0")
            rig.renew_token()
            assert str(rig.file) in rig.wait_warning(daemon, "backendRef")
            assert not rig.is_registered()
            assert identity(rig, daemon) == before
            rig.dataplane = suited
            rig.write_dataplane()
            rig.reload(daemon)
            rig.wait_registered(daemon)
            poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning", deadline=SOON)
        assert rig.restarts(daemon) == 0
