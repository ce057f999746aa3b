"""The processes and files of the demo: ports, a private directory with two Dataplanes, workloads, `kumadp run`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import fields

from kumadp.cli.demo.workload import UP_LINE
from kumadp.cli.modules import environment
from kumadp.errors import SpawnError

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "127.0.0.1"
NAME = "web"
WORKLOAD_DEADLINE = 10.0
STOP_DEADLINE = 15.0

# The user's own mesh settings must not affect the demo, but the paths of the binaries must.
FOREIGN_VARIABLES = ("KUMA_", "KUMADP_", "DATAPLANE_", "POD_", "KUBERNETES_", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET")
KEPT_VARIABLES = frozenset({"KUMA_DATAPLANE_RUNTIME_BINARY_PATH", "KUMA_DNS_CORE_DNS_BINARY_PATH"})


class DemoPorts(Struct, frozen=True):
    """Every port of the demo, all on loopback; the defaults are the usual ones."""

    inbound: int = 18080
    workload: int = 8080
    backend: int = 8081
    outbound: int = 20001
    admin: int = 9901
    readiness: int = 9902
    probes: int = 9000
    dns: int = 15053
    envoy_dns: int = 15054
    dns_metrics: int = 19153

    @classmethod
    def choose(cls) -> DemoPorts:
        """Return the usual ports, with free ones in place of those that are taken."""
        usual = cls()
        chosen: dict[str, int] = {}
        for field in fields(cls):
            port: int = getattr(usual, field.name)
            chosen[field.name] = port if _is_free(port) else _free_port(usual, set(chosen.values()))
        return cls(**chosen)


def _is_free(port: int) -> bool:
    # CoreDNS binds every address, so a port only counts as free if no process holds it on any address.
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for host in (HOST, ""):
            with socket.socket(socket.AF_INET, kind) as attempt:
                if kind == socket.SOCK_STREAM:
                    attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    attempt.bind((host, port))
                except OSError:
                    return False
    return True


def _free_port(usual: DemoPorts, chosen: set[int]) -> int:
    avoided = chosen | {getattr(usual, field.name) for field in fields(usual)}
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as attempt:
            attempt.bind((HOST, 0))
            port = int(attempt.getsockname()[1])
        if port not in avoided and _is_free(port):
            return port


WEB = """\
# The data plane of the demo. Changes to this file are applied within a second.
type: Dataplane
mesh: default
name: {name}
networking:
  address: {host}
  inbound:
    - port: {ports.inbound}
      serviceAddress: {host}
      servicePort: {ports.workload}
      tags:
        kuma.io/service: web
        kuma.io/protocol: http
      serviceProbe:
        interval: 2s
        timeout: 1s
        unhealthyThreshold: 2
        healthyThreshold: 1
        tcp: {{}}
  outbound:
    - address: {host}
      port: {ports.outbound}
      tags:
        kuma.io/service: backend
  admin:
    port: {ports.admin}
probes:
  port: {ports.probes}
  endpoints:
    - inboundPort: {ports.workload}
      inboundPath: /healthz
      path: /{ports.workload}/healthz
"""

BACKEND = """\
# Another data plane of the same mesh: the second workload, which the outbound of web points to.
type: Dataplane
mesh: default
name: backend
networking:
  address: {host}
  inbound:
    - port: {ports.backend}
      tags:
        kuma.io/service: backend
        kuma.io/protocol: http
