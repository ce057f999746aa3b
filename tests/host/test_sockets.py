"""Names of sockets as control planes compute them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kumadp.host.sockets import READINESS, kuma_socket


@pytest.mark.parametrize(
    ("folder", "path"),
    [
        ("/run/kumadp", "/run/kumadp/kuma-readiness-reporter.sock"),
        ("/" + "a" * 90, "/" + "a" * 90 + "/kuma-r.sock"),
        # Bytes count, not characters.
        ("/" + "ä" * 60, "/" + "ä" * 48 + "\udcc3.sock"),
    ],
)
def test_a_path_is_cut_at_98_bytes(folder: str, path: str) -> None:
    assert kuma_socket(Path(folder), READINESS) == Path(path)
