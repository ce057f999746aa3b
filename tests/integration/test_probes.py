"""Virtual probes in a real run: there before Envoy and after it, and left alone where somebody else serves them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ExitCode
from tests.support.daemon import Ports, get, is_listening, run_kumadp, workload
from tests.support.kuma_resources import dataplane
from tests.support.poll import poll
from tests.support.scripted_control_plane import Answer, ScriptedControlPlane, bootstrap_answer, static_bootstrap

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process


def arguments(tmp_path: Path, plane: ScriptedControlPlane, ports: Ports, app_port: int) -> tuple[str, ...]:
    file = tmp_path / "dp.json"
    file.write_text(json.dumps(dataplane("web-1", "web", ports, app_port)))
    ca = plane.write_ca(tmp_path / "ca.crt")
    return (f"--cp-address={plane.url}", f"--ca-cert-file={ca}", f"--dataplane-file={file}")


def test_probes_answer_while_there_is_no_bootstrap_yet_and_until_the_end(tmp_path: Path, ports: Ports) -> None:
    with workload("web") as app:
        good = bootstrap_answer(static_bootstrap(ports, app.port))
        with ScriptedControlPlane(Answer(503)) as plane:
            quick = {"KUMA_CONTROL_PLANE_RETRY_BACKOFF": "10ms"}
            more = ("--drain-time=60s",)
            flags = arguments(tmp_path, plane, ports, app.port)
            with run_kumadp(tmp_path, ports, *flags, *more, environment=quick) as daemon:
                poll(lambda: get(ports.probes, "/app/healthz") == (200, "ok"), what="a probe before Envoy")
                # By then `envoy --version` has ended.
                poll(lambda: plane.requests, what="a request")
                assert "envoy" not in daemon.children()
                plane.answers = [good]
                daemon.wait_ready()
                assert "probes" not in json.loads(plane.requests[0]["dataplaneResource"])
                daemon.terminate()
                poll(lambda: get(ports.readiness, "/ready") == (503, "TERMINATING"), what="the drain")
                daemon.envoy().suspend()
                assert get(ports.probes, "/app/healthz") == (200, "ok")
                daemon.envoy().resume()
                daemon.terminate()
                assert daemon.wait() == ExitCode.OK


def test_on_kubernetes_the_port_is_not_served_and_that_is_logged(tmp_path: Path, ports: Ports) -> None:
    with workload("web") as app, ScriptedControlPlane(bootstrap_answer(static_bootstrap(ports, app.port))) as plane:
        pod = {"KUBERNETES_SERVICE_HOST": "192.0.2.1"}
        with run_kumadp(tmp_path, ports, *arguments(tmp_path, plane, ports, app.port), environment=pod) as daemon:
            daemon.wait_ready()
            assert not is_listening(ports.probes)
            assert "the control plane owns port 9000" in daemon.output()
            assert "probes" in json.loads(plane.requests[0]["dataplaneResource"])
            # A pod is restarted as a whole: Envoy's end is ours.
            daemon.kill_envoy()
            assert daemon.wait() == ExitCode.CHILD_FAILED


def test_the_generic_form_is_served_for_the_ports_of_a_list(tmp_path: Path, ports: Ports) -> None:
    with workload("web") as app, ScriptedControlPlane(bootstrap_answer(static_bootstrap(ports, app.port))) as plane:
        ca = plane.write_ca(tmp_path / "ca.crt")
        with run_kumadp(
            tmp_path,
            ports,
            *(f"--cp-address={plane.url}", f"--ca-cert-file={ca}", "--name=web-1", "--mesh=default"),
            *("--virtual-probes=on", f"--virtual-probes-port={ports.probes}", f"--virtual-probes-ports={app.port}"),
            environment={
                "POD_NAMESPACE": "a",
                "POD_NAME": "b",
                "KUBERNETES_SERVICE_HOST": "192.0.2.1",
                "INSTANCE_IP": "127.0.0.6",
            },
        ) as daemon:
            daemon.wait_ready()
            assert get(ports.probes, f"/{app.port}/healthz", host="127.0.0.6") == (200, "ok")
            assert get(ports.probes, f"/{ports.admin}/server_info", host="127.0.0.6")[0] == 404
            assert not is_listening(ports.probes)


def test_off_is_off(tmp_path: Path, ports: Ports) -> None:
    with workload("web") as app, ScriptedControlPlane(bootstrap_answer(static_bootstrap(ports, app.port))) as plane:
        flags = arguments(tmp_path, plane, ports, app.port)
        with run_kumadp(tmp_path, ports, *flags, "--virtual-probes=off", "--drain-time=1s") as daemon:
            daemon.wait_ready()
            assert not is_listening(ports.probes)
            assert "probes" in json.loads(plane.requests[0]["dataplaneResource"])


@pytest.mark.parametrize(("address", "served"), [("localhost", True), ("no-such-host.invalid", False)])
def test_an_address_that_is_a_name_is_resolved_or_costs_the_probes_alone(
    tmp_path: Path, ports: Ports, address: str, served: bool
) -> None:
    with workload("web") as app, ScriptedControlPlane(bootstrap_answer(static_bootstrap(ports, app.port))) as plane:
        flags = arguments(tmp_path, plane, ports, app.port)
        file = tmp_path / "dp.json"
        file.write_text(file.read_text().replace('"address": "127.0.0.1"', f'"address": "{address}"', 1))
        with run_kumadp(tmp_path, ports, *flags, "--drain-time=1s") as daemon:
            daemon.wait_ready()
            assert get(ports.inbound) == (200, "web")
            assert is_listening(ports.probes) is served
            assert ("--virtual-probes-address" in daemon.output()) is not served
