"""Traffic, and what a control plane changes of it while it flows, against a real one, where KUMA_CP names it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import get, workload
from tests.support.kuma_control_plane import KumaControlPlane
from tests.support.poll import poll
from tests.support.rig import SOON, open_rig
from tests.support.service_probe import PROBE, back_after_an_outage, wait_health

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Daemon
    from tests.support.rig import Rig

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp]

SIDES = (r"cluster\.(backend|kri_msvc_.*)\.", r"listener\.")
FILTERS = {"http": "envoy.filters.network.http_connection_manager", "tcp": "envoy.filters.network.tcp_proxy"}


def filters_of(daemon: Daemon, port: int) -> set[str]:
    """Names of the network filters of Envoy's listener on this port."""
    _, text = daemon.get_admin("/config_dump?resource=dynamic_listeners")
    names: set[str] = set()
    for section in json.loads(text)["configs"]:
        listener = section["active_state"]["listener"]
        if listener["address"].get("socket_address", {}).get("port_value") == port:
            names |= {entry["name"] for chain in listener["filter_chains"] for entry in chain["filters"]}
    return names


@pytest.mark.contract("traffic, http and tcp")
@pytest.mark.parametrize("protocol", ["http", "tcp"])
def test_traffic(kuma_rig: Rig, protocol: str) -> None:
    """Through the outbound and the inbound, each with the filter of its protocol."""
    kuma_rig.dataplane["networking"]["inbound"][0]["tags"]["kuma.io/protocol"] = protocol
    with kuma_rig.run() as daemon:
        kuma_rig.wait_ready(daemon)
        (other,) = set(FILTERS.values()) - {FILTERS[protocol]}
        for port in (kuma_rig.ports.inbound, kuma_rig.ports.outbound):
            assert get(port) == (200, kuma_rig.app.name)
            filters = filters_of(daemon, port)
            assert FILTERS[protocol] in filters
            assert other not in filters
        kuma_rig.kill_envoy(daemon)


def allow(rig: Rig, action: str) -> None:
    """Everybody may speak to everybody, or nobody to anybody."""
    assert isinstance(rig.plane, KumaControlPlane)
    rig.plane.permit(action)


@pytest.mark.contract("mutual TLS switched on, a policy changed while running")
def test_mutual_tls_and_a_policy_that_changes(kuma_rig: Rig) -> None:
    """All of it reaches the running Envoy, on one stream; afterwards the inbound speaks to no stranger."""
    with kuma_rig.run() as daemon:
        kuma_rig.wait_ready(daemon)
        envoy, since = daemon.envoy().pid, kuma_rig.relay(daemon)["connected_since"]
        assert get(kuma_rig.ports.inbound) == (200, kuma_rig.app.name)
        kuma_rig.plane.use_mtls()
        poll(lambda: get(kuma_rig.ports.inbound)[0] == 0, what="an inbound that wants a certificate", deadline=SOON)
        # A connection from before lives on while its listener drains.
        poll(lambda: kuma_rig.serves() and shaken(kuma_rig), what="traffic with mutual TLS", deadline=SOON)
        allow(kuma_rig, "Deny")
        poll(lambda: get(kuma_rig.ports.outbound)[0] == 403, what="the refusal", deadline=SOON)
        allow(kuma_rig, "Allow")
        kuma_rig.wait_traffic("traffic again")
        assert (daemon.envoy().pid, kuma_rig.relay(daemon)["connected_since"]) == (envoy, since)
        kuma_rig.kill_envoy(daemon)


def shaken(rig: Rig) -> bool:
    """Whether Envoy has spoken TLS, as a client and as a server."""
    return all(sum(rig.stats(rf"^{side}.*ssl\.handshake$").values()) > 0 for side in SIDES)


@pytest.mark.contract("serviceProbe: an inbound unhealthy and back")
def test_a_service_probe(tmp_path: Path) -> None:
    """An application that is gone makes its inbound unhealthy at the control plane, and healthy once it is back."""
    with workload("backend") as app, open_rig(tmp_path, "kuma", app) as rig:
        rig.dataplane["networking"]["inbound"][0]["serviceProbe"] = PROBE
        with rig.run() as daemon:
            rig.wait_ready(daemon)
            wait_health(healthy=True, what="a healthy inbound")
            with back_after_an_outage(app):
                rig.wait_traffic()
                # What Envoy has not answered when it is killed is withheld from the next one for 30 s.
                poll(lambda: rig.settled(daemon), what="everything acknowledged", deadline=SOON)
                rig.kill_envoy(daemon)
                wait_health(healthy=True, what="health that outlives Envoy")
