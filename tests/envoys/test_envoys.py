"""Every Envoy of the package index behind kumadp: a data plane's life with each, and a reload from one to another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.envoy.argv import REFUSED
from kumadp.errors import ExitCode
from kumadp.host.socket_names import kuma_socket, metrics
from tests.envoy.test_binary import HARMLESS
from tests.support.access_log_policy import log_to
from tests.support.daemon import get, get_at
from tests.support.envoys import changes, need_version, number, recorded, versions
from tests.support.expositions import check
from tests.support.file_lock import file_lock
from tests.support.loaded_rig import open_loaded_rig
from tests.support.log_sink import Sink
from tests.support.poll import poll
from tests.support.rig import NAME, NODE, SOON
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from tests.support.daemon import Daemon
    from tests.support.loaded_rig import LoadedRig

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

# Envoy writes access logs every 10 s by default, or 64 KiB.
QUICK = ("--envoy-arg=--file-flush-interval-msec", "--envoy-arg=100")
# A control plane of Kuma by the protocol that its bootstrap has Envoy use; their admins differ too (TCP, Unix socket).
PLANES = {"sotw": "2.13.5", "delta": "3.0"}


def scraped(rig: LoadedRig) -> str:
    """The metrics, as Envoy's Prometheus listener gets them."""
    status, text = get_at(f"unix:{kuma_socket(rig.work, metrics(NAME, 'default'))}", "/")
    assert status == 200, text
    return text


def check_metrics(rig: LoadedRig) -> None:
    text = scraped(rig)
    assert re.search(r'^kumadp_scrape_source_up\{source="envoy"[^}]*\} 1$', text, re.MULTILINE), text[:2000]
    # By the tags that Kuma's regexes make of its names.
    assert re.search(r'^envoy_cluster_upstream_rq_completed\{[^}]*envoy_cluster_name="[^"]+"', text, re.MULTILINE)
    assert not check(text)


def check_access_logs(rig: LoadedRig, sink: Sink, name: str) -> None:
    """Request numbered paths of this name; each is logged once."""
    paths = [f"/{name}/{turn}" for turn in range(20)]
    for path in paths:
        assert get(rig.ports.inbound, path) == (200, rig.app.name)
    expected = {path.encode() for path in paths}
    poll(lambda: expected <= set(sink.lines), what=f"access logs of {name}", deadline=SOON)
    assert sorted(line for line in sink.lines if line in expected) == sorted(expected)


def until_logged(rig: LoadedRig, sink: Sink) -> None:
    def logs() -> bool:
        return get(rig.ports.inbound, "/first") == (200, rig.app.name) and b"/first" in sink.lines

    poll(logs, what="the policy in force", deadline=SOON)


def check_unharmed(rig: LoadedRig, plane: XdsControlPlane, daemon: Daemon) -> None:
    status = rig.status(daemon)
    assert (status["phase"], status["reasons"]) == ("READY", [])
    # That no Kuma ships with this Envoy is a note of the start, not a warning.
    assert status["concerns"] == []
    assert plane.rejected(NODE) == 0
    assert plane.registered == [NODE]


@pytest.mark.parametrize("protocol", PLANES)
@pytest.mark.parametrize("version", versions())
def test_a_data_plane(version: str, protocol: str) -> None:
    """Started, scraped, logging; killed; reloaded under load; killed while the control plane is away; stopped."""
    binary = need_version(version)
    with (
        recorded(protocol, version) as result,
        XdsControlPlane(version=PLANES[protocol]) as plane,
        open_loaded_rig(plane) as rig,
        Sink() as sink,
    ):
        plane.faults.linger = 0.0
        rig.with_probes()
        with rig.up(f"--binary-path={binary}", *QUICK) as daemon:
            assert Path(rig.the_envoy().exe()).samefile(binary)
            assert rig.status(daemon)["versions"]["envoy"] == number(version)
            assert rig.relay(daemon)["protocol"] == protocol
            check_metrics(rig)
            log_to(plane.mesh(NODE), rig.work, NAME, sink.address)
            until_logged(rig, sink)
            check_access_logs(rig, sink, "started")
            began = time.monotonic()
            rig.kill_envoy(daemon)
            result["serves_again_after"] = round(time.monotonic() - began, 2)
            check_access_logs(rig, sink, "killed")
            with rig.load(rate=200.0) as load:
                old = rig.the_envoy()
                assert "serves after" in rig.reload(daemon)
                poll(lambda: old not in rig.envoys(), what="the end of the old epoch", deadline=SOON)
            result["reloaded"] = load.answered
            check_access_logs(rig, sink, "reloaded")
            check_metrics(rig)
            check_unharmed(rig, plane, daemon)
            plane.gone()
            rig.kill_envoy(daemon)
            daemon.terminate()
            assert daemon.wait() == ExitCode.OK
        assert rig.leftovers() == []


@pytest.mark.parametrize("version", versions(oldest_only=True))
def test_standalone(version: str) -> None:
    """What `kumadp demo --check` runs."""
    binary = need_version(version)
    with recorded("standalone", version), tempfile.TemporaryDirectory(prefix="d") as folder, file_lock("demo"):
        done = subprocess.run(
            [sys.executable, "-m", "kumadp", "demo", "--check"],
            env={**os.environ, "TMPDIR": folder, "KUMA_DATAPLANE_RUNTIME_BINARY_PATH": str(binary)},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert (done.returncode, re.findall(r"^(?!ok ).+", done.stdout, re.MULTILINE)) == (0, []), done


@pytest.mark.parametrize("back", [False, True], ids=["to", "back"])
@pytest.mark.parametrize(("older", "newer"), changes())
def test_another_version_by_a_reload(older: str, newer: str, back: bool) -> None:
    """The file of ``--binary-path`` is replaced, as an upgrade of a package does, and kumadp reloaded, under load."""
    old, new = (newer, older) if back else (older, newer)
    binaries = need_version(old), need_version(new)
    with (
        recorded("change", f"{old} {new}") as result,
        XdsControlPlane() as plane,
        open_loaded_rig(plane) as rig,
    ):
        plane.faults.linger = 0.0
        rig.with_probes()
        binary = rig.folder / "envoy"
        binary.symlink_to(binaries[0])
        with rig.up(f"--binary-path={binary}") as daemon:
            before = rig.the_envoy()
            with rig.load(rate=200.0) as load:
                replacement = rig.folder / "envoy.new"
                replacement.symlink_to(binaries[1])
                replacement.replace(binary)
                assert "serves after" in rig.reload(daemon)
                poll(lambda: before not in rig.envoys(), what="the end of the old epoch", deadline=SOON)
            now = rig.the_envoy()
            assert Path(f"/proc/{now.pid}/exe").samefile(binaries[1])
            status = rig.status(daemon)
            assert (status["epoch"], status["versions"]["envoy"]) == (1, number(new))
            assert rig.restarts(daemon) == 0
            check_unharmed(rig, plane, daemon)
            result.update(how="hot", requests=load.answered, lost=sum(load.failures.values()))
            rig.kill_envoy(daemon)


@pytest.mark.parametrize("version", versions())
def test_every_option_is_judged(version: str) -> None:
    """`--envoy-arg` refuses what could undo the guard; an option that only some versions have must be judged too."""
    done = subprocess.run([need_version(version), "--help"], capture_output=True, text=True, check=False, timeout=60)
    options = set(re.findall(r"^ +(?:-\w(?: <\w+>)?, +)?(--[a-z][a-z-]+)", done.stdout, re.MULTILINE))
    assert "--config-yaml" in options
    assert options <= HARMLESS | set(REFUSED)
