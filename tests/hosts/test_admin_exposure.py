"""Envoy's admin, queried from another host: only what a control plane exposes on purpose is there."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from kumadp.envoy.admin_probe import PROBED_PATHS
from kumadp.errors import ExitCode
from tests.support.daemon import Ports, run_kumadp
from tests.support.netns import NEIGHBOUR, SIDECAR, SIDECAR_V6, Hosts
from tests.support.poll import poll
from tests.support.scripted_control_plane import socket_address, static_bootstrap, static_cluster, static_listener

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.netns]

FILTERS = "type.googleapis.com/envoy.extensions.filters"

# Requests METHOD URL, whatever the certificate, and prints the status, 0 if nothing answers.
CLIENT = """
import ssl, sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[2], method=sys.argv[1])
try:
    with urllib.request.urlopen(request, timeout=5, context=ssl._create_unverified_context()) as answer:
        print(answer.status, answer.read(300).decode("utf-8", "replace"))
except urllib.error.HTTPError as error:
    print(error.code)
except OSError as error:
    print(0, error)
"""

# Answers /bootstrap with the body of a file, on a port of its choice that it prints.
SERVE = """
import base64, json, pathlib, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
bootstrap = base64.b64encode(pathlib.Path(sys.argv[1]).read_bytes()).decode()
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.dumps({"bootstrap": bootstrap}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""

# Listens on HOST PORT, answers nothing, writes the request lines it sees to a file.
RECORD = """
import pathlib, socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("up", flush=True)
while True:
    connection, _ = server.accept()
    connection.settimeout(0.2)
    try:
        line = connection.recv(4096).split(b"\\r\\n", 1)[0].decode("latin-1")
    except OSError:
        line = "nothing"
    if line.startswith("\\x16\\x03"):
        line = "hello of TLS"
    with pathlib.Path(sys.argv[3]).open("a") as file:
        file.write(line + "\\n")
    if sys.argv[4] == "answer":
        connection.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nhi")
        connection.close()
"""


def request(host: tuple[str, ...], method: str, url: str) -> tuple[int, str]:
    done = subprocess.run(
        [*host, sys.executable, "-c", CLIENT, method, url], capture_output=True, text=True, check=True, timeout=60
    )
    status, _, body = done.stdout.strip().partition(" ")
    return int(status), body


class Script:
    """A small server on a host; `line` is the first it printed."""

    def __init__(self, host: tuple[str, ...], source: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*host, sys.executable, "-c", source, *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def dataplane(folder: Path, ports: Ports, address: str) -> Path:
    tree: dict[str, Any] = {
        "type": "Dataplane",
        "mesh": "default",
        "name": "web",
        "networking": {
            "address": address,
            "inbound": [
                {
                    "port": ports.inbound,
                    "servicePort": 8080,
                    "serviceAddress": "127.0.0.1",
                    "tags": {"kuma.io/service": "web", "kuma.io/protocol": "http"},
                }
            ],
            "admin": {"port": ports.admin},
        },
    }
    path = folder / "web.yaml"
    path.write_text(json.dumps(tree))
    return path


# The admin's own paths, those that change state among them; none may reach it.
ADMIN_PATHS = [
    *(("GET", path) for path in ("/", "/server_info", "/config_dump", "/stats", "/clusters", "/certs", "/listeners")),
    *(("GET", path) for path in ("/ready/", "/ready/../server_info", "/READY", "//server_info", "/%2e/server_info")),
    *(
        ("POST", path)
        for path in ("/quitquitquit", "/healthcheck/fail", "/drain_listeners", "/logging", "/reset_counters")
    ),
]


@pytest.mark.parametrize("address", [SIDECAR, SIDECAR_V6])
def test_a_neighbour_reaches_ready_and_nothing_else(hosts: Hosts, tmp_path: Path, address: str) -> None:
    ports = Ports.take()
    mesh = dataplane(tmp_path, ports, address)
    with run_kumadp(tmp_path, ports, f"--standalone={mesh}", "--drain-time=1s", prefix=hosts.on_sidecar) as daemon:
        where = f"[{address}]:{ports.admin}" if ":" in address else f"{address}:{ports.admin}"

        def live() -> bool:
            assert daemon.process.poll() is None, daemon.output()
            return request(hosts.on_neighbour, "GET", f"http://{where}/ready")[0] == 200

        poll(live, what="/ready for other data planes")
        assert request(hosts.on_sidecar, "GET", f"http://127.0.0.1:{ports.admin}/server_info")[0] == 200
        for method, path in ADMIN_PATHS:
            assert request(hosts.on_neighbour, method, f"http://{where}{path}")[0] in {0, 404, 405}, (method, path)
        for port in (ports.readiness, ports.inbound):
            status, _ = request(hosts.on_neighbour, "GET", f"http://{where.rpartition(':')[0]}:{port}/server_info")
            assert status in {0, 503}
        assert request(hosts.on_sidecar, "GET", f"http://127.0.0.1:{ports.readiness}/ready") == (200, "READY")


def hidden_way(folder: Path, ports: Ports, listener: dict[str, Any]) -> Path:
    """A bootstrap whose listener the guard does not see, and which leads to the admin by a name."""
    tree = static_bootstrap(ports, 1)
    listeners = folder / "listeners.json"
    kind = {"@type": "type.googleapis.com/envoy.config.listener.v3.Listener"}
    listeners.write_text(json.dumps({"versionInfo": "1", "resources": [kind | listener]}))
    tree["dynamicResources"] = {"ldsConfig": {"pathConfigSource": {"path": str(listeners)}}}
    endpoint = {"socketAddress": {"address": "hidden.example", "portValue": ports.admin}}
    tree["staticResources"]["clusters"].append({**static_cluster("way", endpoint), "type": "LOGICAL_DNS"})
    path = folder / "bootstrap.json"
    path.write_text(json.dumps(tree))
    (folder / "hosts").write_text("127.0.0.1 hidden.example localhost\n")
    return path


def knows_the_name(hosts: Hosts, folder: Path) -> tuple[str, ...]:
    """What to put before a command on the sidecar's host for which that name leads to loopback."""
    inside = f'mount --bind {folder / "hosts"} /etc/hosts && exec "$@"'
    return (*hosts.on_sidecar, "unshare", "--mount", "sh", "-c", inside, "sh")


def tls_socket(*, client_ca: str = "") -> dict[str, Any]:
    """A transport socket with a certificate that nobody trusts, for clients of ``client_ca`` alone where given."""
    certificate = trustme.CA().issue_cert(SIDECAR)
    common: dict[str, Any] = {
        "tlsCertificates": [
            {
                "certificateChain": {"inlineString": certificate.cert_chain_pems[0].bytes().decode()},
                "privateKey": {"inlineString": certificate.private_key_pem.bytes().decode()},
            }
        ]
    }
    context: dict[str, Any] = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "commonTlsContext": common,
    }
    if client_ca:
        common["validationContext"] = {"trustedCa": {"inlineString": client_ca}}
        context["requireClientCertificate"] = True
    return {"name": "envoy.transport_sockets.tls", "typedConfig": context}


def leads(match: dict[str, str]) -> list[dict[str, Any]]:
    """Filters that lead what matches to the admin and answer 404 to the rest."""
    manager = {
        "@type": f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "statPrefix": "admin",
        "routeConfig": {
            "virtualHosts": [
                {"name": "admin", "domains": ["*"], "routes": [{"match": match, "route": {"cluster": "way"}}]}
            ]
        },
        "httpFilters": [
            {
                "name": "envoy.filters.http.router",
                "typedConfig": {"@type": f"{FILTERS}.http.router.v3.Router"},
            }
        ],
    }
    return [{"name": "envoy.filters.network.http_connection_manager", "typedConfig": manager}]


def control_plane_listener(ports: Ports) -> dict[str, Any]:
    """As Kuma 2.13 makes ``kuma:envoy:admin``: ``/ready`` in plain, everything over TLS for the control plane."""
    inspector = f"{FILTERS}.listener.tls_inspector.v3.TlsInspector"
    control_plane = trustme.CA().cert_pem.bytes().decode()
    return {
        "name": "kuma:envoy:admin",
        "address": socket_address(ports.admin, SIDECAR),
        "listenerFilters": [{"name": "tls_inspector", "typedConfig": {"@type": inspector}}],
        "filterChains": [
            {
                "filterChainMatch": {"transportProtocol": "tls"},
                "transportSocket": tls_socket(client_ca=control_plane),
                "filters": leads({"prefix": "/"}),
            },
            {"filters": leads({"path": "/ready"})},
        ],
    }


def control_plane_arguments(port: str) -> tuple[str, ...]:
    return (f"--cp-address=http://127.0.0.1:{port}", "--name=web", "--mesh=default", "--drain-time=1s")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_way_to_the_admin_that_only_shows_when_it_runs_kills_envoy(hosts: Hosts, tmp_path: Path, tls: bool) -> None:
    ports = Ports.take()
    listener = static_listener("open", ports.admin, "way", SIDECAR)
    if tls:
        listener["filterChains"][0]["transportSocket"] = tls_socket()
    bootstrap = hidden_way(tmp_path, ports, listener)
    prefix = knows_the_name(hosts, tmp_path)
    with (
        Script(hosts.on_sidecar, SERVE, str(bootstrap)) as plane,
        run_kumadp(tmp_path, ports, *control_plane_arguments(plane.line), prefix=prefix) as daemon,
    ):
        assert daemon.wait() == ExitCode.ADMIN_EXPOSED
        last = daemon.output().splitlines()[-1]
        assert "listener open by way" in last
        assert "READY: Envoy is LIVE" not in daemon.output()
        assert request(hosts.on_sidecar, "GET", f"http://127.0.0.1:{ports.admin}/ready")[0] == 0


def test_the_control_plane_may_put_its_own_listener_on_the_admin_port(hosts: Hosts, tmp_path: Path) -> None:
    ports = Ports.take()
    bootstrap = hidden_way(tmp_path, ports, control_plane_listener(ports))
    prefix = knows_the_name(hosts, tmp_path)
    with (
        Script(hosts.on_sidecar, SERVE, str(bootstrap)) as plane,
        run_kumadp(tmp_path, ports, *control_plane_arguments(plane.line), prefix=prefix) as daemon,
    ):
        ready = f"http://127.0.0.1:{ports.readiness}/ready"

        def is_ready() -> bool:
            assert daemon.process.poll() is None, daemon.output()
            return request(hosts.on_sidecar, "GET", ready) == (200, "READY")

        poll(is_ready, what="READY beside the control plane's listener")
        where = f"{SIDECAR}:{ports.admin}"
        assert request(hosts.on_neighbour, "GET", f"http://{where}/ready") == (200, "LIVE")
        for method, path in ADMIN_PATHS:
            assert request(hosts.on_neighbour, method, f"http://{where}{path}")[0] == 404, (method, path)
        assert request(hosts.on_neighbour, "GET", f"https://{where}/server_info")[0] == 0


@pytest.mark.parametrize("manner", ["answer", "hang"])
def test_another_program_on_the_admin_port_is_probed_and_accepted(hosts: Hosts, tmp_path: Path, manner: str) -> None:
    ports = Ports.take()
    seen = tmp_path / "seen"
    bootstrap = tmp_path / "bootstrap.json"
    bootstrap.write_text(json.dumps(static_bootstrap(ports, 1)))
    with (
        Script(hosts.on_sidecar, RECORD, SIDECAR, str(ports.admin), str(seen), manner),
        Script(hosts.on_sidecar, SERVE, str(bootstrap)) as plane,
        run_kumadp(tmp_path, ports, *control_plane_arguments(plane.line), prefix=hosts.on_sidecar) as daemon,
    ):
        ready = f"http://127.0.0.1:{ports.readiness}/ready"
        poll(lambda: request(hosts.on_sidecar, "GET", ready) == (200, "READY"), what="READY beside a stranger")
        assert daemon.process.poll() is None
    requests = set(seen.read_text().splitlines())
    expected = {"GET /server_info HTTP/1.1", "hello of TLS"}
    if manner == "answer":
        expected |= {f"GET {path} HTTP/1.1" for path in PROBED_PATHS} | {f"CONNECT 127.0.0.1:{ports.admin} HTTP/1.1"}
    else:
        expected |= {"PROXY TCP4 127.0.0.1 127.0.0.1 1 1", "PRI * HTTP/2.0"}
    assert requests == expected


def test_the_neighbour_is_another_host(hosts: Hosts) -> None:
    with Script(hosts.on_sidecar, RECORD, "127.0.0.1", "18080", "/dev/null", "answer"):
        assert request(hosts.on_sidecar, "GET", "http://127.0.0.1:18080/")[0] == 200
        assert request(hosts.on_neighbour, "GET", "http://127.0.0.1:18080/")[0] == 0
    with Script(hosts.on_neighbour, RECORD, NEIGHBOUR, "18080", "/dev/null", "answer"):
        assert request(hosts.on_sidecar, "GET", f"http://{NEIGHBOUR}:18080/")[0] == 200
