"""A workload that knows nothing of the mesh: its queries and connections are redirected, as Kuma's rules do it.

The neighbour is the name server of both hosts' resolv.conf, and holds the workload behind the name.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.hosts.test_admin_exposure import FILTERS, SERVE, Script, control_plane_arguments, request
from tests.support.daemon import Ports, run_kumadp
from tests.support.needs import need_coredns, need_nft
from tests.support.netns import NEIGHBOUR, Hosts
from tests.support.poll import poll
from tests.support.scripted_control_plane import socket_address, static_bootstrap, static_cluster, static_listener

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.netns]

VIP = "240.0.0.1"
# The workload is recognised by its group: everything else on that host is the sidecar's and is not redirected.
WORKLOAD = 4711
RULES = """
table ip sidecar {{
  chain output {{
    type nat hook output priority -100;
    meta skgid != {workload} return
    udp dport 53 redirect to :{dns}
    tcp dport 53 redirect to :{dns}
    oifname "lo" return
    meta l4proto tcp redirect to :{outbound}
  }}
}}
"""
# Resolves NAME by getaddrinfo(3), connects to port PORT of the address, and prints the answer.
VISIT = """
import socket, sys
try:
    found = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_STREAM)
    addresses = sorted({item[4][0] for item in found})
    with socket.create_connection(found[0][4][:2], timeout=5) as connection:
        print(",".join(addresses), connection.recv(100).decode())
except OSError as error:
    print("failed:", error)
"""
# Sends its name to each connection at HOST PORT, answers A queries on port 53, and writes their names to a file.
NEIGHBOURHOOD = """
import pathlib, socket, sys, threading
import dns.message, dns.rcode, dns.rdatatype, dns.rrset
def serve():
    while True:
        connection, peer = server.accept()
        connection.sendall(b"the neighbour")
        connection.close()
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((sys.argv[1], 53))
threading.Thread(target=serve, daemon=True).start()
print("up", flush=True)
while True:
    wire, peer = udp.recvfrom(4096)
    query = dns.message.from_wire(wire)
    question = query.question[0]
    with pathlib.Path(sys.argv[3]).open("a") as file:
        file.write(question.name.to_text().lower() + "\\n")
    answer = dns.message.make_response(query)
    if question.name.to_text().lower() != "neighbour.example.org.":
        answer.set_rcode(dns.rcode.NXDOMAIN)
    elif question.rdtype == dns.rdatatype.A:
        answer.answer.append(dns.rrset.from_text(question.name, 30, "IN", "A", sys.argv[1]))
    udp.sendto(answer.to_wire(), peer)
"""


def with_resolv_conf(host: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """What to put before a command that is to see this resolv.conf."""
    return (*host, "unshare", "--mount", "sh", "-c", f'mount --bind "{path}" /etc/resolv.conf && exec "$@"', "sh")


def bootstrap(folder: Path, ports: Ports, application: int) -> dict[str, Any]:
    """A bootstrap with what a control plane sends where traffic is redirected: original destinations, and names in
    Envoy's filter. The listeners come apart from it, as with every control plane: static ones would be refused."""
    tree = static_bootstrap(ports, application)
    redirected = static_listener("outbound:passthrough", ports.outbound, "passthrough")
    redirected["useOriginalDst"] = True
    behind = static_listener(f"outbound:{VIP}:80", 80, "web", VIP)
    behind["bindToPort"] = False
    names = {
        "@type": f"{FILTERS}.udp.dns_filter.v3.DnsFilterConfig",
        "statPrefix": "names",
        "serverConfig": {
            "inlineDnsTable": {
                "virtualDomains": [{"name": "web.mesh", "endpoint": {"addressList": {"address": [VIP]}}}]
            }
        },
    }
    dns = {
        "name": "dns",
        "address": {"socketAddress": {"protocol": "UDP", "address": "127.0.0.1", "portValue": ports.envoy_dns}},
        "listenerFilters": [{"name": "envoy.filters.udp.dns_filter", "typedConfig": names}],
    }
    passthrough = {
        "name": "passthrough",
        "type": "ORIGINAL_DST",
        "lbPolicy": "CLUSTER_PROVIDED",
        "connectTimeout": "2s",
    }
    static = tree["staticResources"]
    listeners = folder / "listeners.json"
    kind = {"@type": "type.googleapis.com/envoy.config.listener.v3.Listener"}
    resources = [kind | listener for listener in (redirected, behind, dns)]
    listeners.write_text(json.dumps({"versionInfo": "1", "resources": resources}))
    tree["dynamicResources"] = {"ldsConfig": {"pathConfigSource": {"path": str(listeners)}}}
    static["clusters"] += [passthrough, static_cluster("web", socket_address(application, NEIGHBOUR))]
    return tree


