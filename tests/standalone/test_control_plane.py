"""The embedded control plane follows Dataplane files; Envoy is replaced by a fake admin."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.standalone import xds_update
from kumadp.standalone.control_plane import EmbeddedControlPlane, prepare
from kumadp.standalone.mesh import read_mesh
from tests.standalone.envoy_admin import FakeAdmin
from tests.standalone.meshes import ours
from tests.support.mesh import Tree, dataplane, inbound, outbound, write
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

OUTBOUND = "outbound:127.0.0.1:10001"


class Rig:
    """A control plane for the Dataplane ``web`` of a folder."""

    def __init__(self, folder: Path, *dataplanes: Tree) -> None:
        self.folder, self.xds = folder / "mesh", folder / "xds"
        write(self.folder, *dataplanes)
        setup = prepare(read_mesh(self.folder, "web"), self.xds, None)
        self.bootstrap: dict[str, Any] = setup.bootstrap
        self.admin = FakeAdmin(self.xds)
        self.names: list[Mapping[str, Iterable[str]]] = []
        self.component = EmbeddedControlPlane(self.folder, "web", setup, None, self.admin, self.names.append)

    def listeners(self) -> set[str]:
        content = json.loads((self.xds / "listeners.json").read_text())
        return {resource["name"] for resource in content["resources"]}

    async def wait_for(self, listener: str, *, present: bool = True) -> None:
        async def changed() -> bool:
            return (listener in self.listeners()) is present

        await poll_async(changed, what=f"{listener} {'added' if present else 'removed'}")


@contextlib.asynccontextmanager
async def running(folder: Path, *dataplanes: Tree) -> AsyncIterator[Rig]:
    rig = Rig(folder, *dataplanes)
    up = asyncio.Event()
    task = asyncio.create_task(rig.component.run(up.set))
    try:
        async with asyncio.timeout(10):
            await up.wait()
        yield rig
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async def there() -> bool:
        return text in caplog.text

    await poll_async(there, what=f"the log line {text!r}")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xds_update, "APPLIED_WITHIN", 0.5)


def test_the_first_configuration_replaces_leftovers(tmp_path: Path) -> None:
    (tmp_path / "xds").mkdir(mode=0o700)
    (tmp_path / "xds" / "endpoints.json").write_text("{}")
    rig = Rig(tmp_path, ours())
    assert {path.name for path in rig.xds.iterdir()} == {"clusters.json", "listeners.json"}
    assert rig.bootstrap["dynamicResources"]["cdsConfig"]["pathConfigSource"]["path"] == str(rig.xds / "clusters.json")


async def test_a_change_is_applied_and_names_are_reported(tmp_path: Path) -> None:
    async with running(tmp_path, ours()) as rig:
        write(rig.folder, ours(outbound(10001, "backend", "127.0.0.9")))
        await rig.wait_for("outbound:127.0.0.9:10001")

        async def named() -> bool:
            return rig.names[-1] == {"backend.mesh": {"127.0.0.9"}}

        await poll_async(named, what="the names of the mesh")
    assert rig.names[0] == {}


async def test_an_invalid_file_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, ours()) as rig:
        (rig.folder / "broken.yaml").write_text("type: [")
        write(rig.folder, ours(outbound(10001, "backend")))
        await logged(caplog, "change ignored: ")
        assert OUTBOUND not in rig.listeners()
        (rig.folder / "broken.yaml").unlink()
        await rig.wait_for(OUTBOUND)


async def test_a_rejected_change_is_reverted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, ours()) as rig:
        rig.admin.rejected[OUTBOUND] = "cannot bind"
        write(rig.folder, ours(outbound(10001, "backend")))
        await logged(caplog, "change rejected, restoring the previous configuration: ")
        await rig.wait_for(OUTBOUND, present=False)
        assert "networking.outbound[0].port: rejected by Envoy: cannot bind" in caplog.text
        assert "rejected too" not in caplog.text
        rig.admin.rejected.clear()
        write(rig.folder, ours(outbound(10001, "backend"), outbound(10002, "backend")))
        await rig.wait_for(OUTBOUND)


async def test_an_unconfirmed_change_is_confirmed_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, ours()) as rig:
        rig.admin.answers = False
        write(rig.folder, ours(outbound(10001, "backend")))
        await logged(caplog, "written but not applied yet, waiting for Envoy: Envoy does not answer")
        await rig.wait_for(OUTBOUND)
        rig.admin.answers = True

        async def confirmed() -> bool:
            return ("listeners.json", sorted(rig.listeners())) in [
                (file, sorted(names)) for file, names in rig.admin.applied
            ]

        await poll_async(confirmed, what="the change in force")


def with_admin_port(port: int) -> Tree:
    tree = ours()
    tree["networking"]["admin"] = {"port": port}
    return tree


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {**ours(), "networking": {**ours()["networking"], "admin": {"port": 19902}}},
            "networking.admin.port: needs a restart",
        ),
        (ours(metrics={"type": "prometheus", "conf": {"port": 18080}}), "is bound by "),
    ],
)
async def test_changes_that_cannot_be_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Tree, message: str
) -> None:
    async with running(tmp_path, ours()) as rig:
        previous = rig.listeners()
        write(rig.folder, change)
        await logged(caplog, "change ignored: ")
        assert message in caplog.text
        assert rig.listeners() == previous


async def test_notes_are_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, ours(outbound(10001, "backend"))) as rig:
        await logged(caplog, "backend: no Dataplane offers it now")
        write(rig.folder, ours(outbound(10001, "backend"), outbound(10002, "other")))
        await logged(caplog, "other: no Dataplane offers it now")
        write(rig.folder, dataplane("b", [inbound(7000, 1, "backend")], address="10.0.0.2"))

        async def changed() -> bool:
            return "10.0.0.2" in (rig.xds / "clusters.json").read_text()

        await poll_async(changed, what="the endpoint")
    assert caplog.text.count("backend: no Dataplane offers it now") == 1
