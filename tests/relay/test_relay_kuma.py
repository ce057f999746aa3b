"""The relay between a real Envoy and a real control plane, where KUMA_CP names a `kuma-cp` binary."""

from __future__ import annotations

import base64
import json
import ssl
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.rewrite import rewrite_for_relay
from kumadp.relay.dialect import XdsProtocol
from tests.support.daemon import Ports, get, workload
from tests.support.kuma_control_plane import ControlPlaneFiles, call_api, control_plane
from tests.support.kuma_resources import dataplane
from tests.support.poll import poll
from tests.support.relay_stage import RelayedEnvoy, RunningRelay
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp]

NAME = "backend-01"


class Kuma:
    """A real control plane as the target of a relay."""

    xds_port = 5678

    def __init__(self, plane: ControlPlaneFiles) -> None:
        self.plane = plane

    @property
    def ca(self) -> str:
        return self.plane.ca.read_text()

    def token(self) -> str:
        return self.plane.token.read_text()

    def bootstrap(self, made: dict[str, Any], folder: Path) -> dict[str, Any]:
        request = {
            "mesh": "default",
            "name": NAME,
            "proxyType": "dataplane",
            "dataplaneToken": self.token(),
            "dataplaneResource": json.dumps(made),
            "version": {"kumaDp": {"version": "2.13.5"}, "envoy": {"version": "1.40.0", "kumaDpCompatible": True}},
            "caCert": self.ca,
            "workdir": str(folder),
            "readinessPort": 9902,
            "features": [],
        }
        post = urllib.request.Request("https://localhost:5678/bootstrap", data=json.dumps(request).encode())
        post.add_header("accept", "application/json")
        with urllib.request.urlopen(post, context=ssl.create_default_context(cadata=self.ca)) as answer:
            return parse_bootstrap(base64.b64decode(json.loads(answer.read())["bootstrap"]))


def registered() -> bool:
    return NAME in call_api("/meshes/default/dataplanes").decode()


@pytest.mark.contract("the stream: kept while Envoy is replaced, closed on purpose, rejected for 10 s, opened again")
@pytest.mark.parametrize("protocol", XdsProtocol)
def test_kuma_has_one_stream_across_restarts_of_envoy(tmp_path: Path, protocol: XdsProtocol) -> None:
    """Kuma 2.13 and 2.14 serve both forms, so that delta can be tried without Kuma 3."""
    ports = Ports.take()
    with control_plane(tmp_path / "cp") as plane, workload("backend") as app:
        if protocol is XdsProtocol.SOTW and not plane.real.by_tags:
            pytest.skip("this version serves delta only")
        if protocol is XdsProtocol.DELTA and not plane.real.knows("meshidentities"):
            pytest.skip("this version has no delta for data planes")
        kuma = Kuma(plane)
        path = tmp_path / "xds.sock"
        made = plane.real.suit(dataplane(NAME, "backend", ports, app.port, probes=False))
        bootstrap = rewrite_for_relay(kuma.bootstrap(made, tmp_path), str(path)).bootstrap
        relay = RunningRelay(path, bootstrap, kuma, uvloop.new_event_loop, protocol=protocol)
        envoy = RelayedEnvoy(tmp_path, bootstrap, 0)

        def serves() -> bool:
            return get(ports.outbound) == (200, "backend")

        try:
            envoy.start()
            envoy.belongs_to(relay)
            poll(serves, what="traffic through the mesh", deadline=40)
            relay.wait_accepted(CLUSTER, ENDPOINTS, LISTENER)
            since = relay.status["connected_since"]
            envoy.die()
            envoy.start()
            envoy.belongs_to(relay)
            poll(serves, what="traffic again")
            assert relay.status["connected_since"] == since
            assert registered()
            # Closed, the control plane knows at once: it forgets the Dataplane after 10 s, not when a ping fails.
            relay.call(relay.relay.close_upstream, "test")
            poll(lambda: not registered(), what="the Dataplane gone", deadline=12)
            relay.call(relay.relay.reopen_upstream)
            poll(registered, what="the Dataplane there")
            # Broken and dialled at once, the stream is refused until it is freed, and is there right after.
            relay.call(relay.relay.close_upstream, "test")
            broken = time.monotonic()
            relay.call(relay.relay.reopen_upstream)
            poll(lambda: relay.status["refusal"] == "active", what="the refusal")
            poll(lambda: relay.status["state"] == "open", what="the stream", deadline=15)
            assert time.monotonic() - broken > 9.5
            assert serves()
        finally:
            envoy.close()
            relay.stop()
