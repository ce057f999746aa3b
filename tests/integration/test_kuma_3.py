"""What changes with a control plane of Kuma 3, at a start and when it is upgraded under a kumadp that runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import dns.message
import dns.query
import dns.rcode
import pytest

from kumadp.errors import ExitCode
from tests.integration.test_doctor import findings
from tests.support.command import kumadp
from tests.support.daemon import workload
from tests.support.kuma_resources import with_both
from tests.support.needs import need_coredns
from tests.support.poll import poll
from tests.support.rig import NAME, SOON, Rig
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Daemon

pytestmark = pytest.mark.process

EMBEDDED = {"answered_by": "the embedded resolver", "corefile": ""}


@pytest.fixture
def plane() -> Iterator[XdsControlPlane]:
    with XdsControlPlane() as served:
        served.version = "2.14"
        yield served


@pytest.fixture
def rig(tmp_path: Path, plane: XdsControlPlane) -> Iterator[Rig]:
    with workload("app") as app:
        yield Rig(tmp_path, plane, app)


def processes(daemon: Daemon) -> dict[str, int]:
    """The children by their names."""
    return {name: child.pid for name, child in daemon.children().items()}


def generation(rig: Rig, daemon: Daemon) -> Any:
    return rig.status(daemon).get("control_plane_generation")


def wait_for_generation(rig: Rig, daemon: Daemon, expected: int) -> None:
    poll(lambda: generation(rig, daemon) == expected, what=f"a control plane of Kuma {expected}", deadline=SOON)


def test_dns_follows_the_control_plane(rig: Rig, plane: XdsControlPlane) -> None:
    rig.dataplane = with_both(rig.dataplane)
    coredns = {"KUMA_DNS_CORE_DNS_BINARY_PATH": str(need_coredns())}
    with rig.run(dns=True, environment=coredns) as daemon:
        daemon.wait_ready(SOON)
        rig.wait_traffic()
        assert rig.status(daemon)["dns"]["answered_by"] == "CoreDNS"
        assert generation(rig, daemon) == 2
        assert "of Kuma 3" not in daemon.output()
        before = processes(daemon)
        assert "coredns" in before
        plane.upgrade("3.0")
        wait_for_generation(rig, daemon, 3)
        poll(lambda: rig.status(daemon)["dns"] == EMBEDDED, what="the embedded resolver", deadline=SOON)
        poll(lambda: "coredns" not in processes(daemon), what="the end of CoreDNS", deadline=SOON)
        assert "coredns metrics" not in rig.status(daemon)["ports"]
        (line,) = [line for line in daemon.output().splitlines() if "without effect with this control plane" in line]
        assert "KUMA_DNS_ENVOY_DNS_PORT" in line
        assert "KUMA_DNS_CORE_DNS_BINARY_PATH" in line
        assert "KUMA_DNS_CORE_DNS_PORT" not in line
        plane.upgrade("2.14")
        wait_for_generation(rig, daemon, 2)
        rig.wait_traffic()
        assert rig.status(daemon)["dns"] == EMBEDDED
        assert processes(daemon) == {"envoy": before["envoy"]}


def test_a_start_with_kuma_3(rig: Rig, plane: XdsControlPlane, tmp_path: Path) -> None:
    plane.version = "3.0"
    coredns = {"KUMA_DNS_CORE_DNS_BINARY_PATH": str(need_coredns())}
    with rig.run(dns=True, environment=coredns) as daemon:
        daemon.wait_ready(SOON)
        rig.wait_traffic()
        assert generation(rig, daemon) == 3
        assert rig.status(daemon)["dns"] == EMBEDDED
        assert "coredns" not in processes(daemon)
    rig.write_dataplane()
    way = (*rig._flags(), f"--dataplane-file={rig.file}", "--dns-enable-logging", "--dns-mode=coredns")
    _, checks = findings(tmp_path, *way, environment={"KUMA_DNS_ENABLED": "true", **coredns})
    texts = [(finding["state"], finding["text"]) for finding in checks["bootstrap"]]
    assert texts[0][0] == "ok"
    assert "fetched from the control plane (Kuma 3)" in texts[0][1]
    assert [state for state, text in texts if "--dns-mode=coredns: a control plane of Kuma 3" in text] == ["warning"]


def test_what_kuma_3_rejects_keeps_running_and_is_explained(rig: Rig, plane: XdsControlPlane, tmp_path: Path) -> None:
    with rig.run() as daemon:
        daemon.wait_ready(SOON)
        rig.wait_traffic()
        before = processes(daemon)
        plane.upgrade("3.0")

        def explained() -> bool:
            return any("backendRef: {kind: MeshService" in concern for concern in rig.status(daemon)["concerns"])

        poll(explained, what="what to write instead", deadline=SOON)
        assert f"{rig.file}:1: networking.outbound[0]: it names its service by tags" in daemon.output()
        assert rig.serves()
        assert processes(daemon) == before
        code, checks = findings(tmp_path, *rig._flags(), f"--dataplane-file={rig.file}")
        assert code != 0
        rejections = [finding for finding in checks["bootstrap"] if finding["state"] == "failed"]
        assert "networking.outbound[0].backendRef: must be defined" in rejections[0]["text"]
        assert "backendRef: {kind: MeshService" in rejections[0]["hint"]


def test_a_start_that_kuma_3_rejects_ends_with_the_reason(rig: Rig, plane: XdsControlPlane) -> None:
    plane.version = "3.0"
    with rig.run("--dataplane-file", str(_kept(rig, json.dumps(rig.dataplane)))) as daemon:
        assert daemon.wait() == ExitCode.CONTROL_PLANE_REFUSED
        assert "backendRef: {kind: MeshService" in daemon.output()


def _kept(rig: Rig, text: str) -> Path:
    path = rig.folder / "old.json"
    path.write_text(text)
    return path


def test_a_zone_proxy_of_kuma_2_learns_what_kuma_3_has(rig: Rig, plane: XdsControlPlane) -> None:
    plane.version = "3.0"
    ingress = {
        "type": "ZoneIngress",
        "name": NAME,
        "networking": {"address": "127.0.0.1", "port": rig.ports.inbound, "admin": {"port": rig.ports.admin}},
    }
    path = _kept(rig, json.dumps(ingress))
    with rig.run("--dataplane-file", str(path), "--proxy-type=ingress") as daemon:
        poll(lambda: "networking.listeners: [{type: ZoneIngress" in daemon.output(), what="the reason", deadline=SOON)
        reasons = rig.status(daemon)["reasons"]
        assert any("HTTP 500" in reason and "networking.listeners" in reason for reason in reasons)


def test_a_reexecution_keeps_the_embedded_resolver(rig: Rig, plane: XdsControlPlane) -> None:
    rig.dataplane = with_both(rig.dataplane)
    coredns = {"KUMA_DNS_CORE_DNS_BINARY_PATH": str(need_coredns())}
    with rig.run(dns=True, environment=coredns) as daemon:
        daemon.wait_ready(SOON)
        plane.upgrade("3.0")
        poll(lambda: rig.status(daemon)["dns"] == EMBEDDED, what="the embedded resolver", deadline=SOON)
        poll(lambda: "coredns" not in processes(daemon), what="the end of CoreDNS", deadline=SOON)
        done = kumadp("reexec", f"--name={NAME}", environment=daemon.environment, deadline=60)
        assert done.returncode == 0, done.stdout + done.stderr
        poll(lambda: rig.status(daemon)["dns"] == EMBEDDED, what="the embedded resolver", deadline=SOON)
        poll(lambda: "coredns" not in processes(daemon), what="the end of CoreDNS", deadline=SOON)
        for send in (dns.query.udp, dns.query.tcp):
            query = dns.message.make_query("health.kumadp.invalid", "A")
            answer = send(query, "127.0.0.1", port=rig.ports.dns, timeout=10)
            assert answer.rcode() == dns.rcode.REFUSED
        assert "Traceback" not in daemon.output()


def test_a_reload_after_the_upgrade_takes_the_new_bootstrap(rig: Rig, plane: XdsControlPlane) -> None:
    rig.dataplane = with_both(rig.dataplane)
    with rig.run("--bootstrap-check-interval=1s") as daemon:
        daemon.wait_ready(SOON)
        rig.wait_traffic()
        plane.upgrade("3.0")
        changed = "it is of Kuma 3 now, and Envoy runs with that of Kuma 2"
        poll(lambda: rig.status(daemon).get("restart_required") == [changed], what="the change", deadline=SOON)
        assert rig.serves()
        done = kumadp("reload", f"--name={NAME}", environment=daemon.environment, deadline=60)
        assert done.returncode == 0, done.stdout + done.stderr
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning", deadline=SOON)
        assert "restart_required" not in rig.status(daemon)
        assert "system_ads" in daemon.get_admin("/clusters")[1]
        rig.wait_traffic()
