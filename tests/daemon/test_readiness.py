"""Where readiness is served beside loopback: Kuma 2.14's rule."""

from __future__ import annotations

from typing import Any

import pytest

from kumadp.daemon.readiness import readiness_host

PIPE = {"admin": {"address": {"pipe": {"path": "/run/kuma-envoy-admin.sock"}}}}
V4, V6 = "10.0.0.1", "fd00::1"


def tcp(host: str) -> dict[str, Any]:
    return {"admin": {"address": {"socket_address": {"address": host, "port_value": 9901}}}}


@pytest.mark.parametrize(
    ("bootstrap", "address", "environ", "host"),
    [
        (tcp("127.0.0.1"), V4, {"POD_NAME": "a"}, "127.0.0.1"),
        (tcp("0.0.0.0"), V4, {}, "0.0.0.0"),
        (tcp("::1"), V4, {}, "::1"),
        (tcp("10.0.0.1"), V4, {}, "10.0.0.1"),
        (PIPE, V4, {}, "127.0.0.1"),
        (PIPE, V6, {}, "::1"),
        (PIPE, V4, {"POD_NAME": "a"}, "0.0.0.0"),
        (PIPE, V6, {"POD_NAME": "a"}, "::"),
        # That it is set counts, not its value.
        (PIPE, V4, {"POD_NAME": ""}, "0.0.0.0"),
        (PIPE, "", {}, "127.0.0.1"),
        ({}, V4, {"POD_NAME": "a"}, ""),
    ],
)
def test_the_admin_s_address_in_the_bootstrap_decides(
    bootstrap: dict[str, Any], address: str, environ: dict[str, str], host: str
) -> None:
    assert readiness_host(bootstrap, address, environ) == host
