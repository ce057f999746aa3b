"""A real Envoy keeps the sockets of its listeners, and serves, whatever a control plane sends about them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import get, get_at
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.relay_stage import NODE, stage
from tests.support.xds.resources import LISTENER, address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.relay_stage import RelayStage, RunningRelay

pytestmark = pytest.mark.process


OWN = "own"


class OwnListener:
    """One more listener to the service, on another port."""

    def __init__(self, at: RelayStage, relay: RunningRelay) -> None:
        self.at, self.relay = at, relay
        (self.port,) = free_ports(1)
        trees = at.plane.mesh(NODE).trees[LISTENER].values()
        self.tree = next(tree for tree in trees if tree["address"]["socketAddress"]["portValue"] == at.ports.outbound)

    @property
    def serves(self) -> bool:
        return get(self.port) == (200, "backend")

    def _runs(self, text: str) -> bool:
        status, dump = get_at(self.at.envoys[-1].admin, "/config_dump?resource=dynamic_listeners")
        entries = json.loads(dump)["configs"] if status == 200 else []
        states = [entry.get("active_state", {}) for entry in entries if entry.get("name") == OWN]
        return [state.get("listener", {}).get("stat_prefix") for state in states] == [text]

    def send(self, text: str, **fields: bool) -> None:
        """Have Envoy run with the listener with this text, and with fields that it may not take over."""
        place = {"name": OWN, "address": address("127.0.0.1", self.port), "statPrefix": text}
        self.at.plane.mesh(NODE).put(LISTENER, self.tree | place | fields)
        poll(lambda: self._runs(text), what=f"the listener with {text}")
        poll(lambda: not any(view["open"] for view in self.relay.status["types"]), what="all answered")
        assert sum(view["rejected"] for view in self.relay.status["types"]) == 0
        assert self.at.plane.rejected(NODE) == 0


@pytest.fixture(params=["2.13.5", "3.0"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OwnListener]:
    with stage(tmp_path, version=request.param) as at:
        relay = at.relay()
        at.envoy(relay).wait_live()
        at.wait_traffic()
        yield OwnListener(at, relay)


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False)])
def test_so_reuseport_is_not_changed_by_an_update(own: OwnListener, first: bool, second: bool) -> None:
    """Kuma 2.13 never sets it, 2.14 does: otherwise Envoy rejects each inbound of the other version."""
    own.send("before", enableReusePort=first)
    poll(lambda: own.serves, what="traffic")
    for text, flag in (("other", second), ("again", first)):
        own.send(text, enableReusePort=flag)
        assert own.serves


def test_an_envoy_does_not_exit_when_an_unbound_listener_is_to_be_bound(own: OwnListener) -> None:
    own.send("unbound", bindToPort=False)
    own.send("bound", bindToPort=True)
    assert own.at.serves()
    assert not own.serves
    (kept,) = own.relay.status["kept_sockets"]
    assert (kept["listener"], kept["bound"]) == (OWN, False)
    assert own.relay.status["kept_sockets_count"] == 1
    # Another Envoy binds it.
    own.at.envoys[0].die()
    own.at.envoy(own.relay, 1).wait_live()
    poll(lambda: own.serves, what="traffic")
