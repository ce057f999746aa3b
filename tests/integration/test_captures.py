"""Each captured exchange again: a control plane that answers with the captured bootstrap, kumadp, and a real Envoy.

The request must be the captured one but for `DIFFERS`, the bootstrap is the captured one but for `localised`.
"""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from kumadp.daemon.control_client import query_status, send_request
from kumadp.errors import ExitCode
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.command import kumadp
from tests.support.daemon import Daemon, Ports, get, run_kumadp
from tests.support.poll import poll
from tests.support.scripted_control_plane import TOKEN, Answer
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.process

Tree = dict[str, Any]

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
# Of some releases there is the answer alone.
ANSWERED = sorted(
    path.parent.relative_to(CAPTURES).as_posix()
    for path in CAPTURES.glob("*/*/bootstrap.yaml")
    if path.with_name("request.json").is_file()
)

# Where kumadp differs from the captured kuma-dp, and why.
DIFFERS = {
    "version.kumaDp": "its own",
    "version.envoy": "of the Envoy here; a version is compatible that some Kuma of 2.8 to 2.14 is made for",
    "features": "what works here; all versions know what they do not know",
    "dataplaneToken": "a token of this test",
    "dataplaneTokenPath": "a file of this test",
    "caCert": "of this test's control plane",
    "otelEnv": "2.13 and before pass over it",
    "dnsPort": "DNS is off here, or a zone proxy: then kuma-dp reports a port all the same, kumadp none",
    "readinessPort": "a free one",
    "dataplaneConfig.redirect.dns": "DNS is off here",
    "workdir": "of this test",
    "resources": "the memory limit of this host",
    "systemCaPath": "of this host",
    "ipv6Enabled": "of this host; 2.8 passes over it",
    "spireResources": "2.8 passes over it",
    "dynamicMetadata": "of this host's CoreDNS, if any",
    "dataplaneResource.kri": "2.8 passes over it",
    "dataplaneResource.probes": "served by kumadp: else Envoy would want their port too",
    "dataplaneResource.networking.admin": "a free port, so that the captures can run beside others",
}


def version_of(name: str) -> str:
    """The version of Kuma that a capture is of."""
    return name.split("/")[0].removeprefix("kuma-").removesuffix("-dev")


def load(name: str) -> tuple[Tree, Tree, Tree]:
    """Request, bootstrap and the answer's other half."""
    folder = CAPTURES / name
    bootstrap: Tree = yaml.load((folder / "bootstrap.yaml").read_text(), yaml.CSafeLoader)
    request: Tree = json.loads((folder / "request.json").read_text())
    exchange: Tree = json.loads((folder / "exchange.json").read_text())
    return request, bootstrap, exchange["kumaSidecarConfiguration"]


def flat(request: Tree) -> Tree:
    """The request with the Dataplane in it unpacked, by dotted key; without what `DIFFERS`."""
    unpacked = {**request, "dataplaneResource": json.loads(request.get("dataplaneResource", "{}"))}
    leaves: Tree = {}

    def walk(path: str, value: Any) -> None:
        if path in DIFFERS:
            return
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{path}.{key}" if path else key, item)
        else:
            leaves[path] = value

    walk("", unpacked)
    return leaves


def localised(bootstrap: Tree, plane: XdsControlPlane, work: Path, admin: int, request: Tree) -> Tree:
    """The captured bootstrap with this test's own work directory, admin port, control plane and trust."""
    tree: Tree = json.loads(json.dumps(bootstrap).replace("/run/kumadp", str(work)).replace('"TOKEN"', f'"{TOKEN}"'))
    # On a Unix socket in the work directory since 2.14.
    if "socketAddress" in tree["admin"]["address"]:
        tree["admin"]["address"]["socketAddress"]["portValue"] = admin
    for cluster in tree["staticResources"]["clusters"]:
        if cluster["name"] in ("ads_cluster", "system_ads"):
            address = cluster["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"]["address"]
            # The name may lead to ::1 first, where this one does not listen.
            address["socketAddress"] |= {"address": "127.0.0.1", "portValue": plane.xds_port}
    trust = tree["staticResources"]["secrets"][0]["validationContext"]["trustedCa"]
    trust["inlineBytes"] = base64.b64encode(plane.ca.encode()).decode()
    # So that the control plane serves what belongs to this Dataplane, on its ports.
    if "dataplane.resource" in tree["node"]["metadata"]:
        tree["node"]["metadata"]["dataplane.resource"] = request["dataplaneResource"]
    return tree


def answer(bootstrap: Tree, sidecar: Tree) -> Answer:
    body = {"bootstrap": base64.b64encode(yaml.safe_dump(bootstrap).encode()).decode()}
    return Answer(200, json.dumps({**body, "kumaSidecarConfiguration": sidecar}).encode())


