"""Logged texts of peers are bounded: a rejection can quote a whole configuration, and garbage can be endless."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kumadp.relay.actions import ResponseRejected
from kumadp.relay.messages import CLUSTER, LISTENER, SECRET, encode_response
from kumadp.relay.relay import Relay
from kumadp.relay.state_machine import RelayStateMachine
from tests.relay.harness import NODE

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from kumadp.relay.upstream import Dial


async def never() -> Dial:
    raise OSError


def relay_at(folder: Path) -> Relay:
    return Relay(folder / "r", RelayStateMachine(NODE), never, epoch_of=lambda _pid: 0)


async def test_a_rejection_is_one_short_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reason = "no such port\nin the whole of it: " + "x" * 100_000
    relay_at(tmp_path)._execute([ResponseRejected(CLUSTER, "v" * 100_000, reason)])
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no such port in the whole" in line
    assert len(line) < 1100


async def test_the_reason_of_a_rejected_secret_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    relay_at(tmp_path)._execute([ResponseRejected(SECRET, "v1", "cannot load MHcCAQEE")])
    assert "MHcCAQEE" not in caplog.text
    assert "Secret v1 is rejected by Envoy" in caplog.text


async def test_unrequested_types_are_logged_once_and_not_remembered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    relay = relay_at(tmp_path)
    relay.upstream_opened()
    for number in range(100):
        await relay.upstream_message(encode_response(f"type.googleapis.com/none.{number}", "v1", []))
    await relay.upstream_message(encode_response(LISTENER, "v1", []))
    assert sum("was not requested" in record.getMessage() for record in caplog.records) == 1
    assert set(relay._changed_at) == {LISTENER}
    relay.upstream_closed()
