"""`kumadp reload` with 1,000 services under load: no request lost, however long the new Envoy takes.

KUMADP_BENCH_SERVICES is another number of services.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.bench.large_mesh import SERVICES, LargeMesh
from tests.bench.test_start import note, processor_time
from tests.bench.test_stat_tags import LONGEST, envoy_of
from tests.support.load_process import LoadProcess
from tests.support.loaded_rig import LoadedRig
from tests.support.poll import poll
from tests.support.rig import NODE
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.timeout(900)]

ROUNDS = 3
# With 1,000 services of Kuma's size its start takes seconds, in which the old one must not end (the default is 30 s).
DRAIN = 5


@pytest.mark.parametrize("mode", ["fast", "as-sent"])
def test_reload(tmp_path: Path, table: list[tuple[str, str, str]], mode: str) -> None:
    services = int(os.environ.get("KUMADP_BENCH_SERVICES", str(SERVICES)))
    with XdsControlPlane() as plane, LoadProcess() as pressure:
        rig = LoadedRig(tmp_path, plane, pressure)
        mesh = plane.mesh(NODE)
        mesh.inbound(rig.ports.inbound, rig.app.port)
        mesh.outbound(rig.ports.outbound, rig.app.name, http2=True)
        LargeMesh(mesh, services)
        took, used, answered = [], [], 0
        try:
            with rig.run(f"--stat-tags={mode}", f"--drain-time={DRAIN}s") as daemon:
                poll(rig.serves, what="the first answer", deadline=LONGEST)
                # READY comes later: Envoy's main thread adds a thousand listeners to its workers first.
                daemon.wait_ready(LONGEST)
                poll(lambda: rig.settled(daemon), what="everything acknowledged", deadline=LONGEST)
                for epoch in range(1, ROUNDS + 1):
                    # It asserts that no request fails.
                    with rig.load(rate=200.0) as report:
                        since = time.monotonic()
                        assert f"epoch {epoch} serves" in rig.reload(daemon)
                        took.append(time.monotonic() - since)
                        poll(lambda: len(rig.envoys()) == 1, what="the end of the old Envoy", deadline=LONGEST)
                    answered += report.answered
                    used.append(processor_time(envoy_of(daemon).pid))
        finally:
            rig.end()
        what = f"{mode}, {services} services: reload"
        note(table, what, "s", took)
        note(table, f"{what}: Envoy's processor time", "s", used)
        table.append((f"{what}: requests answered, lost", str(answered), "0"))
