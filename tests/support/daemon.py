"""A real `kumadp run` with a real workload, on free ports."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from kumadp.daemon.control_client import query_status
from kumadp.host.net.socket_paths import SUFFIX
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.unix_http import UnixConnection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Workload(ThreadingHTTPServer):
    """A small HTTP application: `/` returns its name, `/slow` answers when `release` is set, `/healthz` returns ok."""

    daemon_threads = True

    def __init__(self, name: str, port: int = 0, host: str = "127.0.0.1") -> None:
        super().__init__((host, port), _Handler)
        self.name = name
        self.port = int(self.server_address[1])
        self.entered = threading.Event()
        self.release = threading.Event()
        self.seen: list[dict[str, str]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self.release.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Workload
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
        if self.path == "/slow":
            self.server.entered.set()
            self.server.release.wait(30)
        body = b"ok" if self.path.startswith("/healthz") else self.server.name.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass


@contextlib.contextmanager
def workload(name: str) -> Iterator[Workload]:
    """A running `Workload`."""
    server = Workload(name)
    try:
        yield server
    finally:
        server.close()


def get(
    port: int, path: str = "/", host: str = "127.0.0.1", timeout: float = 5.0, method: str = "GET"
) -> tuple[int, str]:
    """Return status and body of a GET, or another method; (0, reason) if nothing answers."""
    return _fetch(http.client.HTTPConnection(host, port, timeout=timeout), path, method)


def get_at(address: str, path: str, method: str = "GET", timeout: float = 5.0) -> tuple[int, str]:
    """As `get`, at ``HOST:PORT`` or ``unix:PATH``; (0, reason) for an empty address too."""
    if address.startswith("unix:"):
        return _fetch(UnixConnection(Path(address.removeprefix("unix:")), timeout), path, method)
    host, _, port = address.rpartition(":")
    return get(int(port), path, host.strip("[]"), timeout, method) if port else (0, "no address")


def _fetch(connection: http.client.HTTPConnection, path: str, method: str) -> tuple[int, str]:
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


def closes_connection(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status == 200
    return answer.getheader("connection") == "close"


@dataclass
class Ports:
    """Free ports of one data plane."""

    inbound: int
    outbound: int
    admin: int
    readiness: int
    probes: int
    dns: int
    envoy_dns: int
    dns_metrics: int

    @classmethod
    def take(cls) -> Ports:
        return cls(*free_ports(8))


@dataclass
class Daemon:
    """A running `kumadp run`."""

    process: subprocess.Popen[bytes]
    ports: Ports
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def admin_address(self) -> str:
        """Return where Envoy's admin is by the status: ``HOST:PORT``, or ``unix:PATH`` as Kuma has it since 2.14."""
        for path in Path(self.environment["XDG_RUNTIME_DIR"]).rglob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                return str(query_status(path)["ports"]["admin"])
        return ""

    def get_admin(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Return status and body of a request to Envoy's admin; (0, reason) if it does not answer."""
        return get_at(self.admin_address(), path, method)

    def wait_ready(self, deadline: float = 30.0) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"kumadp ended with {self.process.returncode}:\n{self.output()}"
            return get(self.ports.readiness, "/ready", timeout=1) == (200, "READY")

        try:
            poll(ready, what="READY", deadline=deadline)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()}") from error

    def children(self) -> dict[str, psutil.Process]:
        by_name = {}
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE:
                    by_name[child.name()] = child
        return by_name

    def envoy(self) -> psutil.Process:
        return poll(lambda: self.children().get("envoy"), what="an Envoy")

    def kill_envoy(self) -> psutil.Process:
        envoy = self.envoy()
        envoy.kill()
        return envoy

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, deadline: float = 30.0) -> int:
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"kumadp did not end\n{self.output()}") from error

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            time.sleep(0)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def folders(tmp_path: Path) -> tuple[str, ...]:
    """Flags for directories of the test's own."""
    return ("--work-dir", str(tmp_path / "work"), "--state-dir", str(tmp_path / "state"))


@contextlib.contextmanager
def run_kumadp(
    tmp_path: Path,
    ports: Ports,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    dns: bool = False,
    prefix: tuple[str, ...] = (),
) -> Iterator[Daemon]:
    """Run `kumadp run ARGUMENTS` on these ports; it is ended and reaped when the block ends."""
    # pytest's own folders have names too long for Unix sockets.
    runtime = tempfile.mkdtemp(prefix="k")
    full = {
        **os.environ,
        "XDG_RUNTIME_DIR": runtime,
        "TMPDIR": str(tmp_path),
        "KUMA_READINESS_PORT": str(ports.readiness),
        "KUMA_DATAPLANE_RUNTIME_BINARY_PATH": str(need_envoy()),
        "KUMA_DNS_ENABLED": "true" if dns else "false",
        "KUMA_DNS_CORE_DNS_PORT": str(ports.dns),
        "KUMA_DNS_ENVOY_DNS_PORT": str(ports.envoy_dns),
        "KUMA_DNS_PROMETHEUS_PORT": str(ports.dns_metrics),
        **(environment or {}),
    }
    log = tmp_path / "kumadp.log"
    # Whatever a test does, nothing is left behind; a test may override these flags.
    fate = ("--on-parent-death", "kill", "--log-format", "text", "--on-file-change", "report")
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "kumadp", "run", *folders(tmp_path), *fate, *arguments],
            env=full,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    daemon = Daemon(process, ports, log, full)
    try:
        yield daemon
    finally:
        daemon.close()
        shutil.rmtree(runtime)


def write_mesh(folder: Path, ports: Ports, app_port: int, backend_port: int, **extra: Any) -> Path:
    """A folder with `web` (ours) and `backend` (answered by its workload itself)."""
    folder.mkdir(exist_ok=True)
    web = {
        "type": "Dataplane",
        "mesh": "default",
        "name": "web",
        "networking": {
            "address": "127.0.0.1",
            "inbound": [
                {
                    "port": ports.inbound,
                    "servicePort": app_port,
                    "serviceAddress": "127.0.0.1",
                    "tags": {"kuma.io/service": "web", "kuma.io/protocol": "http"},
                }
            ],
            "outbound": [{"port": ports.outbound, "tags": {"kuma.io/service": "backend"}}],
            "admin": {"port": ports.admin},
        },
        "probes": {
            "port": ports.probes,
            "endpoints": [{"inboundPort": app_port, "inboundPath": "/healthz", "path": "/app/healthz"}],
        },
        **extra,
    }
    backend = {
        "type": "Dataplane",
        "mesh": "default",
        "name": "backend",
        "networking": {
            "address": "127.0.0.1",
            "inbound": [
                {"port": backend_port, "tags": {"kuma.io/service": "backend", "kuma.io/protocol": "http"}},
            ],
        },
    }
    (folder / "web.yaml").write_text(json.dumps(web))
    (folder / "backend.yaml").write_text(json.dumps(backend))
    return folder


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether something accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
