"""Access logs over TCP as a user has them: a policy, requests, and lines at a destination, whatever dies in between."""

from __future__ import annotations

import contextlib
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.host import socket_names
from kumadp.host.socket_names import kuma_socket
from tests.support.access_log_policy import log_nothing, log_to
from tests.support.control_planes import on_both_control_planes
from tests.support.daemon import get
from tests.support.kuma_control_plane import KumaControlPlane
from tests.support.kuma_resources import access_log
from tests.support.loaded_rig import open_loaded_rig
from tests.support.log_sink import Sink
from tests.support.poll import poll
from tests.support.rig import NAME, NODE, SOON, open_rig
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Daemon
    from tests.support.rig import Rig

pytestmark = pytest.mark.process

# Envoy writes every 10 s by default, or 64 KiB.
QUICK = ("--envoy-arg=--file-flush-interval-msec", "--envoy-arg=100")
POLICY = "/meshes/default/meshaccesslogs/to-sink"


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as running:
        yield running


def apply(rig: Rig, address: str) -> None:
    """The policy, for inbounds."""
    if isinstance(rig.plane, KumaControlPlane):
        backend = {"type": "Tcp", "tcp": {"address": address, "format": {"type": "Plain", "plain": "%REQ(:PATH)%"}}}
        put_policy(rig.plane, backend)
    else:
        assert isinstance(rig.plane, XdsControlPlane)
        log_to(rig.plane.mesh(NODE), rig.work, NAME, address)


def put_policy(plane: KumaControlPlane, backend: dict[str, Any]) -> None:
    plane.put_resource(access_log(backend, by_rules=not plane.by_tags))


def remove(rig: Rig) -> None:
    if isinstance(rig.plane, KumaControlPlane):
        rig.plane.delete(POLICY)
    else:
        assert isinstance(rig.plane, XdsControlPlane)
        log_nothing(rig.plane.mesh(NODE))


def request_paths(rig: Rig, *paths: str) -> list[bytes]:
    """Request these paths one after the other; return the expected lines."""
    for path in paths:
        assert get(rig.ports.inbound, path) == (200, rig.app.name)
    return [path.encode() for path in paths]


def numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"/{name}/{number}" for number in range(count))


def until_logged(rig: Rig, sink: Sink) -> None:
    """The policy is in force."""

    def logs() -> bool:
        return rig.serves() and get(rig.ports.inbound, "/first") == (200, rig.app.name) and b"/first" in sink.lines

    poll(logs, what="a first line", deadline=SOON)


def until_lines(sink: Sink, expected: list[bytes]) -> None:
    """All of them, once each, in order."""

    def mine() -> list[bytes]:
        return [line for line in sink.lines if line in set(expected)]

    with contextlib.suppress(AssertionError):
        poll(lambda: len(mine()) >= len(expected), what="all lines", deadline=SOON)
    assert mine() == expected


def node(rig: Rig) -> int:
    return kuma_socket(rig.work, socket_names.access_log(NAME, "default")).stat().st_ino


def logs_of(rig: Rig, daemon: Daemon) -> dict[str, object]:
    section: dict[str, object] = rig.status(daemon)["access_logs"]
    return section


@pytest.mark.contract("MeshAccessLog to TCP applied and removed")
@on_both_control_planes
def test_a_policy_comes_and_goes_and_envoy_dies(rig: Rig, sink: Sink) -> None:
    with rig.run(*QUICK) as daemon:
        rig.wait_ready(daemon)
        apply(rig, sink.address)
        until_logged(rig, sink)
        until_lines(sink, request_paths(rig, *numbered("one", 20)))
        rig.kill_envoy(daemon)
        until_lines(sink, request_paths(rig, *numbered("two", 20)))
        # Not a blank line, as Kuma 2.8 has after each.
        assert b"" not in sink.lines
        remove(rig)

        def silent() -> bool:
            before = len(sink.lines)
            get(rig.ports.inbound, "/after")
            return not sinks_more(sink, before)

        poll(silent, what="no lines any more", deadline=SOON)
        assert logs_of(rig, daemon)["malformed"] == 0


def sinks_more(sink: Sink, than: int) -> bool:
    """Whether a line comes within twice the time in which Envoy writes."""
    with contextlib.suppress(AssertionError):
        poll(lambda: len(sink.lines) > than, what="more", deadline=0.5)
        return True
    return False


