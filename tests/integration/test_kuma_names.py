"""Names of a real mesh, where KUMA_CP names a control plane: its VIP, in each way in which names are answered."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.integration.test_dns import query
from tests.support.compatibility import GONE
from tests.support.kuma_control_plane import KumaControlPlane
from tests.support.needs import need_coredns, need_nft
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.rig import SOON, open_rig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.rig import Rig

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A data plane behind redirection: only redirected traffic gets names."""
    with open_rig(tmp_path, "kuma") as rig:
        networking = rig.dataplane["networking"]
        del networking["outbound"]
        inbound, outbound = free_ports(2)
        networking["transparentProxying"] = {"redirectPortInbound": inbound, "redirectPortOutbound": outbound}
        yield rig


def by_tags(rig: Rig) -> bool:
    """Whether services are named by tags: up to 2.14."""
    assert isinstance(rig.plane, KumaControlPlane)
    return rig.plane.by_tags


def name_of(rig: Rig) -> str:
    """The name of the service in the mesh."""
    return "backend.mesh" if by_tags(rig) else "backend.svc.mesh.local"


def flags(rig: Rig, mode: str) -> tuple[str, ...]:
    """How names are to be answered; skips what the version has not."""
    if mode == "embedded":
        return ("--dns-mode=embedded",)
    if not by_tags(rig):
        pytest.skip(f"{GONE}: nothing answers CoreDNS's queries for names of the mesh")
    return ("--dns-mode=coredns", f"--dns-coredns-path={need_coredns()}")


@pytest.mark.contract("names of the mesh, by the embedded resolver and by CoreDNS")
@pytest.mark.parametrize("mode", ["embedded", "coredns"])
def test_a_name_of_the_mesh(rig: Rig, mode: str) -> None:
    """By UDP and TCP; by the embedded resolver in any case, and without an AAAA that is no answer at all."""
    arguments = flags(rig, mode)
    name = name_of(rig)
    with rig.run(*arguments, dns=True) as daemon:
        daemon.wait_ready(SOON)
        port = rig.ports.dns
        poll(lambda: query(port, name)[1], what="the name", deadline=SOON)
        _, (address,) = query(port, name)
        assert address.startswith("240." if by_tags(rig) else "241.")
        for tcp in (False, True):
            assert query(port, name, tcp=tcp) == ("NOERROR", [address])
            assert query(port, "nobody.mesh", tcp=tcp) == ("NXDOMAIN", [])
            if mode == "embedded":
                assert query(port, name.title(), tcp=tcp) == ("NOERROR", [address])
                code, addresses = query(port, name, "AAAA", tcp=tcp)
                assert code == "NOERROR"
                assert all(":" in text for text in addresses)
        answered_by = rig.status(daemon)["dns"]["answered_by"]
        assert answered_by == ("the embedded resolver" if mode == "embedded" else "CoreDNS")


# The workload is recognised by its group, as in tests/hosts/test_dns_redirection.py; traffic to the inbound is
# redirected too, as Envoy does not bind its port.
WORKLOAD = 4711
RULES = """
table ip sidecar {{
  chain output {{
    type nat hook output priority -100;
    tcp dport {inbound} redirect to :{redirect_inbound}
    meta skgid != {workload} return
    udp dport 53 redirect to :{dns}
    tcp dport 53 redirect to :{dns}
    oifname "lo" return
    meta l4proto tcp redirect to :{redirect_outbound}
  }}
}}
"""


@contextlib.contextmanager
def redirected(rig: Rig) -> Iterator[None]:
    """The rules of transparent proxying in this network namespace, which has to be the test's own."""
    need_nft()
    if any(line.split()[1] == "00000000" for line in Path("/proc/net/route").read_text().splitlines()[1:]):
        pytest.skip("needs a network namespace without a default route: unshare -n, ip link set lo up")
    proxying = rig.dataplane["networking"]["transparentProxying"]
    rules = RULES.format(
        inbound=rig.ports.inbound,
        redirect_inbound=proxying["redirectPortInbound"],
        redirect_outbound=proxying["redirectPortOutbound"],
        dns=rig.ports.dns,
        workload=WORKLOAD,
    )
    # A way out, so that what is redirected has one that it would have taken.
    for line in (
        "link add out0 type veth peer name out1",
        "address add 192.0.2.1/24 dev out0",
        "link set out0 up",
        "link set out1 up",
        "route add default via 192.0.2.2",
    ):
        subprocess.run(["ip", *line.split()], check=True)
    try:
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "ip", "sidecar"], check=False)
        subprocess.run(["ip", "link", "delete", "out0"], check=False)


@pytest.mark.contract("a workload behind redirection reaches a service by its name")
@pytest.mark.parametrize("mode", ["embedded", "coredns"])
def test_a_workload_that_knows_nothing_reaches_a_service_by_its_name(rig: Rig, tmp_path: Path, mode: str) -> None:
    """Its queries and connections are redirected: the name is the mesh's, and so is who answers."""
    arguments = flags(rig, mode)
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 192.0.2.2\n")
    bound = ("unshare", "--mount", "sh", "-c", f'mount --bind "{resolv_conf}" /etc/resolv.conf && exec "$@"', "sh")
    as_workload = (*bound, "setpriv", "--regid", str(WORKLOAD), "--clear-groups")

    def visit() -> str:
        command = [*as_workload, "curl", "-sS", "-m", "5", f"http://{name_of(rig)}/"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout

    with redirected(rig), rig.run(*arguments, dns=True, prefix=bound) as daemon:
        daemon.wait_ready(SOON)
        poll(lambda: visit() == rig.app.name, what="the application behind the name", deadline=SOON)
        envoy = daemon.kill_envoy()
        poll(lambda: not envoy.is_running() or envoy.status() == psutil.STATUS_ZOMBIE, what="the end of Envoy")
        poll(lambda: visit() == rig.app.name, what="the application again", deadline=SOON)
