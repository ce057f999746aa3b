"""The end of the token: logged, and a warning in time."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from kumadp.controlplane import token_expiry as tokens
from kumadp.controlplane.token_expiry import NOTICE, TokenWatch
from kumadp.core.status import Status
from tests.support.poll import poll_async


def token(left: float | None, **more: Any) -> str:
    claims = {**more} if left is None else {"exp": time.time() + left, **more}
    parts = ({"alg": "RS256"}, claims)
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts), "sig"])


def concern(status: Status) -> str:
    return status.warnings.get("token", "")


@pytest.fixture
def status() -> Status:
    return Status("web", "control plane")


def watch(status: Status, *files: str) -> TokenWatch:
    left = list(files)
    return TokenWatch(status, lambda: left.pop(0) if len(left) > 1 else left[0])


async def test_one_without_an_end_is_no_concern(status: Status) -> None:
    watch(status).note(token(None))
    assert (status.facts["token_expires"], status.warnings) == (None, {})


async def test_one_that_lasts_is_no_concern(status: Status) -> None:
    watch(status).note(text := token(NOTICE + 60))
    assert status.facts["token_expires"] == pytest.approx(time.time() + NOTICE + 60, abs=30)
    assert status.warnings == {}
    assert text not in str(status.snapshot())


@pytest.mark.parametrize(("left", "reported"), [(NOTICE - 60, "it expires at 20"), (-1.0, "it expired at ")])
async def test_one_that_ends_soon_or_has_ended_is_a_concern_until_there_is_a_new_one(
    status: Status, left: float, reported: str
) -> None:
    made = watch(status)
    made.note(token(left))
    assert concern(status).startswith(reported)
    made.note(token(NOTICE * 9))
    assert status.warnings == {}


async def test_when_its_last_day_begins_the_file_is_read_again(status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "NOTICE", 100.0)
    watch(status, new := token(5000)).note(token(100.1))
    assert status.warnings == {}

    async def taken() -> bool:
        return status.facts["token_expires"] == pytest.approx(time.time() + 5000, abs=90)

    await poll_async(taken, what="the new token")
    assert (status.warnings, new) == ({}, new)


async def test_when_its_last_day_begins_and_no_other_is_there_it_is_a_concern(
    status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "NOTICE", 100.0)
    text = token(100.1)
    watch(status, text).note(text)
    assert status.warnings == {}

    async def reported() -> bool:
        return concern(status).startswith("it expires at")

    await poll_async(reported, what="the concern")


async def test_of_one_that_the_kubelet_renews_only_the_end_is_a_concern(status: Status) -> None:
    made = watch(status)
    made.note(token(3000, **{"kubernetes.io": {"namespace": "web"}}))
    assert status.warnings == {}
    made.note(token(-1, **{"kubernetes.io": {"namespace": "web"}}))
    assert concern(status).startswith("it expired")


@pytest.mark.parametrize("end", [1e300, -1e300])
async def test_an_end_beyond_all_calendars_does_no_harm(status: Status, end: float) -> None:
    made = watch(status)
    made.note(token(end))
    assert bool(status.warnings) is (end < 0)
