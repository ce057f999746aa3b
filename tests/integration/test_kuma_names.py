"""Names of a real mesh, where KUMA_CP names a control plane: its VIP, in each way in which names are answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.test_dns import ask
from tests.support.needs import need_coredns
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.relayed import SOON, rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.relayed import Rig

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp]


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Rig]:
    """Behind redirection: names are for those alone whose traffic is redirected."""
    with rig(tmp_path, "kuma") as made:
        networking = made.dataplane["networking"]
        del networking["outbound"]
        inbound, outbound = free_ports(2)
        networking["transparentProxying"] = {"redirectPortInbound": inbound, "redirectPortOutbound": outbound}
        yield made


@pytest.mark.contract("names of the mesh, by the embedded resolver and by CoreDNS")
@pytest.mark.parametrize("mode", ["embedded", "coredns"])
def test_a_name_of_the_mesh(at: Rig, mode: str) -> None:
    """By UDP and TCP; by the embedded resolver in any case, and without an AAAA that is no answer at all."""
    arguments = [f"--dns-mode={mode}"]
    if mode == "coredns":
        arguments.append(f"--dns-coredns-path={need_coredns()}")
    with at.run(*arguments, dns=True) as daemon:
        daemon.wait_ready(SOON)
        port = at.ports.dns
        poll(lambda: ask(port, "backend.mesh")[1], what="the name", deadline=SOON)
        _, (address,) = ask(port, "backend.mesh")
        assert address.startswith("240.")
        for tcp in (False, True):
            assert ask(port, "backend.mesh", tcp=tcp) == ("NOERROR", [address])
            assert ask(port, "nobody.mesh", tcp=tcp) == ("NXDOMAIN", [])
            if mode == "embedded":
                assert ask(port, "BackEnd.Mesh", tcp=tcp) == ("NOERROR", [address])
                code, found = ask(port, "backend.mesh", "AAAA", tcp=tcp)
                assert code == "NOERROR"
                assert all(":" in one for one in found)
        told = at.status(daemon)["dns"]["answered_by"]
        assert told == ("the embedded resolver" if mode == "embedded" else "CoreDNS")