def test_the_last_lines_of_envoy_are_sent(rig: Rig, sink: Sink) -> None:
    """With the default interval most of it is in Envoy's memory when it gets SIGTERM."""
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        apply(rig, sink.address)
        poll(lambda: _is_in_force(daemon), what="the policy in Envoy", deadline=SOON)
        expected = request_paths(rig, *numbered("last", 50))
        daemon.terminate()
        assert daemon.wait() == 0
        until_lines(sink, expected)


def _is_in_force(daemon: Daemon) -> bool:
    """Whether Envoy has the FIFO open."""
    code, text = daemon.get_admin("/config_dump")
    listeners = [state for state in json.loads(text)["configs"] if "Listeners" in state["@type"]] if code == 200 else []
    states = [state for listener in listeners for state in listener.get("dynamic_listeners", ())]
    return any("FileAccessLog" in json.dumps(state.get("active_state", {})) for state in states)


def test_a_new_epoch_of_envoy(rig: Rig, sink: Sink) -> None:
    """Two Envoys have the FIFO open for a while."""
    with rig.run(*QUICK, "--on-parent-death=kill") as daemon:
        rig.wait_ready(daemon)
        apply(rig, sink.address)
        until_logged(rig, sink)
        before, expected = node(rig), request_paths(rig, *numbered("before", 20))
        daemon.process.send_signal(signal.SIGHUP)
        count = 0
        while rig.status(daemon).get("epoch") != 1:
            expected += request_paths(rig, f"/during/{count}")
            count += 1
        expected += request_paths(rig, *numbered("after", 20))
        mine = set(expected)
        with contextlib.suppress(AssertionError):
            poll(lambda: sum(line in mine for line in sink.lines) >= len(expected), what="all lines", deadline=SOON)
        # Two Envoys write in turn.
        assert sorted(line for line in sink.lines if line in mine) == sorted(expected)
        assert node(rig) == before


@pytest.mark.parametrize("how", ["reexec", "killed"])
def test_a_reexecuted_and_a_restarted_kumadp_send_every_line(sink: Sink, how: str) -> None:
    """Re-executed, it loses no line, and no connection; killed, what Envoy writes until the next one is there."""
    with open_loaded_rig("test") as rig:
        with rig.up(*QUICK) as daemon:
            apply(rig, sink.address)
            until_logged(rig, sink)
            before = node(rig)
            if how == "reexec":
                expected = request_paths(rig, *numbered("before", 200))
                done = rig.run_command(daemon, "reexec")
                assert done.returncode == 0, done
                expected += request_paths(rig, *numbered("after", 200))
                until_lines(sink, expected)
                assert (node(rig), sink.connections) == (before, 1)
                assert logs_of(rig, daemon)["lines"] == logs_of(rig, daemon)["sent"]
                return
            daemon.process.kill()
            daemon.process.wait()
        with rig.up(*QUICK) as daemon:
            until_logged(rig, sink)
            until_lines(sink, request_paths(rig, *numbered("after", 50)))
            assert node(rig) == before
            assert rig.restarts(daemon) == 0


def test_an_unreachable_destination_that_comes_back(rig: Rig, sink: Sink) -> None:
    with rig.run(*QUICK) as daemon, Sink() as other:
        rig.wait_ready(daemon)
        apply(rig, sink.address)
        until_logged(rig, sink)
        sink.stop()
        expected = request_paths(rig, *numbered("away", 50))
        rig.wait_warning(daemon, f"access log {sink.address}")
        sink.start()
        until_lines(sink, expected)
        poll(lambda: not rig.status(daemon)["concerns"], what="no warning", deadline=SOON)
        apply(rig, other.address)
        until_logged(rig, other)


@pytest.mark.contract("MeshAccessLog to TCP applied and removed")
@pytest.mark.kuma_cp
def test_an_object_as_kuma_writes_it(tmp_path: Path, sink: Sink) -> None:
    with open_rig(tmp_path, "kuma") as rig, rig.run(*QUICK) as daemon:
        assert isinstance(rig.plane, KumaControlPlane)
        rig.wait_ready(daemon)
        fields = [{"key": "z", "value": "<%REQ(:PATH)%>"}, {"key": "code", "value": "%RESPONSE_CODE%"}]
        form = {"type": "Json", "json": fields}
        put_policy(rig.plane, {"type": "Tcp", "tcp": {"address": sink.address, "format": form}})
        poll(lambda: get(rig.ports.inbound, "/json")[0] and b"/json" in bytes(sink.data), what="a line", deadline=SOON)
        line = next(line for line in sink.lines if b"/json" in line)
        assert line.endswith(b'"z":"\\u003c/json\\u003e"}')
        assert json.loads(line) == {"code": json.loads(line)["code"], "z": "</json>"}
