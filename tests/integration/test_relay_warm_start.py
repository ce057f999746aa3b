"""A host that boots while the control plane is unreachable: the last good configuration serves, which is reported."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from kumadp.errors import ExitCode
from tests.support.command import kumadp
from tests.support.control_planes import KINDS
from tests.support.daemon import get
from tests.support.http2 import Http2Server
from tests.support.poll import poll
from tests.support.rig import NAME, NODE, SOON, Rig, open_rig
from tests.support.scripted_control_plane import Answer
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.daemon import Daemon
    from tests.support.xds.resources import Tree

pytestmark = [pytest.mark.process, pytest.mark.linger(0.0)]


def file_of(rig: Rig) -> Path:
    return rig.state / "last-good.msgpack"


def serve_once(rig: Rig, *more: str) -> None:
    """Run until all is accepted, and stop: the disk has it then."""
    with rig.run(*more) as daemon:
        rig.wait_ready(daemon)
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def assert_stale(rig: Rig, daemon: Daemon) -> None:
    status = rig.status(daemon)
    assert abs(status["stale_since"] - file_of(rig).stat().st_mtime) < 1
    assert status["ready"] is True
    assert status["relay"]["state"] in {"backoff", "connecting"}
    assert "configuration: stale since 20" in "\n".join(status["concerns"])
    assert "starting with the last good configuration" in daemon.output()


@pytest.mark.parametrize("how", ["gone", "deaf"])
def test_a_host_that_boots_without_its_control_plane_serves(rig: Rig, plane: XdsControlPlane, how: str) -> None:
    serve_once(rig)
    if how == "gone":
        plane.kill()
    else:
        plane.deafen()
    with rig.run() as daemon:
        daemon.wait_ready()
        assert rig.serves()
        assert get(rig.ports.inbound) == (200, "backend")
        assert_stale(rig, daemon)
        assert kumadp("wait", f"--name={NAME}", "--timeout=5s", environment=daemon.environment).returncode == 0
        warning = rig.wait_warning(daemon, "control plane")
        assert warning
        # Dead and back, again and again, with nothing but what was on disk.
        for _ in range(2):
            rig.kill_envoy(daemon)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.contract("control plane restarted: the stream is opened again")
def test_the_stream_comes_back_when_the_control_plane_does(tmp_path: Path, kind: str) -> None:
    with open_rig(tmp_path, kind) as rig:
        serve_once(rig)
        rig.plane.kill()
        with rig.run() as daemon:
            daemon.wait_ready()
            envoy = daemon.envoy()
            assert rig.serves()
            before = rig.stats("^cluster_manager.cluster_modified$")
            rig.plane.start()
            rig.renew_token()
            rig.wait_state(daemon, "open")
            poll(lambda: rig.plane.registered == [NODE], what="the Dataplane in the mesh", deadline=SOON)
            poll(lambda: rig.settled(daemon), what="everything acknowledged", deadline=SOON)
            poll(lambda: "stale_since" not in rig.status(daemon), what="a bootstrap of now", deadline=SOON)
            poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning", deadline=SOON)
            assert rig.stats("^cluster_manager.cluster_modified$") == before == {"cluster_manager.cluster_modified": 0}
            assert daemon.envoy().pid == envoy.pid
            assert rig.serves()
            if isinstance(rig.plane, XdsControlPlane):
                versions = {kind: rig.plane.version_of(NODE, kind) for kind in (CLUSTER, ENDPOINTS, LISTENER)}
                assert {kind: view["accepted"] for kind, view in rig.types(daemon).items()} == versions


def test_a_changed_bootstrap_replaces_the_stale_one(rig: Rig, plane: XdsControlPlane) -> None:
    serve_once(rig)
    plane.kill()
    with rig.run() as daemon:
        daemon.wait_ready()
        stale = daemon.envoy()

        def edit(bootstrap: Tree) -> None:
            bootstrap["statsFlushInterval"] = "7s"

        plane.edit = edit
        plane.start()
        poll(lambda: "stale_since" not in rig.status(daemon), what="a bootstrap of now")
        poll(lambda: not stale.is_running(), what="the end of the Envoy with the stale one", deadline=60)
        assert rig.serves()
        assert get(rig.ports.readiness, "/ready") == (200, "READY")
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning")
        assert '"stats_flush_interval": "7s"' in daemon.get_admin("/config_dump")[1]


def test_a_control_plane_that_comes_back_and_refuses_at_first(rig: Rig, plane: XdsControlPlane) -> None:
    """One that has lost its keys, or of which the token is rotated: what serves goes on."""
    serve_once(rig)
    plane.kill()
    # The time limit is one for starts: this has started.
    with rig.run(environment={"KUMA_CONTROL_PLANE_RETRY_MAX_DURATION": "300ms"}) as daemon:
        daemon.wait_ready()
        plane.faults.refuse_token = lambda _token: "token is revoked"
        plane.answers = [Answer(422, b"token is revoked") for _ in range(100)]
        plane.start()
        rig.wait_warning(daemon, "token is revoked")
        poll(lambda: len(plane.answers) < 99, what="more than one attempt")
        assert rig.serves()
        plane.answers.clear()
        plane.faults.refuse_token = lambda _token: ""
        rig.wait_state(daemon, "open")
        poll(lambda: "stale_since" not in rig.status(daemon), what="a bootstrap of now")
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning")


def test_a_rejected_dataplane_serves_on_unless_it_was_edited(rig: Rig, plane: XdsControlPlane) -> None:
    serve_once(rig)
    plane.answers = [Answer(422, b"networking.inbound: no") for _ in range(200)]
    with rig.run() as daemon:
        daemon.wait_ready()
        rig.wait_warning(daemon, "networking.inbound: no")
        assert rig.serves()
    rig.dataplane["networking"]["inbound"][0]["tags"]["version"] = "2"
    with rig.run() as daemon:
        assert daemon.wait() == ExitCode.CONTROL_PLANE_REFUSED
        assert "networking.inbound: no" in daemon.output()


def test_what_needs_a_certificate_waits_and_holds_up_nothing_else(rig: Rig, plane: XdsControlPlane) -> None:
    mesh = plane.mesh(NODE)
    mesh.outbound(rig.ports.probes, "plain", ("127.0.0.1", rig.ports.envoy_dns))
    mesh.inbound(rig.ports.envoy_dns, rig.app.port)
    mesh.use_mtls(trustme.CA(), "web.mesh")
    mesh.inbound(rig.ports.inbound, rig.app.port)
    mesh.outbound(rig.ports.outbound, "backend", ("127.0.0.1", rig.ports.inbound))
    serve_once(rig)
    content = file_of(rig).read_bytes()
    assert b"PRIVATE KEY" not in content
    plane.kill()
    with rig.run() as daemon:
        daemon.wait_ready()
        assert get(rig.ports.probes) == (200, "backend")
        assert get(rig.ports.outbound)[0] == 503
        assert get(rig.ports.inbound)[0] == 0
        rig.wait_warning(daemon, "Secret: not kept on disk, what needs it waits for the control plane")
        # Envoy gave up no wait: those for secrets were ended.
        assert sum(rig.stats("init_fetch_timeout").values()) == 0
        plane.start()
        rig.wait_traffic("traffic with certificates")
        poll(lambda: rig.settled(daemon), what="everything acknowledged")
        assert plane.rejected(NODE) == 0
        assert SECRET in rig.types(daemon)
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning")


def garbled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def torn(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def opened(path: Path) -> None:
    path.chmod(0o644)


def aged(path: Path) -> None:
    then = path.stat().st_mtime - 25 * 3600
    os.utime(path, (then, then))


def moved(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir(0o600)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (garbled, "it is damaged"),
        (torn, "it is damaged"),
        (emptied, "it was not written by this version"),
        (opened, "others could read or change it"),
        (aged, "it is 25.0 hours old"),
        (moved, "Too many levels of symbolic links"),
        (a_folder, "Is a directory"),
    ],
)
def test_a_copy_that_is_not_to_be_trusted_is_not_used(
    rig: Rig, plane: XdsControlPlane, harm: Callable[[Path], None], why: str
) -> None:
    serve_once(rig)
    harm(file_of(rig))
    plane.kill()
    with rig.run() as daemon:
        poll(lambda: rig.waits_for(daemon, "bootstrap: "), what="the reason")
        assert daemon.output().count("is ignored: ") == 1
        assert why in daemon.output()
        assert get(rig.ports.readiness, "/ready") == (503, "NOT_READY")
        assert "envoy" not in daemon.children()
        plane.start()
        rig.wait_ready(daemon)
        assert "stale_since" not in rig.status(daemon)


@pytest.mark.parametrize(
    ("field", "value"), [("name", "backend-02"), ("mesh", "other")], ids=["another name", "another mesh"]
)
def test_a_copy_of_somebody_else_is_not_used(rig: Rig, plane: XdsControlPlane, field: str, value: str) -> None:
    serve_once(rig)
    plane.kill()
    rig.dataplane[field] = value
    with rig.run() as daemon:
        poll(lambda: f"it is for {field} " in daemon.output(), what="the reason")
        poll(lambda: "waiting: bootstrap: " in daemon.output(), what="the wait")


def test_no_copy_is_written_if_disabled(rig: Rig, plane: XdsControlPlane) -> None:
    serve_once(rig, "--last-good=off")
    assert not file_of(rig).exists()
    serve_once(rig)
    assert stat.S_IMODE(file_of(rig).stat().st_mode) == 0o600
    plane.kill()
    with rig.run("--last-good=off") as daemon:
        poll(lambda: rig.waits_for(daemon, "bootstrap: "), what="the reason")
        assert "envoy" not in daemon.children()


def test_what_changes_is_on_disk_too(rig: Rig, plane: XdsControlPlane) -> None:
    """Envoy starts on the next boot with what it had last, not with what it had first."""
    with Http2Server("other") as other:
        with rig.run() as daemon:
            rig.wait_ready(daemon)
            mesh = plane.mesh(NODE)
            mesh.endpoints["backend"] = [("127.0.0.1", other.port)]
            mesh.apply()
            poll(lambda: get(rig.ports.outbound) == (200, "other"), what="the other endpoint")
            poll(lambda: rig.settled(daemon), what="everything acknowledged")
            daemon.terminate()
            assert daemon.wait() == ExitCode.OK
        plane.kill()
        with rig.run() as daemon:
            daemon.wait_ready()
            assert get(rig.ports.outbound) == (200, "other")


def test_a_copy_that_cannot_be_written_costs_a_warning(rig: Rig, plane: XdsControlPlane) -> None:
    file_of(rig).mkdir(parents=True)
    rig.state.chmod(0o700)
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        section: dict[str, Any] = poll(
            lambda: s if (s := rig.status(daemon)["last_good"])["error"] else None, what="it"
        )
        assert section["written"] is None
        assert daemon.output().count("the last good configuration cannot be kept in") == 1


@pytest.mark.parametrize("how", ["stopped", "killed with Envoy"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_restart_serves_before_the_control_plane_drops_the_last_stream(tmp_path: Path, kind: str, how: str) -> None:
    """A control plane keeps the stream of a dead data plane for 10 s: what it gave on it serves until it takes us."""
    with open_rig(tmp_path, kind) as rig:
        with rig.run() as daemon:
            rig.wait_ready(daemon)
            poll(file_of(rig).exists, what="a copy on disk")
            poll(lambda: rig.status(daemon)["last_good"]["written"], what="all of it written")
            if how == "stopped":
                daemon.terminate()
                assert daemon.wait() == ExitCode.OK
            else:
                envoy = daemon.envoy()
                daemon.process.kill()
                envoy.kill()
                daemon.wait()
        with rig.run() as daemon:
            daemon.wait_ready(SOON)
            assert rig.serves()
            # Ready before it was taken: what serves is remembered.
            assert rig.relay(daemon)["state"] in {"backoff", "connecting"}
            assert "the configuration of the last run serves" in daemon.output()
            rig.wait_state(daemon, "open")
            assert rig.serves()


def test_a_restart_serves_although_the_control_plane_has_another_signing_key(rig: Rig, plane: XdsControlPlane) -> None:
    """Kuma 2.13 gives a bootstrap whatever the token is, and verifies it at the stream."""
    serve_once(rig)
    rejected = rig.token.read_text()
    plane.faults.refuse_token = lambda token: "token signature is invalid" if token == rejected else ""
    with rig.run() as daemon:
        daemon.wait_ready(SOON)
        assert rig.serves()
        assert rig.relay(daemon)["state"] in {"backoff", "connecting"}
        assert "the configuration of the last run serves" in daemon.output()
        assert "token signature is invalid" in rig.wait_warning(daemon, "control plane")
        rig.token.write_text(plane.token() + "-new")
        rig.wait_state(daemon, "open")
        poll(lambda: rig.settled(daemon), what="everything acknowledged", deadline=SOON)
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning", deadline=SOON)
        # What was served earlier is not served again.
        plane.gone()
        rig.wait_warning(daemon, "control plane")
        assert daemon.output().count("the configuration of the last run serves") == 1
        assert rig.serves()


def test_a_restart_with_another_kumadp_serves_as_soon(rig: Rig, plane: XdsControlPlane) -> None:
    """An upgrade by a restart: the data plane's version is another one, its Dataplane is not."""

    def upgraded(tree: Tree) -> None:
        tree["node"]["metadata"]["version"]["kumaDp"]["version"] = "99.0.0"

    plane.faults.linger = 5.0
    serve_once(rig)
    plane.edit = upgraded
    with rig.run() as daemon:
        daemon.wait_ready(SOON)
        assert rig.serves()
        assert rig.relay(daemon)["state"] in {"backoff", "connecting"}
        assert "the configuration of the last run serves" in daemon.output()
        rig.wait_state(daemon, "open")


def test_a_restart_with_another_dataplane_waits_for_what_is_its_own(rig: Rig, plane: XdsControlPlane) -> None:
    serve_once(rig)
    plane.faults.linger = 5.0
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
    rig.dataplane["networking"]["inbound"][0]["tags"]["version"] = "2"
    with rig.run() as daemon:
        poll(lambda: "already an active stream" in daemon.output(), what="a refusal")
        rig.wait_ready(daemon)
        assert "the configuration of the last run serves" not in daemon.output()
