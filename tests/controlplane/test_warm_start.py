"""A start with the last good configuration, while the control plane is unreachable."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kumadp.bootstrap.prepare import Fetched
from kumadp.controlplane.bootstrap_client import Sidecar, Versions
from kumadp.controlplane.part import ControlPlanePart
from kumadp.core.context import Context, Inputs
from kumadp.errors import ControlPlaneRefused, ControlPlaneUnavailable
from kumadp.settings.model import Settings

if TYPE_CHECKING:
    from kumadp.errors import KumadpError

LAST_GOOD = Fetched({}, None, 1.0)


def part() -> ControlPlanePart:
    """Return a part that has a last good configuration."""
    made = ControlPlanePart(
        Context(Inputs(Settings(name="web", mesh="default"), None, {})), lambda: Versions("1.40.0"), Sidecar, tuple
    )
    made._last_good = LAST_GOOD
    return made


async def failed(error: KumadpError) -> asyncio.Task[Fetched]:
    async def fail() -> Fetched:
        raise error

    request = asyncio.create_task(fail())
    await asyncio.wait({request})
    return request


async def test_a_time_limit_that_ends_with_the_first_failure_does_not_end_the_start() -> None:
    error = ControlPlaneUnavailable("connection refused")
    assert await part()._fetched_or_last_good(await failed(error)) is LAST_GOOD


async def test_a_rejection_ends_the_start() -> None:
    error = ControlPlaneRefused("token is revoked")
    with pytest.raises(ControlPlaneRefused, match="revoked"):
        await part()._fetched_or_last_good(await failed(error))
