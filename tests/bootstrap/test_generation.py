"""The generation of the control plane by its bootstrap."""

from __future__ import annotations

from typing import Any

import pytest

from kumadp.bootstrap.generation import requires_delta


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
