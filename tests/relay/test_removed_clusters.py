"""A cluster that the control plane removes serves the connections of replaced listeners until they have drained."""

from __future__ import annotations

import contextlib
import http.client
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import get, get_at
from tests.support.poll import poll
from tests.support.relay_stage import NODE, RelayStage, stage
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

NEW = "new-name"


@pytest.fixture(params=["2.13.5", "3.0"])
def at(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RelayStage]:
    with stage(tmp_path, version=request.param) as opened:
        yield opened


def rename_cluster(at: RelayStage) -> str:
    """Have the outbound lead to a cluster with another name, in one change; return the former name."""
    mesh = at.plane.mesh(NODE)
    (former,) = mesh.services
    apply, mesh.apply = mesh.apply, lambda: None
    name = next(name for name in mesh.trees[LISTENER] if "backend" in name or name.endswith(f":{at.ports.outbound}"))
    del mesh.trees[LISTENER][name], mesh.trees[CLUSTER][former]
    mesh.services.clear()
    mesh.outbound(at.ports.outbound, NEW, ("127.0.0.1", at.app.port), name=name)
    mesh.apply = apply
    apply()
    return former


def has_cluster(at: RelayStage, name: str) -> bool:
    return f"{name}::" in get_at(at.envoys[-1].admin, "/clusters")[1]


def test_a_connection_of_the_previous_listener_is_served_until_it_has_drained(at: RelayStage) -> None:
    relay = at.relay(drain_time=2.0)
    at.envoy(relay, 0, "--drain-time-s", "2").wait_live()
    at.wait_traffic()
    relay.wait_accepted(CLUSTER, ENDPOINTS, LISTENER)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", at.ports.outbound, timeout=10)) as connection:
        connection.request("GET", "/")
        assert connection.getresponse().read()
        first = connection.sock
        former = rename_cluster(at)
        poll(lambda: has_cluster(at, NEW), what="the new cluster")
        assert has_cluster(at, former)
        drained: list[int] = []
        renewed: list[int] = []

        def is_gone() -> bool:
            # Over the previous listener, as long as Envoy keeps the connection; a new one is over the new listener.
            answers = drained if connection.sock is first else renewed
            try:
                connection.request("GET", "/")
                response = connection.getresponse()
            except ConnectionError:
                # Envoy's drain time was over before the next answer could show it.
                assert answers is drained
                connection.close()
                return False
            response.read()
            answers.append(response.status)
            return not has_cluster(at, former)

        poll(is_gone, what="the former cluster removed")
    assert set(drained) == {200}
    assert set(renewed) == {200}
    assert get(at.ports.outbound) == (200, "backend")
    assert all(view["accepted"] == view["latest"] and not view["open"] for view in relay.status["types"])


def test_an_envoy_that_starts_during_that_time_does_not_get_it(at: RelayStage) -> None:
    relay = at.relay(drain_time=60.0)
    at.envoy(relay).wait_live()
    at.wait_traffic()
    former = rename_cluster(at)
    poll(lambda: has_cluster(at, NEW), what="the new cluster")
    at.wait_traffic()
    assert has_cluster(at, former)
    at.envoys[0].die()
    at.envoy(relay, 1).wait_live()
    at.wait_traffic()
    assert not has_cluster(at, former)
