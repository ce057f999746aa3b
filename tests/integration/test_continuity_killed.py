"""kumadp is killed: its children keep serving, and the next kumadp adopts them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support.control_planes import on_both_control_planes
from tests.support.daemon import get
from tests.support.needs import need_coredns, need_envoy
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.rig import NODE, SOON
from tests.support.xds.journal import What
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.loaded_rig import LoadedRig

pytestmark = pytest.mark.process

# Seconds. Longer than a start takes on a busy host: the old Envoy must be alive when it is adopted.
DRAIN = 20


@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
@on_both_control_planes
def test_the_living_envoy_is_adopted(loaded_rig: LoadedRig, mtls: bool) -> None:
    if mtls:
        loaded_rig.plane.use_mtls()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(loaded_rig.up())
        envoy = loaded_rig.the_envoy()
        with loaded_rig.load(watched=False):
            loaded_rig.kill(first)
            second = stack.enter_context(loaded_rig.up())
            assert loaded_rig.the_envoy() == envoy
            assert loaded_rig.restarts(second) == 0
            loaded_rig.wait_state(second, "open")
            poll(lambda: loaded_rig.plane.stream(NODE), what="the stream at the control plane", deadline=SOON)
            poll(lambda: loaded_rig.plane.registered == [NODE], what="the Dataplane in the mesh", deadline=SOON)
            poll(lambda: loaded_rig.status(second)["concerns"] == [], what="no warning", deadline=SOON)
            loaded_rig.reload(second)
            poll(lambda: envoy not in loaded_rig.envoys(), what="the end of the adopted one")
        loaded_rig.kill(second)
        third = stack.enter_context(loaded_rig.up())
        # It is watched as if it had been started here.
        assert loaded_rig.kill_envoy(third).ppid() == third.pid
        assert loaded_rig.restarts(third) == 1
        third.terminate()
        assert third.wait() == 0
    assert loaded_rig.envoys() == []
    assert loaded_rig.leftovers() == []


def test_an_envoy_that_took_over_is_adopted_while_the_old_one_drains(loaded_rig: LoadedRig) -> None:
    with loaded_rig.up(f"--drain-time={DRAIN}s") as first:
        old = loaded_rig.the_envoy()
        with contextlib.ExitStack() as stack:
            with loaded_rig.load(watched=False):
                loaded_rig.reload(first)
                _, new = loaded_rig.envoys()
                loaded_rig.kill(first)
                second = stack.enter_context(loaded_rig.up(f"--drain-time={DRAIN}s", ready=False))
                # Checked at once: until everything is settled, the control plane takes 10 s and the drain goes on.
                loaded_rig.wait_serving(second, epoch=1)
                assert loaded_rig.envoys() == [old, new]
                loaded_rig.wait_ready(second)
                poll(lambda: loaded_rig.envoys() == [new], what="the end of the old one", deadline=SOON)
                loaded_rig.reload(second)
                assert loaded_rig.epoch(second) == 2
            second.terminate()
            assert second.wait() == 0
    assert loaded_rig.leftovers() == []


# The first Envoy of epoch 1 is stopped as soon as it is started.
STOPPED_ONCE = """#!/bin/sh
case "$*" in
*"--restart-epoch 1"*) [ -e "$0.once" ] || {{ touch "$0.once"; kill -STOP $$; }};;
esac
exec {envoy} "$@"
"""


def test_the_old_envoy_serves_on_if_kumadp_is_killed_while_a_new_one_comes_up(loaded_rig: LoadedRig) -> None:
    binary = loaded_rig.folder / "envoy"
    binary.write_text(STOPPED_ONCE.format(envoy=need_envoy()))
    binary.chmod(0o755)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(loaded_rig.up(f"--binary-path={binary}"))
        old = loaded_rig.the_envoy()
        with loaded_rig.load(watched=False):
            first.process.send_signal(signal.SIGHUP)
            poll(lambda: recorded_successor(loaded_rig), what="its record", deadline=SOON)
            loaded_rig.kill(first)
            second = stack.enter_context(loaded_rig.up(f"--binary-path={binary}"))
            # The one that came up was given up, and another one has taken the admin.
            loaded_rig.wait_serving(second, epoch=1)
            poll(lambda: old not in loaded_rig.envoys(), what="the end of the old one", deadline=SOON)
            assert loaded_rig.restarts(second) == 0
        second.terminate()
        assert second.wait() == 0
    assert loaded_rig.envoys() == []
    assert loaded_rig.leftovers() == []


def recorded_successor(rig: LoadedRig) -> bool:
    """Return whether the state file has an Envoy that comes up."""
    state: dict[str, Any] = json.loads((rig.work / "state.json").read_text())
    return bool(state["parts"].get("envoy", {}).get("coming"))


def test_the_socket_of_a_dead_old_envoy_is_answered_after_adoption(loaded_rig: LoadedRig) -> None:
    """The new Envoy would abort 10 s after it finds nobody where the old one was."""
    drain = f"--drain-time={DRAIN}s"
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(loaded_rig.up(drain))
        with loaded_rig.load(watched=False):
            loaded_rig.reload(daemon)
            old, new = loaded_rig.envoys()
            old.kill()
            poll(lambda: "before its time" in daemon.output(), what="its end being noticed")
            for _ in range(2):
                loaded_rig.kill(daemon)
                daemon = stack.enter_context(loaded_rig.up("--drain-time=1s"))
                assert loaded_rig.the_envoy() == new, daemon.output()
            # Both reloads wait until the old one, had it lived, would have gone: this one, and that for the drain time.
            loaded_rig.reload(daemon)
            assert (loaded_rig.restarts(daemon), loaded_rig.epoch(daemon)) == (0, 3)
            poll(lambda: new not in loaded_rig.envoys(), what="the end of the second", deadline=SOON)
        daemon.terminate()
        assert daemon.wait() == 0
    assert loaded_rig.leftovers() == []


def test_leftovers_of_a_killed_run_are_removed_at_the_next_start(loaded_rig: LoadedRig) -> None:
    with loaded_rig.up() as first:
        loaded_rig.reload(first)
        loaded_rig.kill(first)
        for envoy in loaded_rig.envoys():
            envoy.kill()
        poll(lambda: loaded_rig.envoys() == [], what="no Envoy")
        leftovers = set(loaded_rig.leftovers())
        assert {"bootstrap.1.yaml", "state.json", "source.json", "h0.base"} <= leftovers
        with loaded_rig.up() as second:
            assert loaded_rig.the_envoy().ppid() == second.pid
            now = set(loaded_rig.leftovers())
            assert now & leftovers <= {"state.json", "source.json", "h0.base", "relay.sock"}, now
            second.terminate()
            assert second.wait() == 0
    assert loaded_rig.leftovers() == []


@pytest.mark.parametrize("what", ["another boot", "another program", "torn", "others may read it", "no part", "none"])
def test_untrusted_leftovers_are_not_adopted(loaded_rig: LoadedRig, what: str) -> None:
    file = loaded_rig.work / "state.json"
    with loaded_rig.up() as first, _stranger() as stranger:
        loaded_rig.kill(first)
        loaded_rig.the_envoy()
        state = json.loads(file.read_text())
        _spoil(file, state, what, psutil.Process(stranger.pid))
        with loaded_rig.up() as second:
            assert loaded_rig.the_envoy().ppid() == second.pid
            assert "of an earlier kumadp is adopted" not in second.output()
            assert loaded_rig.envoys() == [loaded_rig.the_envoy()]
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
        # As it is while no Envoy serves.
        file.write_text(json.dumps({**state, "parts": {}}))
    elif what == "torn":
        file.write_text(json.dumps(state)[:100])
    elif what == "others may read it":
        file.chmod(0o644)
    else:
        file.unlink()


def test_an_adopted_envoy_with_outdated_arguments_is_replaced_at_once(loaded_rig: LoadedRig) -> None:
    binary = loaded_rig.folder / "envoy"
    os.link(need_envoy(), binary)
    flags = (f"--binary-path={binary}", "--envoy-log-level=debug")
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(loaded_rig.up())
        with loaded_rig.load(watched=False):
            for epoch, given in enumerate((flags[:1], flags), 1):
                old = loaded_rig.the_envoy()
                loaded_rig.kill(daemon)
                daemon = stack.enter_context(loaded_rig.up(*given))
                poll(lambda: loaded_rig.epoch(daemon) == epoch, what="the next epoch", deadline=SOON)  # noqa: B023
                poll(lambda: old not in loaded_rig.envoys(), what="the end of the adopted one")  # noqa: B023
            assert loaded_rig.the_envoy().exe() == str(binary)
            assert "debug" in loaded_rig.the_envoy().cmdline()
            # Nothing has changed: nothing is done.
            loaded_rig.kill(daemon)
            daemon = stack.enter_context(loaded_rig.up(*flags))
            loaded_rig.wait_state(daemon, "open")
            assert loaded_rig.epoch(daemon) == 2
            # The same name, another file: an upgrade.
            loaded_rig.kill(daemon)
            binary.unlink()
            shutil.copy(need_envoy(), binary)
            daemon = stack.enter_context(loaded_rig.up(*flags))
            poll(lambda: loaded_rig.epoch(daemon) == 3, what="the next epoch", deadline=SOON)


@on_both_control_planes
def test_an_adopted_envoy_whose_dataplane_has_changed_is_replaced_at_once(loaded_rig: LoadedRig) -> None:
    (port,) = free_ports(1)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(loaded_rig.up())
        with loaded_rig.load(watched=False):
            old = loaded_rig.the_envoy()
            loaded_rig.kill(first)
            loaded_rig.dataplane["networking"]["inbound"].append(
                {"port": port, "servicePort": loaded_rig.app.port, "tags": {"kuma.io/service": "more"}}
            )
            second = stack.enter_context(loaded_rig.up())
            poll(lambda: old not in loaded_rig.envoys(), what="the end of the adopted one", deadline=SOON)
            assert loaded_rig.epoch(second) == 1
            poll(lambda: get(port) == (200, loaded_rig.app.name), what="the new inbound", deadline=SOON)
            # The control plane got it with the first stream, which it rejected for 10 s anyway.
            assert "is closed: the Dataplane" not in second.output()
            if isinstance(loaded_rig.plane, XdsControlPlane):
                assert len(loaded_rig.plane.journal.events(What.ADMITTED)) == 2


def test_if_the_reload_fails_the_control_plane_gets_the_running_dataplane(
    loaded_rig: LoadedRig, plane: XdsControlPlane
) -> None:
    """A changed Dataplane is sent with the first stream after an adoption, before its Envoy runs."""
    (port,) = free_ports(1)

    def ports_sent() -> list[bool]:
        """Return for each stream whether its node names the new inbound."""
        return [str(port).encode() in request.raw for request in plane.journal.requests() if request.has_node]

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(loaded_rig.up())
        with loaded_rig.load(watched=False):
            envoy = loaded_rig.the_envoy()
            loaded_rig.kill(first)
            inbound = {"port": port, "servicePort": loaded_rig.app.port, "tags": {"kuma.io/service": "more"}}
            loaded_rig.dataplane["networking"]["inbound"].append(inbound)
            second = stack.enter_context(loaded_rig.up("--envoy-component-log-level=nonsense:debug"))
            poll(lambda: "the Envoy that ran keeps serving" in second.output(), what="the refusal", deadline=SOON)
            loaded_rig.wait_state(second, "open")
            # Whether it got the other one in between depends on timing.
            assert ports_sent()[-1] is False
            poll(lambda: plane.registered == [NODE], what="the Dataplane in the mesh", deadline=SOON)
            assert loaded_rig.the_envoy() == envoy


def test_core_dns_is_adopted(loaded_rig: LoadedRig) -> None:
    need_coredns()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(loaded_rig.up(dns=True))
        for _ in range(2):
            (coredns,) = poll(loaded_rig.corednses, what="CoreDNS")
            with loaded_rig.load(watched=False, names=True):
                loaded_rig.kill(first)
                first = stack.enter_context(loaded_rig.up(dns=True))
                assert loaded_rig.corednses() == [coredns]
                poll(lambda: loaded_rig.plane.stream(NODE), what="the stream", deadline=SOON)
            # One that was started later than Envoy is known too.
            coredns.kill()
            poll(lambda: [process for process in loaded_rig.corednses() if process != coredns], what="another CoreDNS")  # noqa: B023
            poll(lambda: loaded_rig.status(first)["children"]["coredns"]["state"] == "RUNNING", what="names")  # noqa: B023
        first.terminate()
        assert first.wait() == 0
        assert loaded_rig.corednses() == []
    assert loaded_rig.leftovers() == []


def test_children_die_with_kumadp_if_configured(loaded_rig: LoadedRig) -> None:
    with loaded_rig.up("--on-parent-death=kill") as first:
        envoy = loaded_rig.the_envoy()
        loaded_rig.kill(first)
        poll(lambda: not envoy.is_running() or envoy.status() == psutil.STATUS_ZOMBIE, what="its end")
        state = json.loads((loaded_rig.work / "state.json").read_text())
        assert (state["children"], set(state["parts"])) == ([], {"addresses", "removed_at_end"})
        with loaded_rig.up("--on-parent-death=kill") as second:
            assert loaded_rig.the_envoy().ppid() == second.pid
