"""kumadp is killed: its children serve on, and the next kumadp goes on with them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support.control_planes import KINDS
from tests.support.daemon import get
from tests.support.loaded_rig import LoadedRig, loaded_rig
from tests.support.needs import need_coredns, need_envoy
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.rig import NODE, SOON
from tests.support.xds.journal import What
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process

# Longer than a start takes on a busy host: the old Envoy must live when it is adopted.
DRAIN = 15


@pytest.fixture(params=KINDS)
def at(request: pytest.FixtureRequest) -> Iterator[LoadedRig]:
    with loaded_rig(request.param) as made:
        yield made


@pytest.fixture
def plane() -> Iterator[XdsControlPlane]:
    with XdsControlPlane() as made:
        yield made


@pytest.fixture
def alone(plane: XdsControlPlane) -> Iterator[LoadedRig]:
    with loaded_rig(plane) as made:
        yield made


@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
def test_the_living_envoy_is_adopted(at: LoadedRig, mtls: bool) -> None:
    if mtls:
        at.plane.use_mtls()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(at.up())
        envoy = at.the_envoy()
        with at.load(asked=False):
            at.kill(first)
            second = stack.enter_context(at.up())
            assert at.the_envoy() == envoy
            assert at.restarts(second) == 0
            at.wait_state(second, "open")
            poll(lambda: at.plane.stream(NODE), what="the stream at the control plane", deadline=SOON)
            poll(lambda: at.plane.registered == [NODE], what="the Dataplane in the mesh", deadline=SOON)
            poll(lambda: at.status(second)["concerns"] == [], what="no concern", deadline=SOON)
            at.reload(second)
            poll(lambda: envoy not in at.envoys(), what="the end of the adopted one")
        at.kill(second)
        third = stack.enter_context(at.up())
        # It is watched as if it had been started here.
        assert at.kill_envoy(third).ppid() == third.pid
        assert at.restarts(third) == 1
        third.terminate()
        assert third.wait() == 0
    assert at.envoys() == []
    assert at.leftovers() == []


def test_an_envoy_that_took_over_is_adopted_while_the_old_one_drains(alone: LoadedRig) -> None:
    with alone.up(f"--drain-time={DRAIN}s") as first:
        old = alone.the_envoy()
        with contextlib.ExitStack() as stack:
            with alone.load(asked=False):
                alone.reload(first)
                _, new = alone.envoys()
                alone.kill(first)
                second = stack.enter_context(alone.up(f"--drain-time={DRAIN}s"))
                assert alone.envoys() == [old, new]
                assert alone.epoch(second) == 1
                poll(lambda: alone.envoys() == [new], what="the end of the old one", deadline=SOON)
                alone.reload(second)
                assert alone.epoch(second) == 2
            second.terminate()
            assert second.wait() == 0
    assert alone.leftovers() == []


def test_a_dead_old_envoy_is_stood_in_for_again(alone: LoadedRig) -> None:
    """The new Envoy would abort 10 s after it finds nobody where the old one was."""
    drain = f"--drain-time={DRAIN}s"
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(alone.up(drain))
        with alone.load(asked=False):
            alone.reload(daemon)
            old, new = alone.envoys()
            old.kill()
            poll(lambda: "before its time" in daemon.output(), what="its end being noticed")
            for _ in range(2):
                alone.kill(daemon)
                daemon = stack.enter_context(alone.up("--drain-time=1s"))
                assert alone.the_envoy() == new
            # Both reloads wait until the old one, had it lived, would have gone: this one, and that for the drain time.
            alone.reload(daemon)
            assert (alone.restarts(daemon), alone.epoch(daemon)) == (0, 3)
            poll(lambda: new not in alone.envoys(), what="the end of the second", deadline=SOON)
        daemon.terminate()
        assert daemon.wait() == 0
    assert alone.leftovers() == []


def test_what_was_killed_with_everything_is_swept_at_the_next_start(alone: LoadedRig) -> None:
    with alone.up() as first:
        alone.reload(first)
        alone.kill(first)
        for envoy in alone.envoys():
            envoy.kill()
        poll(lambda: alone.envoys() == [], what="no Envoy")
        left = set(alone.leftovers())
        assert {"bootstrap.1.yaml", "state.json", "source.json", "h0.base"} <= left
        with alone.up() as second:
            assert alone.the_envoy().ppid() == second.pid
            now = set(alone.leftovers())
            assert now & left <= {"state.json", "source.json", "h0.base", "relay.sock"}, now
            second.terminate()
            assert second.wait() == 0
    assert alone.leftovers() == []


@pytest.mark.parametrize("what", ["another boot", "another program", "torn", "others may read it", "no part", "none"])
def test_what_cannot_be_trusted_is_not_adopted(alone: LoadedRig, what: str) -> None:
    file = alone.work / "state.json"
    with alone.up() as first, _stranger() as stranger:
        alone.kill(first)
        alone.the_envoy()
        state = json.loads(file.read_text())
        _spoil(file, state, what, psutil.Process(stranger.pid))
        with alone.up() as second:
            assert alone.the_envoy().ppid() == second.pid
            assert "of an earlier kumadp is adopted" not in second.output()
            assert alone.envoys() == [alone.the_envoy()]
        assert stranger.poll() is None


@contextlib.contextmanager
def _stranger() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "300"]) as process:
        try:
            yield process
        finally:
            process.kill()


def _spoil(file: Path, state: dict[str, Any], what: str, stranger: psutil.Process) -> None:
    child = next(child for child in state["children"] if child["name"] == "envoy")
    if what == "another boot":
        file.write_text(json.dumps({**state, "boot": "another"}))
    elif what == "another program":
        started = int(Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(")")[2].split()[19])
        child |= {"pid": stranger.pid, "start_time": started}
        state["parts"]["envoy"]["current"] = stranger.pid
        file.write_text(json.dumps(state))
    elif what == "no part":
        # As it is while two Envoys change places.
        file.write_text(json.dumps({**state, "parts": {}}))
    elif what == "torn":
        file.write_text(json.dumps(state)[:100])
    elif what == "others may read it":
        file.chmod(0o644)
    else:
        file.unlink()


def test_an_adopted_envoy_that_would_be_started_otherwise_now_is_replaced_at_once(alone: LoadedRig) -> None:
    binary = alone.folder / "envoy"
    os.link(need_envoy(), binary)
    flags = (f"--binary-path={binary}", "--envoy-log-level=debug")
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(alone.up())
        with alone.load(asked=False):
            for epoch, given in enumerate((flags[:1], flags), 1):
                old = alone.the_envoy()
                alone.kill(daemon)
                daemon = stack.enter_context(alone.up(*given))
                poll(lambda: alone.epoch(daemon) == epoch, what="the next epoch", deadline=SOON)  # noqa: B023
                poll(lambda: old not in alone.envoys(), what="the end of the adopted one")  # noqa: B023
            assert alone.the_envoy().exe() == str(binary)
            assert "debug" in alone.the_envoy().cmdline()
            # Nothing has changed: nothing is done.
            alone.kill(daemon)
            daemon = stack.enter_context(alone.up(*flags))
            alone.wait_state(daemon, "open")
            assert alone.epoch(daemon) == 2
            # The same name, another file: an upgrade.
            alone.kill(daemon)
            binary.unlink()
            shutil.copy(need_envoy(), binary)
            daemon = stack.enter_context(alone.up(*flags))
            poll(lambda: alone.epoch(daemon) == 3, what="the next epoch", deadline=SOON)


def test_an_adopted_envoy_whose_dataplane_has_changed_is_replaced_at_once(at: LoadedRig) -> None:
    (port,) = free_ports(1)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(at.up())
        with at.load(asked=False):
            old = at.the_envoy()
            at.kill(first)
            at.dataplane["networking"]["inbound"].append(
                {"port": port, "servicePort": at.app.port, "tags": {"kuma.io/service": "more"}}
            )
            second = stack.enter_context(at.up())
            poll(lambda: old not in at.envoys(), what="the end of the adopted one", deadline=SOON)
            assert at.epoch(second) == 1
            poll(lambda: get(port) == (200, at.app.name), what="the new inbound", deadline=SOON)
            # The control plane was told of it with the first stream, which it refused for 10 s anyway.
            assert "is closed: the Dataplane" not in second.output()
            if isinstance(at.plane, XdsControlPlane):
                assert len(at.plane.journal.events(What.ADMITTED)) == 2


def test_where_the_reload_fails_the_control_plane_is_told_of_what_runs(
    alone: LoadedRig, plane: XdsControlPlane
) -> None:
    """A Dataplane that has changed is told with the first stream after an adoption, before its Envoy is there."""
    (port,) = free_ports(1)

    def told() -> list[bool]:
        """Of each stream, whether it told of the new inbound."""
        return [str(port).encode() in one.raw for one in plane.journal.requests() if one.has_node]

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(alone.up())
        with alone.load(asked=False):
            envoy = alone.the_envoy()
            alone.kill(first)
            inbound = {"port": port, "servicePort": alone.app.port, "tags": {"kuma.io/service": "more"}}
            alone.dataplane["networking"]["inbound"].append(inbound)
            second = stack.enter_context(alone.up("--envoy-component-log-level=nonsense:debug"))
            poll(lambda: "the Envoy that ran serves on" in second.output(), what="the refusal", deadline=SOON)
            alone.wait_state(second, "open")
            # Whether it was told of the other one in between is a matter of which is faster.
            assert told()[-1] is False
            poll(lambda: plane.registered == [NODE], what="the Dataplane in the mesh", deadline=SOON)
            assert alone.the_envoy() == envoy


def test_core_dns_is_adopted(alone: LoadedRig) -> None:
    need_coredns()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(alone.up(dns=True))
        for _ in range(2):
            (coredns,) = poll(alone.corednses, what="CoreDNS")
            with alone.load(asked=False, names=True):
                alone.kill(first)
                first = stack.enter_context(alone.up(dns=True))
                assert alone.corednses() == [coredns]
                poll(lambda: alone.plane.stream(NODE), what="the stream", deadline=SOON)
            # One that was started later than Envoy is known too.
            coredns.kill()
            poll(lambda: [one for one in alone.corednses() if one != coredns], what="another CoreDNS")  # noqa: B023
            poll(lambda: alone.status(first)["children"]["coredns"]["state"] == "RUNNING", what="names")  # noqa: B023
        first.terminate()
        assert first.wait() == 0
        assert alone.corednses() == []
    assert alone.leftovers() == []


def test_where_children_are_to_die_they_do(alone: LoadedRig) -> None:
    with alone.up("--on-parent-death=kill") as first:
        envoy = alone.the_envoy()
        alone.kill(first)
        poll(lambda: not envoy.is_running() or envoy.status() == psutil.STATUS_ZOMBIE, what="its end")
        state = json.loads((alone.work / "state.json").read_text())
        assert (state["children"], set(state["parts"])) == ([], {"addresses", "removed_at_end"})
        with alone.up("--on-parent-death=kill") as second:
            assert alone.the_envoy().ppid() == second.pid
