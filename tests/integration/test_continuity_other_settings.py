"""A kumadp follows one that was killed or re-executed, and its settings differ: what was left may not fit."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.needs import need_coredns
from tests.support.poll import poll
from tests.support.rig import NODE, SOON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Daemon
    from tests.support.loaded_rig import LoadedRig
    from tests.support.xds.plane import XdsControlPlane

pytestmark = pytest.mark.process

WITHOUT = "--xds-relay=off"


@contextlib.contextmanager
def serving(rig: LoadedRig, *flags: str) -> Iterator[Daemon]:
    with rig.up(*flags, ready=False) as daemon:
        rig.wait_phase(daemon, "READY")
        rig.wait_traffic("traffic")
        yield daemon


def over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("flags", [((), (WITHOUT,)), ((WITHOUT,), ())], ids=["off", "on"])
def test_an_envoy_with_another_path_to_the_control_plane_is_replaced(
    loaded_rig: LoadedRig, flags: tuple[tuple[str, ...], ...]
) -> None:
    before, after = flags
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serving(loaded_rig, *before))
        old = loaded_rig.the_envoy()
        loaded_rig.kill(first)
        second = stack.enter_context(serving(loaded_rig, *after))
        new = loaded_rig.the_envoy()
        assert (new.ppid(), over(old)) == (second.pid, True)
        assert "--xds-relay has changed" in second.output()
        poll(lambda: loaded_rig.plane.stream(NODE), what="a stream that is the only one", deadline=SOON)
        assert ("relay" in loaded_rig.status(second)) is (after == ())
        # The same way again: nothing is replaced.
        loaded_rig.kill(second)
        third = stack.enter_context(serving(loaded_rig, *after))
        assert loaded_rig.the_envoy() == new
        third.terminate()
        assert third.wait() == 0
    assert loaded_rig.envoys() == []
    assert loaded_rig.leftovers() == []


def test_a_left_coredns_is_killed_if_dns_is_disabled(loaded_rig: LoadedRig) -> None:
    need_coredns()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(loaded_rig.up(dns=True))
        (coredns,) = poll(loaded_rig.corednses, what="CoreDNS")
        loaded_rig.kill(first)
        second = stack.enter_context(loaded_rig.up())
        assert (loaded_rig.corednses(), over(coredns)) == ([], True)
        assert "coredns" not in loaded_rig.status(second)["children"]
        second.terminate()
        assert second.wait() == 0
    assert loaded_rig.leftovers() == []


def test_the_last_exit_survives_a_reexecution(loaded_rig: LoadedRig) -> None:
    with loaded_rig.up() as daemon:
        loaded_rig.kill_envoy(daemon)
        before = loaded_rig.status(daemon)["children"]["envoy"]
        loaded_rig.reexec(daemon)
        after = loaded_rig.status(daemon)["children"]["envoy"]
        assert before["restarts"] == 1
        assert [after[key] for key in ("restarts", "last_exit", "died")] == [
            before[key] for key in ("restarts", "last_exit", "died")
        ]
        loaded_rig.kill_envoy(daemon)
        assert loaded_rig.restarts(daemon) == 2


def test_the_end_of_the_token_is_in_the_status(loaded_rig: LoadedRig, plane: XdsControlPlane) -> None:
    def write(seconds: float) -> int:
        end = int(time.time() + seconds)
        parts = ({"alg": "RS256"}, {"exp": end})
        text = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        loaded_rig.token.write_text(".".join([*text, "none"]))
        return end

    end = write(3600)
    with loaded_rig.up() as daemon:
        assert loaded_rig.status(daemon)["token_expires"] == end
        assert "token: it expires at " in loaded_rig.wait_warning(daemon, "token")
        # The file is read at each connection attempt.
        end = write(90 * 86400)
        plane.reset_streams()
        poll(lambda: loaded_rig.status(daemon)["token_expires"] == end, what="the new token", deadline=SOON)
        poll(lambda: loaded_rig.status(daemon)["concerns"] == [], what="no warning", deadline=SOON)
