"""Envoy's admin on a Unix socket, the default of 2.14: everything that queries the admin works there too."""

from __future__ import annotations

import os
import signal
import stat
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.host.socket_names import ADMIN, kuma_socket
from tests.support.daemon import closes_connection, is_listening
from tests.support.loaded_rig import LoadedRig, open_loaded_rig
from tests.support.poll import poll
from tests.support.rig import SOON

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Daemon
    from tests.support.xds.plane import XdsControlPlane

pytestmark = pytest.mark.process


@pytest.fixture
def loaded_rig(plane: XdsControlPlane) -> Iterator[LoadedRig]:
    """A data plane whose admin is on a Unix socket."""
    with open_loaded_rig(plane) as rig:
        path = str(socket_of(rig))

        def as_2_14(tree: dict[str, Any]) -> None:
            tree["admin"]["address"] = {"pipe": {"path": path, "mode": 0o600}}

        plane.edit = as_2_14
        yield rig


def socket_of(rig: LoadedRig) -> Path:
    return kuma_socket(rig.work, ADMIN)


def assert_admin_is_the_socket(rig: LoadedRig, daemon: Daemon) -> None:
    assert rig.status(daemon)["ports"]["admin"] == f"unix:{socket_of(rig)}"
    status = socket_of(rig).stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert not is_listening(rig.ports.admin)


def test_reloads_deaths_and_drain(loaded_rig: LoadedRig) -> None:
    with loaded_rig.up() as daemon:
        assert_admin_is_the_socket(loaded_rig, daemon)
        with loaded_rig.load(watched=False):
            for epoch in (1, 2):
                old = loaded_rig.the_envoy()
                assert f"epoch {epoch} serves" in loaded_rig.reload(daemon)
                poll(lambda: not old.is_running(), what="the end of the old epoch")  # noqa: B023
            loaded_rig.reexec(daemon)
        assert_admin_is_the_socket(loaded_rig, daemon)
        assert loaded_rig.status(daemon)["concerns"] == []
        loaded_rig.kill_envoy(daemon)
        assert_admin_is_the_socket(loaded_rig, daemon)
        daemon.process.send_signal(signal.SIGUSR2)
        poll(
            lambda: closes_connection(loaded_rig.ports.inbound),
            what="inbound that has its clients leave",
            deadline=SOON,
        )
        daemon.terminate()
        assert daemon.wait() == 0


def test_health_checks_are_failed_before_the_stop(loaded_rig: LoadedRig) -> None:
    with loaded_rig.up() as daemon:
        daemon.terminate()
        assert daemon.wait() == 0
        assert "failing Envoy's health checks failed" not in daemon.output()


def test_envoy_is_adopted_after_kumadp_was_killed(loaded_rig: LoadedRig) -> None:
    with loaded_rig.up() as daemon:
        envoy = loaded_rig.the_envoy()
        inode = socket_of(loaded_rig).stat().st_ino
        loaded_rig.kill(daemon)
    with loaded_rig.up() as daemon:
        assert loaded_rig.the_envoy().pid == envoy.pid
        # What a living Envoy listens on is not taken for a stale file.
        assert socket_of(loaded_rig).stat().st_ino == inode
        assert_admin_is_the_socket(loaded_rig, daemon)
        assert "epoch 1 serves" in loaded_rig.reload(daemon)
        assert_admin_is_the_socket(loaded_rig, daemon)


def test_a_stale_socket_of_a_dead_run_is_no_hindrance(loaded_rig: LoadedRig) -> None:
    with loaded_rig.up("--on-parent-death=kill") as daemon:
        loaded_rig.kill(daemon)
    poll(lambda: not loaded_rig.envoys(), what="Envoy's end")
    assert socket_of(loaded_rig).exists()
    stale = loaded_rig.work / "kuma-otel-of-before.sock"
    os.link(socket_of(loaded_rig), stale)
    with loaded_rig.up() as daemon:
        assert not stale.exists()
        assert_admin_is_the_socket(loaded_rig, daemon)
