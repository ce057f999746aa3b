"""`kumadp wait`: what it queries and logs, and that it never waits for the wrong data plane."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kumadp.cli.wait as wait_module
from kumadp.core.phases import Phase
from kumadp.core.status import Status
from kumadp.daemon.control import ControlServer
from kumadp.daemon.instances import Search
from kumadp.host.net.socket_paths import socket_name
from kumadp.settings.resolve import resolve
from tests.support.command import ROOT, kumadp
from tests.support.daemon import Ports, get, run_kumadp, workload
from tests.support.poll import poll
from tests.support.ports import free_port
from tests.support.scripted_control_plane import Answer, ScriptedControlPlane, bootstrap_answer, static_bootstrap

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Host:
    """A directory with the control sockets of a host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "kumadp"
        self.folder.mkdir(mode=0o700)
        self.environment = {"XDG_RUNTIME_DIR": str(folder)}

    @contextlib.contextmanager
    def instance(self, name: str) -> Iterator[Status]:
        """A real control socket of a data plane of that name, with a state that the test sets."""
        status = Status(name, "standalone")
        started, ended = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()

        control = ControlServer(self.folder / socket_name(name), status.snapshot)

        async def serve() -> None:
            server = asyncio.create_task(control.run(started.set))
            await ended.wait()
            server.cancel()
            await asyncio.wait({server})

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        try:
            assert started.wait(10)
            yield status
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join()
            loop.close()


@pytest.fixture
def host() -> Iterator[Host]:
    # Not in tmp_path: the path of a Unix socket may have 107 bytes (unix(7)).
    with tempfile.TemporaryDirectory(prefix="kumadp-") as folder:
        yield Host(Path(folder))


class Waiting:
    """A running `kumadp wait`."""

    def __init__(self, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KUMA", "POD_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.isolated_kumadp", "wait", "--check-frequency=20ms", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**inherited, **environment},
        )

    def line(self) -> str:
        """The next line of its output, without time and level."""
        assert self.process.stderr is not None
        return self.process.stderr.readline().rstrip("\n").partition(" wait: ")[2]


@contextlib.contextmanager
def waiting(*arguments: str, environment: Mapping[str, str]) -> Iterator[Waiting]:
    started = Waiting(arguments, environment)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--name=web"], {}),
        (["--name=web"], {"KUMA_DATAPLANE_NAME": "backend"}),
        ([], {"KUMA_DATAPLANE_NAME": "web"}),
        ([], {"POD_NAME": "we", "POD_NAMESPACE": "b"}),
    ],
)
def test_waiting_for_a_name_ignores_others(host: Host, arguments: list[str], variables: dict[str, str]) -> None:
    name = "we.b" if "POD_NAME" in variables else "web"
    with host.instance("backend") as other:
        other.move(Phase.READY, "all is up")
        with waiting(*arguments, environment={**host.environment, **variables}) as command:
            line = command.line()
            if "takes precedence" in line:
                line = command.line()
            missing = "no kumadp of that name runs here that this user can see; running: backend"
            assert line == f"waiting: {name}: {missing}"
            with host.instance(name) as status:
                status.set_not_ready("bootstrap", "connection refused 10.0.0.1:5678")
                line = command.line()
                while line == f"waiting: {name}: STARTING":
                    line = command.line()
                assert line == f"waiting: {name}: bootstrap: connection refused 10.0.0.1:5678"
                status.set_not_ready("bootstrap", "")
                status.move(Phase.READY, "all is up")
                assert command.process.wait(20) == 0


def test_without_a_name_all_must_be_ready(host: Host) -> None:
    with host.instance("backend") as other, host.instance("web") as status:
        other.move(Phase.READY, "all is up")
        status.set_not_ready("envoy", "Envoy is INITIALIZING")
        with waiting(environment=host.environment) as command:
            assert command.line() == "waiting: web: envoy: Envoy is INITIALIZING"
            status.set_not_ready("envoy", "")
            status.move(Phase.READY, "all is up")
            while (line := command.line()) != "ready":
                assert line == "waiting: web: STARTING"
            assert command.process.wait(20) == 0


def test_a_data_plane_that_drains_is_not_ready(host: Host) -> None:
    with host.instance("web") as status:
        status.move(Phase.READY, "all is up")
        status.move(Phase.DRAINING, "SIGTERM")
        done = kumadp("wait", "--name=web", "--timeout=0s", environment=host.environment)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == "Error: not ready within 0s: web: DRAINING"


def test_a_silent_control_socket_is_not_ready(host: Host) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(host.folder / socket_name("web")))
        silent.listen()
        done = kumadp("wait", "--timeout=0s", environment=host.environment)
    assert done.returncode == 75
    assert "web: its control socket does not answer: timed out" in done.stderr.splitlines()[-1]


def test_a_long_name_has_a_short_socket_name(host: Host) -> None:
    name = "web-" + "7" * 80
    with host.instance(name) as status:
        status.move(Phase.READY, "all is up")
        assert kumadp("wait", f"--name={name}", "--timeout=0s", environment=host.environment).returncode == 0


class _Ready(BaseHTTPRequestHandler):
    codes: tuple[int, ...] = (200,)

    def do_GET(self) -> None:
        requests: list[str] = self.server.received_requests  # type: ignore[attr-defined]
        code = self.codes[min(len(requests), len(self.codes) - 1)]
        requests.append(self.path)
        self.send_response(code)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass


