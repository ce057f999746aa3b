"""A kumadp follows one that was killed or re-executed, and its settings are others: what was left may not fit."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.loaded_rig import LoadedRig, loaded_rig
from tests.support.needs import need_coredns
from tests.support.poll import poll
from tests.support.rig import NODE, SOON
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Daemon

pytestmark = pytest.mark.process

WITHOUT = "--xds-relay=off"


@pytest.fixture
def plane() -> Iterator[XdsControlPlane]:
    with XdsControlPlane() as made:
        yield made


@pytest.fixture
def at(plane: XdsControlPlane) -> Iterator[LoadedRig]:
    with loaded_rig(plane) as made:
        yield made


@contextlib.contextmanager
def serving(at: LoadedRig, *flags: str) -> Iterator[Daemon]:
    with at.up(*flags, ready=False) as daemon:
        at.wait_phase(daemon, "READY")
        at.wait_traffic("traffic")
        yield daemon


def over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("flags", [((), (WITHOUT,)), ((WITHOUT,), ())], ids=["off", "on"])
def test_an_envoy_that_was_led_another_way_is_replaced(at: LoadedRig, flags: tuple[tuple[str, ...], ...]) -> None:
    before, after = flags
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serving(at, *before))
        old = at.the_envoy()
        at.kill(first)
        second = stack.enter_context(serving(at, *after))
        new = at.the_envoy()
        assert (new.ppid(), over(old)) == (second.pid, True)
        assert "--xds-relay has changed" in second.output()
        poll(lambda: at.plane.stream(NODE), what="a stream that is the only one", deadline=SOON)
        assert ("relay" in at.status(second)) is (after == ())
        # The same way again: nothing is replaced.
        at.kill(second)
        third = stack.enter_context(serving(at, *after))
        assert at.the_envoy() == new
        third.terminate()
        assert third.wait() == 0
    assert at.envoys() == []
    assert at.leftovers() == []


def test_a_core_dns_that_was_left_has_no_use_without_dns(at: LoadedRig) -> None:
    need_coredns()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(at.up(dns=True))
        (coredns,) = poll(at.corednses, what="CoreDNS")
        at.kill(first)
        second = stack.enter_context(at.up())
        assert (at.corednses(), over(coredns)) == ([], True)
        assert "coredns" not in at.status(second)["children"]
        second.terminate()
        assert second.wait() == 0
    assert at.leftovers() == []


def test_what_died_is_known_after_a_re_execution(at: LoadedRig) -> None:
    with at.up() as daemon:
        at.kill_envoy(daemon)
        before = at.status(daemon)["children"]["envoy"]
        at.reexec(daemon)
        after = at.status(daemon)["children"]["envoy"]
        assert before["restarts"] == 1
        assert [after[key] for key in ("restarts", "last_exit", "died")] == [
            before[key] for key in ("restarts", "last_exit", "died")
        ]
        at.kill_envoy(daemon)
        assert at.restarts(daemon) == 2


def test_the_end_of_the_token_is_in_the_status(at: LoadedRig, plane: XdsControlPlane) -> None:
    def write(left: float) -> int:
        end = int(time.time() + left)
        parts = ({"alg": "RS256"}, {"exp": end})
        text = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        at.token.write_text(".".join([*text, "none"]))
        return end

    end = write(3600)
    with at.up() as daemon:
        assert at.status(daemon)["token_expires"] == end
        assert "token: it expires at " in at.wait_concern(daemon, "token")
        # The file is read anew at each dial.
        end = write(90 * 86400)
        plane.reset_streams()
        poll(lambda: at.status(daemon)["token_expires"] == end, what="the new token", deadline=SOON)
        poll(lambda: at.status(daemon)["concerns"] == [], what="no concern", deadline=SOON)
