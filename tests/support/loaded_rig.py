"""A data plane under load whose processes are replaced or killed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from kumadp.errors import ExitCode
from tests.support.control_planes import open_plane
from tests.support.kuma_control_plane import KumaControlPlane
from tests.support.load_process import LoadProcess, LoadReport
from tests.support.poll import poll
from tests.support.rig import NAME, SOON, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.control_planes import ControlPlane
    from tests.support.daemon import Daemon

SHARED_MEMORY = Path("/dev/shm")
# Why a re-execution is refused for the moment.
REFUSED = "Envoy is being started or replaced"


def uses_tls(daemon: Daemon) -> bool:
    """Return whether Envoy has a cluster whose endpoints it connects to by TLS."""
    _, dump = daemon.get_admin("/config_dump?resource=dynamic_active_clusters")
    return "envoy.transport_sockets.tls" in dump


class LoadedRig(Rig):
    """A rig with load; its data plane's children outlive it."""

    def __init__(self, folder: Path, plane: ControlPlane, pressure: LoadProcess) -> None:
        super().__init__(folder, plane, pressure)
        self.pressure = pressure
        self._shared: set[Path] = set()

    @contextlib.contextmanager
    def up(self, *more: str, ready: bool = True, **how: Any) -> Iterator[Daemon]:
        """Run a data plane that serves; its children outlive it unless flags override that."""
        with self.run("--on-parent-death=keep", *more, **how) as daemon:
            if ready:
                self.wait_ready(daemon)
                if isinstance(self.plane, KumaControlPlane) and self.plane.has_service_tls:
                    # Until then clients send plain HTTP: at the change some requests fail, whatever kumadp does.
                    poll(lambda: uses_tls(daemon), what="TLS to the service", deadline=SOON)
            yield daemon

    @contextlib.contextmanager
    def load(
        self, *, watched: bool = True, names: bool = False, rate: float = 1000.0, also: tuple[int, ...] = ()
    ) -> Iterator[LoadReport]:
        """Put load on its outbound and on the ports of ``also``, of which no request may fail.

        With ``watched`` neither may readiness and virtual probes.
        """
        watch = {"readiness": (self.ports.readiness, "/ready")} if watched else {}
        if watched and "probes" in self.dataplane:
            watch["probes"] = (self.ports.probes, "/app/healthz")
        with self.pressure.on(
            self.ports.outbound, watch=watch, names=self.ports.dns if names else 0, rate=rate, also=also
        ) as report:
            yield report
        assert report.failures == {}, report
        assert report.answered > 0
        assert set(report.watched.get("readiness", {"200 READY": 1})) == {"200 READY"}, report
        assert set(report.watched.get("probes", {"200 backend": 1})) == {"200 backend"}, report
        assert "lost" not in report.watched.get("names", {}), report

    def with_probes(self) -> None:
        """Add a virtual probe to the Dataplane."""
        endpoint = {"inboundPort": self.ports.inbound, "inboundPath": "/healthz", "path": "/app/healthz"}
        self.dataplane["probes"] = {"port": self.ports.probes, "endpoints": [endpoint]}

    def run_command(self, daemon: Daemon, what: str) -> subprocess.CompletedProcess[str]:
        """Run ``kumadp reload`` or ``kumadp reexec`` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "kumadp", what, f"--name={NAME}", "--timeout=10m"],
            env=dict(daemon.environment),
            capture_output=True,
            text=True,
            check=False,
        )

    def reload(self, daemon: Daemon) -> str:
        """Run ``kumadp reload``, which must succeed; return its output."""
        done = self.run_command(daemon, "reload")
        assert done.returncode == 0, f"{done.stderr}\n{daemon.output()}"
        return done.stdout

    def reexec(self, daemon: Daemon) -> None:
        """Send SIGUSR1, wait until the new program serves, and count exactly one re-execution."""
        self.wait_serving(daemon)
        count = self.count(daemon)
        daemon.process.send_signal(signal.SIGUSR1)
        poll(lambda: self.count(daemon) > count, what="the next program", deadline=SOON)
        self.wait_phase(daemon, "READY")
        assert self.count(daemon) == count + 1

    def try_reexec(self, daemon: Daemon) -> bool:
        """Run ``kumadp reexec`` once; return whether it was done: if so it counts exactly one, if refused none."""
        count = self.count(daemon)
        done = self.run_command(daemon, "reexec")
        if done.returncode != 0:
            assert (done.returncode, REFUSED in done.stderr) == (ExitCode.REFUSED, True), done
        self.wait_phase(daemon, "READY")
        assert self.count(daemon) == count + (done.returncode == 0), done
        return done.returncode == 0

    def wait_phase(self, daemon: Daemon, phase: str) -> dict[str, Any]:
        """Return the status once it is in this phase."""

        def in_phase() -> dict[str, Any] | None:
            with contextlib.suppress(OSError):
                status = self.status(daemon)
                return status if status["phase"] == phase else None
            return None

        return poll(in_phase, what=phase, deadline=SOON)

    def wait_serving(self, daemon: Daemon, epoch: int | None = None) -> None:
        """Wait until READY with an Envoy whose admin has answered; until then a re-execution is refused."""

        def is_serving() -> bool:
            with contextlib.suppress(OSError):
                status = self.status(daemon)
                is_epoch = epoch is None or status.get("epoch") == epoch
                return status["phase"] == "READY" and status["children"]["envoy"]["state"] == "RUNNING" and is_epoch
            return False

        poll(is_serving, what="an Envoy that serves", deadline=SOON)

    def epoch(self, daemon: Daemon) -> int:
        """Return the epoch that serves."""
        return int(self.status(daemon)["epoch"])

    def kill_envoy(self, daemon: Daemon) -> psutil.Process:
        """Kill Envoy, whoever's child it is; return the next one once it serves."""
        killed = self.the_envoy()
        killed.kill()
        # The killed one stays a child for some milliseconds.
        again = poll(
            lambda: envoy if (envoy := daemon.children().get("envoy")) != killed else None, what="the next Envoy"
        )
        daemon.wait_ready()
        self.wait_traffic("traffic through the next Envoy")
        return again

    def kill(self, daemon: Daemon) -> None:
        """Kill kumadp alone with SIGKILL."""
        daemon.process.kill()
        daemon.process.wait()

    def envoys(self) -> list[psutil.Process]:
        """Return every running Envoy of this rig, whoever its parent is, the oldest first."""
        return sorted(self._processes("envoy"), key=psutil.Process.create_time)

    def corednses(self) -> list[psutil.Process]:
        """Return every running CoreDNS of this rig."""
        return self._processes("coredns")

    def _processes(self, name: str) -> list[psutil.Process]:
        # Data planes of other tests have such files too.
        for base in self.work.glob("h*.base"):
            with contextlib.suppress(OSError, ValueError):
                self._shared.add(SHARED_MEMORY / f"envoy_shared_memory_{int(base.read_text()) * 10}")
        processes = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = any(str(self.work) in part for part in process.cmdline())
                if process.name() == name and mine and process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
        return processes

    def the_envoy(self) -> psutil.Process:
        """Return the only Envoy of this rig, once there is just one."""
        return poll(lambda: envoys[0] if len(envoys := self.envoys()) == 1 else None, what="a single Envoy")

    def leftovers(self) -> list[str]:
        """Return files that a stopped kumadp must not leave, and shared memory that an Envoy of this rig left."""
        files = {path.name for path in self.work.iterdir()} - {"bootstrap.yaml"} if self.work.exists() else set()
        prefixes = ("h", "bootstrap.", "relay", "state", "source")
        return sorted(
            [name for name in files if name.endswith(".out") or ".out." in name or name.startswith(prefixes)]
            + [path.name for path in self.shared_memory()]
        )

    def shared_memory(self) -> list[Path]:
        """Return the files of shared memory that are there of the Envoys seen so far."""
        return sorted(path for path in self._shared if path.exists())

    def end(self) -> None:
        """Kill what still runs, and leave no shared memory."""
        for process in (*self.envoys(), *self.corednses()):
            with contextlib.suppress(psutil.Error):
                process.kill()
        for path in self.shared_memory():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def open_loaded_rig(plane: str | ControlPlane) -> Iterator[LoadedRig]:
    """A rig with this control plane, or one of a kind of `control_planes.KINDS`; nothing of it outlives the block."""
    # Names of Unix sockets are short, pytest's own folders are not.
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k")))
        opened = stack.enter_context(open_plane(plane, folder)) if isinstance(plane, str) else plane
        ready = LoadedRig(folder, opened, stack.enter_context(LoadProcess()))
        stack.callback(ready.end)
        yield ready
