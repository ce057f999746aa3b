"""Files that change while kumadp runs are noticed, logged in one line each, and applied."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import Daemon, workload
from tests.support.poll import poll
from tests.support.rig import Rig
from tests.support.standalone import logged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.xds.plane import XdsControlPlane

pytestmark = pytest.mark.process

RELOAD = "--on-file-change=reload"


@pytest.fixture
def rig(tmp_path: Path, plane: XdsControlPlane) -> Iterator[Rig]:
    with workload("web") as app:
        yield Rig(tmp_path, plane, app)


def lines(daemon: Daemon, part: str) -> list[str]:
    return [line for line in daemon.output().splitlines() if part in line]


def test_a_changed_dataplane_is_applied_by_a_reload_and_logged_in_one_line(rig: Rig, plane: XdsControlPlane) -> None:
    with rig.run(RELOAD) as daemon:
        rig.wait_ready(daemon)
        before = len(plane.bootstrap_requests)
        rig.dataplane["networking"]["inbound"][0]["tags"]["version"] = "v2"
        # As an editor does it: a new file in the place of the old one.
        beside = rig.file.with_name("dp.json.new")
        beside.write_text(json.dumps(rig.dataplane))
        beside.replace(rig.file)
        logged(daemon, f"reload ({rig.file} changed)", "epoch 1 serves")
        assert any("v2" in request["dataplaneResource"] for request in plane.bootstrap_requests[before:])
        rig.wait_traffic()
        assert len(lines(daemon, f"daemon: reload ({rig.file} changed)")) == 1


def test_what_is_remarkable_about_a_changed_dataplane_is_logged(rig: Rig) -> None:
    """Here that it has an outbound by labels alone."""
    with rig.run(RELOAD) as daemon:
        rig.wait_ready(daemon)
        assert lines(daemon, "outbound[1]") == []
        reference = {"kind": "MeshService", "labels": {"app": "a"}, "port": 80}
        more = {"address": "127.0.0.2", "port": rig.ports.outbound, "backendRef": reference}
        rig.dataplane["networking"]["outbound"].append(more)
        beside = rig.file.with_name("dp.json.new")
        beside.write_text(json.dumps(rig.dataplane))
        beside.replace(rig.file)
        logged(daemon, f"reload ({rig.file} changed)", "epoch 1 serves")
        (line,) = lines(daemon, "outbound[1]")
        assert "networking.outbound[1].backendRef.name: is missing; Kuma 2.8 refuses that" in line


def test_a_broken_dataplane_changes_nothing_and_has_a_reason(rig: Rig) -> None:
    with rig.run(RELOAD) as daemon:
        rig.wait_ready(daemon)
        good = rig.file.read_text()
        rig.file.write_text(good.replace('"type": "Dataplane"', '"type": "Datplane"'))
        logged(daemon, f"reload ({rig.file} changed)", "'Datplane' is not known")
        rig.wait_traffic()
        # What stands there again is what runs: nothing is to be done.
        rig.file.write_text(good)
        logged(daemon, f"reload ({rig.file} changed)", "epoch 1 serves")


def test_a_changed_token_is_logged_and_its_expiry_read(rig: Rig) -> None:
    with rig.run(RELOAD) as daemon:
        rig.wait_ready(daemon)
        token = rig.token.read_text()
        rig.token.write_text("no token")
        logged(daemon, f"{rig.token} changed: used from the next connection")
        poll(lambda: any("token file" in warning for warning in rig.status(daemon)["concerns"]), what="the warning")
        rig.token.write_text(token)
        poll(lambda: not any("token file" in warning for warning in rig.status(daemon)["concerns"]), what="its end")
        assert lines(daemon, "reload (") == []
        assert "no token" not in daemon.output().replace("no token'", "")


def test_a_reload_by_hand_is_not_done_again_for_the_files_it_took(rig: Rig) -> None:
    with rig.run(RELOAD) as daemon:
        rig.wait_ready(daemon)
        rig.dataplane["networking"]["inbound"][0]["tags"]["version"] = "v2"
        rig.file.write_text(json.dumps(rig.dataplane))
        rig.ca.write_text(rig.ca.read_text() + "\n")
        logged(daemon, f"{rig.ca} changed: used from the next connection")
        logged(daemon, "epoch 1 serves")
        assert len(lines(daemon, "serves after")) == 1


def test_a_change_may_wait_for_the_next_reload(rig: Rig) -> None:
    with rig.run("--on-file-change=report") as daemon:
        rig.wait_ready(daemon)
        rig.dataplane["networking"]["inbound"][0]["tags"]["version"] = "v2"
        rig.file.write_text(json.dumps(rig.dataplane))
        logged(daemon, f"{rig.file} changed: used with the next reload")
        assert lines(daemon, "reload (") == []
