"""`kumadp run` against a control plane of the tests' own: what ends it, what it waits for, what it lets through."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.daemon.control_client import query_status
from kumadp.errors import ExitCode
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.daemon import Daemon, Ports, get, run_kumadp, workload
from tests.support.poll import poll
from tests.support.scripted_control_plane import (
    TOKEN,
    Answer,
    ScriptedControlPlane,
    bootstrap_answer,
    socket_address,
    static_bootstrap,
    static_cluster,
    static_listener,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process


def arguments(tmp_path: Path, plane: ScriptedControlPlane, *more: str) -> tuple[str, ...]:
    (tmp_path / "token").write_text(TOKEN)
    return (
        f"--cp-address={plane.url}",
        f"--ca-cert-file={plane.write_ca(tmp_path / 'ca.crt')}",
        f"--dataplane-token-file={tmp_path / 'token'}",
        "--name=web-1",
        "--mesh=default",
        "--drain-time=1s",
        *more,
    )


def status(daemon: Daemon) -> dict[str, Any]:
    return query_status(control_socket_path("web-1", daemon.environment))


def last_line(daemon: Daemon) -> str:
    return daemon.output().splitlines()[-1]


def test_traffic_with_an_admin_on_loopback_and_one_on_a_unix_socket(tmp_path: Path, ports: Ports) -> None:
    socket_path = tmp_path / "admin.sock"
    with workload("web") as app:
        for admin in (None, {"pipe": {"path": str(socket_path), "mode": 0o600}}):
            answer = bootstrap_answer(static_bootstrap(ports, app.port, admin))
            with (
                ScriptedControlPlane(answer) as plane,
                run_kumadp(tmp_path, ports, *arguments(tmp_path, plane)) as daemon,
            ):
                daemon.wait_ready()
                assert get(ports.inbound) == (200, "web")
                assert (get(ports.admin, "/ready")[0] == 200) is (admin is None)
                assert socket_path.exists() is (admin is not None)
                daemon.terminate()
                assert daemon.wait() == ExitCode.OK
                assert "failing Envoy's health checks failed" not in daemon.output()


def test_an_open_admin_is_moved_or_refused(tmp_path: Path, ports: Ports) -> None:
    with workload("web") as app:
        answer = bootstrap_answer(static_bootstrap(ports, app.port, socket_address(ports.admin, "0.0.0.0")))
        with ScriptedControlPlane(answer) as plane:
            with run_kumadp(tmp_path, ports, *arguments(tmp_path, plane)) as daemon:
                daemon.wait_ready()
                bound = {c.laddr for c in daemon.envoy().net_connections("tcp") if c.laddr.port == ports.admin}
                assert {address.ip for address in bound} == {"127.0.0.1"}
                assert "ADMIN" in daemon.output()
            with run_kumadp(tmp_path, ports, *arguments(tmp_path, plane, "--strict-admin")) as daemon:
                assert daemon.wait() == ExitCode.BOOTSTRAP
                assert "is not loopback" in last_line(daemon)


def test_a_static_listener_that_exposes_the_admin_is_refused(tmp_path: Path, ports: Ports) -> None:
    bootstrap = static_bootstrap(ports, 1)
    bootstrap["staticResources"] = {
        "listeners": [static_listener("open", ports.outbound, "way", "0.0.0.0")],
        "clusters": [static_cluster("way", socket_address(ports.admin))],
    }
    with (
        ScriptedControlPlane(bootstrap_answer(bootstrap)) as plane,
        run_kumadp(tmp_path, ports, *arguments(tmp_path, plane)) as daemon,
    ):
        assert daemon.wait() == ExitCode.BOOTSTRAP
        assert "staticResources.clusters[0]" in last_line(daemon)


def test_a_bootstrap_that_envoy_refuses_ends_it_with_envoy_s_words(tmp_path: Path, ports: Ports) -> None:
    bootstrap = static_bootstrap(ports, 1)
    bootstrap["staticResources"]["clusters"][0]["connectTimeout"] = "-1s"
    with (
        ScriptedControlPlane(bootstrap_answer(bootstrap)) as plane,
        run_kumadp(tmp_path, ports, *arguments(tmp_path, plane)) as daemon,
    ):
        assert daemon.wait() == ExitCode.CHILD_FAILED
        assert "its configuration is wrong: Invalid duration: Expected positive duration: seconds: -1" in last_line(
            daemon
        )
        assert daemon.output().count("WARNING process: envoy ended") == 1


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (Answer(422, b"the token does not fit"), ExitCode.CONTROL_PLANE_REFUSED, "HTTP 422: the token does not fit"),
        (Answer(401), ExitCode.CONTROL_PLANE_REFUSED, "HTTP 401"),
        (bootstrap_answer({"admin": {"address": {"pipe": {"path": "@a"}}}}), ExitCode.BOOTSTRAP, "no owner"),
    ],
)
def test_a_rejection_ends_kumadp_with_the_reason(
    tmp_path: Path, ports: Ports, answer: Answer, code: ExitCode, text: str
) -> None:
    with (
        ScriptedControlPlane(answer) as plane,
        run_kumadp(tmp_path, ports, *arguments(tmp_path, plane)) as daemon,
    ):
        assert daemon.wait() == code
        assert text in last_line(daemon)
        assert "Traceback" not in daemon.output()


def test_a_configured_time_limit_ends_the_wait(tmp_path: Path, ports: Ports) -> None:
    limits = {"KUMA_CONTROL_PLANE_RETRY_MAX_DURATION": "300ms", "KUMA_CONTROL_PLANE_RETRY_BACKOFF": "10ms"}
    with (
        ScriptedControlPlane(Answer(503, b"starting")) as plane,
        run_kumadp(tmp_path, ports, *arguments(tmp_path, plane), environment=limits) as daemon,
    ):
        assert daemon.wait() == ExitCode.CONTROL_PLANE_UNAVAILABLE
        assert "starting" in last_line(daemon)


def test_the_wait_logs_its_reason_and_sigterm_ends_it_at_once(tmp_path: Path, ports: Ports) -> None:
    slow = {"KUMA_CONTROL_PLANE_RETRY_BACKOFF": "1h"}
    with (
        ScriptedControlPlane(Answer(503, b"starting")) as plane,
        run_kumadp(tmp_path, ports, *arguments(tmp_path, plane), environment=slow) as daemon,
    ):
        poll(lambda: get(ports.readiness, "/ready") == (503, "NOT_READY"), what="readiness from the first moment")
        reason = f"bootstrap: control plane {plane.url}: HTTP 503: starting"
        poll(lambda: reason in status(daemon)["reasons"], what="the reason")
        assert any(line.endswith(f"waiting: {reason}") for line in daemon.output().splitlines())
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def test_a_rotated_token_is_taken_at_the_next_attempt(tmp_path: Path, ports: Ports) -> None:
    quick = {"KUMA_CONTROL_PLANE_RETRY_BACKOFF": "10ms"}
    with workload("web") as app:
        good = bootstrap_answer(static_bootstrap(ports, app.port))
        with ScriptedControlPlane(Answer(503), good) as plane:

            def rotate(_count: int) -> None:
                (tmp_path / "token").write_text(TOKEN + "2")

            plane.on_request = rotate
            with run_kumadp(tmp_path, ports, *arguments(tmp_path, plane), environment=quick) as daemon:
                daemon.wait_ready()
            assert [seen["dataplaneToken"] for seen in plane.requests] == [TOKEN, TOKEN + "2"]


def test_written_files_are_readable_by_the_owner_only(tmp_path: Path, ports: Ports) -> None:
    with workload("web") as app:
        answer = bootstrap_answer(static_bootstrap(ports, app.port))
        with (
            ScriptedControlPlane(answer) as plane,
            run_kumadp(tmp_path, ports, *arguments(tmp_path, plane)) as daemon,
        ):
            daemon.wait_ready()
            work = tmp_path / "work"
            assert stat.S_IMODE(work.stat().st_mode) == 0o700
            assert stat.S_IMODE((work / "bootstrap.yaml").stat().st_mode) == 0o600
            assert json.loads((work / "bootstrap.yaml").read_text())["node"]["id"] == "default.web-1"
            assert status(daemon)["ports"]["admin"] == f"127.0.0.1:{ports.admin}"
