"""resolv.conf is watched for each kind of change."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from typing import TYPE_CHECKING

import pytest

from kumadp.dns.resolvconf_watch import ResolvConfWatch
from tests.support.needs import need_netns
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


@contextlib.asynccontextmanager
async def watched(path: Path) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    seen: list[str] = []

    async def changed() -> None:
        seen.append("changed")

    up = asyncio.Event()
    task = asyncio.create_task(ResolvConfWatch(path, changed).run(up.set))
    await up.wait()

    async def wait_for(times: int) -> None:
        async def there() -> bool:
            return len(seen) >= times

        await poll_async(there, what=f"{times} changes of {path.name}")
        assert len(seen) == times

    try:
        yield wait_for
    finally:
        task.cancel()


async def test_each_kind_of_change_of_resolv_conf_is_seen(tmp_path: Path) -> None:
    real, link = tmp_path / "stub", tmp_path / "resolv.conf"
    real.write_text("nameserver 192.0.2.1\n")
    link.symlink_to(real)
    async with watched(link) as seen:
        real.write_text("nameserver 192.0.2.1\nnameserver 192.0.2.2\n")
        await seen(1)
        (tmp_path / "new").write_text("nameserver 192.0.2.1\nnameserver 192.0.2.3\n")
        (tmp_path / "new").replace(real)
        await seen(2)
        (tmp_path / "other").write_text("nameserver 192.0.2.4\n")
        (tmp_path / "link").symlink_to(tmp_path / "other")
        (tmp_path / "link").replace(link)
        await seen(3)
        link.unlink()
        await seen(4)
        link.write_text("nameserver 192.0.2.5\n")
        await seen(5)


@pytest.mark.netns
async def test_a_resolv_conf_that_is_mounted_is_seen_when_its_source_is_written(tmp_path: Path) -> None:
    """As a container's is, by whoever runs the container."""
    need_netns()
    source, mounted = tmp_path / "source", tmp_path / "resolv.conf"
    source.write_text("nameserver 192.0.2.1\n")
    mounted.touch()
    await asyncio.to_thread(subprocess.run, ["mount", "--bind", str(source), str(mounted)], check=True)
    try:
        async with watched(mounted) as seen:
            source.write_text("nameserver 192.0.2.1\nnameserver 192.0.2.2\n")
            await seen(1)
            source.write_text("nameserver 192.0.2.3\n")
            await seen(2)
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", str(mounted)], check=True)
