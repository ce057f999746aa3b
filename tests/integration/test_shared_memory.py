"""Shared memory that Envoy has for hot restarts is removed, however kumadp ends."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ExitCode
from tests.support.poll import poll
from tests.support.rig import SOON

if TYPE_CHECKING:
    from tests.support.loaded_rig import LoadedRig
    from tests.support.xds.plane import XdsControlPlane

pytestmark = pytest.mark.process


def test_a_third_signal_leaves_none(loaded_rig: LoadedRig) -> None:
    with loaded_rig.up("--drain-time=60s") as daemon:
        # It does not end at the second signal.
        loaded_rig.the_envoy().suspend()
        assert len(loaded_rig.shared_memory()) == 1
        for count in (1, 2, 3):
            daemon.terminate()
            poll(
                lambda: daemon.process.poll() is not None or f"SIGTERM ({count} of 3)" in daemon.output(),  # noqa: B023
                what="the signal in the log",
                deadline=SOON,
            )
        assert daemon.wait() == ExitCode.FORCED
        assert loaded_rig.shared_memory() == []


def test_a_stop_while_a_left_envoy_waits_for_the_bootstrap_leaves_none(
    loaded_rig: LoadedRig, plane: XdsControlPlane
) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(loaded_rig.up())
        loaded_rig.the_envoy()
        loaded_rig.kill(first)
        plane.deafen()
        second = stack.enter_context(loaded_rig.up(ready=False))
        poll(lambda: "of an earlier kumadp is adopted" in second.output(), what="the adoption", deadline=SOON)
        second.terminate()
        assert second.wait(SOON) == ExitCode.OK
        assert loaded_rig.envoys() == []
        assert loaded_rig.leftovers() == []