@contextlib.contextmanager
def served(server: socketserver.BaseServer, *codes: int) -> Iterator[list[str]]:
    """The requests to an HTTP server that answers with these codes in turn, and repeats the last one."""
    server.RequestHandlerClass = type("Handler", (_Ready,), {"codes": codes})
    requests: list[str] = []
    server.received_requests = requests  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.0.0.2"])
def test_a_url_is_queried_until_it_answers_200(host: Host, name: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.2" if name.endswith("2") else "127.0.0.1", 0), _Ready)
    url = f"http://{name}:{server.server_address[1]}/ready?x=1"
    with served(server, 503, 404, 200) as requests:
        done = kumadp("wait", f"--url={url}", "--check-frequency=10ms", environment=host.environment)
    assert done.returncode == 0
    assert requests == ["/ready?x=1"] * 3
    expected = [line.partition(" wait: ")[2] for line in done.stderr.splitlines()]
    assert expected == [f"waiting: {url} answers 503", f"waiting: {url} answers 404", "ready"]


def test_only_the_url_is_queried(host: Host) -> None:
    """As with kuma-dp: other data planes on this host and KUMA_DATAPLANE_NAME do not matter then."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Ready)
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    environment = {**host.environment, "KUMA_DATAPLANE_NAME": "web"}
    with host.instance("web"), served(server, 200):
        assert kumadp("wait", f"--url={url}", environment=environment).returncode == 0


def test_a_unix_socket_takes_precedence_over_the_url(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with served(socketserver.ThreadingUnixStreamServer(str(path), _Ready), 503, 200) as requests:
        done = kumadp(
            *("wait", f"--unix-socket={path}", f"--url=http://127.0.0.1:{free_port()}/", "--check-frequency=10ms"),
            environment=host.environment,
        )
    assert done.returncode == 0
    assert requests == ["/ready", "/ready"]


def test_a_check_has_a_timeout(host: Host) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        done = kumadp("wait", f"--url={url}", "--request-timeout=20ms", "--timeout=0s", environment=host.environment)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == f"Error: not ready within 0s: {url}: timed out"


def test_the_log_level_is_applied(host: Host) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    done = kumadp("wait", f"--url={url}", "--log-level=off", "--timeout=0s", environment=host.environment)
    assert done.stderr == f"Error: not ready within 0s: {url}: Connection refused\n"


@pytest.mark.parametrize(
    ("flags", "variables", "queries_url"),
    [
        ({}, {}, True),
        ({}, {"KUMA_DATAPLANE_NAME": "web"}, True),
        ({"name": "web"}, {}, False),
    ],
)
def test_the_default_url_is_queried_if_no_kumadp_is_visible(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, str],
    variables: dict[str, str],
    queries_url: bool,
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Ready)
    monkeypatch.setattr(wait_module, "DEFAULT_URL", f"http://localhost:{server.server_address[1]}/ready")
    monkeypatch.setattr(wait_module, "find", lambda _environ: Search())
    resolved = resolve("wait", flags, variables)
    with served(server, 200) as requests:
        reason = wait_module._checker(resolved.settings, resolved.origin)()
    assert requests == (["/ready"] if queries_url else [])
    assert (reason == "") is queries_url


@pytest.mark.parametrize(("ready", "code"), [(True, 0), (False, 75)])
def test_once_checks_once(host: Host, ready: bool, code: int) -> None:
    with host.instance("web") as status:
        if ready:
            status.move(Phase.READY, "all is up")
        with waiting("--once", "--timeout=3600s", environment=host.environment) as command:
            assert command.process.wait(30) == code


def test_defaults_are_kuma_dp_s() -> None:
    assert wait_module.DEFAULT_URL == "http://localhost:9901/ready"


@pytest.mark.process
def fast(runtime: str) -> dict[str, str]:
    return {"KUMA_CONTROL_PLANE_RETRY_BACKOFF": "20ms", "XDG_RUNTIME_DIR": runtime}


def test_a_real_run_is_waited_for(tmp_path: Path) -> None:
    """While its bootstrap is rejected, `wait` logs that; later it is ready as soon as traffic flows."""
    ports = Ports.take()
    with workload("web") as application, ScriptedControlPlane(Answer(503, b"overloaded")) as plane:
        arguments = ["--name=web", "--mesh=default", f"--cp-address={plane.url}", "--drain-time=1ms"]
        ca = plane.write_ca(tmp_path / "ca.crt")
        with (
            tempfile.TemporaryDirectory(prefix="k") as runtime,
            waiting("--name=web", environment={"XDG_RUNTIME_DIR": runtime}) as command,
            run_kumadp(tmp_path, ports, *arguments, f"--ca-cert-file={ca}", environment=fast(runtime)) as daemon,
        ):
            lines: list[str] = []

            def names_the_reason() -> bool:
                lines.append(command.line())
                return "web: bootstrap: " in lines[-1] and "503" in lines[-1]

            poll(names_the_reason, what="the reason")
            plane.answers = [bootstrap_answer(static_bootstrap(ports, application.port))]
            assert command.process.wait(30) == 0, daemon.output()
            assert get(ports.inbound) == (200, "web")
