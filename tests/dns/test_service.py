"""CoreDNS in a run: its Corefile, its templates, and what readiness and status have of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.core.context import Context, Inputs
from kumadp.dns.coredns.service import CoreDnsService
from kumadp.dns.plan import DnsPlan
from kumadp.errors import SettingsError
from kumadp.host.work_dir import COREFILE, WorkDir
from kumadp.process.restart_policy import ChildState
from kumadp.settings.model import Settings
from tests.support.needs import need_coredns
from tests.support.poll import poll_async
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GOOD = ".:{{ .CoreDNSPort }} {\n    bind 127.0.0.1\n    whoami\n}\n"
BROKEN = GOOD.replace("whoami", "no-such-plugin")


class Rig:
    def __init__(self, folder: Path, binary: Path, **settings: Any) -> None:
        port, envoy, metrics = free_ports(3)
        self.context = Context(Inputs(Settings(name="web", mesh="default", **settings), None, {}))
        self.context.use_work_dir(WorkDir(folder, folder, folder, temporary=False))
        resolv_conf = folder / "resolv.conf"
        resolv_conf.write_text("nameserver 192.0.2.53\n")
        self.corefile = folder / COREFILE
        self.service = CoreDnsService(self.context, DnsPlan(binary, port, envoy, metrics), binary, resolv_conf, None)

    @contextlib.asynccontextmanager
    async def running(self, template: str | None = None) -> AsyncIterator[asyncio.Event]:
        try:
            yield await self.service.start(template)
        finally:
            await self.context.stack.leave()


def test_before_it_is_started(tmp_path: Path) -> None:
    service = Rig(tmp_path, tmp_path / "none").service
    assert service.children == ()
    assert service.fallback is None
    assert service.status() == {"answered_by": "CoreDNS", "corefile": ""}
    service.kill()


async def test_templates_that_come_before_the_start_are_ignored(tmp_path: Path) -> None:
    rig = Rig(tmp_path, tmp_path / "none")
    await rig.service.use_template(GOOD)
    await rig.service.follow()
    assert not rig.corefile.exists()


@pytest.mark.process
async def test_a_broken_template_of_the_user_ends_the_start(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text(BROKEN)
    rig = Rig(tmp_path, need_coredns(), coredns_config_template_path=str(own))
    with pytest.raises(SettingsError, match="rejected by CoreDNS"):
        async with rig.running():
            pass
    assert rig.service.children == ()


@pytest.mark.process
async def test_it_follows_the_template_of_the_control_plane(tmp_path: Path) -> None:
    rig = Rig(tmp_path, need_coredns())
    async with rig.running(GOOD) as answers:
        async with asyncio.timeout(60):
            await answers.wait()
        (child,) = rig.service.children
        assert rig.service.status() == {
            "answered_by": "CoreDNS",
            "corefile": "the control plane's corefileTemplate",
        }
        assert rig.context.status.children["coredns"].state is ChildState.RUNNING
        await rig.service.use_template(GOOD.replace("whoami", "errors"))
        assert "errors" in rig.corefile.read_text()
        await rig.service.use_template(BROKEN)
        assert "errors" in rig.corefile.read_text()
        assert "no-such-plugin" in rig.context.status.warnings["corefile"]
        await rig.service.use_template(None)
        assert rig.service.status()["corefile"].startswith("the built-in Corefile")
        assert "corefile" not in rig.context.status.warnings
        assert rig.service.children == (child,)
    assert not rig.service.children


@pytest.mark.process
async def test_a_binary_without_a_corefile_is_replaced_by_the_fallback(tmp_path: Path) -> None:
    binary = tmp_path / "coredns"
    binary.write_text("#!/bin/sh\necho 'Corefile:1 - Error during parsing: Unknown directive'\nexit 1\n")
    binary.chmod(0o755)
    rig = Rig(tmp_path, binary, coredns_restart_budget=0)
    rig.context.status.set_not_ready("dns", "CoreDNS does not answer yet")
    async with rig.running():

        async def failed() -> bool:
            return "coredns" in rig.context.status.warnings

        await poll_async(failed, what="the warning", deadline=60)
        assert "the embedded resolver answers in its place" in rig.context.status.warnings["coredns"]
        assert rig.service.status()["answered_by"] == "the embedded resolver"
        assert rig.service.fallback is not None
        assert rig.context.status.reasons == {}