class Replay(XdsControlPlane):
    """Answers each request for a bootstrap with what ``make`` makes of the request."""

    def __init__(self, make: Callable[[Replay, Tree], Answer], version: str = "2.13.5") -> None:
        self.make = make
        super().__init__(version=version)

    def _http(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.bootstrap_requests.append(json.loads(body))
        return self.make(self, self.bootstrap_requests[-1])


def arguments(folder: Path, plane: XdsControlPlane, request: Tree) -> tuple[str, ...]:
    """What the captured kuma-dp was given, of this test's own."""
    (folder / "token").write_text(TOKEN)
    text = request.get("dataplaneResource")
    if text:
        (folder / "resource.json").write_text(text)
    what = (
        (f"--dataplane-file={folder / 'resource.json'}",)
        if text
        else (f"--name={request['name']}", f"--mesh={request['mesh']}")
    )
    redirected = ("--transparent-proxy",) if "dataplaneConfig" in request else ()
    return (
        *redirected,
        *(f"--cp-address={plane.url}", f"--ca-cert-file={plane.write_ca(folder / 'ca.crt')}"),
        *(f"--dataplane-token-file={folder / 'token'}", f"--proxy-type={request['proxyType']}", "--drain-time=1s"),
        *what,
    )


def on_free_ports(request: Tree, ports: Ports) -> Tree:
    """The captured request with the Dataplane on free ports: those of inbounds, outbounds, admin and redirection."""
    resource = json.loads(request["dataplaneResource"])
    networking = resource["networking"]
    networking["admin"] = {"port": ports.admin}
    for inbound in networking.get("inbound", ()):
        inbound["port"] = ports.inbound
    for outbound in networking.get("outbound", ()):
        outbound["port"] = ports.outbound
    if "advertisedPort" in networking:
        networking["port"] = networking["advertisedPort"] = ports.inbound
    if "probes" in resource:
        resource["probes"]["port"] = ports.probes
        resource["probes"]["endpoints"][0]["inboundPort"] = ports.inbound
    return {**request, "dataplaneResource": json.dumps(resource)}


def of_2_14(bootstrap: Tree, sidecar: Tree, work: Path) -> tuple[Tree, Tree]:
    """As a control plane of 2.14 answers: admin on a Unix socket, other names, no Corefile, nothing to aggregate."""
    text = (
        json.dumps(bootstrap).replace("ads_cluster", "system_ads").replace("access_log_sink", "system_access_log_sink")
    )
    tree: Tree = json.loads(text)
    tree["admin"]["address"] = {"pipe": {"path": f"{work}/kuma-envoy-admin.sock", "mode": 0o600}}
    networking = {"address": sidecar["networking"]["address"]}
    return tree, {"networking": networking, "metrics": {"aggregate": None}}


def status(daemon: Daemon, name: str) -> Tree:
    return query_status(control_socket_path(name, daemon.environment))


@pytest.mark.parametrize("relay", ["on", "off"])
@pytest.mark.parametrize("name", ANSWERED)
def test_a_captured_exchange_again(tmp_path: Path, name: str, relay: str) -> None:
    ports = Ports.take()
    captured, bootstrap, sidecar = load(name)
    theirs = on_free_ports(captured, ports)

    def make(plane: Replay, request: Tree) -> Answer:
        return answer(localised(bootstrap, plane, tmp_path / "work", ports.admin, request), sidecar)

    with (
        Replay(make, version_of(name)) as plane,
        run_kumadp(tmp_path, ports, *arguments(tmp_path, plane, theirs), f"--xds-relay={relay}") as daemon,
    ):
        daemon.wait_ready()
        assert flat(plane.bootstrap_requests[0]) == flat(theirs)
        assert "LIVE" in daemon.get_admin("/server_info")[1]
        node = bootstrap["node"]
        poll(lambda: plane.stream(node["id"]), what="the stream of the captured node")
        assert json.loads(daemon.get_admin("/server_info")[1])["node"]["id"] == node["id"]
        assert "Traceback" not in daemon.output()


@pytest.mark.parametrize("relay", ["on", "off"])
@pytest.mark.parametrize("name", ["kuma-2.13.5/full", "kuma-2.13.5/ingress"])
def test_the_shape_of_2_14(tmp_path: Path, name: str, relay: str) -> None:
    """Every query of Envoy's admin uses its socket: LIVE, /ready, the drain."""
    ports, work = Ports.take(), tmp_path / "work"
    captured, bootstrap, sidecar = load(name)
    theirs = on_free_ports(captured, ports)
    admin = work / "kuma-envoy-admin.sock"

    def make(plane: Replay, request: Tree) -> Answer:
        return answer(*of_2_14(localised(bootstrap, plane, work, ports.admin, request), sidecar, work))

    with (
        Replay(make) as plane,
        run_kumadp(tmp_path, ports, *arguments(tmp_path, plane, theirs), f"--xds-relay={relay}") as daemon,
    ):
        daemon.wait_ready()
        assert "LIVE" in str(send_request(admin, "GET", "/server_info", 5.0)[1])
        assert stat.S_IMODE(admin.stat().st_mode) == 0o600
        assert get(ports.admin)[0] == 0
        poll(lambda: plane.stream(bootstrap["node"]["id"]), what="the stream of the captured node")
        for readiness in (["--url", f"http://127.0.0.1:{ports.readiness}/ready"], ["--unix-socket", str(admin)]):
            waited = kumadp("wait", *readiness, "--timeout=20s")
            assert waited.returncode == 0, waited.stderr
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
        assert "failing Envoy's health checks failed" not in daemon.output()


def test_the_captured_404_is_repeated(tmp_path: Path) -> None:
    ports = Ports.take()
    theirs: Tree = json.loads((CAPTURES / "kuma-2.8.8/notfound/request.json").read_text())
    exchange: Tree = json.loads((CAPTURES / "kuma-2.8.8/notfound/exchange.json").read_text())
    answer = Answer(exchange["status"], exchange["response_body"].encode())
    quick = {"KUMA_CONTROL_PLANE_RETRY_BACKOFF": "10ms"}
    with (
        Replay(lambda _plane, _request: answer) as plane,
        run_kumadp(tmp_path, ports, *arguments(tmp_path, plane, theirs), environment=quick) as daemon,
    ):
        poll(lambda: len(plane.bootstrap_requests) >= exchange["attempts"], what="attempts")
        assert flat(plane.bootstrap_requests[0]) == flat(theirs)
        assert get(ports.readiness, "/ready") == (503, "NOT_READY")
        assert any("does not know this Dataplane" in answer for answer in status(daemon, "missing")["reasons"])
