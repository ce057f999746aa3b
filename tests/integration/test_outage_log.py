"""A control plane that is away for ten minutes, in ten seconds: the log says so, and stays short."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import short_backoff
from tests.support.rig import Rig, rig
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process

# Everything that takes time then takes a sixtieth of it: as many attempts, and lines, as in ten minutes.
TIMES = 60
OUTAGE = 600.0
SHORT_BACKOFF = (sys.executable, str(Path(short_backoff.__file__)), str(TIMES))
BACKOFF = {"KUMA_CONTROL_PLANE_RETRY_BACKOFF": f"{3000 // TIMES}ms"}
CHECKED = f"--bootstrap-check-interval={300 // TIMES}s"
MOST = 50


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Rig]:
    with XdsControlPlane() as plane, rig(tmp_path, plane) as made:
        yield made


def attempts(lines: list[str]) -> int:
    """How often one failed, those counted that are told with a count."""
    told = [line for line in lines if re.search(r"bootstrap: |no stream to the control plane", line)]
    left_out = sum(int(number) for line in told for number in re.findall(r"\((\d+) more like this", line))
    return len(told) + left_out


def test_while_traffic_flows(at: Rig) -> None:
    with at.run(CHECKED, environment=BACKOFF, prefix=SHORT_BACKOFF) as daemon:
        at.wait_ready(daemon)
        length = len(daemon.output())
        at.plane.kill()
        time.sleep(OUTAGE / TIMES)
        during = daemon.output()[length:].splitlines()
        at.plane.start()
        at.renew_token()
        at.wait_state(daemon, "open")
        assert at.serves()
        whole = daemon.output()[length:].splitlines()
    assert any("the stream to the control plane broke" in line for line in during)
    assert any("no stream to the control plane" in line for line in during)
    assert attempts(during) > MOST
    assert len(during) < MOST, "\n".join(during)
    assert len(whole) < MOST


def test_from_the_start_on(at: Rig) -> None:
    at.plane.kill()
    with at.run(CHECKED, environment=BACKOFF, prefix=SHORT_BACKOFF) as daemon:
        time.sleep(OUTAGE / TIMES)
        during = daemon.output().splitlines()
        # A line is told when the reason is another one.
        assert at.status(daemon)["counters"]["bootstrap"]["attempts"] > 20
        at.plane.start()
        at.renew_token()
        at.wait_ready(daemon)
    assert len(during) < MOST, "\n".join(during)
