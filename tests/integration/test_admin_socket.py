"""Envoy's admin on a Unix socket, as control planes of 2.14 have it: everything that asks the admin works there too."""

from __future__ import annotations

import os
import signal
import stat
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.host.socket_names import ADMIN, kuma_socket
from tests.support.daemon import is_listening, says_close
from tests.support.loaded_rig import LoadedRig, loaded_rig
from tests.support.poll import poll
from tests.support.rig import SOON
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Daemon

pytestmark = pytest.mark.process


@pytest.fixture
def at() -> Iterator[LoadedRig]:
    with XdsControlPlane() as plane, loaded_rig(plane) as made:
        path = str(socket_of(made))

        def as_2_14(tree: dict[str, Any]) -> None:
            tree["admin"]["address"] = {"pipe": {"path": path, "mode": 0o600}}

        plane.edit = as_2_14
        yield made


def socket_of(at: LoadedRig) -> Path:
    return kuma_socket(at.work, ADMIN)


def assert_admin_is_the_socket(at: LoadedRig, daemon: Daemon) -> None:
    assert at.status(daemon)["ports"]["admin"] == f"unix:{socket_of(at)}"
    found = socket_of(at).stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert not is_listening(at.ports.admin)


def test_reloads_deaths_and_drain(at: LoadedRig) -> None:
    with at.up() as daemon:
        assert_admin_is_the_socket(at, daemon)
        with at.load(asked=False):
            for epoch in (1, 2):
                old = at.the_envoy()
                assert f"epoch {epoch} serves" in at.reload(daemon)
                poll(lambda: not old.is_running(), what="the end of the old epoch")  # noqa: B023
            at.reexec(daemon)
        assert_admin_is_the_socket(at, daemon)
        assert at.status(daemon)["concerns"] == []
        at.kill_envoy(daemon)
        assert_admin_is_the_socket(at, daemon)
        daemon.process.send_signal(signal.SIGUSR2)
        poll(lambda: says_close(at.ports.inbound), what="inbound asking its clients to leave", deadline=SOON)
        daemon.terminate()
        assert daemon.wait() == 0


def test_health_checks_are_failed_before_the_end(at: LoadedRig) -> None:
    with at.up() as daemon:
        daemon.terminate()
        assert daemon.wait() == 0
        assert "failing Envoy's health checks failed" not in daemon.output()


def test_a_kumadp_after_a_killed_one_goes_on(at: LoadedRig) -> None:
    with at.up() as daemon:
        envoy = at.the_envoy()
        inode = socket_of(at).stat().st_ino
        at.kill(daemon)
    with at.up() as daemon:
        assert at.the_envoy().pid == envoy.pid
        # What a living Envoy listens on is not taken for a stale file.
        assert socket_of(at).stat().st_ino == inode
        assert_admin_is_the_socket(at, daemon)
        assert "epoch 1 serves" in at.reload(daemon)
        assert_admin_is_the_socket(at, daemon)


def test_a_stale_socket_of_a_dead_run_is_no_hindrance(at: LoadedRig) -> None:
    with at.up("--on-parent-death=kill") as daemon:
        at.kill(daemon)
    poll(lambda: not at.envoys(), what="Envoy's end")
    assert socket_of(at).exists()
    stale = at.work / "kuma-otel-of-before.sock"
    os.link(socket_of(at), stale)
    with at.up() as daemon:
        assert not stale.exists()
        assert_admin_is_the_socket(at, daemon)