"""


def _tied_to_us(*command: str) -> tuple[str, ...]:
    """Wrap ``command`` so that the kernel sends it SIGTERM when this process dies for any reason."""
    from kumadp.process.launch import tied_to_parent

    return tied_to_parent(command, signal.SIGTERM, os.environ)


def write_mesh(folder: Path, ports: DemoPorts) -> None:
    """Create ``folder`` and write the two Dataplane files into it."""
    folder.mkdir()
    for file, text in (("web.yaml", WEB), ("backend.yaml", BACKEND)):
        (folder / file).write_text(text.format(name=NAME, host=HOST, ports=ports), encoding="utf-8")


class DemoStage:
    """The private directory and the processes of the demo; `close` stops all of them and removes the directory."""

    def __init__(self, ports: DemoPorts, folder: Path, drain_time: str) -> None:
        self.ports = ports
        self.folder = folder
        self.mesh = folder / "mesh"
        self.log = folder / "kumadp.log"
        self.drain_time = drain_time
        self.workload: asyncio.subprocess.Process | None = None
        self.daemon: asyncio.subprocess.Process | None = None

    @classmethod
    def open(cls, drain_time: str) -> DemoStage:
        """Choose ports and create the directory (0700); ``drain_time`` in the syntax of `kumadp run --drain-time`."""
        folder = Path(tempfile.mkdtemp(prefix="kumadp-demo-"))
        ports = DemoPorts.choose()
        write_mesh(folder / "mesh", ports)
        (folder / "run").mkdir(mode=0o700)
        return cls(ports, folder, drain_time)

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment of `kumadp run`: that of the user without settings of other data planes."""
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(FOREIGN_VARIABLES) or name in KEPT_VARIABLES
        }
        return {
            **own,
            "KUMA_READINESS_PORT": str(self.ports.readiness),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "TMPDIR": str(self.folder),
        }

    @property
    def arguments(self) -> tuple[str, ...]:
        """Arguments of `kumadp`."""
        ports = self.ports
        dns = ("--dns-coredns-port", ports.dns, "--dns-envoy-port", ports.envoy_dns)
        metrics = ("--dns-prometheus-port", ports.dns_metrics)
        mesh = ("--standalone", self.mesh, "--name", NAME)
        # Not /var/lib/kumadp, where crash records of root's demo would outlive it.
        folders = ("--work-dir", self.folder / "work", "--state-dir", self.folder / "state")
        fate = ("--on-parent-death", "kill")
        return tuple(map(str, ("run", *mesh, *folders, "--drain-time", self.drain_time, *fate, *dns, *metrics)))

    async def start(self) -> None:
        """Start the workloads, wait for them, start `kumadp run`. Raises SpawnError."""
        self.workload = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kumadp.cli.demo.workload"),
            *(f"web={self.ports.workload}", f"backend={self.ports.backend}"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
            start_new_session=True,
        )
        await self._wait_for_workload(self.workload)
        with self.log.open("wb") as out:
            self.daemon = await asyncio.create_subprocess_exec(
                *_tied_to_us(sys.executable, "-m", "kumadp", *self.arguments),
                env=environment(self.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )

    async def _wait_for_workload(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        try:
            line = await asyncio.wait_for(process.stdout.readline(), WORKLOAD_DEADLINE)
        except TimeoutError:
            raise SpawnError(f"the demo's workloads did not start within {WORKLOAD_DEADLINE:.0f} s") from None
        if line.decode().strip() != UP_LINE:
            reason = (await process.stderr.read()).decode(errors="replace").strip()
            raise SpawnError(f"the demo's workloads did not start: {reason}")

    @property
    def workload_runs(self) -> bool:
        """Whether the workloads run."""
        return self.workload is not None and self.workload.returncode is None

    def terminate(self) -> None:
        """Send one SIGTERM to kumadp."""
        if self.daemon is not None and self.daemon.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.daemon.send_signal(signal.SIGTERM)

    async def query_status(self) -> Mapping[str, Any] | None:
        """Return the status from kumadp's control socket; None if it does not answer."""
        from kumadp.daemon.control_client import query_status
        from kumadp.host.net.socket_paths import control_socket_path

        try:
            return await asyncio.to_thread(query_status, control_socket_path(NAME, self.environment))
        except OSError:
            return None

    def tail(self, lines: int = 20) -> list[str]:
        """Return the last lines of kumadp's log without Envoy's INFO lines; none if there is no log yet."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [line for line in text.splitlines() if " INFO envoy: " not in line][-lines:]

    async def close(self) -> None:
        """Stop what still runs (kumadp by two SIGTERMs: the second ends the drain early), and remove the directory."""
        try:
            await self._end_daemon()
        finally:
            await self._end_workload()
            await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def _end_daemon(self) -> None:
        if self.daemon is None or self.daemon.returncode is not None:
            return
        self.terminate()
        self.terminate()
        try:
            await asyncio.wait_for(self.daemon.wait(), STOP_DEADLINE)
        except TimeoutError:
            self.daemon.kill()
            await self.daemon.wait()

    async def _end_workload(self) -> None:
        if self.workload is None or self.workload.returncode is not None:
            return
        assert self.workload.stdin is not None  # noqa: S101
        self.workload.stdin.close()
        try:
            await asyncio.wait_for(self.workload.wait(), STOP_DEADLINE)
        except TimeoutError:
            self.workload.kill()
            await self.workload.wait()
