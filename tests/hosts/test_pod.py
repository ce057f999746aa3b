"""A pod's sidecar, probed by its kubelet from another host: readiness and probes at the pod's address."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.hosts.test_admin_exposure import RECORD, SERVE, Script, request
from tests.support.daemon import Ports, run_kumadp
from tests.support.netns import SIDECAR, SIDECAR_V6, Hosts
from tests.support.poll import poll
from tests.support.ports import free_port
from tests.support.scripted_control_plane import static_bootstrap

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.netns]


# Listens only on the pod's address, as an application may; answers HTTP 200 with the client's address.
APPLICATION = """
import http.server, pathlib, socket, sys
class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        pathlib.Path(sys.argv[3]).write_text(self.client_address[0])
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *arguments): pass
server = Server((sys.argv[1], int(sys.argv[2])), Handler)
print("up", flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize(
    ("address", "source"), [(SIDECAR, "127.0.0.6"), (SIDECAR_V6, SIDECAR_V6)], ids=["ipv4", "ipv6"]
)
def test_kubelet_finds_readiness_and_probes_at_the_pod_s_address(
    hosts: Hosts, tmp_path: Path, address: str, source: str
) -> None:
    ports = Ports.take()
    proxy, application = free_port(), free_port()
    admin = {"pipe": {"path": str(tmp_path / "admin.sock"), "mode": 0o600}}
    bootstrap = tmp_path / "bootstrap.json"
    bootstrap.write_text(json.dumps(static_bootstrap(ports, application, admin)))
    pod = {
        "KUMA_APPLICATION_PROBE_PROXY_PORT": str(proxy),
        "POD_NAME": "web",
        "POD_NAMESPACE": "default",
        "INSTANCE_IP": address,
    }
    where = f"[{address}]" if ":" in address else address
    seen = tmp_path / "seen"
    with (
        Script(hosts.on_sidecar, SERVE, str(bootstrap)) as plane,
        Script(hosts.on_sidecar, APPLICATION, address, str(application), str(seen)),
        Script(hosts.on_sidecar, RECORD, "127.0.0.1", "8099", "/dev/null", "answer"),
        run_kumadp(
            tmp_path,
            ports,
            *(f"--cp-address=http://127.0.0.1:{plane.line}", "--name=web", "--mesh=default", "--drain-time=1s"),
            prefix=hosts.on_sidecar,
            environment=pod,
        ) as daemon,
    ):

        def is_ready() -> bool:
            assert daemon.process.poll() is None, daemon.output()
            return request(hosts.on_neighbour, "GET", f"http://{SIDECAR}:{ports.readiness}/ready") == (200, "READY")

        poll(is_ready, what="READY at the pod's address")
        base = f"http://{where}:{proxy}"
        assert request(hosts.on_neighbour, "GET", f"{base}/{application}/healthz") == (200, "HEALTHY")
        assert request(hosts.on_neighbour, "GET", f"{base}/tcp/{application}") == (200, "HEALTHY")
        assert seen.read_text() == source
        # Loopback is not probed, Envoy and kumadp are not either.
        assert request(hosts.on_neighbour, "GET", f"{base}/8099/")[0] == 503
        for port in (ports.inbound, ports.readiness, proxy):
            assert request(hosts.on_neighbour, "GET", f"{base}/{port}/ready")[0] == 503
