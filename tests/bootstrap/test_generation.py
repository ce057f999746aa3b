"""The generation of the control plane by its bootstrap."""

from __future__ import annotations

from typing import Any

import pytest

from kumadp.bootstrap.generation import Generation, generation_of, requires_delta
from kumadp.bootstrap.parser import parse_bootstrap
from tests.support.scripted_control_plane import CAPTURES


@pytest.mark.parametrize(
    ("bootstrap", "expected"),
    [
        ({"dynamicResources": {"adsConfig": {"apiType": "DELTA_GRPC"}}}, True),
        ({"dynamic_resources": {"ads_config": {"api_type": "DELTA_GRPC"}}}, True),
        ({"dynamicResources": {"adsConfig": {"apiType": 3}}}, True),
        ({"dynamicResources": {"adsConfig": {"apiType": "GRPC"}}}, False),
        ({"dynamicResources": {"adsConfig": {}}}, False),
        ({"dynamicResources": {"adsConfig": "DELTA_GRPC"}}, False),
        ({"hdsConfig": {"apiType": "DELTA_GRPC"}}, False),
        ({}, False),
    ],
)
def test_delta_is_all_it_speaks(bootstrap: dict[str, Any], expected: bool) -> None:
    assert requires_delta(bootstrap) is expected


# kuma-2.14.3/delta and /tp were requested with feature-delta-grpc.
@pytest.mark.parametrize(
    ("capture", "expected"),
    [
        ("kuma-2.8.8/dataplane", Generation.KUMA_2),
        ("kuma-2.13.5/tp", Generation.KUMA_2),
        ("kuma-2.14.3/dataplane", Generation.KUMA_2),
        ("kuma-3.0-dev/full", Generation.KUMA_3),
        ("kuma-3.0-dev/tp", Generation.KUMA_3),
    ],
)
def test_of_captured_bootstraps(capture: str, expected: Generation) -> None:
    assert generation_of(parse_bootstrap((CAPTURES / capture / "bootstrap.yaml").read_bytes())) is expected
