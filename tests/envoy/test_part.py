"""What is recorded of Envoy, so that a kumadp after this one can adopt it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kumadp.core import context as context_module
from kumadp.core.context import Context, Inputs
from kumadp.core.previous import Previous
from kumadp.daemon import adoption
from kumadp.daemon.adoption import StateRecorder
from kumadp.envoy.adopted_envoy import EnvoyState
from kumadp.envoy.part import EnvoyPart
from kumadp.host.state_file import read_state
from kumadp.host.work_dir import WorkDir
from kumadp.settings.resolve import resolve
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.host.state_file import SavedState


def state_of(generation: int) -> EnvoyState:
    return EnvoyState(serial=0, epoch=1, blind=False, current=17, retiring=16, generation=generation)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr(context_module, "find_container_sign", lambda _environ: "")
    context = Context(Inputs(resolve("run", {"name": "web", "mesh": "default"}, {}).settings, None, {}))
    context.use_work_dir(WorkDir(tmp_path, tmp_path, tmp_path, temporary=False))
    return context


def recorded(context: Context) -> tuple[EnvoyPart, StateRecorder]:
    part = EnvoyPart(context, lambda: False)
    context.parts = [part]
    recorder = StateRecorder(context, dict)
    recorder.open()
    return part, recorder


class Component:
    children = ()
    generation = 1

    def export(self, *, starting: bool) -> EnvoyState:
        assert starting
        return state_of(self.generation)


async def settled(threads: ThreadPoolExecutor) -> None:
    """Wait for what runs in these threads, and for what it calls on the loop."""
    loop = asyncio.get_running_loop()
    threads.shutdown(wait=True)
    loop.set_default_executor(ThreadPoolExecutor())
    await asyncio.sleep(0)


async def test_what_was_noted_last_is_what_stays(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, looks = threading.Event(), list[int]()

    def records(*_: object) -> list[Any]:
        looks.append(1)
        if len(looks) == 1:
            slow.wait(20)
        return []

    monkeypatch.setattr(adoption, "_records", records)
    threads = ThreadPoolExecutor()
    asyncio.get_running_loop().set_default_executor(threads)
    part, recorder = recorded(context)
    part.component = component = Component()  # type: ignore[assignment]

    async def began() -> bool:
        return bool(looks)

    async def on_disk() -> SavedState | None:
        return read_state(context.work.path)

    part._on_started(1, 17)
    await poll_async(began, what="the first look")
    component.generation = 2
    recorder.note()
    await poll_async(on_disk, what="the state file")
    slow.set()
    await settled(threads)
    await recorder.written()
    state = await on_disk()
    assert state is not None
    assert state.parts["envoy"]["generation"] == 2


async def test_what_is_noted_when_all_is_over_leaves_nothing(context: Context) -> None:
    part, recorder = recorded(context)
    part.component = Component()  # type: ignore[assignment]
    threads = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    part._on_started(1, 17)
    await recorder.forget()
    await settled(threads)
    await recorder.written()
    assert [path.name for path in context.work.path.iterdir()] == []


async def test_until_an_adopted_envoy_is_watched_the_previous_state_file_stays(context: Context) -> None:
    part, recorder = recorded(context)
    part.component = Component()  # type: ignore[assignment]
    threads = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    recorder.note()
    await settled(threads)
    await recorder.written()
    assert read_state(context.work.path) is None


async def test_the_epochs_of_an_adopted_envoy_are_known_before_it_is_watched(context: Context) -> None:
    children: Any = {pid: SimpleNamespace(pid=pid, name="envoy", fifo=None) for pid in (17, 16)}
    part, _ = recorded(context)
    part.adopt(Previous(children, state={"envoy": msgspec.to_builtins(state_of(4))}))
    assert [part.epoch_of(pid) for pid in (17, 16, 15)] == [4, 3, 0]
    assert part.adopted == (4, 17)
    assert [child.pid for child in part.children()] == [17, 16]
