"""Names of the mesh while a real control plane is replaced by another version: KUMA_CP first, then KUMA_CP_NEXT."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_dns import query
from tests.support.dns_load import dns_load
from tests.support.kuma_control_plane import get_json
from tests.support.needs import need_coredns
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.rig import SOON
from tests.support.upgrade import open_upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Daemon
    from tests.support.upgrade import UpgradeRig

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp]

EMBEDDED = "the embedded resolver"
# Of a MeshService, by the HostnameGenerator that both versions have.
NAME = "backend.svc.mesh.local"


@pytest.fixture
def rig() -> Iterator[UpgradeRig]:
    with open_upgrade() as ready:
        yield ready


def redirection(folder: Path) -> Path:
    """A file about redirection on free ports: only redirected traffic gets names."""
    inbound, outbound = free_ports(2)
    ports = {"inbound": {"enabled": True, "port": inbound}, "outbound": {"enabled": True, "port": outbound}}
    path = folder / "redirection.json"
    path.write_text(json.dumps({"ipFamilyMode": "ipv4", "redirect": {**ports, "dns": {"enabled": True}}}))
    return path


def has_name() -> bool:
    """Return whether the control plane has given the service a name and an address."""
    status = (get_json("/meshes/default/meshservices/backend") or {}).get("status") or {}
    return bool(status.get("vips")) and NAME in {address["hostname"] for address in status.get("addresses") or ()}


def generation(rig: UpgradeRig, daemon: Daemon) -> int:
    return int(rig.status(daemon)["control_plane_generation"])


def answered_by(rig: UpgradeRig, daemon: Daemon) -> str:
    return str(rig.status(daemon)["dns"]["answered_by"])


def test_no_query_is_lost(rig: UpgradeRig, tmp_path: Path) -> None:
    """CoreDNS answers with 2.x; from 3.0 on the embedded resolver does, on the same port, also after a way back."""
    environment = {"KUMA_DNS_CORE_DNS_BINARY_PATH": str(need_coredns())}
    flags = (f"--transparent-proxy-config={redirection(tmp_path)}",)
    with rig.run(*flags, dns=True, environment=environment) as daemon:
        daemon.wait_ready(SOON)
        poll(lambda: query(rig.ports.dns, NAME)[1], what="the name", deadline=SOON)
        # It comes with the listener of the address, just after Envoy's DNS filter was replaced by one with the name.
        _, (address,) = query(rig.ports.dns, NAME)
        poll(lambda: address in daemon.get_admin("/listeners")[1], what="the service's listener", deadline=SOON)
        envoy, before = daemon.envoy().pid, generation(rig, daemon)
        with dns_load(rig.ports.dns, NAME, rate=100, seconds=60, wait=4.0) as load:
            rig.replace_plane(rig.versions.new)
            # The store is in memory: it takes seconds until the service has its address again.
            poll(has_name, what="the name in the control plane", deadline=SOON)
            rig.wait_registered(daemon)
            counts = load.counts()
        assert daemon.envoy().pid == envoy
        assert answered_by(rig, daemon) == (EMBEDDED if 3 in {before, generation(rig, daemon)} else "CoreDNS")
        assert query(rig.ports.dns, NAME)[1]
    assert (counts.sent, counts.answered, counts.lost) == (6000, 6000, 0)
    assert counts.wrong == 0
