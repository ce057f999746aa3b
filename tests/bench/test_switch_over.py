"""What it costs to move a data plane from kuma-dp (KUMADP_BENCH_PEER) to kumadp and back, in a real mesh (KUMA_CP).

As the documented switch-over does it: one is stopped, and when it has ended the other is started; kumadp with the
settings file that `kumadp migrate` prints for the kuma-dp that runs. A restart of kuma-dp is the comparison. A request
is sent each 20 ms, to the outbound, which leads through the mesh to the own inbound.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.bench.figures import ROUNDS
from tests.bench.sides import peer_side
from tests.bench.test_failures import LONGEST, stream_during
from tests.bench.test_mesh import environment_of
from tests.bench.test_start import note
from tests.support.command import kumadp
from tests.support.daemon import Ports, get, workload
from tests.support.kuma_control_plane import control_plane
from tests.support.kuma_resources import dataplane
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.bench.test_failures import Stream

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.kuma_cp, pytest.mark.timeout(1800)]

NAME = "moved"
STEPS = ("kuma-dp, restarted", "from kuma-dp to kumadp", "from kumadp to kuma-dp")


def planned(pid: int) -> dict[str, Any]:
    """What `kumadp migrate` prints for a process; files of this test are where units could not see them."""
    plan: dict[str, Any] = json.loads(kumadp("migrate", f"--pid={pid}", "--format=json").stdout)
    return plan


class Host:
    """The one data plane of a host, run by either program."""

    def __init__(self, folder: Path, command: list[str], environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._old = command
        self._environment = environment
        self.process = self._start(command)

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as out:
            return subprocess.Popen(
                command, env=self._environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=self._folder
            )

    def to_kumadp(self) -> None:
        """Stop kuma-dp, then start kumadp with the settings that do the same."""
        plan = planned(self.process.pid)
        file = self._folder / "settings.yaml"
        file.write_text(plan["files"][0]["text"])
        self.end()
        command = [sys.executable, "-m", "kumadp", "run", f"--config={file}"]
        # The sandbox of a measurement may be a container: what is measured is a VM.
        own = ["--on-parent-death=keep", f"--work-dir={self._folder}/w", f"--state-dir={self._folder}/s"]
        self.process = self._start([*command, *own])

    def to_kuma_dp(self) -> None:
        self.end()
        self.process = self._start(self._old)

    def end(self) -> None:
        """Stop the program that runs, as a unit does."""
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def one_round(host: Host, ports: Ports) -> list[Stream]:
    streams = []
    for step in (host.to_kuma_dp, host.to_kumadp, host.to_kuma_dp):
        poll(lambda: get(ports.outbound)[0] == 200, what="traffic through the mesh", deadline=90)
        time.sleep(2.0)
        streams.append(stream_during(step, ports, LONGEST))
    return streams


def test_switch_over(table: list[tuple[str, str, str]], tmp_path: Path) -> None:
    side = peer_side()
    if side is None:
        pytest.skip("no kuma-dp to move from: set KUMADP_BENCH_PEER")
    rounds: list[list[Stream]] = []
    with control_plane(tmp_path / "cp") as plane, workload("app") as app:
        for _ in range(ROUNDS):
            ports = Ports.take()
            with tempfile.TemporaryDirectory(prefix="b") as name:
                folder = Path(name)
                file = folder / "dp.json"
                file.write_text(json.dumps(plane.real.suit(dataplane(NAME, NAME, ports, app.port, probes=False))))
                command = [side.command, "run", *plane.arguments, f"--dataplane-file={file}"]
                host = Host(folder, command, environment_of(folder, ports))
                try:
                    rounds.append(one_round(host, ports))
                except BaseException:
                    sys.stderr.write((folder / "log").read_text(errors="replace")[-4000:])
                    raise
                finally:
                    host.end()
    for index, step in enumerate(STEPS):
        note(table, f"{step}: lost requests", "", [float(len(streams[index].lost)) for streams in rounds])
        note(table, f"{step}: outage", "s", [streams[index].outage for streams in rounds])
