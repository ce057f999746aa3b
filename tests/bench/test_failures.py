"""What each failure costs in a real mesh (KUMA_CP): requests lost and seconds without an answer.

The same for a kuma-dp (KUMADP_BENCH_PEER) in the same run. Both are started again 0.1 s after they end, as systemd's
``Restart=always`` does. A request is sent each 20 ms, on a new connection, to the outbound, which leads through
the mesh to the own inbound. KUMADP_BENCH_ONLY=peer leaves kumadp out, for a second run beside the first.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.bench.sides import in_turn
from tests.bench.test_mesh import environment_of
from tests.bench.test_start import note
from tests.support.daemon import Ports, get, workload
from tests.support.kuma_control_plane import control_plane
from tests.support.kuma_resources import dataplane
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.sides import Side
    from tests.support.kuma_control_plane import ControlPlaneFiles

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.kuma_cp, pytest.mark.timeout(3600)]

EVERY = 0.02
# An outage that has no end is cut here (seconds).
LONGEST = 40.0


@dataclass
class Stream:
    """Requests in a row, and how each went."""

    port: int
    answered: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def _query(self, at: float) -> None:
        (self.answered if get(self.port, timeout=1.0)[0] == 200 else self.lost).append(at)

    def _run(self) -> None:
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            due = time.monotonic()
            while not self._stop.is_set():
                pool.submit(self._query, time.monotonic())
                due += EVERY
                self._stop.wait(max(0.0, due - time.monotonic()))

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """Requests while the block runs."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    @property
    def outage(self) -> float:
        """The longest time between two requests that were answered, or to the end, less the pause between two."""
        times = [*sorted(self.answered), max([*self.answered, *self.lost], default=0.0)]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return max(0.0, max(gaps, default=LONGEST) - 2 * EVERY)


class Service:
    """A program that is started again whenever it ends, as a systemd unit would be."""

    def __init__(self, side: Side, folder: Path, plane: ControlPlaneFiles, file: Path, ports: Ports) -> None:
        # The sandbox of a measurement may be a container: what is measured is a VM.
        ours = ("--on-parent-death=keep", f"--work-dir={folder}/w", f"--state-dir={folder}/s") if side.is_ours else ()
        self._command = [side.command, "run", *plane.arguments, f"--dataplane-file={file}", *ours]
        self._environment = environment_of(folder, ports)
        self._log = folder / "log"
        self._over = threading.Event()
        self.process = self._start()
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as out:
            return subprocess.Popen(
                self._command, env=self._environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )

    def _keep(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
                if not self._over.wait(0.1):
                    self.process = self._start()

    def envoys(self) -> list[psutil.Process]:
        """Envoys of ours, also those that nobody supervises now."""
        mine = str(self._log.parent)
        return [
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == "envoy" and any(mine in word for word in process.info["cmdline"] or [])
        ]

    def close(self) -> None:
        """End it permanently."""
        self._over.set()
        self._thread.join()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for envoy in self.envoys():
            with contextlib.suppress(psutil.Error):
                envoy.kill()


def kill_envoy(service: Service, _plane: ControlPlaneFiles) -> None:
    for envoy in service.envoys():
        envoy.kill()


def kill_supervisor(service: Service, _plane: ControlPlaneFiles) -> None:
    service.process.kill()


def kill_everything(service: Service, plane: ControlPlaneFiles) -> None:
    service.process.kill()
    kill_envoy(service, plane)


def restart(service: Service, _plane: ControlPlaneFiles) -> None:
    """What a kuma-dp needs for new settings, a new version or a new token: an end and a start."""
    service.process.terminate()


def reload(service: Service, _plane: ControlPlaneFiles) -> None:
    service.process.send_signal(signal.SIGHUP)


def reexec(service: Service, _plane: ControlPlaneFiles) -> None:
    service.process.send_signal(signal.SIGUSR1)


def rotate_token(_service: Service, plane: ControlPlaneFiles) -> None:
    plane.renew_token()


@dataclass(frozen=True)
class Happening:
    """One event: what is done to kumadp, and to its peer; None where that was measured under another name."""

    name: str
    ours: Callable[[Service, ControlPlaneFiles], None]
    peer: Callable[[Service, ControlPlaneFiles], None] | None
    control_plane_killed: bool = False


HAPPENINGS = (
    Happening("kill -9 of Envoy", kill_envoy, kill_envoy),
    Happening("kill -9 of the supervisor", kill_supervisor, kill_supervisor),
    Happening("kill -9 of everything", kill_everything, kill_everything),
    # A kuma-dp is restarted for all of these three.
    Happening("reload", reload, restart),
    Happening("upgrade", reexec, None),
    Happening("token rotated", rotate_token, None),
    Happening("control plane killed, then Envoy", kill_envoy, kill_envoy, control_plane_killed=True),
)


def back(stream: Stream, since: float) -> bool:
    """Whether a second of requests has been answered, all of it well after the event."""
    recent = [at for at in sorted(stream.answered) if at > since]
    lost = max(stream.lost, default=0.0)
    return bool(recent) and recent[-1] - max(since, lost) > 4.0


def stream_during(event: Callable[[], None], ports: Ports, longest: float) -> Stream:
    """Send requests while something happens, and until traffic is back, at most ``longest`` seconds."""
    stream = Stream(ports.outbound)
    with stream.flowing():
        time.sleep(1.0)
        since = time.monotonic()
        event()
        with contextlib.suppress(AssertionError):
            poll(lambda: back(stream, since), what="traffic again", deadline=longest)
    return stream


def one_round(
    service: Service,
    plane: ControlPlaneFiles,
    ports: Ports,
    happening: Happening,
    do: Callable[[Service, ControlPlaneFiles], None],
) -> Stream:
    poll(lambda: get(ports.outbound)[0] == 200, what="traffic through the mesh", deadline=90)
    time.sleep(2.0)
    if happening.control_plane_killed:
        plane.real.kill()
        time.sleep(1.0)
    stream = stream_during(lambda: do(service, plane), ports, LONGEST)
    if happening.control_plane_killed:
        plane.real.start()
        plane.renew_token()
    return stream


@pytest.mark.parametrize("happening", HAPPENINGS, ids=lambda happening: happening.name)
def test_what_it_costs(tmp_path: Path, table: list[tuple[str, str, str]], happening: Happening) -> None:
    streams: dict[str, list[Stream]] = {}
    with control_plane(tmp_path / "cp") as plane, workload("app") as app:
        for count, side in in_turn():
            do = happening.ours if side.is_ours else happening.peer
            if do is None:
                continue
            ports = Ports.take()
            service_name = f"{side.key}-{count}"
            with tempfile.TemporaryDirectory(prefix="b") as folder:
                file = Path(folder) / "dp.json"
                made = dataplane(service_name, service_name, ports, app.port, probes=False)
                file.write_text(json.dumps(plane.real.suit(made)))
                service = Service(side, Path(folder), plane, file, ports)
                try:
                    stream = one_round(service, plane, ports, happening, do)
                finally:
                    service.close()
            streams.setdefault(side.name, []).append(stream)
    for name, of in streams.items():
        note(table, f"{name}: {happening.name}: lost requests", "", [float(len(stream.lost)) for stream in of])
        note(table, f"{name}: {happening.name}: outage", "s", [stream.outage for stream in of])
