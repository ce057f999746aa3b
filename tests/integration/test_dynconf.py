"""Dynamic configuration under the whole program: taken, changed, removed, and kept while Envoy is away."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import dns.exception
import dns.message
import dns.query
import pytest

from kumadp.daemon.control_client import send_request
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.daemon import get
from tests.support.dynconf import SOCKET, dynconf_listener, etag_of, with_etags, without
from tests.support.kuma_control_plane import KumaControlPlane
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.rig import NAME, NODE, SOON, Rig
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import LISTENER

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.daemon import Daemon
    from tests.support.xds.resources import Tree

pytestmark = [pytest.mark.process, pytest.mark.linger(0.0)]

NAMES = '{"records":[{"name":"backend.mesh","ips":["240.0.0.0"]}],"ttl":30}'
METRICS = '{"observability":{"metrics":{"applications":[{"path":"/metrics","port":8081,"address":"127.0.0.1"}]}}}'
INTERVAL = {"KUMA_DATAPLANE_RUNTIME_DYNAMIC_CONFIGURATION_REFRESH_INTERVAL": "100ms"}
WITHOUT_COREDNS = {**INTERVAL, "PATH": "/nowhere"}
# So long that the timer cannot be the reason of a request seen in time.
RARELY = {"KUMA_DATAPLANE_RUNTIME_DYNAMIC_CONFIGURATION_REFRESH_INTERVAL": "1h"}


class Dynamic:
    """A data plane's, by its control socket; ``serve`` changes it where the control plane is the tests' own."""

    def __init__(self, rig: Rig, daemon: Daemon) -> None:
        self.rig, self.daemon = rig, daemon

    def serve(self, routes: list[Tree] | None) -> None:
        plane = self.rig.plane
        assert isinstance(plane, XdsControlPlane)
        mesh = plane.mesh(NODE)
        if routes is None:
            mesh.remove(LISTENER, "_kuma:dynamicconfig")
            return
        listener = dynconf_listener(self.rig.work / SOCKET, routes)
        mesh.put(LISTENER, {name: value for name, value in listener.items() if name != "@type"})

    def path(self, path: str) -> dict[str, Any]:
        with contextlib.suppress(OSError, KeyError):
            section: dict[str, Any] = self.rig.status(self.daemon)["dynconf"]["paths"][path]
            return section
        return {"body": None, "asked": 0}

    def wait(self, path: str, seen: Callable[[Any], object], what: str, deadline: float = SOON) -> dict[str, Any]:
        return poll(
            lambda: section if seen((section := self.path(path))["body"]) else None, what=what, deadline=deadline
        )


def test_a_body_is_applied_changed_and_removed(rig: Rig) -> None:
    with rig.run(environment=INTERVAL) as daemon:
        rig.wait_ready(daemon)
        dynamic = Dynamic(rig, daemon)
        dynamic.serve(with_etags({"/dns": NAMES, "/meshmetric": METRICS}))
        section = dynamic.wait("/dns", lambda body: body, "the names")
        assert section["etag"] == etag_of(NAMES)
        assert section["body"]["records"] == [{"name": "backend.mesh", "ips": ["240.0.0.0"]}]
        dynamic.wait("/meshmetric", lambda body: body, "the metrics")
        dynamic.serve(with_etags({"/dns": NAMES.replace("30", "31")}))
        dynamic.wait("/dns", lambda body: body["ttl"] == 31, "the change")
        dynamic.wait("/meshmetric", lambda body: body is None, "no metrics")
        dynamic.serve(None)
        dynamic.wait("/dns", lambda body: body is None, "no names")
        assert rig.status(daemon)["concerns"] == []


def test_names_are_answered_by_the_embedded_resolver(rig: Rig) -> None:
    answers = {**INTERVAL, "KUMA_DNS_ENABLED": "true", "KUMA_DNS_MODE": "embedded"}
    with rig.run(environment=answers) as daemon:
        rig.wait_traffic()
        dynamic = Dynamic(rig, daemon)
        dynamic.serve(with_etags({"/dns": NAMES}))
        poll(lambda: resolved(daemon) == ["240.0.0.0"], what="the name")
        assert resolved(daemon, tcp=True) == ["240.0.0.0"]
        rig.wait_ready(daemon)
        dynamic.serve(with_etags({"/dns": NAMES.replace("240.0.0.0", "240.0.0.7")}))
        poll(lambda: resolved(daemon) == ["240.0.0.7"], what="the change")


def test_readiness_does_not_wait_for_names_that_cannot_come(rig: Rig) -> None:
    """The default set-up: no transparent proxying, so Kuma sends no names. They are taken if they come all the same."""
    with rig.run(environment=WITHOUT_COREDNS, dns=True) as daemon:
        rig.wait_ready(daemon)
        assert "waiting: dns" not in daemon.output()
        assert "no names have come" not in daemon.output()
        dynamic = Dynamic(rig, daemon)
        dynamic.serve(with_etags({"/dns": NAMES}))
        poll(lambda: resolved(daemon) == ["240.0.0.0"], what="the name")


@pytest.mark.parametrize("relay", ["on", "off"])
def test_readiness_waits_for_names_until_envoy_serves_without_any(rig: Rig, relay: str) -> None:
    inbound, outbound = free_ports(2)
    redirected = {"redirectPortInbound": inbound, "redirectPortOutbound": outbound}
    rig.dataplane["networking"]["transparentProxying"] = redirected
    with rig.run(f"--xds-relay={relay}", environment=WITHOUT_COREDNS, dns=True) as daemon:
        daemon.wait_ready()
        before = daemon.output().partition("-> READY")[0]
        assert "waiting: dns: names of the mesh have not come yet" in before
        assert "the control plane sends no names" in before
        assert "no names have come" not in before


def resolved(daemon: Daemon, *, tcp: bool = False) -> list[str]:
    send = dns.query.tcp if tcp else dns.query.udp
    with contextlib.suppress(OSError, EOFError, dns.exception.DNSException):
        response = send(dns.message.make_query("BackEnd.mesh", "A"), "127.0.0.1", timeout=3, port=daemon.ports.dns)
        return [item.to_text() for rrset in response.answer for item in rrset]
    return []


def test_a_new_listener_is_polled_at_once(rig: Rig) -> None:
    with rig.run(environment=RARELY) as daemon:
        rig.wait_ready(daemon)
        dynamic = Dynamic(rig, daemon)
        for ttl in range(31, 36):
            dynamic.serve(with_etags({"/dns": NAMES.replace("30", str(ttl))}))
            text = f'"ttl": {ttl}'
            dynamic.wait("/dns", lambda body, text=text: text in json.dumps(body), "the change")  # type: ignore[misc]


@pytest.mark.parametrize("relay", ["on", "off"])
def test_envoy_dies_and_comes_back(rig: Rig, relay: str) -> None:
    with rig.run(f"--xds-relay={relay}", environment=INTERVAL) as daemon:
        daemon.wait_ready(SOON)
        rig.wait_traffic()
        dynamic = Dynamic(rig, daemon)
        dynamic.serve(with_etags({"/dns": NAMES}))
        dynamic.wait("/dns", lambda body: body, "the names")
        for _ in range(2):
            rig.kill_envoy(daemon)
            before = dynamic.path("/dns")["asked"]
            poll(lambda before=before: dynamic.path("/dns")["asked"] > before + 3, what="questions")  # type: ignore[misc]
            section = dynamic.path("/dns")
            # Kept all the time: neither taken back nor given again.
            assert section["changes"] == 1
            assert section["body"] is not None
        assert rig.status(daemon)["concerns"] == []


def test_polling_continues_during_a_reload(rig: Rig) -> None:
    with rig.run(environment=INTERVAL) as daemon:
        rig.wait_ready(daemon)
        dynamic = Dynamic(rig, daemon)
        dynamic.serve(with_etags({"/dns": NAMES}))
        dynamic.wait("/dns", lambda body: body, "the names")
        control = control_socket_path(NAME, daemon.environment)
        code, output = send_request(control, "POST", "/reload", 40.0)
        assert code == 200, output
        # From the next Envoy, while the one before drains and after.
        dynamic.serve(with_etags({"/dns": NAMES.replace("30", "31")}))
        section = dynamic.wait("/dns", lambda body: body["ttl"] == 31, "the change")
        assert section["changes"] == 2
        poll(lambda: list(daemon.children()) == ["envoy"], what="one Envoy")
        dynamic.serve(with_etags({"/dns": NAMES.replace("30", "32")}))
        section = dynamic.wait("/dns", lambda body: body["ttl"] == 32, "the next change")
        assert (section["changes"], section["failed"]) == (3, 0)
        assert rig.status(daemon)["concerns"] == []


def test_an_invalid_body_is_a_warning(rig: Rig) -> None:
    with rig.run(environment=INTERVAL) as daemon:
        rig.wait_ready(daemon)
        dynamic = Dynamic(rig, daemon)
        dynamic.serve(with_etags({"/dns": NAMES}))
        dynamic.wait("/dns", lambda body: body, "the names")
        dynamic.serve(with_etags({"/dns": '{"ttl":"many"}'}))
        warning = rig.wait_warning(daemon, "dynamic configuration /dns")
        assert "$.ttl" in warning
        assert dynamic.path("/dns")["body"]["ttl"] == 30
        assert rig.serves()
        dynamic.serve(with_etags({"/dns": NAMES}))
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning")
        assert daemon.output().count("$.ttl") == 1


def test_a_control_plane_without_etags(rig: Rig) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        dynamic = Dynamic(rig, daemon)
        dynamic.serve(without(METRICS))
        section = dynamic.wait("/meshmetric", lambda body: body, "the metrics")
        assert section["etag"] is None
        assert dynamic.path("/dns")["body"] is None
        dynamic.serve(None)
        dynamic.wait("/meshmetric", lambda body: body is None, "no metrics")
        assert rig.status(daemon)["concerns"] == []


@pytest.mark.contract("MeshMetric applied, changed and removed")
@pytest.mark.kuma_cp
def test_mesh_metric_of_a_real_control_plane(kuma_rig: Rig) -> None:
    """Applied, changed and removed; the same for Kuma 2.8, without etags, and for 2.13."""
    plane = kuma_rig.plane
    assert isinstance(plane, KumaControlPlane)
    (port,) = free_ports(1)

    def apply(path: str) -> None:
        default = {
            "applications": [{"name": "app", "path": path, "port": 8081}],
            "backends": [{"type": "Prometheus", "prometheus": {"port": port, "path": "/metrics"}}],
        }
        spec = {"targetRef": {"kind": "Mesh"}, "default": default}
        policy = {"type": "MeshMetric", "mesh": "default", "name": "all", "spec": spec}
        plane.put("/meshes/default/meshmetrics/all", policy)

    with kuma_rig.run() as daemon:
        kuma_rig.wait_ready(daemon)
        dynamic = Dynamic(kuma_rig, daemon)
        assert dynamic.path("/meshmetric")["body"] is None
        apply("/metrics")
        section = dynamic.wait("/meshmetric", lambda body: body, "the policy")
        metrics = section["body"]["observability"]["metrics"]
        assert [application["path"] for application in metrics["applications"]] == ["/metrics"]
        assert [application["type"] for application in metrics["backends"]] == ["Prometheus"]
        assert json.dumps(section["body"])
        apply("/other")
        dynamic.wait(
            "/meshmetric",
            lambda body: body["observability"]["metrics"]["applications"][0]["path"] == "/other",
            "the change",
        )
        killed = kuma_rig.kill_envoy(daemon)
        assert killed.is_running()
        assert dynamic.path("/meshmetric")["changes"] == 2
        plane.delete("/meshes/default/meshmetrics/all")
        dynamic.wait("/meshmetric", lambda body: body is None, "the end of the policy")
        assert dynamic.path("/dns")["body"] is None
        assert get(kuma_rig.ports.outbound)[0] == 200
        assert [warning for warning in kuma_rig.status(daemon)["concerns"] if "dynamic" in warning] == []
