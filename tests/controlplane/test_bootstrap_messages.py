"""The configuration of the sidecar itself in the answer of a control plane, beside the bootstrap."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from kumadp.bootstrap.prepare import Aggregated
from kumadp.controlplane.bootstrap_messages import UndecodableAnswer, decode_answer
from tests.support.scripted_control_plane import captured_answer


def answer(metrics: Any) -> bytes:
    return json.dumps(
        {
            "bootstrap": base64.b64encode(b"node: {}").decode(),
            "kumaSidecarConfiguration": {"networking": {"address": "10.0.0.1"}, "metrics": metrics},
        }
    ).encode()


def test_applications_whose_metrics_are_scraped() -> None:
    entries = [{"name": "app", "address": "10.0.0.2", "port": 8081, "path": "/own"}, {"name": "bare", "port": 1}]
    assert decode_answer(answer({"aggregate": entries})).aggregate == (
        Aggregated("app", "10.0.0.2", 8081, "/own"),
        Aggregated("bare", "", 1, ""),
    )


@pytest.mark.parametrize("metrics", [None, {}, {"aggregate": None}, {"aggregate": []}])
def test_no_applications(metrics: Any) -> None:
    assert decode_answer(answer(metrics)).aggregate == ()


@pytest.mark.parametrize("capture", ["kuma-2.8.8/dataplane", "kuma-2.14.3/dataplane", "kuma-3.0-dev/full"])
def test_captured_answers(capture: str) -> None:
    """3.0 has no ``corefileTemplate``, and null for ``aggregate``."""
    decoded = decode_answer(captured_answer(capture).body)
    assert (decoded.corefile_template, decoded.address, decoded.aggregate) == (None, "127.0.0.1", ())


@pytest.mark.parametrize("aggregate", [["x"], [{"port": "many"}], 5])
def test_an_answer_that_cannot_be_decoded(aggregate: Any) -> None:
    with pytest.raises(UndecodableAnswer):
        decode_answer(answer({"aggregate": aggregate}))
