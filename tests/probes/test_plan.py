"""Where virtual probes are served, and what of them a reload does not change."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kumadp.probes.plan import changed_probes
from kumadp.resources.load import load_resource
from kumadp.settings.resolve import resolve
from tests.support.mesh import dataplane, inbound

ENDPOINT = {"inboundPort": 8080, "inboundPath": "/healthz", "path": "/8080/healthz"}
NOTE = "a restart is required for the changed probes of the Dataplane"


def resource(probes: dict[str, Any] | None) -> Any:
    tree = dataplane("web", [inbound(18080, 8080)]) | ({} if probes is None else {"probes": probes})
    return load_resource(json.dumps(tree), "dataplane.yaml")


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        (None, None, ""),
        (None, {"port": 9000, "endpoints": [ENDPOINT]}, NOTE),
        ({"port": 9000, "endpoints": [ENDPOINT]}, None, NOTE),
        ({"port": 9000, "endpoints": [ENDPOINT]}, {"port": 9001, "endpoints": [ENDPOINT]}, NOTE),
        ({"port": 9000, "endpoints": [ENDPOINT]}, {"port": 9000, "endpoints": [{**ENDPOINT, "path": "/x"}]}, NOTE),
        ({"port": 9000, "endpoints": [ENDPOINT]}, {"port": 9000, "endpoints": [ENDPOINT]}, ""),
        # The default.
        ({"port": 9000, "endpoints": [ENDPOINT]}, {"endpoints": [ENDPOINT]}, ""),
        ({"port": 9001, "endpoints": [ENDPOINT]}, {"endpoints": [ENDPOINT]}, NOTE),
    ],
)
def test_changed_probes_need_a_restart(before: Any, after: Any, note: str) -> None:
    settings = resolve("run", {"name": "web", "mesh": "default"}, {}).settings
    assert changed_probes(settings, resource(before), resource(after)) == note
    off = resolve("run", {"name": "web", "mesh": "default", "virtual_probes": "off"}, {}).settings
    assert changed_probes(off, resource(before), resource(after)) == ""


def test_a_dataplane_of_the_control_plane_has_none_of_ours() -> None:
    settings = resolve("run", {"name": "web", "mesh": "default"}, {}).settings
    assert changed_probes(settings, None, None) == ""
