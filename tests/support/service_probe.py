"""The probe of an application by Envoy, and what the control plane holds of its result."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from tests.support.daemon import Workload
from tests.support.kuma_control_plane import is_healthy
from tests.support.poll import poll
from tests.support.rig import NAME, SOON

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE: dict[str, Any] = {"interval": "1s", "timeout": "0.5s", "unhealthyThreshold": 1, "healthyThreshold": 1, "tcp": {}}


def wait_health(healthy: bool, what: str) -> None:
    """Wait until the control plane holds the inbound as healthy, or as unhealthy."""
    poll(lambda: is_healthy(NAME) is healthy, what=what, deadline=SOON)


@contextlib.contextmanager
def back_after_an_outage(app: Workload) -> Iterator[None]:
    """End the application until its inbound is unhealthy; within the context another one serves, and it is healthy."""
    app.close()
    wait_health(healthy=False, what="an unhealthy inbound")
    back = Workload("backend", app.port)
    try:
        wait_health(healthy=True, what="a healthy inbound again")
        yield
    finally:
        back.close()
