"""The token that was given itself is in a file as long as somebody may need it, and not longer."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_secrets import SECRET, TOKEN, holding
from tests.support.daemon import Daemon, Ports, run_kumadp, workload
from tests.support.poll import poll
from tests.support.scripted_control_plane import Answer, ScriptedControlPlane, bootstrap_answer, static_bootstrap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

pytestmark = [pytest.mark.attack, pytest.mark.process]

WARNING = "every user of this host can read the token"


@pytest.fixture
def plane(ports: Ports) -> Iterator[ScriptedControlPlane]:
    with workload("web") as app:
        bootstrap = static_bootstrap(ports, app.port)
        bootstrap["node"]["metadata"] = {"note": TOKEN}
        with ScriptedControlPlane(bootstrap_answer(bootstrap)) as running:
            yield running


def run(folder: Path, ports: Ports, plane: ScriptedControlPlane, *more: str) -> AbstractContextManager[Daemon]:
    return run_kumadp(
        folder,
        ports,
        *(f"--cp-address={plane.url}", f"--ca-cert-file={plane.write_ca(folder / 'ca.crt')}", "--mesh=default"),
        *("--name=web-1", "--drain-time=1s", f"--dataplane-token={TOKEN}", *more),
    )


@pytest.mark.parametrize("signals", [1, 3])
def test_it_goes_at_the_end_and_outlives_a_reexecution(
    tmp_path: Path, ports: Ports, plane: ScriptedControlPlane, signals: int
) -> None:
    with run(tmp_path, ports, plane, "--min-drain-time=1s") as daemon:
        daemon.wait_ready()
        file = tmp_path / "work" / "dataplane.token"
        assert file.read_text() == TOKEN
        assert daemon.output().count(WARNING) == 1
        daemon.process.send_signal(signal.SIGHUP)
        poll(lambda: "serves after" in daemon.output() or "reload (SIGHUP)" in daemon.output(), what="the reload")
        assert daemon.output().count(WARNING) == 1
        daemon.process.send_signal(signal.SIGUSR1)
        poll(lambda: daemon.output().count("settings: ") == 2, what="the next program")
        daemon.wait_ready()
        assert file.read_text() == TOKEN
        for _ in range(signals):
            daemon.terminate()
            poll(lambda: daemon.process.poll() is not None or "SIGTERM" in daemon.output(), what="the signal")
        daemon.wait()
        assert SECRET not in daemon.output()
    assert holding(tmp_path, SECRET) == set(), daemon.output()


def test_a_sweep_removes_it_where_kumadp_was_killed(tmp_path: Path, ports: Ports, plane: ScriptedControlPlane) -> None:
    with run(tmp_path, ports, plane, "--on-parent-death=keep") as daemon:
        daemon.wait_ready()
        work = tmp_path / "work"
        poll(lambda: (work / "dataplane.token").name in (work / "state.json").read_text(), what="the state")
        daemon.process.kill()
        daemon.wait()
        assert holding(tmp_path, SECRET) != set()
        command = [sys.executable, "-m", "kumadp", "sweep", "--work-dir", str(work)]
        subprocess.run(command, check=True, timeout=60)
    assert holding(tmp_path, SECRET) == set()


def test_it_goes_where_the_control_plane_refuses(tmp_path: Path, ports: Ports) -> None:
    with (
        ScriptedControlPlane(Answer(401, b"no")) as plane,
        run(tmp_path, ports, plane) as daemon,
    ):
        assert daemon.wait() == 77
        assert SECRET not in daemon.output()
    assert holding(tmp_path, SECRET) == set()


def test_a_file_of_the_user_stays(tmp_path: Path, ports: Ports) -> None:
    """Even where it has that very name."""
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    file = work / "dataplane.token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    with (
        ScriptedControlPlane(Answer(401, b"no")) as plane,
        run_kumadp(
            tmp_path,
            ports,
            *(f"--cp-address={plane.url}", f"--ca-cert-file={plane.write_ca(tmp_path / 'ca.crt')}"),
            *("--mesh=default", "--name=web-1", f"--dataplane-token-file={file}"),
        ) as daemon,
    ):
        assert daemon.wait() == 77
        assert f"{file} can be read or changed by every user of this host" in daemon.output()
    assert file.read_text() == TOKEN