def test_a_name_of_the_mesh_is_resolved_and_connected_to(hosts: Hosts, tmp_path: Path) -> None:
    need_nft()
    ports = Ports.take()
    queries, resolv_conf, config = tmp_path / "asked", tmp_path / "resolv.conf", tmp_path / "bootstrap.json"
    resolv_conf.touch()
    queries.touch()
    config.write_text(json.dumps(bootstrap(tmp_path, ports, ports.probes)))
    subprocess.run(["ip", "-n", hosts.sidecar, "route", "add", "default", "via", NEIGHBOUR], check=True)
    rules = RULES.format(workload=WORKLOAD, dns=ports.dns, outbound=ports.outbound)
    subprocess.run([*hosts.on_sidecar, "nft", "-f", "-"], input=rules, text=True, check=True)
    on_sidecar = with_resolv_conf(hosts.on_sidecar, resolv_conf)

    def visit(name: str, port: int) -> str:
        as_workload = ("setpriv", "--regid", str(WORKLOAD), "--clear-groups", sys.executable, "-c", VISIT)
        done = subprocess.run(
            [*on_sidecar, *as_workload, name, str(port)], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()

    with (
        Script(hosts.on_neighbour, NEIGHBOURHOOD, NEIGHBOUR, str(ports.probes), str(queries)),
        Script(hosts.on_sidecar, SERVE, str(config)) as plane,
        run_kumadp(
            tmp_path,
            ports,
            *control_plane_arguments(plane.line),
            f"--dns-coredns-path={need_coredns()}",
            dns=True,
            prefix=on_sidecar,
        ) as daemon,
    ):

        def is_ready() -> bool:
            assert daemon.process.poll() is None, daemon.output()
            return request(hosts.on_sidecar, "GET", f"http://127.0.0.1:{ports.readiness}/ready") == (200, "READY")

        poll(is_ready, what="READY")
        # Without a name server there a workload queries its own host (resolv.conf(5)), and CoreDNS has only Envoy.
        assert visit("web.mesh", 80) == f"{VIP} the neighbour"
        assert visit("neighbour.example.org", ports.probes).startswith("failed: ")
        coredns = daemon.children()["coredns"].pid
        resolv_conf.write_text(f"nameserver {NEIGHBOUR}\noptions timeout:3 attempts:2\n")
        resolved = f"{NEIGHBOUR} the neighbour"
        poll(lambda: visit("neighbour.example.org", ports.probes) == resolved, what="an answer of the new name server")
        assert daemon.children()["coredns"].pid == coredns
        assert visit("web.mesh", 80) == f"{VIP} the neighbour"
        # Other names come from the name server of the workload, and connections go to the address it returns.
        assert visit("neighbour.example.org", ports.probes) == resolved
        assert visit("nobody.mesh", 80).startswith("failed: ")
        assert visit("nobody.example.org", 80).startswith("failed: ")
        daemon.children()["coredns"].kill()
        poll(lambda: visit("web.mesh", 80) == f"{VIP} the neighbour", what="the name again, CoreDNS killed")
    names = queries.read_text().split()
    assert "neighbour.example.org." in names
    assert not [name for name in names if name.endswith("mesh.")]
