"""Settings that a reload takes, changed under load: no request fails, and what comes next uses the new ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.support.control_planes import KINDS
from tests.support.loaded_rig import LoadedRig, loaded_rig
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.rig import NODE, SOON
from tests.support.xds.journal import What
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil

    from tests.support.daemon import Daemon
    from tests.support.xds.resources import Tree

pytestmark = pytest.mark.process


@pytest.fixture
def plane() -> Iterator[XdsControlPlane]:
    with XdsControlPlane() as made:
        made.faults.linger = 0.0
        yield made


@pytest.fixture
def alone(plane: XdsControlPlane) -> Iterator[LoadedRig]:
    with loaded_rig(plane) as made:
        yield made


@pytest.fixture(params=KINDS)
def at(request: pytest.FixtureRequest) -> Iterator[LoadedRig]:
    with loaded_rig(request.param) as made:
        yield made


def reloaded(at: LoadedRig, daemon: Daemon) -> psutil.Process:
    """`kumadp reload`, and the end of the Envoy before it; the one that serves now."""
    old = at.the_envoy()
    assert "serves after" in at.reload(daemon)
    poll(lambda: old not in at.envoys(), what="the end of the old epoch", deadline=SOON)
    return at.the_envoy()


def link(name: Path, target: Path) -> None:
    """Have a symbolic link lead elsewhere, in one step, as whoever upgrades a package does."""
    new = name.with_suffix(".new")
    new.symlink_to(target)
    new.replace(name)


@pytest.mark.contract("another Envoy binary taken under load")
@pytest.mark.parametrize("how", ["another file", "a link that leads elsewhere"])
def test_another_envoy_binary_is_taken(at: LoadedRig, how: str) -> None:
    folder = at.folder
    one, other, binary = folder / "envoy-1", folder / "envoy-2", folder / "envoy"
    os.link(need_envoy(), one)
    shutil.copy(need_envoy(), other)
    link(binary, one)
    with at.up(f"--binary-path={binary}") as daemon:
        stream = poll(lambda: at.plane.stream(NODE), what="the stream", deadline=SOON)
        assert Path(at.the_envoy().exe()).samefile(one)
        with at.load():
            if how == "another file":
                other.replace(one)
            else:
                link(binary, other)
            new = reloaded(at, daemon)
        assert Path(f"/proc/{new.pid}/exe").samefile(binary)
        assert at.restarts(daemon) == 0
        assert at.plane.stream(NODE) == stream
        assert at.plane.registered == [NODE]


def test_another_version_of_envoy_breaks_no_stream(alone: LoadedRig, plane: XdsControlPlane) -> None:
    """A control plane only shows it, and a new stream would cost a moment out of the mesh."""

    def upgraded(tree: Tree) -> None:
        tree["node"]["metadata"]["version"]["envoy"]["version"] = "99.0.0"

    with alone.up() as daemon, alone.load():
        plane.edit = upgraded
        reloaded(alone, daemon)
        assert (admitted(plane), len(plane.bootstrap_requests)) == (1, 2)
        alone.dataplane["networking"]["inbound"][0]["tags"]["version"] = "2"
        alone.write_dataplane()
        reloaded(alone, daemon)
        poll(lambda: admitted(plane) == 2, what="a new stream for what it acts on", deadline=SOON)


def led_by_a_file(at: LoadedRig) -> dict[str, dict[str, Any]]:
    """Settings in a file, to be changed while kumadp runs: the way to the control plane."""
    at.settings = {
        "controlPlane": {"url": at.plane.url, "caCertFile": str(at.ca)},
        "dataplaneRuntime": {"tokenPath": str(at.token)},
    }
    return at.settings


def admitted(plane: XdsControlPlane) -> int:
    return len(plane.journal.events(What.ADMITTED))


def test_another_token_file_is_taken(alone: LoadedRig, plane: XdsControlPlane) -> None:
    tokens: list[str] = []

    def take(token: str) -> str:
        tokens.append(token)
        return ""

    plane.faults.refuse_token = take
    settings, other = led_by_a_file(alone), alone.folder / "other.token"
    other.write_text(plane.token() + "-new")
    other.chmod(0o600)
    with alone.up() as daemon:
        with alone.load():
            settings["dataplaneRuntime"]["tokenPath"] = str(other)
            alone.write_settings()
            reloaded(alone, daemon)
            assert plane.bootstrap_requests[-1]["dataplaneToken"] == other.read_text()
            # It was not broken to tell a control plane that would not look.
            assert admitted(plane) == 1
            plane.reset_streams()
            poll(lambda: admitted(plane) == 2, what="another stream", deadline=SOON)
            assert tokens[-1] == other.read_text()
            alone.wait_state(daemon, "open")
        assert alone.status(daemon)["concerns"] == []


@pytest.mark.parametrize("how", ["another CA file", "not verified any more"])
def test_another_trust_is_taken(alone: LoadedRig, plane: XdsControlPlane, how: str) -> None:
    settings, other = led_by_a_file(alone), alone.folder / "other.crt"
    with alone.up() as daemon:
        with alone.load():
            plane.renew_certificate(trustme.CA())
            if how == "another CA file":
                plane.write_ca(other)
                settings["controlPlane"]["caCertFile"] = str(other)
            else:
                settings["controlPlane"]["tlsSkipVerify"] = True
            alone.write_settings()
            reloaded(alone, daemon)
            assert len(plane.bootstrap_requests) == 2
            assert admitted(plane) == 1
            plane.drop_connections()
            poll(lambda: admitted(plane) == 2, what="another stream", deadline=SOON)
            alone.wait_state(daemon, "open")
        assert "its certificate is not accepted" not in daemon.output()
        assert alone.status(daemon)["concerns"] == []


def test_another_control_plane_is_gone_to_when_the_first_one_goes(alone: LoadedRig, plane: XdsControlPlane) -> None:
    settings = led_by_a_file(alone)
    with XdsControlPlane() as second:
        second.faults.linger = 0.0
        alone.ca.write_text(plane.ca + second.ca)
        with alone.up() as daemon:
            with alone.load():
                settings["controlPlane"]["url"] = second.url
                alone.write_settings()
                reloaded(alone, daemon)
                assert len(second.bootstrap_requests) == 1
                assert alone.relay(daemon)["address"] == f"localhost:{plane.port}"
                assert (admitted(plane), admitted(second)) == (1, 0)
                plane.gone()
                poll(lambda: second.registered == [NODE], what="the Dataplane at the second one", deadline=SOON)
                alone.wait_state(daemon, "open")
                assert alone.relay(daemon)["address"] == f"localhost:{second.port}"
                # All of it comes from there now.
                reloaded(alone, daemon)
                assert len(second.bootstrap_requests) == 2
            assert alone.status(daemon)["concerns"] == []
