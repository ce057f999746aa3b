"""When probes need the address that is not redirected."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kumadp.core.context import Context, Inputs
from kumadp.core.redirection import may_be_redirected
from kumadp.resources.load import load_resource
from kumadp.settings.model import Settings

DATAPLANE = """
type: Dataplane
mesh: default
name: web
networking:
  address: 192.0.2.1
  inbound: [{port: 18080, servicePort: 8080, tags: {kuma.io/service: web}}]
"""
REDIRECTED = DATAPLANE + "  transparentProxying: {redirectPortInbound: 15006, redirectPortOutbound: 15001}\n"
POD = {"POD_NAME": "a", "POD_NAMESPACE": "b"}


@pytest.mark.parametrize(
    ("dataplane", "settings", "environ", "expected"),
    [
        (DATAPLANE, {}, {}, False),
        ("", {}, POD, True),
        (DATAPLANE, {"transparent_proxy": True}, {}, True),
        (DATAPLANE, {"transparent_proxy_config": ("tp.yaml",)}, {}, True),
        (REDIRECTED, {}, {}, True),
    ],
)
def test_traffic_may_be_redirected(
    dataplane: str, settings: dict[str, Any], environ: dict[str, str], expected: bool
) -> None:
    resource = load_resource(dataplane, "web.yaml", variables={}) if dataplane else None
    context = Context(Inputs(replace(Settings(), **settings), resource, environ))
    assert may_be_redirected(context) is expected
