"""/ready in a real run: on loopback from the first moment, on Kuma's Unix socket, and where the bootstrap wants it.

Beside kuma-dp 2.13.5 (seen with a real control plane): it serves nothing before it has a bootstrap, then its Unix
socket alone, unless KUMA_READINESS_UNIX_SOCKET_DISABLED is true: then the port alone. kumadp serves both, so that a
probe of 2.8 finds it as well. 2.13.5 has no NOT_READY.
"""

from __future__ import annotations

import http.client
import socket
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.daemon.control_client import query_status
from kumadp.errors import ExitCode
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.command import kumadp
from tests.support.daemon import Daemon, Ports, get, run_kumadp, workload
from tests.support.poll import poll
from tests.support.scripted_control_plane import (
    Answer,
    ScriptedControlPlane,
    bootstrap_answer,
    socket_address,
    static_bootstrap,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

SOCKET = "work/kuma-readiness-reporter.sock"
ELSEWHERE = "127.0.0.9"


def arguments(tmp_path: Path, plane: ScriptedControlPlane) -> tuple[str, ...]:
    ca = plane.write_ca(tmp_path / "ca.crt")
    return (f"--cp-address={plane.url}", f"--ca-cert-file={ca}", "--name=web-1", "--mesh=default", "--drain-time=60s")


def request(path: Path, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    """An answer over the Unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(path))
        connection.request(method, "/ready")
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), {name.lower(): text for name, text in answer.getheaders()}
    except OSError as error:
        return 0, str(error), {}
    finally:
        connection.close()


def known_ports(daemon: Daemon) -> dict[str, Any]:
    section: dict[str, Any] = query_status(control_socket_path("web-1", daemon.environment))["ports"]
    return section


def test_the_unix_socket_answers_like_the_port_from_start_to_end(tmp_path: Path, ports: Ports) -> None:
    path = tmp_path / SOCKET
    with workload("web") as app, ScriptedControlPlane(Answer(503)) as plane:
        quick = {"KUMA_CONTROL_PLANE_RETRY_BACKOFF": "10ms"}
        with run_kumadp(tmp_path, ports, *arguments(tmp_path, plane), environment=quick) as daemon:
            code, body, headers = poll(lambda: answer if (answer := request(path))[0] else None, what="the socket")
            assert (code, body) == (503, "NOT_READY")
            assert get(ports.readiness, "/ready") == (503, "NOT_READY")
            assert headers.pop("date")
            assert headers == {
                "content-type": "text/plain",
                "content-length": "9",
                "cache-control": "no-cache, max-age=0",
                "x-powered-by": "kuma-dp",
            }
            plane.answers = [bootstrap_answer(static_bootstrap(ports, app.port))]
            daemon.wait_ready()
            assert request(path)[:2] == (200, "READY")
            # Any method, as with kuma-dp.
            assert request(path, "POST")[:2] == (200, "READY")
            assert request(path, "HEAD")[:2] == (200, "")
            daemon.terminate()
            poll(lambda: request(path)[:2] == (503, "TERMINATING"), what="the drain")
            daemon.terminate()
            assert daemon.wait() == ExitCode.OK
            assert not path.exists()


def test_without_the_unix_socket(tmp_path: Path, ports: Ports) -> None:
    with workload("web") as app, ScriptedControlPlane(bootstrap_answer(static_bootstrap(ports, app.port))) as plane:
        off = {"KUMA_READINESS_UNIX_SOCKET_DISABLED": "true"}
        with run_kumadp(tmp_path, ports, *arguments(tmp_path, plane), environment=off) as daemon:
            daemon.wait_ready()
            assert not (tmp_path / SOCKET).exists()


@pytest.mark.parametrize("value", ["0.0.0.0", "::", ELSEWHERE])
def test_it_is_served_where_the_control_plane_wants_the_admin(tmp_path: Path, ports: Ports, value: str) -> None:
    with workload("web") as app:
        bootstrap = static_bootstrap(ports, app.port, socket_address(ports.admin, value))
        with ScriptedControlPlane(Answer(503)) as plane:
            quick = {"KUMA_CONTROL_PLANE_RETRY_BACKOFF": "10ms"}
            with run_kumadp(tmp_path, ports, *arguments(tmp_path, plane), environment=quick) as daemon:
                poll(lambda: get(ports.readiness, "/ready") == (503, "NOT_READY"), what="an answer on loopback")
                assert get(ports.readiness, "/ready", ELSEWHERE)[0] == 0
                plane.answers = [bootstrap_answer(bootstrap)]
                daemon.wait_ready()
                assert get(ports.readiness, "/ready", ELSEWHERE) == (200, "READY")
                assert get(ports.readiness, "/ready", "127.0.0.8")[0] == (0 if value == ELSEWHERE else 200)
                # What was served before a re-execution is served after it.
                before = known_ports(daemon)
                assert f"readiness on {value}" in before
                assert kumadp("reexec", environment=daemon.environment).returncode == 0
                poll(lambda: known_ports(daemon) == before, what="all of it again")
                assert get(ports.readiness, "/ready", ELSEWHERE) == (200, "READY")
                assert get(ports.readiness, "/ready") == (200, "READY")
                assert request(tmp_path / SOCKET)[:2] == (200, "READY")


@pytest.mark.parametrize("in_pod", [False, True])
def test_with_an_admin_on_a_unix_socket_all_addresses_of_a_pod(tmp_path: Path, ports: Ports, in_pod: bool) -> None:
    admin = {"pipe": {"path": str(tmp_path / "admin.sock"), "mode": 0o600}}
    with (
        workload("web") as app,
        ScriptedControlPlane(bootstrap_answer(static_bootstrap(ports, app.port, admin))) as plane,
    ):
        pod = {"POD_NAME": "web-1"} if in_pod else {}
        with run_kumadp(tmp_path, ports, *arguments(tmp_path, plane), environment=pod) as daemon:
            daemon.wait_ready()
            assert get(ports.readiness, "/ready", ELSEWHERE)[0] == (200 if in_pod else 0)


def test_an_address_that_is_not_here_costs_that_address_alone(tmp_path: Path, ports: Ports) -> None:
    bootstrap = static_bootstrap(ports, 1, socket_address(ports.admin, "192.0.2.99"))
    with (
        ScriptedControlPlane(bootstrap_answer(bootstrap)) as plane,
        run_kumadp(tmp_path, ports, *arguments(tmp_path, plane)) as daemon,
    ):
        daemon.wait_ready()
        assert "readiness on 192.0.2.99 failed permanently" in daemon.output()
