"""What Envoy printed about a configuration that no restart can repair."""

from __future__ import annotations

import pytest

from kumadp.envoy.server_state import configuration_error

HEAD = "[2026-11-24 05:05:54.236][20122][critical][main] [source/server/server.cc:449] "


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (
            [
                HEAD + "error `Invalid duration: Expected positive duration: goo.gle/debugonly  ",
                "seconds: -1",
                "` initializing config 'goo.gle/debugonly  ",
                "  bootstrap.yaml'",
                "exiting",
            ],
            "Invalid duration: Expected positive duration: seconds: -1",
        ),
        (
            [HEAD + "error `cannot create an EDS cluster without an EDS config` initializing config 'b.yaml'"],
            "cannot create an EDS cluster without an EDS config",
        ),
        (
            [HEAD + "error initializing configuration '/tmp/b.yaml': Unable to parse JSON as proto"],
            "Unable to parse JSON as proto",
        ),
        ([HEAD + "error `cannot bind '1.2.3.4:80': Address already in use` initializing config 'b.yaml'"], None),
        (["exiting"], None),
        ([], None),
    ],
)
def test_the_reason_is_one_line_and_a_port_in_use_is_no_configuration_error(lines: list[str], why: str | None) -> None:
    assert configuration_error(lines) == why
