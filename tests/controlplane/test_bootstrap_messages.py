"""What a control plane says for the sidecar itself, beside the bootstrap."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from kumadp.controlplane.bootstrap_messages import Aggregated, UndecodableAnswer, decode_answer


def answer(metrics: Any) -> bytes:
    return json.dumps(
        {
            "bootstrap": base64.b64encode(b"node: {}").decode(),
            "kumaSidecarConfiguration": {"networking": {"address": "10.0.0.1"}, "metrics": metrics},
        }
    ).encode()


def test_applications_whose_metrics_are_scraped() -> None:
    told = [{"name": "app", "address": "10.0.0.2", "port": 8081, "path": "/own"}, {"name": "bare", "port": 1}]
    assert decode_answer(answer({"aggregate": told})).aggregate == (
        Aggregated("app", "10.0.0.2", 8081, "/own"),
        Aggregated("bare", "", 1, ""),
    )


@pytest.mark.parametrize("metrics", [None, {}, {"aggregate": None}, {"aggregate": []}])
def test_none_of_them(metrics: Any) -> None:
    assert decode_answer(answer(metrics)).aggregate == ()


@pytest.mark.parametrize("aggregate", [["x"], [{"port": "many"}], 5])
def test_what_is_no_answer(aggregate: Any) -> None:
    with pytest.raises(UndecodableAnswer):
        decode_answer(answer({"aggregate": aggregate}))
