"""What the next version of the control plane does not accept, or the present one: KUMA_CP first, then KUMA_CP_NEXT."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.daemon import get
from tests.support.kuma_resources import PROTOCOL, SERVICE
from tests.support.poll import poll
from tests.support.rig import NAME, NODE, SOON
from tests.support.upgrade import open_upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Daemon
    from tests.support.upgrade import UpgradeRig

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp, pytest.mark.timeout(300)]

RATE = 100.0


@pytest.fixture
def rig() -> Iterator[UpgradeRig]:
    with open_upgrade() as ready:
        yield ready


def upgrade(rig: UpgradeRig) -> None:
    """Replace the control plane by the next version; skips if that takes outbounds by tags."""
    rig.replace_plane(rig.versions.new)
    if rig.kuma.by_tags:
        pytest.skip("the next version takes what this is about: set KUMA_CP_NEXT to one of Kuma 3.0")
    rig.renew_token()


def reports_once(rig: UpgradeRig, daemon: Daemon, what: str) -> None:
    """Wait for a warning that contains this, and for nothing else that does."""
    rig.wait_warning(daemon, what)
    assert sum(what in concern for concern in rig.status(daemon)["concerns"]) == 1


def test_a_rejected_dataplane_outlives_new_programs(rig: UpgradeRig) -> None:
    """A re-execution, a kumadp that adopts Envoy, and a start after both were killed: traffic goes on."""
    suited, rig.dataplane = rig.dataplane, rig.tagged
    with rig.up() as first:
        poll(lambda: rig.status(first)["last_good"]["written"], what="a copy on disk", deadline=SOON)
        envoy = rig.the_envoy()
        with rig.load(rate=RATE):
            upgrade(rig)
            reports_once(rig, first, "backendRef")
            rig.reexec(first)
            reports_once(rig, first, "backendRef")
        rig.kill(first)
        with rig.load(rate=RATE, watched=False), rig.up(ready=False) as second:
            second.wait_ready(SOON)
            reports_once(rig, second, "backendRef")
            assert rig.the_envoy() == envoy
            rig.kill(second)
        envoy.kill()
        with rig.up(ready=False) as third:
            third.wait_ready(SOON)
            rig.wait_traffic()
            reports_once(rig, third, "backendRef")
            assert "the control plane rejects the request: starting with the last good" in third.output()
            with rig.load(rate=RATE):
                rig.dataplane = suited
                rig.write_dataplane()
                rig.reload(third)
                rig.wait_registered(third)
            poll(lambda: rig.status(third)["concerns"] == [], what="no warning", deadline=SOON)


def test_after_a_rejected_reload_the_next_version_registers_what_runs(rig: UpgradeRig) -> None:
    """A Dataplane that 2.x rejects, and then an upgrade: the one that runs is registered, in the form of 3.0."""
    rejected = copy.deepcopy(rig.dataplane)
    rejected["networking"]["outbound"][0] |= {"tags": {SERVICE: "backend"}}
    with rig.up("--on-file-change=report") as daemon:
        envoy = rig.the_envoy()
        rig.file.write_text(json.dumps(rejected))
        assert rig.run_command(daemon, "reload").returncode != 0
        with rig.load(rate=RATE):
            upgrade(rig)
            rig.wait_registered(daemon)
            assert rig.relay(daemon)["protocol"] == "delta"
            # Another failed reload takes nothing back.
            since = rig.relay(daemon)["connected_since"]
            rig.file.write_text(json.dumps(rig.tagged))
            assert rig.run_command(daemon, "reload").returncode != 0
            assert rig.relay(daemon)["connected_since"] == since
            assert rig.is_registered()
        assert (rig.the_envoy(), rig.restarts(daemon)) == (envoy, 0)
        rig.write_dataplane()
        rig.reload(daemon)
        rig.wait_registered(daemon)


def put_gateway(rig: UpgradeRig) -> None:
    """Put a builtin gateway into the mesh that leads to the application, and make it the data plane of this rig."""
    rig.by_services = False
    rig.kuma.put("/meshes/default", {"type": "Mesh", "name": "default"})
    tags = {SERVICE: "edge-target", PROTOCOL: "http"}
    inbound = [{"port": rig.app.port, "tags": tags}]
    networking: dict[str, Any] = {"address": "127.0.0.1", "inbound": inbound}
    rig.kuma.put_resource({"type": "Dataplane", "mesh": "default", "name": "target-00", "networking": networking})
    listener = {"port": rig.ports.outbound, "protocol": "HTTP", "tags": {"port": "http"}}
    selectors = [{"match": {SERVICE: "edge"}}]
    edge = {"type": "MeshGateway", "mesh": "default", "name": "edge"}
    rig.kuma.put(
        "/meshes/default/meshgateways/edge", {**edge, "selectors": selectors, "conf": {"listeners": [listener]}}
    )
    default = {"backendRefs": [{"kind": "MeshService", "name": "edge-target"}]}
    rules = [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "default": default}]
    spec = {
        "targetRef": {"kind": "MeshGateway", "name": "edge"},
        "to": [{"targetRef": {"kind": "Mesh"}, "rules": rules}],
    }
    route = {"type": "MeshHTTPRoute", "mesh": "default", "name": "edge", "spec": spec}
    rig.kuma.put("/meshes/default/meshhttproutes/edge", route)
    gateway = {"type": "BUILTIN", "tags": {SERVICE: "edge"}}
    networking = {"address": "127.0.0.1", "gateway": gateway, "admin": {"port": rig.ports.admin}}
    rig.dataplane = {"type": "Dataplane", "mesh": "default", "name": NAME, "networking": networking}


def test_a_builtin_gateway_of_2_serves_on(rig: UpgradeRig) -> None:
    """3.0 answers 500 without a word to it, for ever: what to write instead is reported, and traffic goes on."""
    put_gateway(rig)
    with rig.up() as first:
        poll(lambda: rig.status(first)["last_good"]["written"], what="a copy on disk", deadline=SOON)
        with rig.load(rate=RATE):
            upgrade(rig)
            reports_once(rig, first, "networking.gateway.type")
            rig.reexec(first)
            reports_once(rig, first, "write DELEGATED")
        rig.kill(first)
        rig.the_envoy().kill()
        with rig.up(ready=False) as second:
            second.wait_ready(SOON)
            poll(lambda: get(rig.ports.outbound)[0] == 200, what="traffic", deadline=SOON)
            reports_once(rig, second, "networking.gateway.type")
            with rig.load(rate=RATE):
                rig.replace_plane(rig.versions.old)
                put_gateway(rig)
                rig.renew_token()
                poll(lambda: rig.kuma.stream(NODE), what="its stream", deadline=SOON)
            assert NODE in rig.kuma.registered
            poll(lambda: rig.status(second)["concerns"] == [], what="no warning", deadline=SOON)
