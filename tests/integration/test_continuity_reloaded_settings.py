"""Settings that a reload takes, changed under load: no request fails, and new connections use the new ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.support.control_planes import on_both_control_planes
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.rig import NODE, SOON
from tests.support.xds.journal import What
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    import psutil

    from tests.support.daemon import Daemon
    from tests.support.loaded_rig import LoadedRig
    from tests.support.xds.resources import Tree

pytestmark = [pytest.mark.process, pytest.mark.linger(0.0)]


def reloaded(rig: LoadedRig, daemon: Daemon) -> psutil.Process:
    """`kumadp reload`, and the end of the Envoy before it; the one that serves now."""
    old = rig.the_envoy()
    assert "serves after" in rig.reload(daemon)
    poll(lambda: old not in rig.envoys(), what="the end of the old epoch", deadline=SOON)
    return rig.the_envoy()


def link(name: Path, target: Path) -> None:
    """Have a symbolic link lead elsewhere, in one step, as whoever upgrades a package does."""
    new = name.with_suffix(".new")
    new.symlink_to(target)
    new.replace(name)


@pytest.mark.contract("a reload with another Envoy binary under load")
@pytest.mark.parametrize("how", ["another file", "a link that leads elsewhere"])
@on_both_control_planes
def test_another_envoy_binary_is_taken(loaded_rig: LoadedRig, how: str) -> None:
    folder = loaded_rig.folder
    first, other, binary = folder / "envoy-1", folder / "envoy-2", folder / "envoy"
    os.link(need_envoy(), first)
    shutil.copy(need_envoy(), other)
    link(binary, first)
    with loaded_rig.up(f"--binary-path={binary}") as daemon:
        stream = poll(lambda: loaded_rig.plane.stream(NODE), what="the stream", deadline=SOON)
        assert Path(loaded_rig.the_envoy().exe()).samefile(first)
        with loaded_rig.load():
            if how == "another file":
                other.replace(first)
            else:
                link(binary, other)
            new = reloaded(loaded_rig, daemon)
        assert Path(f"/proc/{new.pid}/exe").samefile(binary)
        assert loaded_rig.restarts(daemon) == 0
        assert loaded_rig.plane.stream(NODE) == stream
        assert loaded_rig.plane.registered == [NODE]


def test_another_version_of_envoy_breaks_no_stream(loaded_rig: LoadedRig, plane: XdsControlPlane) -> None:
    """A control plane only shows it, and a new stream would cost a moment out of the mesh."""

    def upgraded(tree: Tree) -> None:
        tree["node"]["metadata"]["version"]["envoy"]["version"] = "99.0.0"

    with loaded_rig.up() as daemon, loaded_rig.load():
        plane.edit = upgraded
        reloaded(loaded_rig, daemon)
        assert (admitted(plane), len(plane.bootstrap_requests)) == (1, 2)
        loaded_rig.dataplane["networking"]["inbound"][0]["tags"]["version"] = "2"
        loaded_rig.write_dataplane()
        reloaded(loaded_rig, daemon)
        poll(lambda: admitted(plane) == 2, what="a new stream for what it acts on", deadline=SOON)


def led_by_a_file(rig: LoadedRig) -> dict[str, dict[str, Any]]:
    """Settings in a file, to be changed while kumadp runs: the way to the control plane."""
    rig.settings = {
        "controlPlane": {"url": rig.plane.url, "caCertFile": str(rig.ca)},
        "dataplaneRuntime": {"tokenPath": str(rig.token)},
    }
    return rig.settings


def admitted(plane: XdsControlPlane) -> int:
    return len(plane.journal.events(What.ADMITTED))


def test_another_token_file_is_taken(loaded_rig: LoadedRig, plane: XdsControlPlane) -> None:
    tokens: list[str] = []

    def take(token: str) -> str:
        tokens.append(token)
        return ""

    plane.faults.refuse_token = take
    settings, other = led_by_a_file(loaded_rig), loaded_rig.folder / "other.token"
    other.write_text(plane.token() + "-new")
    other.chmod(0o600)
    with loaded_rig.up() as daemon:
        with loaded_rig.load():
            settings["dataplaneRuntime"]["tokenPath"] = str(other)
            loaded_rig.write_settings()
            reloaded(loaded_rig, daemon)
            assert plane.bootstrap_requests[-1]["dataplaneToken"] == other.read_text()
            # The stream was not broken for a control plane that would not check the token.
            assert admitted(plane) == 1
            plane.reset_streams()
            poll(lambda: admitted(plane) == 2, what="another stream", deadline=SOON)
            assert tokens[-1] == other.read_text()
            loaded_rig.wait_state(daemon, "open")
        assert loaded_rig.status(daemon)["concerns"] == []


@pytest.mark.parametrize("how", ["another CA file", "not verified any more"])
def test_another_trust_is_taken(loaded_rig: LoadedRig, plane: XdsControlPlane, how: str) -> None:
    settings, other = led_by_a_file(loaded_rig), loaded_rig.folder / "other.crt"
    with loaded_rig.up() as daemon:
        with loaded_rig.load():
            plane.renew_certificate(trustme.CA())
            if how == "another CA file":
                plane.write_ca(other)
                settings["controlPlane"]["caCertFile"] = str(other)
            else:
                settings["controlPlane"]["tlsSkipVerify"] = True
            loaded_rig.write_settings()
            reloaded(loaded_rig, daemon)
            assert len(plane.bootstrap_requests) == 2
            assert admitted(plane) == 1
            plane.drop_connections()
            poll(lambda: admitted(plane) == 2, what="another stream", deadline=SOON)
            loaded_rig.wait_state(daemon, "open")
        assert "its certificate is not accepted" not in daemon.output()
        assert loaded_rig.status(daemon)["concerns"] == []


def test_the_second_control_plane_is_used_if_the_first_is_unreachable(
    loaded_rig: LoadedRig, plane: XdsControlPlane
) -> None:
    settings = led_by_a_file(loaded_rig)
    with XdsControlPlane() as second:
        second.faults.linger = 0.0
        loaded_rig.ca.write_text(plane.ca + second.ca)
        with loaded_rig.up() as daemon:
            with loaded_rig.load():
                settings["controlPlane"]["url"] = second.url
                loaded_rig.write_settings()
                reloaded(loaded_rig, daemon)
                assert len(second.bootstrap_requests) == 1
                assert loaded_rig.relay(daemon)["address"] == f"localhost:{plane.port}"
                assert (admitted(plane), admitted(second)) == (1, 0)
                plane.gone()
                poll(lambda: second.registered == [NODE], what="the Dataplane at the second one", deadline=SOON)
                loaded_rig.wait_state(daemon, "open")
                assert loaded_rig.relay(daemon)["address"] == f"localhost:{second.port}"
                # All of it comes from there now: what the relay requested before its stream, and each reload.
                requests = len(second.bootstrap_requests)
                assert requests > 1
                reloaded(loaded_rig, daemon)
                assert len(second.bootstrap_requests) == requests + 1
            assert loaded_rig.status(daemon)["concerns"] == []
