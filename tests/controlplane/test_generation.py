"""The generation of the control plane in a run: known with the first bootstrap, and followed from then on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.bootstrap.generation import Generation
from kumadp.controlplane.bootstrap_client import Sidecar, Versions
from kumadp.controlplane.part import ControlPlanePart
from kumadp.core.context import Context, Inputs
from kumadp.core.part import Part
from kumadp.host.work_dir import WorkDir
from kumadp.settings.model import Settings
from tests.support.first_bootstrap import start_with_bootstrap
from tests.support.scripted_control_plane import TOKEN, ScriptedControlPlane, captured_answer

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.bootstrap.prepare import Fetched, Prepared


class NoRelay:
    path: Path | None = None

    def preload(self) -> None:
        pass

    async def load(self, envoy_version: str) -> Fetched | None:
        del envoy_version
        return None

    async def confirm(self) -> None:
        pass


class Follower(Part):
    def __init__(self) -> None:
        self.seen: list[object] = []

    def on_generation(self, generation: Generation) -> None:
        self.seen.append(generation)

    async def on_bootstrap(self, prepared: Prepared) -> None:
        self.seen.append(prepared.config_path.name)


async def test_parts_follow_the_generation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = captured_answer("kuma-2.14.3/dataplane"), captured_answer("kuma-3.0-dev/full")
    with ScriptedControlPlane(old, old, new, old, tls=False) as plane:
        settings = Settings(name="web", mesh="default", cp_address=plane.url, token=TOKEN)
        context = Context(Inputs(settings, None, {}))
        context.work = WorkDir(tmp_path, tmp_path, tmp_path, temporary=False)
        part, follower = ControlPlanePart(context, lambda: Versions("1.40.0"), Sidecar, tuple), Follower()
        part.connect(NoRelay())
        context.parts = [follower]
        assert context.generation is None
        await start_with_bootstrap(part)
        assert follower.seen == [Generation.KUMA_2, "bootstrap.yaml"]
        for _ in range(3):
            await part.client.fetch(lambda error: pytest.fail(str(error)), 10.0)
    assert follower.seen[2:] == [Generation.KUMA_3, Generation.KUMA_2]
    assert context.status.snapshot()["control_plane_generation"] == 2
    assert "was of Kuma 2, and is of Kuma 3 now" in caplog.text
