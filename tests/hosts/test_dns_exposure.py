"""A neighbour queries the embedded resolver: names of the mesh for all, others for this host and listed networks."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.hosts.test_admin_exposure import Script
from tests.hosts.test_dns_redirection import NEIGHBOURHOOD, with_resolv_conf
from tests.support.daemon import Ports, run_kumadp, write_mesh
from tests.support.netns import NEIGHBOUR, SIDECAR, Hosts
from tests.support.poll import poll

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.netns]

# Queries the A of each NAME at HOST and PORT, by UDP and by TCP, and prints the codes.
QUERY = """
import sys
import dns.message, dns.query, dns.rcode
for name in sys.argv[3:]:
    for send in (dns.query.udp, dns.query.tcp):
        answer = send(dns.message.make_query(name, "A"), sys.argv[1], port=int(sys.argv[2]), timeout=5)
        print(dns.rcode.to_text(answer.rcode()))
"""
NAMES = ("backend.mesh", "nobody.mesh", "neighbour.example.org")


@pytest.mark.parametrize("allowed", [(), ("192.0.2.0/24",)], ids=["this host alone", "a network too"])
def test_it_is_no_resolver_for_strangers(hosts: Hosts, tmp_path: Path, allowed: tuple[str, ...]) -> None:
    ports = Ports.take()
    queries, resolv_conf = tmp_path / "asked", tmp_path / "resolv.conf"
    queries.touch()
    resolv_conf.write_text(f"nameserver {NEIGHBOUR}\n")
    mesh = write_mesh(tmp_path / "mesh", ports, ports.probes, ports.probes)

    def codes(host: tuple[str, ...]) -> list[str]:
        command = [*host, sys.executable, "-c", QUERY, SIDECAR, str(ports.dns), *NAMES]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout.split()

    arguments = ("--standalone", str(mesh), "--name=web", "--dns-mode=embedded", "--drain-time=1s")
    with (
        Script(hosts.on_neighbour, NEIGHBOURHOOD, NEIGHBOUR, str(ports.probes), str(queries)),
        run_kumadp(
            tmp_path,
            ports,
            *arguments,
            *(f"--dns-allow={network}" for network in allowed),
            dns=True,
            prefix=with_resolv_conf(hosts.on_sidecar, resolv_conf),
        ),
    ):
        own = ["NOERROR"] * 2 + ["NXDOMAIN"] * 2
        poll(lambda: codes(hosts.on_sidecar) == [*own, "NOERROR", "NOERROR"], what="answers for this host")
        others = ["NOERROR"] * 2 if allowed else ["REFUSED"] * 2
        assert codes(hosts.on_neighbour) == own + others
        # Written where it comes from: it is mounted, as a container's is.
        resolv_conf.write_text("# nobody\n")
        poll(lambda: codes(hosts.on_sidecar) == [*own, "SERVFAIL", "SERVFAIL"], what="nobody who answers")
        resolv_conf.write_text(f"nameserver {NEIGHBOUR}\n")
        poll(lambda: codes(hosts.on_sidecar) == [*own, "NOERROR", "NOERROR"], what="answers of the name server again")
