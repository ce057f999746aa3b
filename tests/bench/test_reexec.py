"""150 re-executions in a row under load: none may lose anything; how long the slowest answer took is the figure.

And those of a whole kumadp: how long readiness takes at worst during one. A kubelet's probe has one second.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.bench.test_start import note
from tests.support.daemon import get
from tests.support.loaded_rig import open_loaded_rig
from tests.support.reexec_client import LOOPS, Load, assert_no_line_is_lost, program
from tests.support.xds.plane import XdsControlPlane

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.timeout(900)]

TIMES = 150
OF_ALL = 8


@pytest.mark.parametrize("loop", LOOPS)
def test_many_re_executions_in_a_row(loop: str, table: list[tuple[str, str, str]]) -> None:
    with program(loop) as running:
        first = running.start()
        begun = time.monotonic()
        with Load(running) as load:
            for _ in range(TIMES):
                running.again()
        each = (time.monotonic() - begun) / TIMES
        last = running.start()
        assert load.failed == []
        assert (last["pid"], last["child"], last["count"]) == (first["pid"], first["child"], TIMES)
        (running.folder / "end").touch()
        assert_no_line_is_lost(running)
    counts = ", ".join(f"{number} {name}" for name, number in load.counts.items())
    table.append((f"{TIMES} re-executions, {loop}: each", f"{each:.2f} s", f"0 failed of {counts}"))
    table.append((f"{TIMES} re-executions, {loop}: slowest answer", f"{load.longest:.2f} s", ""))


def test_readiness_during_a_reexecution(table: list[tuple[str, str, str]]) -> None:
    slowest = []
    with XdsControlPlane() as plane, open_loaded_rig(plane) as rig, rig.up() as daemon:
        for _ in range(OF_ALL):
            took: list[float] = []
            over = threading.Event()

            def request_readiness(took: list[float] = took, over: threading.Event = over) -> None:
                while not over.wait(0.005):
                    begun = time.monotonic()
                    assert get(rig.ports.readiness, "/ready") == (200, "READY")
                    took.append(time.monotonic() - begun)

            with ThreadPoolExecutor(1) as pool:
                requests = pool.submit(request_readiness)
                rig.reexec(daemon)
                over.set()
                requests.result()
            slowest.append(max(took) * 1000)
    note(table, "re-execution of a kumadp: slowest answer of readiness", "ms", slowest)
