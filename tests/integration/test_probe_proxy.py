"""The application probe proxy in a real run: before Envoy, past Envoy, and never to Envoy or kumadp."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.daemon.control_client import query_status
from kumadp.errors import ExitCode
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.command import kumadp
from tests.support.daemon import Daemon, Ports, get, run_kumadp, workload
from tests.support.kuma_resources import dataplane
from tests.support.poll import poll
from tests.support.ports import free_port
from tests.support.scripted_control_plane import Answer, ScriptedControlPlane, bootstrap_answer, static_bootstrap

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

HEALTHY, UNHEALTHY, UNKNOWN = (200, "HEALTHY\n"), (503, "UNHEALTHY\n"), (503, "UNKNOWN\n")


def arguments(tmp_path: Path, plane: ScriptedControlPlane, *more: str) -> tuple[str, ...]:
    ca = plane.write_ca(tmp_path / "ca.crt")
    return (f"--cp-address={plane.url}", f"--ca-cert-file={ca}", "--drain-time=60s", *more)


def with_dataplane(tmp_path: Path, ports: Ports, app_port: int) -> str:
    file = tmp_path / "dp.json"
    file.write_text(json.dumps(dataplane("web-1", "web", ports, app_port, probes=False)))
    return f"--dataplane-file={file}"


def children(daemon: Daemon) -> dict[str, Any]:
    """The children that kumadp knows of."""
    section: dict[str, Any] = query_status(control_socket_path("web-1", daemon.environment))["children"]
    return section


def test_the_application_of_the_dataplane_is_probed_from_start_to_end(tmp_path: Path, ports: Ports) -> None:
    port = free_port()
    environment = {"KUMA_APPLICATION_PROBE_PROXY_PORT": str(port), "KUMA_CONTROL_PLANE_RETRY_BACKOFF": "10ms"}
    with workload("web") as app, workload("other") as other, ScriptedControlPlane(Answer(503)) as plane:
        flags = arguments(tmp_path, plane, with_dataplane(tmp_path, ports, app.port))
        with run_kumadp(tmp_path, ports, *flags, environment=environment) as daemon:
            poll(lambda: get(port, f"/{app.port}/healthz") == HEALTHY, what="a probe before Envoy")
            poll(lambda: plane.requests, what="a request")
            # By now `envoy --version` has ended.
            assert "envoy" not in daemon.children()
            # True is "on": see Kuma's own comment on the name (2.13, pkg/xds/bootstrap/types).
            assert plane.requests[0]["appProbeProxyDisabled"] is True
            plane.answers = [bootstrap_answer(static_bootstrap(ports, app.port))]
            daemon.wait_ready()
            # On every address, over both families.
            for host in ("127.0.0.1", "127.0.0.9", "::1"):
                assert get(port, f"/{app.port}/healthz", host) == HEALTHY
            assert get(port, f"/tcp/{app.port}") == HEALTHY
            assert get(port, f"/grpc/{app.port}") == UNHEALTHY
            # Nobody else's application, not Envoy's inbound and admin, not kumadp's own ports.
            for refused in (other.port, ports.inbound, ports.admin, ports.readiness, port):
                for path in (f"/{refused}/ready", f"/tcp/{refused}"):
                    assert get(port, path) == UNKNOWN, path
            poll(lambda: f"port {other.port} is not probed" in daemon.output(), what="the reason in the log")
            assert kumadp("reexec", environment=daemon.environment).returncode == 0
            assert get(port, f"/{app.port}/healthz") == HEALTHY
            # By now the new program knows which ports are Envoy's.
            poll(lambda: "envoy" in children(daemon), what="the new program's Envoy")
            assert get(port, f"/{ports.inbound}/") == UNKNOWN
            daemon.terminate()
            poll(lambda: get(ports.readiness, "/ready") == (503, "TERMINATING"), what="the drain")
            daemon.envoy().suspend()
            assert get(port, f"/{app.port}/healthz") == HEALTHY
            daemon.envoy().resume()
            daemon.terminate()
            assert daemon.wait() == ExitCode.OK


def test_on_kubernetes_any_application_port_but_none_of_kumadp(tmp_path: Path, ports: Ports) -> None:
    port = free_port()
    pod = {
        "KUMA_APPLICATION_PROBE_PROXY_PORT": str(port),
        "KUBERNETES_SERVICE_HOST": "192.0.2.1",
        "POD_NAME": "web-1",
        "POD_NAMESPACE": "default",
    }
    with workload("web") as app, ScriptedControlPlane(bootstrap_answer(static_bootstrap(ports, app.port))) as plane:
        flags = arguments(tmp_path, plane, "--name=web-1", "--mesh=default", "--drain-time=1s")
        with run_kumadp(tmp_path, ports, *flags, environment=pod) as daemon:
            daemon.wait_ready()
            # The control plane names the address: there is neither a Dataplane nor INSTANCE_IP.
            poll(lambda: get(port, f"/{app.port}/healthz") == HEALTHY, what="a probe")
            for refused in (ports.inbound, ports.admin, ports.readiness, port):
                assert get(port, f"/{refused}/ready") == UNKNOWN, refused


def test_without_a_port_there_is_no_probe_proxy(tmp_path: Path, ports: Ports) -> None:
    with workload("web") as app, ScriptedControlPlane(bootstrap_answer(static_bootstrap(ports, app.port))) as plane:
        flags = arguments(tmp_path, plane, with_dataplane(tmp_path, ports, app.port), "--drain-time=1s")
        with run_kumadp(tmp_path, ports, *flags) as daemon:
            daemon.wait_ready()
            assert "appProbeProxyDisabled" not in plane.requests[0]
            assert "application probe proxy" not in daemon.output()


def test_its_port_is_checked_with_all_others(tmp_path: Path, ports: Ports) -> None:
    with ScriptedControlPlane(Answer(503)) as plane:
        flags = arguments(tmp_path, plane, with_dataplane(tmp_path, ports, 1))
        taken = {"KUMA_APPLICATION_PROBE_PROXY_PORT": str(ports.inbound)}
        with run_kumadp(tmp_path, ports, *flags, environment=taken) as daemon:
            assert daemon.wait() == ExitCode.RESOURCE
            assert f"{ports.inbound}/tcp" in daemon.output()
