"""Standalone mode as a part of the daemon."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.core.context import Context, Inputs
from kumadp.errors import KumadpError
from kumadp.host.net.ports import BindAddress
from kumadp.host.work_dir import BOOTSTRAP_FILE, WorkDir
from kumadp.settings.model import Settings
from kumadp.standalone.mesh import read_mesh
from kumadp.standalone.part import StandalonePart
from tests.standalone.envoy_admin import FakeAdmin
from tests.standalone.meshes import ours
from tests.support.mesh import outbound, write
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


class Rig:
    def __init__(self, folder: Path, *, taken: tuple[BindAddress, ...] = (), **settings: Any) -> None:
        self.mesh = write(folder / "mesh", ours(outbound(10001, "backend")))
        work = folder / "work"
        work.mkdir(mode=0o700)
        chosen = Settings(standalone=str(self.mesh), **settings)
        mesh = read_mesh(self.mesh, "web")
        self.context = Context(Inputs(chosen, mesh.ours, {}, standalone=True))
        self.context.use_work_dir(WorkDir(work, work, work, temporary=False))
        self.admin = FakeAdmin(work / "xds")
        self.names: list[Mapping[str, Iterable[str]]] = []
        self.part = StandalonePart(
            self.context, mesh, lambda: taken, lambda: None, lambda: self.admin, self.names.append
        )

    def bootstrap(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.context.work.path / BOOTSTRAP_FILE).read_text())
        return content


async def test_the_bootstrap_and_the_files_are_written_before_envoy_starts(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_memory_bytes=500 << 20)
    await rig.part.start()
    bootstrap = rig.bootstrap()
    assert bootstrap["admin"]["address"]["socketAddress"]["portValue"] == 19901
    assert "overloadManager" in bootstrap
    files = {path.name for path in (rig.context.work.path / "xds").iterdir()}
    assert files == {"clusters.json", "listeners.json"}
    assert rig.names == []


async def test_a_taken_admin_port_is_an_error(tmp_path: Path) -> None:
    rig = Rig(tmp_path, taken=(BindAddress("127.0.0.1", 19901, "tcp", "readiness", "--readiness-port"),))
    with pytest.raises(KumadpError, match="19901"):
        await rig.part.start()


async def test_the_files_are_followed_once_everything_has_started(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    await rig.part.start()
    await rig.part.started()
    try:

        async def named(address: str) -> bool:
            return bool(rig.names) and rig.names[-1] == {"backend.mesh": {address}}

        await poll_async(lambda: named("127.0.0.1"), what="the first names")
        write(rig.mesh, ours(outbound(10001, "backend", "127.0.0.9")))
        await poll_async(lambda: named("127.0.0.9"), what="the changed names")
    finally:
        async with asyncio.timeout(10):
            await rig.context.stack.leave()
