"""A control plane that is unreachable for ten minutes, in ten seconds: the log reports it and stays short."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import short_backoff
from tests.support.poll import poll

if TYPE_CHECKING:
    from tests.support.rig import Rig

pytestmark = pytest.mark.process

# Everything that takes time then takes a sixtieth of it: as many attempts, and lines, as in ten minutes.
TIMES = 60
OUTAGE = 600.0
SHORT_BACKOFF = (sys.executable, str(Path(short_backoff.__file__)), str(TIMES))
BACKOFF = {"KUMA_CONTROL_PLANE_RETRY_BACKOFF": f"{3000 // TIMES}ms"}
CHECKED = f"--bootstrap-check-interval={300 // TIMES}s"
MOST = 50


def attempts(lines: list[str]) -> int:
    """Return how many attempts failed, including suppressed lines by their count."""
    attempt_lines = [line for line in lines if re.search(r"bootstrap: |no stream to the control plane", line)]
    suppressed = sum(int(number) for line in attempt_lines for number in re.findall(r"\((\d+) more like this", line))
    return len(attempt_lines) + suppressed


def test_while_traffic_flows(rig: Rig) -> None:
    with rig.run(CHECKED, environment=BACKOFF, prefix=SHORT_BACKOFF) as daemon:
        rig.wait_ready(daemon)
        length = len(daemon.output())
        rig.plane.kill()
        time.sleep(OUTAGE / TIMES)
        during = daemon.output()[length:].splitlines()
        rig.plane.start()
        rig.renew_token()
        rig.wait_state(daemon, "open")
        assert rig.serves()
        whole = daemon.output()[length:].splitlines()
    assert any("the stream to the control plane broke" in line for line in during)
    assert any("no stream to the control plane" in line for line in during)
    assert attempts(during) > MOST
    assert len(during) < MOST, "\n".join(during)
    assert len(whole) < MOST


def test_from_the_start_on(rig: Rig) -> None:
    rig.plane.kill()
    with rig.run(CHECKED, environment=BACKOFF, prefix=SHORT_BACKOFF) as daemon:
        time.sleep(OUTAGE / TIMES)
        poll(lambda: rig.status(daemon)["counters"]["bootstrap"]["attempts"] > 20, what="more attempts", deadline=60)
        during = daemon.output().splitlines()
        rig.plane.start()
        rig.renew_token()
        rig.wait_ready(daemon)
    assert len(during) < MOST, "\n".join(during)
